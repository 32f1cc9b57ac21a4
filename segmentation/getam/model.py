"""GETAM's network (arXiv 2112.02841): a ViT encoder, class logits from its deepest map, a DPT decoder."""

import inspect
import logging
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segmentation.getam.decoder import ChannelAttention, Reassemble, Scratch
from segmentation.getam.encoders import BACKBONES, STEM_CHANNELS, Encoder, get_backbone
from wsss.backbones import IMAGENET
from wsss.checkpoint import load_checkpoint, load_strict, unwrap_state
from wsss.errors import UserError
from wsss.pretrained import read_weights, shorten
from wsss.vit import resize_positions

log = logging.getLogger(__name__)

WIDTHS = (96, 192, 384, 768)  # of the reassembled maps, at D = 768
FUSION_WIDTH = 256  # of the decoder, at D = 768
STRIDE = 32  # pixels: sides of the input are multiples of it


class Features(NamedTuple):
    """What the encoder gives."""

    maps: list[Tensor]  # four, (B, width, H/4, W/4) to (B, width, H/32, W/32)
    class_rows: list[Tensor]  # (B, heads, 1, N) of the blocks asked for, in the graph of the class logits
    grid: tuple[int, int]  # of the patches


class Getam(nn.Module):
    """See ``build_getam``."""

    def __init__(self, encoder: Encoder, *, num_classes: int, hybrid: bool):
        super().__init__()
        D = encoder.embed_dim
        depth = len(encoder.blocks)
        self.taps = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]  # blocks 2, 5, 8, 11
        widths = [width * D // WIDTHS[-1] for width in WIDTHS]
        factors = [4, 2, 1, -2]
        self.pretrained = nn.Module()
        self.pretrained.model = encoder
        if hybrid:
            widths = [*STEM_CHANNELS[:2], D, D]
            self.taps = self.taps[2:]
        self.num_stages = 4 - len(self.taps)  # maps that the ResNet gives
        for number in range(self.num_stages + 1, 5):
            reassemble = Reassemble(D, widths[number - 1], factors[number - 1])
            setattr(self.pretrained, f"act_postprocess{number}", reassemble)
        channels = FUSION_WIDTH * D // WIDTHS[-1]
        self.scratch = Scratch(widths, channels, num_classes + 1)
        self.cam_module = ChannelAttention(channels)
        self.cls_head = nn.Linear(widths[-1], num_classes)
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W), sides multiples of 32, to class logits (B, C) and segmentation
        logits (B, C + 1, H, W)."""
        features = self.encode(images)
        return self.classify(features), self.segment(features)

    def encode(self, images: Tensor, *, rows_from: int | None = None) -> Features:
        """The four feature maps.

        Args:
            rows_from: Also give the class token's attention row of the blocks from this one on (from 0).
        """
        if images.shape[-2] % STRIDE or images.shape[-1] % STRIDE:
            raise ValueError(f"sides {tuple(images.shape[-2:])}: GETAM takes multiples of {STRIDE}")
        encoder = self.pretrained.model
        tokens, grid, maps = encoder.embed(images)
        rows = []
        for number, block in enumerate(encoder.blocks):
            wanted = rows_from is not None and number >= rows_from
            tokens, record = block(tokens, first_rows=int(wanted))
            if wanted:
                rows.append(record.first_rows)
            if number in self.taps:
                level = self.num_stages + self.taps.index(number) + 1
                reassemble = getattr(self.pretrained, f"act_postprocess{level}")
                patches = tokens[:, encoder.num_prefix_tokens :]
                maps = [*maps, reassemble(tokens[:, :1], patches, grid)]
        return Features(maps, rows, grid)

    def classify(self, features: Features) -> Tensor:
        """Class logits (B, C), from the average of the deepest map."""
        return self.cls_head(features.maps[-1].mean((2, 3))).float()

    def segment(self, features: Features) -> Tensor:
        """Segmentation logits (B, C + 1, H, W), background first."""
        return self.scratch.head(self.cam_module(self.scratch.fuse(features.maps)))


def build_getam(backbone: str = "vitb_hybrid", *, num_classes: int = 20) -> Getam:
    """Build the network.

    image -> patches (hybrid: of a ResNet, whose first two stages are maps 1 and 2) -> L blocks
          -> four taps with the class token, reassembled to strides 4, 8, 16, 32
          -> average of the fourth, linear -> class logits
          -> four fusions from coarse to fine -> channel attention -> head -> segmentation logits

    Widths of the decoder are the published ones for D = 768, and in proportion for smaller encoders.

    Args:
        backbone: Name in ``segmentation.getam.encoders.BACKBONES``.
        num_classes: C, foreground classes; the segmentation has C + 1.

    Returns:
        The network, with ``pixel_mean``, ``pixel_std`` (of pixels in 0..1; ImageNet's for all) and
        ``backbone`` as plain attributes.
    """
    found = get_backbone(backbone)
    model = Getam(Encoder(found), num_classes=num_classes, hybrid=found.hybrid)
    model.backbone = backbone
    model.pixel_mean, model.pixel_std = IMAGENET.mean, IMAGENET.std
    return model


def start_from_pretrained(model: Getam, source: str) -> None:
    """Load ImageNet weights into the encoder; the decoder stays fresh.

    Every tensor is accounted for: loaded, resized (positions, bilinearly, where the grid differs), skipped
    (classifiers that do not fit, and what timm adds to them), or fresh; anything else stops with its name.

    Args:
        source: A file, a name on timm's hub, or ``"hub"`` for the encoder's published starting weights.

    Raises:
        UserError: A tensor of another name or shape, or one that is missing.
    """
    encoder = model.pretrained.model
    hub_name = get_backbone(model.backbone).hub_name
    if source == "hub" and hub_name is None:
        raise UserError(f"--pretrained hub: {model.backbone} has no published weights; give a file, or none")
    state = read_weights(hub_name if source == "hub" else source, model.backbone)
    own = encoder.state_dict()
    heads = ("head.", "head_dist.", "fc_norm.", "pre_logits.")
    skipped = [
        k for k, v in state.items() if k.startswith(heads) and (k not in own or own[k].shape != v.shape)
    ]
    state = {k: v.float() for k, v in state.items() if k not in skipped}
    resized = _fit_positions(encoder, state)
    fresh = [k for k in own if k.startswith(heads) and k not in state]
    load_strict(encoder, {**state, **{k: own[k] for k in fresh}}, source)
    for group, names in (
        ("loaded", list(state)),
        ("resized", resized),
        ("skipped", skipped),
        ("fresh", fresh),
    ):
        log.info("starting weights %s, %s: %d (%s)", source, group, len(names), shorten(names) or "none")


def _fit_positions(encoder: Encoder, state: dict[str, Tensor]) -> list[str]:
    """Resize the positions of another grid in place; says what was done."""
    positions, prefix = state.get("pos_embed"), encoder.num_prefix_tokens
    if positions is None or positions.ndim != 3 or positions.shape[1] <= prefix:
        return []
    side, grid = math.isqrt(positions.shape[1] - prefix), (encoder.grid_side, encoder.grid_side)
    if side**2 != positions.shape[1] - prefix or side == encoder.grid_side:
        return []
    patches = resize_positions(positions[:, prefix:], grid, mode="bilinear")
    state["pos_embed"] = torch.cat((positions[:, :prefix], patches), 1)
    return [f"pos_embed {side}x{side} to {grid[0]}x{grid[1]} (bilinear)"]


def load_getam(path: Path, *, backbone: str | None = None) -> tuple[Getam, dict]:
    """Rebuild the network from a checkpoint alone.

    Args:
        path: A checkpoint of ``segmentation.getam.train``, or a released one, whose encoder and number of
            classes are inferred from its tensors.
        backbone: For files without settings only, where several encoders share every shape (ViT and DeiT):
            they differ in name alone, so that it need not be given.

    Returns:
        The network in evaluation mode, and the checkpoint's other entries.

    Raises:
        UserError: Not a checkpoint of this network, or ``backbone`` contradicts the file.
    """
    content = load_checkpoint(path)
    state = unwrap_state(content, path)
    arguments = content.get("model_args") or _infer_arguments(state, path, backbone)
    try:
        inspect.signature(build_getam).bind(**arguments)
        model = build_getam(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: its model_args cannot be used ({error}); give a checkpoint of segmentation.getam.train"
        ) from None
    if backbone not in (None, arguments["backbone"]):
        raise UserError(f"{path}: is a {arguments['backbone']}, not {backbone}; leave --backbone out")
    load_strict(model, state, path)
    weights = ("model", "state_dict", "optimizer")
    entries = {k: v for k, v in content.items() if k not in weights and not isinstance(v, Tensor)}
    return model.eval(), entries


def _infer_arguments(state: dict[str, Tensor], path: Path, backbone: str | None) -> dict:
    prefix = "pretrained.model."
    for name, dimensions in ((f"{prefix}cls_token", 3), (f"{prefix}pos_embed", 3), ("cls_head.weight", 2)):
        if name not in state or state[name].ndim != dimensions:
            found = "of another shape" if name in state else "missing"
            raise UserError(f"{path}: not a checkpoint of GETAM ({name} {found}); check the path")
    names = [k.removeprefix(prefix) for k in state if k.startswith(prefix)]
    width = state[f"{prefix}cls_token"].shape[-1]
    depth = len({k.split(".")[1] for k in names if k.startswith("blocks.")})
    distilled, hybrid = "dist_token" in names, any(k.startswith("patch_embed.backbone.") for k in names)
    tokens = state[f"{prefix}pos_embed"].shape[1]
    fitting = [
        name
        for name, b in BACKBONES.items()
        if (b.embed_dim, b.depth, b.distilled, b.hybrid) == (width, depth, distilled, hybrid)
        and (b.image_size // 16) ** 2 + 1 + b.distilled == tokens
    ]
    if not fitting or backbone not in (None, *fitting):
        shown = ", ".join(fitting) or "none"
        raise UserError(
            f"{path}: width {width}, depth {depth}, {tokens} tokens is not "
            f"{backbone or 'a known encoder'}; known ones that fit: {shown}"
        )
    return {"backbone": backbone or fitting[0], "num_classes": len(state["cls_head.weight"])}
