"""Pixel-adaptive mask refinement (PAMR, arXiv 2005.08104): masks follow the picture's edges."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
SIGMA_SCALE = 0.1  # of the local deviation, in the affinity


class PAMR:
    """Replaces each pixel of a mask, again and again, by the mean of its neighbours, weighted by likeness.

    Neighbours are the 8 around a pixel at each dilation. Their weights are the softmax of the channel mean of
    -|I_p - I_q| / (1e-8 + 0.1 sigma), where sigma is the unbiased deviation of a channel over all neighbours
    and the pixel itself, which counts once per dilation. Beyond the edge the picture repeats its border.

    Args:
        iterations: How often.
        dilations: Distances of the neighbours, pixels.
    """

    def __init__(self, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)):
        self.iterations, self.dilations = iterations, tuple(dilations)

    @torch.no_grad()
    def __call__(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refine.

        Args:
            image: (B, 3, H, W), levels 0..255. Resized to the masks bilinearly (align_corners True) where
                sizes differ.
            masks: (B, K, H, W).

        Returns:
            float32 (B, K, H, W).
        """
        image, masks = image.float(), masks.float()
        if image.shape[-2:] != masks.shape[-2:]:
            image = F.interpolate(image, masks.shape[-2:], mode="bilinear", align_corners=True)
        if image.device.type == "cpu" and len(image) > 1:  # one at a time: nearer to the cache, half the time
            return torch.cat([self(i[None], m[None]) for i, m in zip(image, masks, strict=True)])
        affinity = self.affinity(image)
        for _ in range(self.iterations):
            refined = torch.zeros_like(masks)
            for k, neighbours in enumerate(self._shifted(masks)):
                refined.addcmul_(neighbours, affinity[:, k : k + 1])
            masks = refined
        return masks

    def affinity(self, image: Tensor) -> Tensor:
        """Weights of the neighbours, (B, 8 * dilations, H, W); they add up to 1."""
        samples = 9 * len(self.dilations)
        total = 0
        for channel in image.float().split(1, 1):
            differences = torch.cat(list(self._shifted(channel)), 1) - channel
            mean = differences.sum(1, keepdim=True) / samples  # the pixel's own differences are 0
            squares = (differences - mean).square().sum(1, keepdim=True) + len(self.dilations) * mean.square()
            sigma = (squares / (samples - 1)).sqrt()
            total = total - differences.abs() / (EPSILON + SIGMA_SCALE * sigma)
        return (total / image.shape[1]).softmax(1)

    def _shifted(self, maps: Tensor) -> Iterator[Tensor]:
        """The maps as seen by each neighbour, dilation by dilation, row by row."""
        height, width = maps.shape[-2:]
        for d in self.dilations:
            padded = F.pad(maps, (d, d, d, d), mode="replicate")
            for dy in (0, d, 2 * d):
                for dx in (0, d, 2 * d):
                    if (dy, dx) != (d, d):
                        yield padded[..., dy : dy + height, dx : dx + width]
