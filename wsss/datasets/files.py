"""Open every picture and mask of a data set, in several processes; collect what is wrong with them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from wsss.datasets.base import Dataset
from wsss.errors import Report, passed_to
from wsss.io import IGNORED, read_image, read_mask, read_size
from wsss.parallel import parallel_map


class Task(NamedTuple):
    """The files of one id that exist."""

    picture: Path | None
    masks: tuple[Path, ...]


class Found(NamedTuple):
    problems: list[str]
    classes: dict[Path, tuple[int, ...]]  # class indices per mask that could be read


def check_files(
    spec: Dataset,
    variants: Mapping[str, Dataset],
    ids: Sequence[str],
    labels: Mapping[str, tuple[int, ...]],
    *,
    report: Report,
    decode: bool,
    workers: int,
) -> tuple[int, int]:
    """Report pictures that cannot be opened, bad masks, and classes in masks that the labels lack.

    Args:
        variants: The data set with each of its folders of masks.
        ids: Each once; files that do not exist are left out.
        labels: Class indices of the ids that have labels.
        report: Gets the problems, in the order of ``ids``.
        decode: Read all pixels of the pictures.
        workers: Processes.

    Returns:
        How many pictures and masks were opened.
    """
    tasks = []
    for image_id in ids:
        picture = spec.image_path(image_id) if image_id in spec.pictures else None
        masks = tuple(v.mask_path(image_id) for v in variants.values() if image_id in v.masks)
        tasks.append(Task(picture, masks))
    names = spec.class_names
    work = functools.partial(check_picture, num_fg_classes=len(names), decode=decode)
    results = parallel_map(work, tasks, workers=min(workers, len(tasks)))
    progress = tqdm(results, total=len(tasks), desc="pictures and masks", unit="img")
    for image_id, found in zip(ids, progress, strict=True):
        for problem in found.problems:
            report(problem)
        for path, classes in found.classes.items():
            lacking = [names[c] for c in classes if c not in labels.get(image_id, classes)]
            if lacking:
                report(
                    f"{path}: holds {', '.join(lacking)}, which the labels of {image_id!r} lack; "
                    "correct the labels or the mask"
                )
    return sum(task.picture is not None for task in tasks), sum(len(task.masks) for task in tasks)


def check_picture(task: Task, *, num_fg_classes: int, decode: bool) -> Found:
    """Open the files of one picture. With no classes known, values of masks are not judged."""
    problems: list[str] = []
    classes: dict[Path, tuple[int, ...]] = {}
    size = None
    if task.picture is not None:
        with passed_to(problems.append):
            size = read_image(task.picture).shape[:2] if decode else read_size(task.picture)
    for path in task.masks:
        with passed_to(problems.append):
            mask = read_mask(path)
            if size is not None and mask.shape != size:
                problems.append(
                    f"{path}: is {mask.shape[1]}x{mask.shape[0]}, its picture {task.picture} is "
                    f"{size[1]}x{size[0]}; both must have one size"
                )
            values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
            bad = [v for v in values if num_fg_classes < v < IGNORED]
            if bad and num_fg_classes:
                problems.append(
                    f"{path}: holds the values {', '.join(map(str, bad))}; masks hold 0..{num_fg_classes} "
                    f"and {IGNORED}"
                )
            classes[path] = tuple(v - 1 for v in values if 0 < v <= num_fg_classes)
    return Found(problems, classes)
