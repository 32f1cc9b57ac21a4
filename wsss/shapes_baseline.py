"""How far plain colour goes on the embedded data set: what the method must beat.

A pixel is of the class whose band of hues it lies in, if it is saturated enough; else background. The bands
are the true ones (``wsss.shapes.CLASSES``), and the least saturation is the one of highest mIoU on the true
masks of the training list: more help than the method gets. With --image-labels only the picture's classes are
considered, as for CAMs and pseudo-masks; without, all of them, as for a segmenter. --crf sharpens the labels
as pseudo-masks are sharpened.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from wsss.config import REQUIRED, option, result_options, run_command
from wsss.crf import check_crf_installed, crf_from_labels
from wsss.datasets import Dataset, load_dataset
from wsss.errors import UserError
from wsss.io import read_image, read_mask, write_mask
from wsss.metrics import ConfusionMatrix
from wsss.parallel import CPUS, parallel_map
from wsss.run import open_run
from wsss.score import mask_paths_of, score_masks, write_score
from wsss.shapes import CLASSES, HUE_BAND

log = logging.getLogger(__name__)

SATURATIONS = tuple(np.arange(1, 10) / 10)
CRF_PRESET = "voc12_cam"  # of the pseudo-masks of folder data sets


@dataclass(frozen=True, kw_only=True)
class Config:
    data_path: Path = option(REQUIRED, "folder of the embedded data set, from wsss.shapes")
    output_dir: Path = option(REQUIRED, "folder that receives masks and score")
    split: str = option("val", "list to label")
    image_labels: bool = option(False, "consider only the classes of the picture")
    crf: bool = option(False, "sharpen the labels with a dense CRF")
    workers: int = option(CPUS, "processes; 0 computes in the command's own", minimum=0, changes_result=False)
    overwrite: bool = option(
        False, "start afresh in a folder of another run: what it holds is deleted first", changes_result=False
    )


class Task(NamedTuple):
    image_path: Path
    mask_path: Path
    present: np.ndarray  # bool (C,): classes to consider


def colour_labels(image: np.ndarray, present: np.ndarray, saturations: Sequence[float]) -> np.ndarray:
    """Label maps, uint8 (n, H, W), one per least saturation (0..1).

    Args:
        image: uint8 (H, W, 3).
        present: bool (C,), the classes of ``wsss.shapes.CLASSES`` to consider.
    """
    hue, saturation, _ = cv2.split(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
    centres = np.array([kind.hue for kind in CLASSES.values()], np.float32)
    distance = np.abs((hue[..., None] / 360 - centres + 0.5) % 1 - 0.5)
    distance[..., ~present] = np.inf
    labels = np.where(distance.min(-1) <= HUE_BAND, distance.argmin(-1) + 1, 0)
    return np.stack([np.where(saturation >= least, labels, 0) for least in saturations]).astype(np.uint8)


def main(config: Config) -> None:
    data = load_dataset("folder", config.data_path)
    if list(data.class_names) != list(CLASSES):
        raise UserError(f"{config.data_path}: not the embedded data set; make it with python -m wsss.shapes")
    if config.crf:
        check_crf_installed()
    mask_paths = mask_paths_of(data, config.split, None)
    if not mask_paths:
        raise UserError(f"{config.data_path}: masks of {config.split} are missing; make the data set again")
    output_dir = open_run(
        config.output_dir,
        "wsss.shapes_baseline",
        result_options(config),
        owned=("*.png", ".*.tmp", "score.json", "score.md"),
        overwrite=config.overwrite,
    )
    least = best_saturation(data, config)
    tasks = make_tasks(data, config, config.split)
    work = functools.partial(_write_labels, output_dir=output_dir, least=least, crf=config.crf)
    for _ in tqdm(parallel_map(work, tasks, workers=config.workers), total=len(tasks), desc="labels"):
        pass
    confusion = score_masks(
        output_dir, mask_paths, num_classes=data.num_fg_classes + 1, workers=config.workers
    )
    about = {
        "split": config.split,
        "images": len(tasks),
        "pred_dir": str(output_dir),
        "mask_dir": str(tasks[0].mask_path.parent),
        "image_labels": config.image_labels,
        "crf_preset": CRF_PRESET if config.crf else None,
        "least_saturation": least,
    }
    scores = write_score(output_dir, confusion, data.class_names, about)
    log.info(
        "mIoU  %.2f%% from hue and saturation %.1f or more (best on the masks of %s)",
        100 * scores.mean_iou, least, data.train_split,
    )  # fmt: skip
    log.info("wrote %s", output_dir)


def best_saturation(data: Dataset, config: Config) -> float:
    """The least saturation of the highest mIoU on the training list, before CRF."""
    confusions = [ConfusionMatrix(data.num_fg_classes + 1) for _ in SATURATIONS]
    tasks = make_tasks(data, config, data.train_split)
    for counts in parallel_map(_count, tasks, workers=config.workers):
        for confusion, part in zip(confusions, counts, strict=True):
            confusion.counts += part
    return float(SATURATIONS[int(np.argmax([c.scores().mean_iou for c in confusions]))])


def make_tasks(data: Dataset, config: Config, split: str) -> list[Task]:
    everything = np.ones(data.num_fg_classes, bool)
    return [
        Task(
            data.image_path(i),
            data.mask_path(i),
            data.labels(i).astype(bool) if config.image_labels else everything,
        )
        for i in data.image_ids(split)
    ]


def _count(task: Task) -> list[np.ndarray]:
    truth = read_mask(task.mask_path)
    counts = []
    for labels in colour_labels(read_image(task.image_path), task.present, SATURATIONS):
        confusion = ConfusionMatrix(len(task.present) + 1)
        confusion.update(labels, truth)
        counts.append(confusion.counts)
    return counts


def _write_labels(task: Task, *, output_dir: Path, least: float, crf: bool) -> None:
    path = output_dir / f"{task.mask_path.stem}.png"
    if path.is_file():
        return
    image = read_image(task.image_path)
    labels = colour_labels(image, task.present, [least])[0]
    if crf:  # over background and the classes that are considered, as for pseudo-masks
        values = np.append(0, np.flatnonzero(task.present) + 1).astype(np.uint8)
        places = np.searchsorted(values, labels)
        labels = values[crf_from_labels(image, places, num_labels=len(values), preset=CRF_PRESET)]
    write_mask(path, labels)


def run() -> None:
    run_command(main, Config, prog="wsss.shapes_baseline", description=__doc__)


if __name__ == "__main__":
    run()
