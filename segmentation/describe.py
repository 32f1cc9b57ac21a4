"""What a result depends on, in words: no number without its network and protocol."""

import torch

from segmentation.inference import FIRST_BLOCK_WEIGHT, Protocol
from segmentation.segmenter import Segmenter
from wsss.training import amp_name


def result_line(
    model: Segmenter, protocol: Protocol, *, crf_preset: str | None, amp_dtype: torch.dtype | None
) -> str:
    """Backbone, pixel statistics, scales, mirrors, windows, decoder blocks, CRF and mixed precision."""
    mean, std = (" ".join(f"{v:g}" for v in levels) for levels in _pixel_levels(model))
    scales = " ".join(f"{s:g}" for s in protocol.scales)
    fused = f"decoder blocks fused, {FIRST_BLOCK_WEIGHT:g} x first + last"
    parts = [
        f"{model.backbone}, mean/std {mean} / {std}",
        f"scales {scales}, {'mirrors' if protocol.flip else 'no mirror'}",
        f"short side {protocol.short_side}, windows of {protocol.window} every {protocol.stride}",
        fused if protocol.decoder_blocks == "fused" else "last decoder block",
        f"CRF {crf_preset}" if crf_preset else "no CRF",
    ]
    return " | ".join([*parts, amp_name(amp_dtype)] if amp_dtype else parts)


def result_record(
    model: Segmenter, protocol: Protocol, *, crf_preset: str | None, amp_dtype: torch.dtype | None
) -> dict:
    """The same as plain values, for score.json."""
    mean, std = _pixel_levels(model)
    return {
        "backbone": model.backbone,
        "pixel_mean": mean,
        "pixel_std": std,
        "scales": list(protocol.scales),
        "mirrors": protocol.flip,
        "short_side": protocol.short_side,
        "window": protocol.window,
        "stride": protocol.stride,
        "decoder_blocks": protocol.decoder_blocks,
        "crf_preset": crf_preset,
        "amp": amp_name(amp_dtype),
    }


def chosen_by(entries: dict) -> str:
    """What made a checkpoint's weights the ones it holds.

    Args:
        entries: Of the checkpoint, from ``load_segmenter``.
    """
    best, step = entries.get("best"), entries.get("step")
    if step is None:
        return f"not recorded, epoch {entries['epoch']}" if "epoch" in entries else "not recorded"
    if not best or best["step"] != step:
        return f"step {step}, the last"
    every = f", one picture in {best['every']}" if best["every"] > 1 else ""
    return f"step {step}, best {best['measure']}: {100 * best['score']:.2f}% on {best['split']}{every}"


def _pixel_levels(model: Segmenter) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels as published: of levels 0..255, with two decimals."""
    mean, std = ([round(255 * v, 2) for v in values] for values in (model.pixel_mean, model.pixel_std))
    return mean, std
