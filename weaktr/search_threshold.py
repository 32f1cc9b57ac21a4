"""Find the background threshold of CAMs: the whole curve of mIoU over thresholds in one pass over the files.

A pixel is background where no class of its picture exceeds the threshold, else the largest class. Writes
threshold.json (the chosen threshold and the curve) and threshold.png. Without masks there is nothing to
measure: threshold.json then holds, and says so, the threshold that Otsu's rule finds in the CAMs (folder) or
the published one (voc12, coco14).
"""

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from weaktr.thresholds import (
    PUBLISHED_THRESHOLDS,
    SWEEP,
    ThresholdAccumulator,
    ThresholdCurve,
    otsu_threshold,
    threshold_values,
)
from wsss.cam_files import read_cams
from wsss.config import REQUIRED, DataOptions, next_command, option, result_options, run_command
from wsss.datasets import load_dataset, split_name
from wsss.errors import UserError
from wsss.io import atomic_write, read_json, read_mask, write_json
from wsss.parallel import parallel_map
from wsss.run import open_run, sha256

log = logging.getLogger(__name__)

NOT_MEASURED = "published value, masks not used"
NO_CLASS = "published value, no picture has a class"
OTSU = "Otsu's rule on the CAMs, masks not used"
BINS = 100  # of the histogram for Otsu's rule: thresholds of two decimals
FILES_PER_TASK = 16  # counts of many pictures travel between processes as one array


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    cam_dir: Path = option(REQUIRED, "folder of <id>.npz, as weaktr.generate_cam writes it")
    split: str | None = option(None, "list of pictures; default: the one on which CAMs are scored")
    mask_dir: Path | None = option(None, "folder of <id>.png masks; default: the data set's own")
    thresholds: tuple[float, ...] = option(
        (0.0, 0.99, 0.01), "first and last threshold, and the step", minimum=0, maximum=1
    )
    select: str = option(
        "auto",
        "threshold to write: best mIoU on the masks; sweep: the published search from 0.40; published: "
        "0.43 (voc12, folder) or 0.42 (coco14); otsu: from the CAMs alone; auto: best where there are "
        "masks, else otsu for a folder and published for voc12 and coco14",
        choices=("auto", "best", "sweep", "published", "otsu"),
    )
    workers: int = option(2, "processes; 0 computes in the command's own", minimum=0, changes_result=False)


def threshold_curve(
    cam_dir: str | Path,
    mask_dir: str | Path,
    image_ids: Iterable[str],
    *,
    num_classes: int,
    thresholds: Sequence[float],
) -> ThresholdCurve:
    """The curve of a folder of CAM files against a folder of masks.

    Args:
        cam_dir: ``<id>.npz`` files, full or compact.
        mask_dir: ``<id>.png`` files: 0 background, c + 1, 255 not counted.
        image_ids: The pictures; every one needs both files.
        num_classes: Foreground classes.
        thresholds: Any order; the curve keeps it.

    Raises:
        UserError: A file is missing or damaged, or a mask's size differs from its CAMs'.
    """
    pairs = [(Path(cam_dir) / f"{i}.npz", Path(mask_dir) / f"{i}.png") for i in image_ids]
    accumulator = ThresholdAccumulator(num_classes, thresholds)
    accumulator.counts += _count_files(pairs, num_classes, tuple(thresholds))
    return accumulator.curve()


def _count_files(pairs: Iterable[tuple[Path | None, Path]], num_classes: int, thresholds) -> np.ndarray:
    """Counts over (CAM file, mask file) pairs; None stands for a picture without labels."""
    accumulator = ThresholdAccumulator(num_classes, thresholds)
    for cam_path, mask_path in pairs:
        mask = read_mask(mask_path)
        if cam_path is None:
            cams, class_ids = np.zeros((0, *mask.shape), np.float16), np.zeros(0, np.int64)
        else:
            cams, class_ids = read_cams(cam_path)
        try:
            accumulator.update(cams, class_ids, mask)
        except ValueError as error:
            raise UserError(
                f"{mask_path}: does not fit {cam_path or 'the classes'} ({error}); "
                "check that masks, classes.txt and CAMs are of the same pictures"
            ) from None
    return accumulator.counts


def _largest_values(cam_paths: Iterable[Path]) -> np.ndarray:
    """Histogram of every pixel's largest CAM; each picture weighs the same, whatever its size."""
    total = np.zeros(BINS)
    for path in cam_paths:
        cams, class_ids = read_cams(path)
        if len(class_ids):
            largest = cams.max(axis=0).astype(np.float32)
            total += np.histogram(largest, BINS, (0, 1))[0] / largest.size
    return total


