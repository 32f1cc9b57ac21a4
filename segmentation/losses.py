"""Cross-entropy per pixel, and gradient clipping on it (arXiv 2304.01184)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.io import IGNORED


def pixel_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of every pixel, float32 (B, H, W); 0 where the mask is 255.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W), 0..K-1 or 255.
    """
    return F.cross_entropy(logits.float(), masks, ignore_index=IGNORED, reduction="none")


def gradient_clipping_loss(
    pixel_loss: Tensor,
    *,
    start: float = 1.2,
    patch: int = 120,
    batch_size: int | None = None,
    all_sum: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Take the gradient from pixels whose loss is high for their surroundings: likely wrong labels.

    With g the mean of the whole map: while g is above ``start``, the map is returned as it is. After that,
    a tile's threshold is the mean of its pixels over the batch, or g if that is larger; pixels above their
    tile's threshold get the threshold as a constant. Ignored pixels are 0 and count in every mean, as
    published.

    Args:
        pixel_loss: (B, H, W), with gradient.
        start: Mean loss above which nothing is clipped.
        patch: Side of the square tiles, pixels; those at the right and bottom edge may be smaller (the
            published code needs sides that are multiples).
        batch_size: Pictures that the sums of ``all_sum`` are over; by default B.
        all_sum: Sums a tensor over processes, so that the statistics are of the global batch.

    Returns:
        (B, H, W); the mean is to be minimised.
    """
    B, height, width = pixel_loss.shape
    below, right = -height % patch, -width % patch
    total = F.pad(pixel_loss.detach().double().sum(0), (0, right, 0, below))
    sums = total.unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).sum((1, 3))  # one per tile
    if all_sum is not None:
        sums = all_sum(sums)
    pictures = batch_size or B
    sides = [_tile_sides(n, patch, sums.device) for n in (height, width)]
    pixels = sides[0][:, None] * sides[1]
    mean = sums.sum() / (pictures * height * width)
    threshold = torch.maximum(sums / (pictures * pixels), mean)
    threshold = threshold.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]
    threshold = threshold.to(pixel_loss.dtype)
    # a choice by value in place of one by branch: no wait for the device
    threshold = torch.where(mean > start, torch.inf, threshold)
    return torch.where(pixel_loss > threshold, threshold, pixel_loss)


def _tile_sides(side: int, patch: int, device: torch.device) -> Tensor:
    """Pixels of every tile along a side: ``patch``, the last one what is left."""
    return (side - torch.arange(0, side, patch, device=device)).clamp(max=patch)
