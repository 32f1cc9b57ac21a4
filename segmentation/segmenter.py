"""The segmenter: a plain ViT encoder and a mask-transformer decoder (arXiv 2105.05633, arXiv 2304.01184)."""

import inspect
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.decoders.mask_transformer import NORM_EPS, MaskTransformer
from wsss.backbones import BACKBONES, get_backbone
from wsss.checkpoint import load_checkpoint, load_strict, unwrap_state
from wsss.errors import UserError
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
        The network, with ``pixel_mean``, ``pixel_std`` (of pixels in 0..1), ``backbone`` and ``image_size`` as
        plain attributes.
    """
    sizes = get_backbone(backbone)
    encoder = Encoder(
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        patch_size=sizes.patch_size,
        image_size=image_size,
        drop_path=drop_path,
        layer_scale=sizes.family == "dinov2",
        eva=sizes.family == "eva02",
    )
    model = Segmenter(encoder, MaskTransformer(sizes.embed_dim, num_classes, dropout=dropout))
    model.backbone, model.image_size = backbone, image_size
    model.pixel_mean = tuple(level / 255 for level in sizes.statistics.level_mean)
    model.pixel_std = tuple(level / 255 for level in sizes.statistics.level_std)
    return model