def cam_path_or_none(cam_dir: Path, dataset, image_id: str) -> Path | None:
    """The CAM file of a picture; None for one that has no file because it has no labels.

    Raises:
        UserError: The picture has labels and no file.
    """
    path = Path(cam_dir) / f"{image_id}.npz"
    if path.is_file():
        return path
    if dataset.labels(image_id).any():
        raise UserError(f"{path}: no such CAM file; run python -m weaktr.generate_cam for this split first")
    return None


def cams_identity(cam_dir: str | Path) -> str | None:
    """Hash of the record of how the CAMs were made, None where the folder has none (CAMs from elsewhere)."""
    cam_dir = Path(cam_dir)
    if not cam_dir.is_dir():
        raise UserError(f"{cam_dir}: no such folder of CAMs; give the one that weaktr.generate_cam wrote")
    config = cam_dir / "config.json"
    return sha256(config) if config.is_file() else None


def _cams_turned(cam_dir: Path) -> bool:
    """Whether the CAMs were made with ``--exif``, so that masks must be; False where there is no record."""
    config = cam_dir / "config.json"
    content = read_json(config) if config.is_file() else None
    return isinstance(content, dict) and content.get("exif") is True


def main(config: Config) -> None:
    dataset = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    split = config.split or dataset.cam_split
    thresholds = _checked_thresholds(config)
    cams = cams_identity(config.cam_dir)
    pairs = None
    if config.mask_dir is not None or dataset.has_masks(split):
        pairs = _file_pairs(config, dataset, split)
    elif config.select in ("best", "sweep"):
        raise UserError(
            f"{config.data_path}: not every picture of {split} has a mask, which --select {config.select} "
            "needs; give --mask-dir, or take --select published"
        )
    output_dir = open_run(
        config.output_dir,
        "weaktr.search_threshold",
        result_options(config) | {"split": split, "cams_config_sha256": cams},
        owned=("threshold.json", "threshold.png"),
        overwrite=config.overwrite,
    )
    record = {"threshold": PUBLISHED_THRESHOLDS[config.dataset], "selected_by": NOT_MEASURED}
    if config.select == "otsu" or (config.select == "auto" and not pairs and config.dataset == "folder"):
        found = _otsu_of(config, dataset, split)
        if found is None:
            record["selected_by"] = NO_CLASS
        else:
            record = {"threshold": found, "selected_by": OTSU}
    if pairs is None:
        log.info("Not every picture of %s has a mask: nothing to measure.", split)
    else:
        curve = _measure(pairs, dataset.num_fg_classes, thresholds, config.workers)
        if config.select in ("auto", "best"):
            record = {"threshold": curve.best_threshold, "selected_by": f"best mIoU on the masks of {split}"}
        elif config.select == "sweep":
            record = {
                "threshold": curve.published_threshold,
                "selected_by": f"published search on the masks of {split}",
            }
        without_labels = sum(cam is None for cam, _ in pairs)
        record |= {"split": split, "images": len(pairs), "images_without_labels": without_labels}
        record |= curve_record(curve, dataset.class_names)
        published = PUBLISHED_THRESHOLDS[config.dataset]
        plot_curve(curve, output_dir / "threshold.png", split, published)
        _log_curve(curve, f"{split}, {len(pairs)} pictures", published, dataset.class_names)
        if without_labels:
            log.info("%d pictures have no labels and no CAMs: all background", without_labels)
        log.info("wrote     %s", output_dir / "threshold.png")
    write_json(output_dir / "threshold.json", record)
    log.info("wrote     %s", output_dir / "threshold.json")
    log.info("threshold %.2f (%s)", record["threshold"], record["selected_by"])
    following = {
        "cam_dir": config.cam_dir,
        "threshold_file": output_dir / "threshold.json",
        "split": split,
        "exif": _cams_turned(config.cam_dir),
        "output_dir": output_dir.parent / "masks" / split_name(split),
    }
    log.info(next_command("weaktr.make_masks", config, **following))


def _checked_thresholds(config: Config) -> tuple[float, ...]:
    given = config.thresholds
    if len(given) != 3 or not (0 <= given[0] <= given[1] <= 1 and given[2] >= 1e-4):
        raise UserError("--thresholds: give first, last and step within 0..1, such as 0.00 0.99 0.01")
    thresholds = threshold_values(*given)
    if config.select == "sweep" and not set(SWEEP) <= set(thresholds):
        raise UserError("--select sweep: needs --thresholds that hold 0.40, 0.41, ... 0.59")
    return thresholds


def _file_pairs(config: Config, dataset, split: str) -> list[tuple[Path | None, Path]]:
    return [
        (
            cam_path_or_none(config.cam_dir, dataset, image_id),
            config.mask_dir / f"{image_id}.png" if config.mask_dir else dataset.mask_path(image_id),
        )
        for image_id in dataset.image_ids(split)
    ]


