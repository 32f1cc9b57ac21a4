"""GETAM's test: the picture as squares of three sizes, logits averaged, then softmax."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmentation.getam.model import STRIDE, Getam
from wsss.errors import UserError
from wsss.transforms import normalise, resize_bilinear

PUBLISHED_SQUARES = (256, 320, 480)  # pixels


@torch.no_grad()
def predict_probs(
    model: Getam,
    image: np.ndarray,
    *,
    squares: Sequence[int] = PUBLISHED_SQUARES,
    output_size: tuple[int, int] | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Tensor:
    """Class probabilities of one picture, float32 (C + 1, H, W) on the network's device.

    The picture is resized bilinearly to each square, without regard to its shape and without mirrors; the
    logits are brought to the output's size bilinearly (align_corners False) and averaged before softmax.

    Args:
        image: uint8 (H, W, 3).
        squares: Sides, pixels, multiples of 32.
        output_size: (h, w) of the result; default: the picture's.
        amp_dtype: Autocast's type, None for float32.

    Raises:
        UserError: A side that is no multiple of 32, or values that are not finite.
    """
    device = next(model.parameters()).device
    size = tuple(output_size or image.shape[:2])
    total = None
    for side in squares:
        if side % STRIDE:
            raise UserError(f"--squares {side}: not a multiple of {STRIDE} pixels; choose one")
        pixels = normalise(resize_bilinear(image, (side, side)), model.pixel_mean, model.pixel_std)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            logits = model(pixels[None].to(device))[1]
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0]
        total = logits if total is None else total.add_(logits)
    probs = (total / len(squares)).softmax(0)
    if not probs.isfinite().all():
        raise UserError("the network gives values that are not finite; check --checkpoint, or use --amp off")
    return probs
