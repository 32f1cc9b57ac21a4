"""The segmenter: a plain ViT encoder and a mask-transformer decoder (arXiv 2105.05633, arXiv 2304.01184)."""

import inspect
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.decoders.mask_transformer import NORM_EPS, MaskTransformer
from wsss.backbones import BACKBONES, fitting_backbones, get_backbone
from wsss.checkpoint import load_checkpoint, load_strict, unwrap_state
from wsss.errors import UserError
from wsss.pretrained import encoder_state, log_starting_weights, read_weights
from wsss.vit import VisionTransformer, init_linear, resize_positions

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


class Encoder(VisionTransformer):
    """The ViT with one class token. ``head`` is in the published state and not used."""

    def __init__(self, **sizes):
        super().__init__(num_prefix_tokens=1, norm_eps=NORM_EPS, **sizes)
        self.head = nn.Linear(self.embed_dim, IMAGENET_CLASSES)
        init_linear(self.head)
        self.head.requires_grad_(False)

    def positions(self, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        if grid == (self.grid_side, self.grid_side):
            return self.pos_embed
        patches = resize_positions(self.pos_embed[:, 1:].float(), grid, mode="bilinear")
        return torch.cat((self.pos_embed[:, :1], patches), 1)


class Segmenter(nn.Module):
    """See ``build_segmenter``."""

    def __init__(self, encoder: Encoder, decoder: MaskTransformer):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.num_classes, self.patch_size = decoder.num_classes, encoder.patch_size

    def forward(self, images: Tensor, decoder_block: int | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) of any size to logits (B, K, H, W).

        Args:
            decoder_block: Read the decoder after this block, counted from 1; by default after the last.
        """
        last = len(self.decoder.blocks)
        if decoder_block is not None and not 1 <= decoder_block <= last:
            raise ValueError(f"decoder_block {decoder_block}: the decoder has blocks 1..{last}")
        return self._logits(images, [decoder_block or last])[0]

    def block_logits(self, images: Tensor) -> list[Tensor]:
        """The logits after every decoder block, in one pass."""
        return self._logits(images, range(1, len(self.decoder.blocks) + 1))

    def _logits(self, images: Tensor, decoder_blocks) -> list[Tensor]:
        height, width = images.shape[-2:]
        P = self.patch_size
        images = F.pad(images, (0, -width % P, 0, -height % P))
        padded = images.shape[-2:]
        tokens = self.decoder(self.encoder(images)[:, 1:])
        logits = []
        for number in decoder_blocks:
            scores = self.decoder.scores(tokens[number - 1]).transpose(1, 2)
            maps = scores.unflatten(2, (padded[0] // P, padded[1] // P))
            # a sum over four neighbours: in float32, as the loss and the softmax that follow
            maps = F.interpolate(maps.float(), size=padded, mode="bilinear", align_corners=False)
            logits.append(maps[..., :height, :width])
        return logits


def build_segmenter(
    backbone: str, *, num_classes: int, image_size: int = 480, drop_path: float = 0.0, dropout: float = 0.1
) -> Segmenter:
    """Build the network.

    image -> patches + class token + positions -> L pre-norm blocks -> norm
          -> patches, linear, + K class embeddings -> 2 blocks -> norm -> patches . classes -> norm over K
          -> bilinear to the image's size

    Args:
        backbone: Name in ``wsss.backbones.BACKBONES``.
        num_classes: K, background included.
        image_size: Side of the training crop, pixels: fixes the grid of ``pos_embed`` and, for EVA-02, of
            the rotary tables in the state.
        drop_path: Stochastic depth of the encoder's last block; 0.1 in the published training.
        dropout: In the decoder.

    Returns:
        The network, with ``pixel_mean``, ``pixel_std`` (of pixels in 0..1), ``backbone`` and ``image_size``
        as plain attributes.
    """
    found = get_backbone(backbone)
    encoder = Encoder(**found.architecture, image_size=image_size, drop_path=drop_path)
    model = Segmenter(encoder, MaskTransformer(found.embed_dim, num_classes, dropout=dropout))
    model.backbone, model.image_size = backbone, image_size
    model.pixel_mean = tuple(level / 255 for level in found.statistics.level_mean)
    model.pixel_std = tuple(level / 255 for level in found.statistics.level_std)
    return model


def start_from_pretrained(model: Segmenter, source: str) -> None:
    """Load ImageNet weights into the encoder (``wsss.pretrained``); its head and the decoder stay fresh.

    Args:
        source: A file, a name on timm's hub, or ``"hub"`` for the backbone's published starting weights.

    Raises:
        UserError: A tensor of another name or shape, or one that is missing.
    """
    named = {n for n in BACKBONES if Path(source).name.startswith(n)}
    families = {BACKBONES[name].family for name in named}
    if families and BACKBONES[model.backbone].family not in families:
        log.warning(
            "warning: %s is named like a %s; as a %s it gets other pixel statistics than it was trained with",
            source, min(named), model.backbone,
        )  # fmt: skip
    encoder = model.encoder
    grid = (encoder.grid_side, encoder.grid_side)
    found = encoder_state(read_weights(source, model.backbone), model.backbone, grid=grid, source=source)
    own = encoder.state_dict()
    kept = {k: v for k, v in own.items() if k.startswith("head.") or "rope.freqs_" in k}
    load_strict(encoder, {**found.state, **kept}, source)
    fresh = [*kept, *(f"decoder.{name}" for name in model.decoder.state_dict())]
    log_starting_weights(log, source, found, fresh)


def load_segmenter(path: Path, *, backbone: str | None = None) -> tuple[Segmenter, dict]:
    """Rebuild the network from a checkpoint alone.

    Args:
        path: A checkpoint of ``segmentation.train``, which carries its own settings, or a released one, whose
            settings are inferred from its tensors.
        backbone: For files without settings only. DeiT and ViT share every shape and differ in pixel
            statistics: for them it must be given.

    Returns:
        The network in evaluation mode, and the checkpoint's other entries (``class_names``, ...).

    Raises:
        UserError: Not a checkpoint of this network, ``backbone`` is missing, or contradicts the file.
    """
    content = load_checkpoint(path)
    state = unwrap_state(content, path)
    if any(name.startswith("adaptive_attention_fusion.") for name in state):
        raise UserError(f"{path}: is a network of stage 1 (weaktr.train); give one of segmentation.train")
    arguments = content.get("model_args") or _infer_arguments(state, path, backbone)
    try:
        inspect.signature(build_segmenter).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{path}: its model_args do not fit this version ({error}); "
            "give a checkpoint of segmentation.train, or read it with the version that wrote it"
        ) from None
    if backbone not in (None, arguments["backbone"]):
        raise UserError(f"{path}: is a {arguments['backbone']}, not {backbone}; leave --backbone out")
    try:
        model = build_segmenter(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # a text for a number, a negative size, ...
        raise UserError(f"{path}: its model_args cannot be used ({error}); train again") from None
    load_strict(model, state, path)
    weights = ("model", "state_dict", "optimizer")  # bare in some files
    entries = {k: v for k, v in content.items() if k not in weights and not isinstance(v, Tensor)}
    return model.eval(), entries


def _infer_arguments(state: dict[str, Tensor], path, backbone: str | None) -> dict:
    needed = {  # name: dimensions
        "encoder.cls_token": 3,
        "encoder.pos_embed": 3,
        "encoder.patch_embed.proj.weight": 4,
        "decoder.cls_emb": 3,
    }
    wrong = [
        name for name, dimensions in needed.items() if name not in state or state[name].ndim != dimensions
    ]
    if wrong:
        found = "of another shape" if wrong[0] in state else "missing"
        raise UserError(f"{path}: not a segmenter's checkpoint ({wrong[0]} {found}); check the path")
    width, patch = state["encoder.cls_token"].shape[-1], state["encoder.patch_embed.proj.weight"].shape[-1]
    depth = len({k.split(".")[2] for k in state if k.startswith("encoder.blocks.")})
    names = [k.removeprefix("encoder.") for k in state if k.startswith("encoder.")]
    fitting = [n for n in fitting_backbones(names, width, depth) if BACKBONES[n].patch_size == patch]
    shown = ", ".join(fitting) or "none"
    if not fitting or backbone not in (None, *fitting):
        raise UserError(
            f"{path}: its encoder (width {width}, depth {depth}, patch {patch}) is not "
            f"{backbone or 'a known backbone'}; known ones that fit: {shown}"
        )
    if backbone is None and len({BACKBONES[name].statistics for name in fitting}) > 1:
        raise UserError(
            f"{path}: its tensors fit several backbones with different pixel statistics; "
            f"give --backbone, one of {shown} (BACKBONE=NAME before scripts/evaluate.sh)"
        )
    side = int((state["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    return {
        "backbone": backbone or fitting[0],
        "num_classes": state["decoder.cls_emb"].shape[1],
        "image_size": side * patch,
    }
