"""Make pseudo-masks from CAMs: threshold, then dense CRF; one palette PNG per picture of a split.

Continues where it was stopped. Where the split has masks, scores the result, with and without CRF.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from weaktr.search_threshold import cam_path_or_none, cams_identity
from wsss.cam_files import label_map, read_cams
from wsss.config import REQUIRED, DataOptions, next_command, option, result_options, run_command
from wsss.crf import check_crf_installed, crf_from_labels
from wsss.datasets import Dataset, load_dataset, split_name
from wsss.errors import UserError
from wsss.io import read_image, read_json, read_mask, write_mask
from wsss.metrics import ConfusionMatrix
from wsss.panels import panel_ids, write_label_panels
from wsss.parallel import CPUS, parallel_map
from wsss.run import open_run
from wsss.score import mask_paths_of, score_masks, score_record, write_score

log = logging.getLogger(__name__)

CRF_PRESETS = {"voc12": "voc12_cam", "coco14": "coco14_cam", "folder": "voc12_cam"}


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    cam_dir: Path = option(REQUIRED, "folder of <id>.npz, as weaktr.generate_cam writes it")
    split: str | None = option(None, "list of pictures; default: the training list")
    threshold: float | None = option(
        None, "background threshold, 0..1; or give --threshold-file", minimum=0, maximum=1
    )
    threshold_file: Path | None = option(None, "threshold.json of weaktr.search_threshold")
    crf: bool = option(True, "sharpen the labels with a dense CRF")
    crf_preset: str | None = option(
        None,
        "CRF settings; default: coco14_cam for coco14, else voc12_cam",
        choices=("voc12_cam", "coco14_cam"),
    )
    mask_dir: Path | None = option(None, "folder of <id>.png masks to score against; default: the data set's")
    exif: bool = option(False, "turn pictures as their EXIF tag says; as for weaktr.generate_cam")
    panels: int = option(
        0,
        "also write panels/ID of N pictures spread over the list: picture, truth and mask, small",
        changes_result=False,
        minimum=0,
    )
    workers: int = option(CPUS, "processes; 0 computes in the command's own", minimum=0, changes_result=False)


class Task(NamedTuple):
    """What a process needs for one picture."""

    output_path: Path
    image_path: Path
    cam_path: Path | None  # None: no labels, so all background
    mask_path: Path | None  # truth, to score the labels before CRF


def pseudo_mask(
    image: np.ndarray, cams: np.ndarray, class_ids: Sequence[int], threshold: float, *, preset: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of one picture before and after CRF, uint8 (H, W): 0 background, class + 1.

    Args:
        image: uint8 (H, W, 3).
        cams: float16 (n, H, W).
        class_ids: (n,) foreground class indices, counted from 0.
        threshold: A pixel is background where no CAM exceeds it.
        preset: CRF settings over background and these n classes; None for no CRF.
    """
    labels = label_map(cams, threshold)
    values = np.array([0, *(c + 1 for c in class_ids)], dtype=np.uint8)
    if preset is None:
        return values[labels], values[labels]
    return values[labels], values[
        crf_from_labels(image, labels, num_labels=len(values), preset=preset)
    ]  # fmt: skip


def _make_mask(
    task: Task, *, threshold: float, preset: str | None, exif: bool, num_classes: int
) -> np.ndarray | None:
    """Write the mask of one picture unless it is there; returns the counts before CRF if there is truth."""
    done = task.output_path.is_file()
    if done and task.mask_path is None:
        return None
    image = read_image(task.image_path, exif=exif)
    if task.cam_path is None:
        cams, class_ids = np.zeros((0, *image.shape[:2]), np.float16), ()
    else:
        cams, class_ids = read_cams(task.cam_path)
    if cams.shape[1:] != image.shape[:2]:
        raise UserError(
            f"{task.cam_path}: CAMs of {cams.shape[2]}x{cams.shape[1]} pixels, {task.image_path} has "
            f"{image.shape[1]}x{image.shape[0]}; generate them for these pictures, with the same --exif"
        )
    if len(class_ids) and not 0 <= min(class_ids) <= max(class_ids) < num_classes - 1:
        raise UserError(
            f"{task.cam_path}: holds class {max(class_ids)}, the data set has {num_classes - 1} classes; "
            "generate CAMs for this data set"
        )
    before, after = pseudo_mask(image, cams, class_ids, threshold, preset=None if done else preset)
    if not done:
        write_mask(task.output_path, after)
    if task.mask_path is None:
        return None
    truth = read_mask(task.mask_path)
    confusion = ConfusionMatrix(num_classes)
    try:
        confusion.update(before, truth)
    except ValueError as error:
        raise UserError(
            f"{task.mask_path}: does not fit {task.image_path} ({error}); give masks of this data set"
        ) from None
    return confusion.counts


