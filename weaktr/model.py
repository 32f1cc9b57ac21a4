"""WeakTr: a ViT classifier with a class token per class, and its class activation maps (arXiv 2304.01184)."""

import inspect
import logging
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weaktr.aaf import AdaptiveAttentionFusion, apply_patch_attention, cross_attention, mean_patch_attention
from wsss.backbones import BACKBONES, STAGE1_FAMILIES, get_backbone
from wsss.checkpoint import load_checkpoint, load_strict, unwrap_state
from wsss.errors import UserError
from wsss.vit import VisionTransformer, resize_positions

log = logging.getLogger(__name__)

ATTENTIONS = ("fused", "coarse", "cross")


class Logits(NamedTuple):
    class_logits: Tensor  # (B, C), mean of each class token
    coarse_logits: Tensor  # (B, C), average of the coarse maps
    fine_logits: Tensor  # (B, C), average of the refined CAMs


class Cams(NamedTuple):
    cams: Tensor  # (B, n, h, w), before refinement
    fine_cams: Tensor  # (B, n, h, w), after patch attention
    class_logits: Tensor  # (B, C)
    head_weights: Tensor  # (B, H, L)


class WeakTr(VisionTransformer):
    """See ``build_weaktr``. ``norm`` is in the checkpoint and not applied, as published."""

    def __init__(self, *, num_classes: int, reduction: float, pool: str, feat_reduction: int, **sizes):
        super().__init__(num_prefix_tokens=num_classes, norm_eps=1e-6, **sizes)
        self.num_classes = num_classes
        self.head = nn.Conv2d(self.embed_dim, num_classes, 3, padding=1)
        self.adaptive_attention_fusion = AdaptiveAttentionFusion(
            depth=len(self.blocks),
            num_heads=self.num_heads,
            head_dim=self.embed_dim // self.num_heads,
            reduction=reduction,
            feat_reduction=feat_reduction,
            pool=pool,
        )
        self.norm.requires_grad_(False)

    def positions(self, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        C = self.num_prefix_tokens
        square = image_size[0] == image_size[1]
        if square and grid[0] * grid[1] == self.pos_embed.shape[1] - C:
            return self.pos_embed
        # bicubic has no bfloat16 kernel everywhere, and positions need no gradient in half precision
        patches = resize_positions(self.pos_embed[:, C:].float(), grid, mode="bicubic", by_scale_factor=True)
        return torch.cat((self.pos_embed[:, :C], patches), 1)

    def encode(self, images: Tensor):
        """Class logits (B, C), coarse maps (B, C, h, w) before ReLU, and the blocks' records."""
        tokens, grid = self.embed(images)
        tokens, records = self.run_blocks(tokens)
        class_tokens, patches = tokens.split((self.num_classes, tokens.shape[1] - self.num_classes), 1)
        features = patches.transpose(1, 2).unflatten(2, grid)
        return class_tokens.float().mean(-1), self.head(features).float(), records

    def forward(self, images: Tensor) -> Logits:
        """Normalised images (B, 3, H, W) to the three logits that are trained."""
        class_logits, coarse_maps, records = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):
            weights = self.adaptive_attention_fusion(records)
            cams = cross_attention(records, weights, self.num_classes)
            cams = cams * coarse_maps.detach().flatten(2).relu()
            # the average over patches of the refined CAMs, without refining them
            received = mean_patch_attention(records, self.num_classes)
            received = torch.einsum("bhl,bhlp->bp", weights, received) / weights[0].numel()
            fine_logits = torch.einsum("bp,bcp->bc", received, cams)
        return Logits(class_logits, coarse_maps.mean((2, 3)), fine_logits)

    @torch.no_grad()
    def cams(self, images: Tensor, attention: str = "fused", *, class_ids: list[int] | None = None) -> Cams:
        """Class activation maps before and after refinement by patch attention.

        Args:
            images: (B, 3, H, W), normalised.
            attention: CAM before refinement: ``"fused"``, cross attention times ReLU(coarse maps);
                ``"coarse"``, ReLU(coarse maps); ``"cross"``, cross attention.
            class_ids: Classes wanted, n of them; all by default. Cost grows with n.
        """
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r}: one of {', '.join(ATTENTIONS)}")
        class_logits, coarse_maps, records = self.encode(images)
        if class_ids is not None:
            class_ids = torch.as_tensor(class_ids, device=images.device)
            coarse_maps = coarse_maps[:, class_ids]
        grid = coarse_maps.shape[-2:]
        with torch.autocast(images.device.type, enabled=False):
            weights = self.adaptive_attention_fusion(records)
            cams = coarse_maps.flatten(2).relu()
            if attention != "coarse":
                cross = cross_attention(records, weights, self.num_classes, class_ids)
                cams = cross if attention == "cross" else cross * cams
            fine_cams = apply_patch_attention(records, weights, cams, self.num_classes)
        return Cams(cams.unflatten(2, grid), fine_cams.unflatten(2, grid), class_logits, weights)


