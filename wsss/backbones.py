"""The table of backbones: sizes, pixel statistics, and where their ImageNet weights are.

The statistics belong to the encoder: a network carries them (``model.pixel_mean``) and every loader reads
them there, so that no data code can disagree with the backbone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from wsss.errors import UserError


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of red, green and blue.

    ``mean`` and ``std`` are of pixels in 0..1. Stage 2's are the published ones, of levels 0..255, rounded:
    ``level_mean`` and ``level_std``.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    level_mean: tuple[float, float, float]
    level_std: tuple[float, float, float]


IMAGENET = PixelStatistics(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (123.68, 116.28, 103.53), (58.4, 57.12, 57.38)
)
HALF = PixelStatistics((0.5,) * 3, (0.5,) * 3, (127.5,) * 3, (127.5,) * 3)
CLIP = PixelStatistics(
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
    (122.77, 116.75, 104.09),
    (68.5, 66.63, 70.32),
)


@dataclass(frozen=True)
class Backbone:
    family: str  # "deit", "vit" (AugReg), "dinov2" or "eva02"
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int  # at which it runs; kernels of 14 pixels are resized
    image_size: int  # of its ImageNet training, pixels
    statistics: PixelStatistics
    hub_name: str | None  # timm's name of the published starting weights

    @property
    def architecture(self) -> dict:
        """What ``wsss.vit.VisionTransformer`` is built from, but for the image's size."""
        names = ("embed_dim", "depth", "num_heads", "patch_size")
        sizes = {name: getattr(self, name) for name in names}
        return sizes | {"layer_scale": self.family == "dinov2", "eva": self.family == "eva02"}

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        return self.statistics.mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        return self.statistics.std


TINY, SMALL, BASE, LARGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)


def _deit(sizes: tuple[int, int, int], hub_name: str) -> Backbone:
    return Backbone("deit", *sizes, 16, 224, IMAGENET, hub_name)


def _vit(
    sizes: tuple[int, int, int], image_size: int, hub_name: str | None, patch_size: int = 16
) -> Backbone:
    return Backbone("vit", *sizes, patch_size, image_size, HALF, hub_name)


def _dinov2(sizes: tuple[int, int, int], hub_name: str) -> Backbone:
    return Backbone("dinov2", *sizes, 16, 224, IMAGENET, hub_name)


def _eva02(sizes: tuple[int, int, int], hub_name: str) -> Backbone:
    return Backbone("eva02", *sizes, 16, 224, CLIP, hub_name)


BACKBONES = {
    "deit_tiny_patch16_224": _deit(TINY, "deit_tiny_patch16_224.fb_in1k"),
    "deit_small_patch16_224": _deit(SMALL, "deit_small_patch16_224.fb_in1k"),
    "deit_base_patch16_224": _deit(BASE, "deit_base_patch16_224.fb_in1k"),
    "vit_tiny_patch16_224": _vit(TINY, 224, "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_tiny_patch16_384": _vit(TINY, 384, "vit_tiny_patch16_384.augreg_in21k_ft_in1k"),
    "vit_small_patch16_224": _vit(SMALL, 224, "vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "vit_small_patch16_384": _vit(SMALL, 384, "vit_small_patch16_384.augreg_in21k_ft_in1k"),
    "vit_base_patch16_224": _vit(BASE, 224, "vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "vit_base_patch16_384": _vit(BASE, 384, "vit_base_patch16_384.augreg_in21k_ft_in1k"),
    "vit_large_patch16_224": _vit(LARGE, 224, "vit_large_patch16_224.augreg_in21k_ft_in1k"),
    "vit_large_patch16_384": _vit(LARGE, 384, "vit_large_patch16_384.augreg_in21k_ft_in1k"),
    "dinov2_small_patch16_224": _dinov2(SMALL, "vit_small_patch14_dinov2.lvd142m"),
    "dinov2_base_patch16_224": _dinov2(BASE, "vit_base_patch14_dinov2.lvd142m"),
    "dinov2_large_patch16_224": _dinov2(LARGE, "vit_large_patch14_dinov2.lvd142m"),
    "eva02_tiny_patch16_224": _eva02(TINY, "eva02_tiny_patch14_224.mim_in22k"),
    "eva02_small_patch16_224": _eva02(SMALL, "eva02_small_patch14_224.mim_in22k"),
    # 0.6 M parameters, for tests and small pictures: no published weights
    "vit_micro_patch8_96": _vit((96, 5, 3), 96, None, patch_size=8),
}
STAGE1_FAMILIES = ("deit", "vit")  # what WeakTr's class tokens and attention fusion are defined for


def get_backbone(name: str) -> Backbone:
    """Look a backbone up; an unknown name is answered with the known ones."""
    if name not in BACKBONES:
        raise UserError(f"--backbone {name}: unknown; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def fitting_backbones(names: Iterable[str], width: int | None, depth: int) -> list[str]:
    """Backbones that a state may be of: DeiT and plain ViT cannot be told apart.

    Args:
        names: Of the encoder's tensors, in any published naming.
        width, depth: D and the number of blocks.
    """
    names = list(names)
    families = ("deit", "vit")
    if any(name.endswith("ls1.gamma") for name in names):
        families = ("dinov2",)
    elif any(re.search(r"attn\.(q_bias|q_proj)|mlp\.(w12|w1|fc1_g)\.", name) for name in names):
        families = ("eva02",)
    return [
        name
        for name, b in BACKBONES.items()
        if (b.embed_dim, b.depth) == (width, depth) and b.family in families
    ]
