"""GETAM's encoders: the project's ViT with taps, one or two prefix tokens, and the hybrid's ResNet stem."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import StdConv2dSame, pad_same
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.vit import VisionTransformer, init_linear, resize_positions

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class GetamBackbone:
    embed_dim: int
    depth: int
    num_heads: int
    image_size: int  # whose grid the starting weights' positions have, pixels
    hub_name: str | None  # timm's name of the starting weights
    distilled: bool = False  # a distillation token behind the class token
    hybrid: bool = False  # patches are features of a ResNet


_TINY, _SMALL, _BASE = (192, 12, 3), (384, 12, 6), (768, 12, 12)

# The first four are the published ones.
BACKBONES = {
    "vitb": GetamBackbone(*_BASE, 384, "vit_base_patch16_384.orig_in21k_ft_in1k"),
    "deit": GetamBackbone(*_BASE, 384, "deit_base_patch16_384.fb_in1k"),
    "deit_distilled": GetamBackbone(*_BASE, 384, "deit_base_distilled_patch16_384.fb_in1k", distilled=True),
    "vitb_hybrid": GetamBackbone(*_BASE, 384, "vit_base_r50_s16_384.orig_in21k_ft_in1k", hybrid=True),
    "vit_tiny": GetamBackbone(*_TINY, 224, "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    "vit_small": GetamBackbone(*_SMALL, 384, "vit_small_patch16_384.augreg_in21k_ft_in1k"),
    "deit_tiny": GetamBackbone(*_TINY, 224, "deit_tiny_patch16_224.fb_in1k"),
    "deit_small": GetamBackbone(*_SMALL, 224, "deit_small_patch16_224.fb_in1k"),
    "deit_tiny_distilled": GetamBackbone(
        *_TINY, 224, "deit_tiny_distilled_patch16_224.fb_in1k", distilled=True
    ),
    "deit_small_distilled": GetamBackbone(
        *_SMALL, 224, "deit_small_distilled_patch16_224.fb_in1k", distilled=True
    ),
    # 0.4 M parameters, for tests: no published weights
    "vit_micro": GetamBackbone(48, 12, 3, 64, None),
}
PATCH_SIZE = 16
NORM_EPS = 1e-6
STEM_LAYERS = (3, 4, 9)  # bottlenecks per stage of the hybrid's R50
STEM_CHANNELS = (256, 512, 1024)


def get_backbone(name: str) -> GetamBackbone:
    """Look an encoder up; an unknown name is answered with the known ones."""
    if name not in BACKBONES:
        raise UserError(f"--backbone {name}: unknown; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


class StandardisedConv2d(StdConv2dSame):
    """Convolution with standardised weights, (w - mean) / (std + 1e-5), "same" padding.

    The published code's timm has this form; today's divides by sqrt(var + 1e-8).
    """

    EPSILON = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        if self.same_pad:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (std + self.EPSILON)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HybridEmbed(nn.Module):
    """Images (B, 3, H, W) to patch tokens (B, h*w, D) by the ResNet's three stages and a 1x1 convolution."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.backbone = ResNetV2(
            layers=STEM_LAYERS,
            num_classes=0,
            global_pool="",
            preact=False,
            stem_type="same",
            conv_layer=partial(StandardisedConv2d),
        )
        self.proj = nn.Conv2d(STEM_CHANNELS[-1], embed_dim, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int], list[Tensor]]:
        """Also gives the outputs of the first two stages, (B, 256, H/4, W/4) and (B, 512, H/8, W/8)."""
        x = self.backbone.stem(images)
        stages = []
        for stage in self.backbone.stages:
            x = stage(x)
            stages.append(x)
        maps = self.proj(self.backbone.norm(x))
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[-2:]), stages[:2]


class Encoder(VisionTransformer):
    """The ViT whose block outputs are tapped; ``norm`` and ``head`` are in the published state, not used.

    Args:
        backbone: Sizes and kind.
    """

    def __init__(self, backbone: GetamBackbone):
        super().__init__(
            embed_dim=backbone.embed_dim,
            depth=backbone.depth,
            num_heads=backbone.num_heads,
            patch_size=PATCH_SIZE,
            image_size=backbone.image_size,
            norm_eps=NORM_EPS,
        )
        D = backbone.embed_dim
        self.head = nn.Linear(D, IMAGENET_CLASSES)
        self.dist_token = None
        if backbone.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, D))
            self.pos_embed = nn.Parameter(torch.zeros(1, 2 + self.grid_side**2, D))
            self.head_dist = nn.Linear(D, IMAGENET_CLASSES)
            init_linear(self.head_dist)
            nn.init.trunc_normal_(self.dist_token, std=0.02)
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
            self.head_dist.requires_grad_(False)
        if backbone.hybrid:
            self.patch_embed = HybridEmbed(D)
        self.num_prefix_tokens = 1 + backbone.distilled
        init_linear(self.head)
        self.head.requires_grad_(False)
        self.norm.requires_grad_(False)

    def positions(self, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        prefix, patches = self.pos_embed.float().tensor_split((self.num_prefix_tokens,), 1)
        return torch.cat((prefix, resize_positions(patches, grid, mode="bilinear")), 1)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], list[Tensor]]:
        """(B, 3, H, W), normalised, to tokens (B, prefix + h*w, D), the grid (h, w), and the maps of the
        hybrid's first two stages (none of the others)."""
        patches, grid, *stages = self.patch_embed(images)
        tokens = [self.cls_token, *([self.dist_token] if self.dist_token is not None else [])]
        prefix = [token.expand(len(images), -1, -1) for token in tokens]
        tokens = torch.cat((*prefix, patches), 1) + self.positions(tuple(images.shape[-2:]), grid)
        return tokens, grid, stages[0] if stages else []
