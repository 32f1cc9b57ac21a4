"""Prediction within the free memory."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from segmentation.inference import Protocol, enlarged_size, predict_each, window_starts
from segmentation.segmenter import Segmenter
from wsss.errors import UserError
from wsss.memory import free_memory
from wsss.transforms import resized_size


def predict_in_memory(
    model: Segmenter,
    image: np.ndarray,
    protocol: Protocol,
    *,
    max_side: int | None = None,
    amp_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``predict_probs`` with ``fitting_protocol``; a lack of memory is a ``UserError`` too."""
    return next(predict_each_in_memory(model, image, [protocol], max_side=max_side, amp_dtype=amp_dtype))


def predict_each_in_memory(
    model: Segmenter,
    image: np.ndarray,
    protocols: Sequence[Protocol],
    *,
    max_side: int | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Iterator[torch.Tensor]:
    """``predict_each`` within the free memory, as ``predict_in_memory``."""
    protocols = fitting_protocols(model, image.shape[:2], protocols, max_side=max_side)
    try:
        yield from predict_each(model, image, protocols, max_side=max_side, amp_dtype=amp_dtype)
    except torch.OutOfMemoryError:
        raise UserError("the GPU's memory is full; shrink the picture with --max-side") from None


def fitting_protocol(
    model: Segmenter, size: tuple[int, int], protocol: Protocol, *, max_side: int | None = None
) -> Protocol:
    """``fitting_protocols`` of one."""
    return fitting_protocols(model, size, [protocol], max_side=max_side)[0]


def fitting_protocols(
    model: Segmenter, size: tuple[int, int], protocols: Sequence[Protocol], *, max_side: int | None = None
) -> list[Protocol]:
    """Protocols of one pass, with as many windows at a time as the free memory of the network's device holds.

    Args:
        size: (H, W) of the picture.
        protocols: As for ``predict_each``.
        max_side: As for ``predict_probs``.

    Raises:
        UserError: ``predict_each`` could not hold the picture with one window at a time; names a
            ``--max-side`` that fits, where there is one.
    """
    protocols = list(protocols)
    free = free_memory(next(model.parameters()).device)
    if free is None:
        return protocols
    enlarged = 2 * 4 * model.num_classes * size[0] * size[1]  # at the end, where --max-side acts
    shrink = min(1.0, max_side / max(size)) if max_side else 1.0
    while True:
        fixed, probs = needed_memory(model, size, *protocols)
        needed = fixed + probs * shrink**2 + enlarged * (shrink < 1)
        if needed <= 0.8 * free:
            return protocols
        if protocols[0].window_batch == 1:
            break
        protocols = [replace(p, window_batch=p.window_batch // 2) for p in protocols]
    share = (0.8 * free - fixed - enlarged) / probs
    side = int(max(size) * math.sqrt(share)) if share > 0 else 0
    remedy = f"use --max-side {side // 100 * 100 or side}" if side else "make it smaller, or leave it out"
    raise UserError(
        f"{size[1]}x{size[0]} pixels (width x height) need about {needed / 2**30:.2g} GiB, "
        f"{free / 2**30:.2g} GiB are free; {remedy}"
    )


def needed_memory(model: Segmenter, size: tuple[int, int], *protocols: Protocol) -> tuple[int, int]:
    """Bytes, in float32, that a picture of ``size`` (H, W) needs for the network and its windows, and for
    probabilities at the picture's own size, under the protocols of one pass."""
    protocol = max(protocols, key=lambda p: (len(p.scales), p.flip))
    K, window = model.num_classes, protocol.window
    blocks = 2 if any(p.decoder_blocks == "fused" for p in protocols) else 1
    views = 2 if any(p.flip for p in protocols) else 1
    tokens = math.ceil(window / model.patch_size) ** 2
    # queries, keys, values, branch output, the MLP's two hidden layers; logits, padded, added up
    per_window = 16 * tokens * model.encoder.embed_dim + 3 * blocks * K * window**2
    scaled = [resized_size(size, protocol.short_side, scale) for scale in protocol.scales]
    height, width = max((enlarged_size(s, window) for s in scaled), key=math.prod)
    windows = views * math.prod(len(window_starts(s, window, protocol.stride)) for s in (height, width))
    sums = (blocks * K + 6) * views * height * width
    # softmax of one block's views beside the other's; the scale before; sums over views and over scales
    maps = (blocks + 1) * views + (blocks * (views + 2) if len(scaled) > 1 else blocks)
    maps += blocks * (len({(p.scales, p.flip) for p in protocols}) - 1)
    return 4 * (min(windows, protocol.window_batch) * per_window + sums), 4 * K * maps * size[0] * size[1]
