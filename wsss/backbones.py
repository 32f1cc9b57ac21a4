"""The table of backbones: sizes, pixel statistics, and where their ImageNet weights are.

The statistics belong to the encoder: a network carries them (``model.pixel_mean``) and every loader reads
them there, so that no data code can disagree with the backbone.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from wsss.checkpoint import load_checkpoint, unwrap_state
from wsss.errors import UserError

log = logging.getLogger(__name__)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Backbone:
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int  # of its ImageNet training, pixels
    pixel_mean: tuple[float, float, float]  # of pixels in 0..1
    pixel_std: tuple[float, float, float]
    hub_name: str | None  # timm's name of the published starting weights


def _vit(width: int, depth: int, heads: int, patch: int, size: int, statistics, hub_name) -> Backbone:
    return Backbone(width, depth, heads, patch, size, *statistics, hub_name)


BACKBONES = {
    "deit_tiny_patch16_224": _vit(192, 12, 3, 16, 224, IMAGENET, "deit_tiny_patch16_224.fb_in1k"),
    "deit_small_patch16_224": _vit(384, 12, 6, 16, 224, IMAGENET, "deit_small_patch16_224.fb_in1k"),
    "deit_base_patch16_224": _vit(768, 12, 12, 16, 224, IMAGENET, "deit_base_patch16_224.fb_in1k"),
    "vit_tiny_patch16_224": _vit(192, 12, 3, 16, 224, HALF, "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_small_patch16_224": _vit(384, 12, 6, 16, 224, HALF, "vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_base_patch16_224": _vit(768, 12, 12, 16, 224, HALF, "vit_base_patch16_224.augreg_in21k_ft_in1k"),
    # 0.6 M parameters, for tests and small pictures: no published weights
    "vit_micro_patch8_96": _vit(96, 5, 3, 8, 96, HALF, None),
}


def get_backbone(name: str) -> Backbone:
    """Look a backbone up; an unknown name is answered with the known ones."""
    if name not in BACKBONES:
        raise UserError(f"--backbone {name}: unknown; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def pretrained_state(source: str, backbone_name: str) -> dict[str, Tensor]:
    """ImageNet weights under timm's names.

    Args:
        source: A file (.pth, .pt, .safetensors), or a name on timm's hub, or ``"hub"`` for the backbone's
            published starting weights.

    Raises:
        UserError: Neither a file nor a name that the hub delivers.
    """
    if Path(source).is_file():
        return unwrap_state(load_checkpoint(Path(source)), source)
    name = get_backbone(backbone_name).hub_name if source == "hub" else source
    if name is None:
        raise UserError(f"--pretrained {source}: {backbone_name} has no published weights; give a file")
    if Path(source).suffix in (".pth", ".pt", ".safetensors", ".npz") or "/" in source:
        raise UserError(f"{source}: no such file; give --pretrained an existing file or a timm model name")
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # unknown name, no network, hub's own errors: many types
        reason = f"{type(error).__name__}: {str(error)[:120]}"
        raise UserError(
            f"--pretrained {source}: no such file, and timm's hub did not deliver it ({reason}); "
            "give the path of a downloaded weights file"
        ) from error
