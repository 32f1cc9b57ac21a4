"""GETAM's network: one ViT encoder, class logits from its deepest feature, a DPT decoder (arXiv 2112.02841)."""

import inspect
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from segmentation.getam.decoder import ChannelAttention, Reassemble, Scratch
from segmentation.getam.encoders import BACKBONES, STEM_CHANNELS, Encoder, get_backbone
from wsss.backbones import IMAGENET
from wsss.checkpoint import load_checkpoint, load_strict, unwrap_state
from wsss.errors import UserError

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
            tokens, record = block(tokens, class_row=wanted)
            if wanted:
                rows.append(record.class_row)
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
