"""Options and settings that segmentation.predict and segmentation.evaluate share."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from segmentation.inference import Protocol
from wsss.config import REQUIRED, DataOptions, option
from wsss.errors import UserError
from wsss.parallel import CPUS
from wsss.released import Released, find_released

CRF_PRESETS = {"voc12": "voc12_segmentation", "folder": "voc12_segmentation", "coco14": "coco14_segmentation"}


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(DataOptions):
    split: str | None = option(None, "list of pictures (default: the data set's validation list)")
    checkpoint: Path = option(
        REQUIRED, "network: a checkpoint of segmentation.train, or a released one, by file or by name"
    )
    backbone: str | None = option(
        None, "for a released checkpoint, whose shapes fit backbones of different pixel statistics"
    )
    short_side: int | None = option(
        None, "of the picture at scale 1, pixels (default: as in training, else 520)", minimum=1
    )
    window: int | None = option(
        None, "side of the sliding window, pixels (default: as in training, else 480)", minimum=1
    )
    stride: int | None = option(
        None,
        "of the window, pixels (default: two thirds of a --window given, else as in training, else 320)",
        minimum=1,
    )
    window_batch: int = option(
        8, "windows that go through the network at a time", minimum=1, changes_result=False
    )
    crf_preset: str | None = option(
        None,
        "CRF settings (default: coco14_segmentation for coco14, else voc12_segmentation)",
        choices=("voc12_segmentation", "coco14_segmentation"),
    )
    max_side: int | None = option(
        None,
        "make the probabilities of larger pictures at this longer side, pixels, and enlarge them (default: "
        "refuse what memory cannot hold)",
        minimum=1,
    )
    amp: str = option(
        "auto",
        "mixed precision; auto: bfloat16 on a GPU that has it, float16 on others, off on CPU",
        choices=("auto", "off", "bfloat16", "float16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    workers: int = option(
        min(4, CPUS),
        "processes for CRF and writing, per process; 0 does both in the command's own",
        minimum=0,
        changes_result=False,
    )


def with_released(config: PredictionOptions) -> tuple[PredictionOptions, Released | None]:
    """The options with a released checkpoint's file in place of its name and with the backbone it is known to
    have; and what is known of it, None for other files.

    Raises:
        UserError: Not downloaded, or of another kind than a segmenter.
    """
    path, released = find_released(str(config.checkpoint))
    if released is None:
        return dataclasses.replace(config, checkpoint=path), None
    if released.kind != "segmenter":
        raise UserError(
            f"{config.checkpoint}: {released.name} is no segmenter; bash scripts/evaluate.sh takes every "
            "released network, segmentation.predict and segmentation.evaluate those of stage 2"
        )
    if config.backbone not in (None, released.backbone):
        raise UserError(
            f"{path}: the released {released.name} is a {released.backbone}, not {config.backbone}; "
            "leave --backbone out"
        )
    return dataclasses.replace(config, checkpoint=path, backbone=released.backbone), released


def window_sizes(config: PredictionOptions, trained: dict) -> dict[str, int]:
    """Short side, window, stride and window batch: as given, else as in training, else as published.

    Args:
        trained: ``short_side``, ``window`` and ``stride``, where the checkpoint knows them.
    """
    stride = config.stride or (config.window and max(1, config.window * 2 // 3))
    given = {"short_side": config.short_side, "window": config.window, "stride": stride}
    sizes = {name: value or trained.get(name) or getattr(Protocol, name) for name, value in given.items()}
    if sizes["stride"] > sizes["window"]:
        raise UserError(
            f"--stride {sizes['stride']}: leaves gaps between windows of {sizes['window']} pixels; "
            "give at most the --window"
        )
    return sizes | {"window_batch": config.window_batch}


def trained_with(entries: dict) -> dict:
    """What a checkpoint's other entries (``load_segmenter``) say of its training."""
    return {**entries.get("options", {}), **entries.get("preprocessing", {})}