def weaktr_loss(logits: Logits, targets: Tensor) -> dict[str, Tensor]:
    """The three multilabel soft margin losses and their sum, in float32.

    Args:
        targets: (B, C), 0 or 1.
    """
    losses = {
        name.removesuffix("_logits"): F.multilabel_soft_margin_loss(value.float(), targets.float())
        for name, value in logits._asdict().items()
    }
    return {"loss": sum(losses.values()), **losses}


def build_weaktr(
    backbone: str = "deit_small_patch16_224",
    *,
    num_classes: int,
    reduction: float = 8,
    pool: str = "max",
    feat_reduction: int = 8,
    image_size: int = 224,
    drop_path: float = 0.0,
) -> WeakTr:
    """Build the network.

    patches + C class tokens + positions -> L pre-norm blocks -> class logits (class tokens)
                                                              -> coarse maps (3x3 convolution on patches)
    features of all blocks -> AAF -> one weight per head -> fused attention, applied to the coarse maps

    Args:
        backbone: Name in ``wsss.backbones.BACKBONES``.
        num_classes: C, foreground classes.
        reduction, feat_reduction, pool: See ``AdaptiveAttentionFusion``; ``"average"`` is ``"avg"``.
        image_size: Side of the training crop, pixels: fixes the grid of ``pos_embed``.
        drop_path: Stochastic depth of the last block; 0.1 in the published training.
    """
    found = get_backbone(backbone)
    if found.family not in STAGE1_FAMILIES:
        raise UserError(f"--backbone {backbone}: for stage 2 only; stage 1 takes a DeiT or a plain ViT")
    model = WeakTr(
        num_classes=num_classes,
        reduction=reduction,
        pool={"average": "avg", "mean": "avg"}.get(pool, pool),
        feat_reduction=feat_reduction,
        **found.architecture,
        image_size=image_size,
        drop_path=drop_path,
    )
    model.backbone, model.pixel_mean, model.pixel_std = backbone, found.pixel_mean, found.pixel_std
    return model


def start_from_pretrained(model: WeakTr, state: dict[str, Tensor], source) -> None:
    """Load ImageNet weights (timm's names): class token and its position repeated for every class, positions
    resized bicubically (``size=``) if the grid differs, the 1000-class head dropped, head and AAF kept fresh.

    Raises:
        UserError: A tensor of another name or shape, or one that is missing.
    """
    fresh = ("head.", "adaptive_attention_fusion.")
    dropped = [k for k in state if k.startswith(("head.", "head_dist.", "fc_norm.", "pre_logits."))]
    state = {k: v.float() for k, v in state.items() if k not in dropped}
    if "dist_token" in state:
        raise UserError(f"{source}: distilled DeiT has a second token; give the plain DeiT's weights")
    C, grid = model.num_classes, (model.grid_side, model.grid_side)
    notes = []
    if "cls_token" in state and "pos_embed" in state:
        token_position, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
        if patches.shape[1] != model.grid_side**2:
            patches = resize_positions(patches, grid, mode="bicubic")
            notes.append(f"positions resized to {grid[0]}x{grid[1]}")
        state["cls_token"] = state["cls_token"].repeat(1, C, 1)
        state["pos_embed"] = torch.cat((token_position.repeat(1, C, 1), patches), 1)
        notes.append(f"class token repeated {C} times")
    kept = {k: v for k, v in model.state_dict().items() if k.startswith(fresh)}
    load_strict(model, {**state, **kept}, source)
    log.info(
        "starting weights %s: %d tensors loaded (%s), %d dropped (%s), %d fresh (head, AAF)",
        source, len(state), "; ".join(notes), len(dropped), ", ".join(dropped) or "none", len(kept),
    )  # fmt: skip