def _otsu_of(config: Config, dataset, split: str) -> float | None:
    """Otsu's threshold of the CAMs of a split; None where no picture has a class, and so none has a map."""
    paths = [cam_path_or_none(config.cam_dir, dataset, i) for i in dataset.image_ids(split)]
    paths = [path for path in paths if path]
    tasks = [paths[i : i + FILES_PER_TASK] for i in range(0, len(paths), FILES_PER_TASK)]
    results = parallel_map(_largest_values, tasks, workers=config.workers)
    histogram = sum(tqdm(results, total=len(tasks), desc="CAM values", unit="task"), start=np.zeros(BINS))
    return otsu_threshold(histogram) if histogram.any() else None


def _measure(pairs, num_fg_classes: int, thresholds: tuple[float, ...], workers: int) -> ThresholdCurve:
    count = functools.partial(_count_files, num_classes=num_fg_classes, thresholds=thresholds)
    accumulator = ThresholdAccumulator(num_fg_classes, thresholds)
    tasks = [pairs[i : i + FILES_PER_TASK] for i in range(0, len(pairs), FILES_PER_TASK)]
    with tqdm(total=len(pairs), desc="CAM files", unit="file") as progress:
        for task, counts in zip(tasks, parallel_map(count, tasks, workers=workers), strict=True):
            accumulator.counts += counts
            progress.update(len(task))
    if not accumulator.counts.any():
        raise UserError(f"{pairs[0][1].parent}: every pixel of these masks is 255; give other masks")
    return accumulator.curve()


def _log_curve(curve: ThresholdCurve, title: str, published: float, class_names) -> None:
    s = curve.scores
    log.info("%-28s threshold    mIoU      FP      FN", title)
    rows = {
        "best": curve.best_threshold,
        "published search": curve.published_threshold,
        "published value": published,
    }
    for name, threshold in rows.items():
        i = None if threshold is None else curve.index(threshold)
        if i is not None:
            percents = (100 * x[i] for x in (s.mean_iou, s.mean_false_positive, s.mean_false_negative))
            log.info("%-28s %9.2f %6.1f%% %6.1f%% %6.1f%%", name, threshold, *percents)
    ious = zip(("background", *class_names), s.iou[curve.best_index], strict=True)
    log.info("IoU at the best: %s", ", ".join(f"{name} {100 * iou:.1f}" for name, iou in ious))


def curve_record(curve: ThresholdCurve, class_names) -> dict:
    """The curve as plain values for threshold.json."""
    s = curve.scores
    return {
        "best_threshold": curve.best_threshold,
        "best_mean_iou": curve.best_mean_iou,
        "published_search_threshold": curve.published_threshold,
        "published_search_mean_iou": (
            None if curve.published_threshold is None else curve.mean_iou_at(curve.published_threshold)
        ),
        "class_names": ["background", *class_names],
        "curve": {
            "threshold": curve.thresholds,
            **{
                name: getattr(s, name)
                for name in (
                    "mean_iou", "mean_false_positive", "mean_false_negative", "mean_precision", "mean_recall",
                    "pixel_accuracy", "iou", "false_positive", "false_negative", "precision", "recall",
                )
            },
        },
    }  # fmt: skip


def plot_curve(curve: ThresholdCurve, path: Path, split: str, published: float) -> None:
    """mIoU, FP and FN over the threshold as a PNG, the best and the published values marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    s = curve.scores
    curves = {"mIoU": s.mean_iou, "FP": s.mean_false_positive, "FN": s.mean_false_negative}
    for (name, values), style in zip(curves.items(), ("-", "--", ":"), strict=True):
        axes.plot(curve.thresholds, 100 * values, style, label=name)
    label = f"best {curve.best_threshold:.2f}: {100 * curve.best_mean_iou:.1f}%"
    axes.plot(curve.best_threshold, 100 * curve.best_mean_iou, "o", color="C3", label=label)
    if curve.published_threshold is not None:
        value = 100 * curve.mean_iou_at(curve.published_threshold)
        label = f"published search {curve.published_threshold:.2f}: {value:.1f}%"
        axes.plot(curve.published_threshold, value, "s", color="C4", fillstyle="none", label=label)
    axes.axvline(published, color="0.6", linewidth=1, label=f"published value {published:.2f}")
    axes.set(
        xlabel="background threshold", ylabel="%, mean over classes", title=f"CAMs of {split}", ylim=(0, 100)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def run() -> None:
    run_command(main, Config, prog="weaktr.search_threshold", description=__doc__)


if __name__ == "__main__":
    run()
