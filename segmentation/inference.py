"""Prediction as published: sliding windows, scales and mirrors, softmax, mean of probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.segmenter import Segmenter
from wsss.errors import UserError
from wsss.transforms import normalise, resize_bilinear, resized_size

PUBLISHED_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
FIRST_BLOCK_WEIGHT = 0.8  # of the probabilities after decoder block 1, in the published test


@dataclass(frozen=True)
class Protocol:
    """How a picture is predicted.

    Attributes:
        short_side: Pixels, at scale 1.
        scales: Ratios to it.
        flip: Also predict every scale's mirror.
        window, stride: Of the sliding window, pixels.
        window_batch: Windows that go through the network at a time; no effect on the result.
        decoder_blocks: ``"last"``, or ``"fused"``: 0.8 p1 + p2 of both decoder blocks, not normalised, as in
            the published test.
    """

    short_side: int = 520
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int = 480
    stride: int = 320
    window_batch: int = 8
    decoder_blocks: str = "last"


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side: every ``stride`` pixels, and the last one flush with the edge."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]


def enlarged_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """(H, W) of which the shorter side is at least ``window``; the long side is truncated, as published."""
    short, long = min(size), max(size)
    if short >= window:
        return size
    enlarged = int(long / short * window)
    return (window, enlarged) if size[0] < size[1] else (enlarged, window)


def sliding_window_logits(
    model: nn.Module,
    images: Tensor,
    *,
    window: int,
    stride: int,
    window_batch: int,
    decoder_blocks: list[int] | None,
) -> list[Tensor]:
    """Mean logits of all windows over each pixel, (B, K, H, W), one tensor per decoder block asked for.

    Args:
        images: (B, 3, H, W), normalised; both sides at least ``window``.
        decoder_blocks: Block numbers, from 1; None for what ``model(images)`` gives.
    """
    B, _, height, width = images.shape
    starts = [
        (b, y, x)
        for b in range(B)
        for y in window_starts(height, window, stride)
        for x in window_starts(width, window, stride)
    ]
    sums: list[Tensor] = []
    counts = torch.zeros(1, 1, height, width, device=images.device)
    for _, y, x in starts[: len(starts) // B]:
        counts[..., y : y + window, x : x + window] += 1
    for first in range(0, len(starts), window_batch):
        chosen = starts[first : first + window_batch]
        crops = torch.stack([images[b, :, y : y + window, x : x + window] for b, y, x in chosen])
        if decoder_blocks is None:
            found = [model(crops)]
        elif len(decoder_blocks) == 1:
            found = [model(crops, decoder_block=decoder_blocks[0])]
        else:
            found = model.block_logits(crops)
            found = [found[number - 1] for number in decoder_blocks]
        if not sums:
            shape = (B, found[0].shape[1], height, width)
            sums = [torch.zeros(shape, device=images.device) for _ in found]
        for total, logits in zip(sums, found, strict=True):
            for (b, y, x), values in zip(chosen, logits.float(), strict=True):
                total[b, :, y : y + window, x : x + window] += values
    return [total.div_(counts) for total in sums]


def _windowed_probs(
    model: nn.Module,
    images: Tensor,
    mirrored: list[bool],
    *,
    window: int,
    stride: int,
    window_batch: int,
    decoder_blocks: list[int] | None,
    output_size: tuple[int, int],
) -> list[Tensor]:
    size = enlarged_size(tuple(images.shape[-2:]), window)
    if size != tuple(images.shape[-2:]):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    how = {"window": window, "stride": stride, "window_batch": window_batch, "decoder_blocks": decoder_blocks}
    probs = []
    for logits in sliding_window_logits(model, images, **how):
        logits = F.interpolate(logits, size=output_size, mode="bilinear", align_corners=False)
        for b, flipped in enumerate(mirrored):
            if flipped:
                logits[b] = logits[b].flip(-1)
        probs.append(logits.softmax(1))
    return probs


@torch.no_grad()
def sliding_window_probs(
    model: nn.Module,
    image: Tensor,
    *,
    flipped: bool = False,
    window: int = 480,
    stride: int = 320,
    output_size: tuple[int, int],
    window_batch: int = 8,
    decoder_block: int | None = None,
) -> Tensor:
    """Probabilities of pictures at one scale, float32 (B, K, *output_size).

    A picture whose short side is below ``window`` is enlarged first. Logits are averaged over windows,
    resized bilinearly to ``output_size``, mirrored back, and go through softmax: in this order, as published.

    Args:
        model: Images (b, 3, window, window) to logits (b, K, window, window).
        image: (B, 3, H, W), normalised.
        flipped: The picture given is mirrored; the result is mirrored back.
        output_size: (h, w) of the result.
        decoder_block: Read a segmenter's decoder after this block, from 1; by default after the last.
    """
    return _windowed_probs(
        model,
        image,
        [flipped] * len(image),
        window=window,
        stride=stride,
        window_batch=window_batch,
        decoder_blocks=None if decoder_block is None else [decoder_block],
        output_size=tuple(output_size),
    )[0]


def predict_probs(
    model: Segmenter,
    image: np.ndarray,
    protocol: Protocol,
    *,
    max_side: int | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Tensor:
    """Class probabilities of one picture at its own size, float32 (K, H, W) on the network's device.

    The mean over scales and mirrors. With ``decoder_blocks="fused"`` the sum 0.8 p1 + p2, up to 1.8.

    Args:
        image: uint8 (H, W, 3).
        max_side: Probabilities of a larger picture are made at this longer side (pixels) and enlarged at the
            end; for pictures that would not fit in memory.
        amp_dtype: Autocast's type for the network, None for float32.

    Raises:
        UserError: The network gives values that are not finite.
    """
    return next(predict_each(model, image, [protocol], max_side=max_side, amp_dtype=amp_dtype))


@torch.no_grad()
def predict_each(
    model: Segmenter,
    image: np.ndarray,
    protocols: Sequence[Protocol],
    *,
    max_side: int | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """``predict_probs`` for each of several protocols, from one pass over the picture's scales.

    Protocols differ in scales, mirrors and decoder blocks alone. A scale that several share goes through the
    network once, with both decoder blocks. Each result has the bits that it has alone, as long as protocols
    without mirrors use scale 1 only.
    """
    if len({(p.short_side, p.window, p.stride, p.window_batch) for p in protocols}) != 1:
        raise ValueError("protocols of one pass share short side, window, stride and window batch")
    own_size = image.shape[:2]
    output_size = own_size
    if max_side is not None and max(own_size) > max_side:
        output_size = tuple(max(1, round(side * max_side / max(own_size))) for side in own_size)
    last = len(model.decoder.blocks)
    blocks = [1, last] if any(p.decoder_blocks == "fused" for p in protocols) else [last]
    totals: dict[tuple, list[Tensor]] = {}  # (scales, flip): per block, the sum over scales and mirrors
    kinds = list(dict.fromkeys((p.scales, p.flip) for p in protocols))
    longest_first = sorted(kinds, key=lambda kind: -len(kind[0]))
    for scale in dict.fromkeys(scale for scales, _ in longest_first for scale in scales):
        users = [kind for kind in kinds if scale in kind[0]]
        how = {"blocks": blocks, "output_size": output_size, "amp_dtype": amp_dtype}
        flip = any(flip for _, flip in users)
        views = _scale_probs(model, image, scale, protocols[0], flip=flip, **how)
        for kind in users:
            sums = [plain + mirror for plain, mirror in zip(*views, strict=True)] if kind[1] else views[0]
            for _ in range(kind[0].count(scale)):
                totals[kind] = (
                    [t + s for t, s in zip(totals[kind], sums, strict=True)] if kind in totals else sums
                )
        del views, sums
    for protocol in protocols:
        number = len(protocol.scales) * (2 if protocol.flip else 1)
        used = totals[protocol.scales, protocol.flip]
        if protocol.decoder_blocks == "fused":
            probs = FIRST_BLOCK_WEIGHT * (used[0] / number) + used[1] / number
        else:
            probs = used[-1] / number
        if not probs.isfinite().all():
            raise UserError(
                "the network gives values that are not finite; check --checkpoint, or use --amp off"
            )
        if output_size != own_size:
            probs = F.interpolate(probs[None], size=own_size, mode="bilinear", align_corners=False)[0]
        yield probs


def _scale_probs(
    model: Segmenter,
    image: np.ndarray,
    scale: float,
    protocol: Protocol,
    *,
    flip: bool,
    blocks: list[int],
    output_size: tuple[int, int],
    amp_dtype: torch.dtype | None,
) -> list[list[Tensor]]:
    """Probabilities (K, *output_size) at one scale: of the picture and, with ``flip``, of its mirror, a list
    with one tensor per decoder block each.

    Picture and mirror share batches, but at scale 1: there the picture alone is a result too, and batches of
    another size would give it other last digits.
    """
    device = next(model.parameters()).device
    resized = resize_bilinear(image, resized_size(image.shape[:2], protocol.short_side, scale))
    pixels = normalise(resized, model.pixel_mean, model.pixel_std).to(device)
    mirrored = [False, True] if flip else [False]
    groups = [[flipped] for flipped in mirrored] if scale == 1 else [mirrored]
    views = []
    for group in groups:
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            probs = _windowed_probs(
                model,
                torch.stack([pixels.flip(-1) if flipped else pixels for flipped in group]),
                group,
                window=protocol.window,
                stride=protocol.stride,
                window_batch=protocol.window_batch,
                decoder_blocks=blocks,
                output_size=output_size,
            )
        views += [list(view) for view in zip(*(p.unbind(0) for p in probs), strict=True)]
    return views