def load_weaktr(path: Path, *, backbone: str | None = None, pool: str = "max") -> tuple[WeakTr, dict]:
    """Rebuild the network from a checkpoint alone.

    Args:
        path: A checkpoint of ``weaktr.train``, which carries its own settings, or a released one, whose
            settings are inferred from its tensors' shapes.
        backbone: For files without settings only, where the shapes alone do not tell pixel statistics
            (default: the DeiT of that size, as published).
        pool: For files without settings only.

    Returns:
        The network in evaluation mode, and the checkpoint's other entries (``class_names``, ...).

    Raises:
        UserError: Not a checkpoint of this network, or its settings are not ``build_weaktr``'s.
    """
    content = load_checkpoint(path)
    state = unwrap_state(content, path)
    if any(name.startswith("decoder.") for name in state):
        raise UserError(f"{path}: is a network of stage 2 (segmentation.train); give one of weaktr.train")
    arguments = content.get("model_args") or _infer_arguments(state, path, backbone, pool)
    try:
        inspect.signature(build_weaktr).bind(**arguments)
    except TypeError as error:  # "missing a required argument: 'num_classes'"
        raise UserError(
            f"{path}: its model_args do not fit this version ({error}); "
            "read it with the version that wrote it, or train again"
        ) from None
    own = arguments.get("backbone", "deit_small_patch16_224")
    if backbone not in (None, own):
        raise UserError(f"{path}: is a {own}, not {backbone}; leave --backbone out")
    model = build_weaktr(**arguments)
    load_strict(model, state, path)
    return model.eval(), {k: v for k, v in content.items() if k not in ("model", "optimizer")}


def _infer_arguments(state: dict[str, Tensor], path, backbone: str | None, pool: str) -> dict:
    fusion = "adaptive_attention_fusion."
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", f"{fusion}attn_head_ffn.0.weight")
    needed += (f"{fusion}attn_feat_ffn.0.weight",)
    missing = [k for k in needed if k not in state]
    if missing:
        raise UserError(f"{path}: not a WeakTr checkpoint ({missing[0]} missing); check the path")
    _, C, D = state["cls_token"].shape
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    patch = state["patch_embed.proj.weight"].shape[-1]
    fitting = [
        name
        for name, b in BACKBONES.items()
        if b.family in STAGE1_FAMILIES and (b.embed_dim, b.depth, b.patch_size) == (D, depth, patch)
    ]
    if not fitting or backbone not in (None, *fitting):
        raise UserError(
            f"{path}: width {D}, depth {depth}, patch {patch} is not {backbone or 'a known backbone'}; "
            f"known ones that fit: {', '.join(fitting) or 'none'}"
        )
    hidden, total = state[f"{fusion}attn_head_ffn.0.weight"].shape
    feat_hidden, head_dim = state[f"{fusion}attn_feat_ffn.0.weight"].shape
    if not (hidden and feat_hidden):
        raise UserError(f"{path}: its attention fusion has a layer without units; train again")
    side = int((state["pos_embed"].shape[1] - C) ** 0.5)
    return {
        "backbone": backbone or fitting[0],
        "num_classes": C,
        "reduction": total / (hidden + 0.5),  # int(total / reduction) is hidden, whatever the rounding
        "pool": "random" if f"{fusion}random_input" in state else pool,
        "feat_reduction": head_dim // feat_hidden,
        "image_size": side * patch,
    }
