"""Generate class activation maps (CAMs) of a list of pictures: multi-scale, mirrored, present classes only.

    python -m weaktr.generate_cam --dataset folder --data-path DATA --checkpoint OUT/train/best.pth \\
        --split train --output-dir OUT/cams/train

Alone or under torchrun. Writes <id>.npz per picture (docs/formats.md); existing files are kept, so the same
command continues a run that was stopped.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from weaktr.cam_panels import write_cam_panels
from weaktr.cams import cam_grids, multi_scale_cams, predicted_labels
from weaktr.model import ATTENTIONS, WeakTr, load_weaktr
from weaktr.thresholds import PUBLISHED_THRESHOLDS, ThresholdAccumulator, threshold_values
from wsss.cam_files import CamFile, maps_from_grids, read_cams, write_cams, write_compact_cams
from wsss.checkpoint import check_classes
from wsss.config import REQUIRED, DataOptions, next_command, option, result_options, run_command
from wsss.datasets import load_dataset
from wsss.distributed import all_sum, barrier, distributed_session, rank, shard
from wsss.errors import UserError
from wsss.io import read_image, read_mask, write_image
from wsss.run import open_run, sha256
from wsss.visualize import heat_overlay, side_by_side

__all__ = ["Config", "main", "multi_scale_cams"]  # the last at its public address

log = logging.getLogger(__name__)

PUBLISHED_SCALES = {"voc12": (1.0, 1.2), "folder": (1.0, 1.2), "coco14": (1.0, 0.8, 1.2)}


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    checkpoint: Path = option(REQUIRED, "network: a checkpoint of weaktr.train or a released one")
    split: str | None = option(None, "list of pictures (default: the data set's training list)")
    scales: tuple[float, ...] | None = option(
        None, "scales of the picture (default: 1.0 1.2; coco14: 1.0 0.8 1.2, as published)", above=0
    )
    flip: bool = option(True, "also use the mirrored picture")
    attention: str = option(
        "fused", "CAM before refinement: fused (cross attention x coarse), or an ablation", choices=ATTENTIONS
    )
    refine: bool = option(True, "refine CAMs by patch attention")
    predicted_labels: float | None = option(
        None,
        "for pictures without labels: take classes whose predicted probability exceeds this (0..1)",
        minimum=0,
        maximum=1,
    )
    compact: bool = option(
        False, "write the small per-scale grids, from which readers rebuild the same maps, exactly"
    )
    max_side: int | None = option(
        None,
        "shrink pictures with a longer side than this, pixels (default: refuse what memory cannot hold)",
        minimum=1,
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    overlays: int = option(
        0, "also write overlay PNGs of the first N pictures", changes_result=False, minimum=0
    )
    panels: int = option(
        0,
        "also write panels/ID of N pictures spread over the list: picture, truth and kinds of CAM, small",
        changes_result=False,
        minimum=0,
    )
    backbone: str | None = option(None, "for a released checkpoint of another family than DeiT: its backbone")
    pool: str = option("max", "for a released checkpoint: its feature pooling", choices=("max", "avg"))


def main(config: Config) -> None:
    with distributed_session(config.device) as device:
        spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
        split = config.split or spec.train_split
        image_ids = spec.image_ids(split)
        model, entries = load_weaktr(config.checkpoint, backbone=config.backbone, pool=config.pool)
        check_classes(config.checkpoint, model.num_classes, entries.get("class_names"), spec)
        options = result_options(config)
        options |= {"split": split, "scales": list(config.scales or PUBLISHED_SCALES[config.dataset])}
        output_dir = open_run(
            config.output_dir,
            "weaktr.generate_cam",
            {**options, "checkpoint_sha256": sha256(config.checkpoint)},
            owned=("*.npz", ".*.npz.tmp", "overlays", "panels", "head_weights.json"),
            overwrite=config.overwrite,
        )
        model.to(device)
        accumulator = ThresholdAccumulator(spec.num_fg_classes, threshold_values(0.0, 0.99, 0.01))
        counts = np.zeros(4, np.int64)  # written, kept, skipped for want of labels, scored
        overlaid = set(image_ids[: config.overlays])
        write_one = partial(_one_picture, config, options["scales"], spec, model, output_dir, accumulator)
        for image_id in tqdm(shard(image_ids), desc=f"CAMs {split}", unit="img", disable=rank() != 0):
            counts += write_one(image_id, overlaid=image_id in overlaid)
        if config.panels:
            _write_panels(config, options["scales"], spec, model, output_dir, image_ids)
        written, kept, skipped, scored = all_sum(torch.from_numpy(counts).to(device)).tolist()
        accumulator.all_sum(device)
        barrier()
        log.info(
            "wrote %d CAM files to %s (%d were there already, %d pictures without a class skipped)",
            written, output_dir, kept, skipped,
        )  # fmt: skip
        if accumulator.counts.any():
            _log_score(accumulator, scored, split, config)
        where = {"split": split, "output_dir": output_dir.parent.parent / "threshold"}
        log.info(next_command("weaktr.search_threshold", config, cam_dir=output_dir, **where))


def _one_picture(
    config: Config,
    scales: Sequence[float],
    spec,
    model: WeakTr,
    output_dir: Path,
    accumulator: ThresholdAccumulator,
    image_id: str,
    *,
    overlaid: bool,
) -> np.ndarray:
    """Write one file unless it is there. Returns what to add to the counts of ``main``."""
    path = output_dir / f"{image_id}.npz"
    image_path, mask_path = spec.image_path(image_id), spec.mask_path(image_id)
    kept = path.is_file()
    skipped = not kept and config.predicted_labels is None and not spec.labels(image_id).any()
    image = None if (kept or skipped) and not overlaid else read_image(image_path, exif=config.exif)
    mask = read_mask(mask_path) if mask_path.is_file() else None
    if kept:
        found = read_cams(path)
    elif skipped:
        found = None
    else:
        try:
            labels = _labels(config, spec, model, image_id, image)
            grids, class_ids = _grids(config, scales, model, image, labels)
        except UserError as error:
            raise UserError(f"{image_path}: {error}") from error
        found = CamFile(maps_from_grids(grids, image.shape[:2]).astype(np.float16), class_ids)
        if config.compact:
            write_compact_cams(path, grids, class_ids, image.shape[:2])
        else:
            write_cams(path, found.cams, class_ids)
    if overlaid and found is not None:
        write_overlay(output_dir / "overlays" / f"{image_id}.png", image, found)
    if mask is not None:
        if found is None:  # without a class: background, as the threshold search and the masks take it
            found = CamFile(np.zeros((0, *mask.shape), np.float16), np.zeros(0, np.int64))
        if mask.shape != found.cams.shape[1:]:
            raise UserError(
                f"{mask_path}: mask of {mask.shape[1]}x{mask.shape[0]}, its picture has "
                f"{found.cams.shape[2]}x{found.cams.shape[1]} pixels; give a mask of the picture's size"
            )
        try:
            accumulator.update(found.cams, found.class_ids, mask)
        except ValueError as error:
            raise UserError(f"{mask_path}: {error}; give the masks of this data set") from None
    return np.array([not (kept or skipped), kept, skipped, mask is not None], np.int64)


def _grids(config: Config, scales, model: WeakTr, image: np.ndarray, labels: np.ndarray):
    """Grids of the present classes, and their indices. Without a class: one empty grid."""
    class_ids = np.flatnonzero(labels)
    if len(class_ids) == 0:
        return [np.zeros((0, 1, 1), np.float32)], class_ids
    grids = cam_grids(
        model,
        image,
        class_ids.tolist(),
        scales=scales,
        flip=config.flip,
        attention=config.attention,
        refine=config.refine,
        max_side=config.max_side,
    )
    return [g.numpy() for g in grids], class_ids


def _labels(config: Config, spec, model: WeakTr, image_id: str, image: np.ndarray) -> np.ndarray:
    if config.predicted_labels is None or (spec.has_labels(image_id) and spec.labels(image_id).any()):
        return spec.labels(image_id)
    return predicted_labels(model, image, config.predicted_labels, max_side=config.max_side)


def write_overlay(path: Path, image: np.ndarray, found: CamFile) -> None:
    """Picture and one heat map per present class, side by side, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heats = [heat_overlay(image, cam.astype(np.float32)) for cam in found.cams]
    write_image(path, side_by_side(image, *heats))


def _write_panels(config: Config, scales, spec, model: WeakTr, output_dir: Path, image_ids) -> None:
    labels_of = partial(_labels, config, spec, model)
    how = {"scales": scales, "flip": config.flip, "refine": config.refine, "max_side": config.max_side}
    how |= {"count": config.panels, "exif": config.exif}
    write_cam_panels(output_dir, model, spec, image_ids, labels_of, **how)
    log.info("wrote panels of %d pictures to %s", min(config.panels, len(image_ids)), output_dir / "panels")


def _log_score(accumulator: ThresholdAccumulator, scored: int, split: str, config: Config) -> None:
    curve = accumulator.curve()
    published = PUBLISHED_THRESHOLDS[config.dataset]
    log.info(
        "CAM mIoU on %d pictures of %s: %.2f%% at the published threshold %.2f, best %.2f%% at %.2f "
        "(chosen on these masks)",
        scored, split, 100 * curve.mean_iou_at(published), published,
        100 * curve.best_mean_iou, curve.best_threshold,
    )  # fmt: skip


def run() -> None:
    run_command(main, Config, prog="weaktr.generate_cam", description=__doc__)


if __name__ == "__main__":
    run()