def read_threshold(config: Config) -> float:
    """The threshold given as a number or in a file.

    Raises:
        UserError: None or both are given, or it is no number in 0..1.
    """
    if (config.threshold is None) == (config.threshold_file is None):
        raise UserError(
            "--threshold: give it, or --threshold-file with the threshold.json of weaktr.search_threshold, "
            "and not both"
        )
    where, threshold = "--threshold", config.threshold
    if config.threshold_file is not None:
        where = f"{config.threshold_file}"
        content = read_json(config.threshold_file)
        threshold = content.get("threshold") if isinstance(content, dict) else None
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise UserError(f"{where}: the threshold must be a number in 0..1, got {threshold!r}")
    return float(threshold)


def main(config: Config) -> None:
    threshold = read_threshold(config)
    dataset = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    split = config.split or dataset.train_split
    preset = (config.crf_preset or CRF_PRESETS[config.dataset]) if config.crf else None
    if config.crf:
        check_crf_installed()
    cams = cams_identity(config.cam_dir)
    mask_paths = mask_paths_of(dataset, split, config.mask_dir)
    options = result_options(config, leave_out=("threshold_file", "mask_dir"))
    options |= {"split": split, "threshold": threshold, "crf_preset": preset, "cams_config_sha256": cams}
    ids = dataset.image_ids(split)
    tasks = [
        Task(
            config.output_dir / f"{i}.png",
            dataset.image_path(i),
            cam_path_or_none(config.cam_dir, dataset, i),
            mask_paths.get(i),
        )
        for i in ids
    ]
    output_dir = open_run(
        config.output_dir,
        "weaktr.make_masks",
        options,
        owned=("*.png", ".*.png.tmp", "panels", "score.json", "score.md"),
        overwrite=config.overwrite,
    )
    there = sum(task.output_path.is_file() for task in tasks)
    if there:
        log.info("continuing: %d of %d masks are there already", there, len(tasks))
    unlabelled = sum(task.cam_path is None for task in tasks)
    if unlabelled:
        log.info("%d pictures have no labels and no CAMs: all background", unlabelled)

    num_classes = dataset.num_fg_classes + 1
    work = functools.partial(
        _make_mask, threshold=threshold, preset=preset, exif=config.exif, num_classes=num_classes
    )
    before = ConfusionMatrix(num_classes)
    results = parallel_map(work, tasks, workers=config.workers)
    for counts in tqdm(results, total=len(tasks), desc="pseudo-masks", unit="mask"):
        if counts is not None:
            before.counts += counts
    log.info("wrote %d masks to %s, %d in all", len(tasks) - there, output_dir, len(tasks))
    if config.panels:
        _write_panels(config, dataset, ids, mask_paths)
    log.info("threshold %.2f, CRF: %s", threshold, preset or "none")
    if not mask_paths:
        log.info("no score: not every picture of %s has a mask", split)
        log.info("done: the masks are ready to train a segmentation network on (stage 2)")
        return

    about = {"split": split, "threshold": threshold, "crf_preset": preset}
    _score(config, dataset, mask_paths, before, about)
    where = {
        "mask_dir": config.mask_dir,
        "output_dir": output_dir.parent.parent / "score" / split_name(split),
    }
    log.info(next_command("wsss.score", config, pred_dir=output_dir, split=split, **where))


def _write_panels(config: Config, dataset: Dataset, ids: list[str], mask_paths: dict[str, Path]) -> None:
    shown = panel_ids(ids, config.panels)
    truth = {i: dataset.mask_path(i) for i in shown} | mask_paths
    pictures = [(i, dataset.image_path(i), truth[i]) for i in shown]
    write_label_panels(config.output_dir, "pseudo_mask", pictures, exif=config.exif)
    log.info("wrote panels of %d pictures to %s", len(shown), config.output_dir / "panels")


def _score(
    config: Config, dataset: Dataset, mask_paths: dict[str, Path], before: ConfusionMatrix, about: dict
) -> None:
    """Write and log the score, ``before`` CRF and after it where there is one."""
    num_classes = dataset.num_fg_classes + 1
    confusion = score_masks(config.output_dir, mask_paths, num_classes=num_classes, workers=config.workers)
    about = {
        "split": about["split"],
        "images": len(mask_paths),
        "pred_dir": str(config.output_dir),
        "mask_dir": str(next(iter(mask_paths.values())).parent),
        **about,
    }
    if about["crf_preset"]:
        about["before_crf"] = score_record(before.scores(), dataset.class_names)
    scores = write_score(config.output_dir, confusion, dataset.class_names, about)
    if about["crf_preset"]:
        log.info("mIoU  %.2f%% before CRF", 100 * before.scores().mean_iou)
    after = "after CRF" if about["crf_preset"] else "without CRF"
    log.info("mIoU  %.2f%% %s", 100 * scores.mean_iou, after)


def run() -> None:
    run_command(main, Config, prog="weaktr.make_masks", description=__doc__)


if __name__ == "__main__":
    run()
