"""Score a folder of label maps against the masks of a split: IoU per class, mIoU, FP, FN, precision, recall.

Writes score.json and score.md, and prints the same table. Every picture of the split needs a prediction
<id>.png (palette or grey, 0 background, class + 1).
"""

import dataclasses
import functools
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsss.config import REQUIRED, DataOptions, option, result_options, run_command
from wsss.datasets import Dataset, load_dataset
from wsss.errors import UserError
from wsss.io import read_mask, write_json, write_text
from wsss.metrics import ConfusionMatrix, Scores
from wsss.parallel import parallel_map
from wsss.run import open_run
from wsss.tables import markdown_table

log = logging.getLogger(__name__)

COLUMNS = {  # heading -> fields of Scores per class and over classes
    "IoU": ("iou", "mean_iou"),
    "FP": ("false_positive", "mean_false_positive"),
    "FN": ("false_negative", "mean_false_negative"),
    "precision": ("precision", "mean_precision"),
    "recall": ("recall", "mean_recall"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    pred_dir: Path = option(REQUIRED, "folder of predictions, <id>.png")
    split: str | None = option(None, "list of pictures; default: the data set's validation list")
    mask_dir: Path | None = option(None, "folder of <id>.png masks; default: the data set's own")
    workers: int = option(2, "processes; 0 computes in the command's own", minimum=0, changes_result=False)


def score_masks(
    pred_dir: Path, mask_paths: Mapping[str, Path], *, num_classes: int, workers: int = 0
) -> ConfusionMatrix:
    """The confusion matrix of a folder of predictions.

    Args:
        pred_dir: ``<id>.png`` for every key of ``mask_paths``; other files are not looked at.
        mask_paths: Image id -> true mask (0 background, class + 1, 255 not counted).
        num_classes: Background included.
        workers: Processes; 0 computes in this one.

    Raises:
        UserError: A prediction or mask is missing, damaged, of another size, or holds another class.
    """
    pairs = [(Path(pred_dir) / f"{i}.png", path) for i, path in mask_paths.items()]
    for pred_path, _ in pairs:
        if not pred_path.is_file():
            raise UserError(
                f"{pred_path}: no such prediction; make one for every picture of the split, "
                "or give the --pred-dir that holds them"
            )
    total = ConfusionMatrix(num_classes)
    results = parallel_map(functools.partial(_score_pair, num_classes=num_classes), pairs, workers=workers)
    for confusion in tqdm(results, total=len(pairs), desc="scoring", unit="mask"):
        total.merge(confusion)
    return total


def _score_pair(paths: tuple[Path, Path], num_classes: int) -> ConfusionMatrix:
    pred_path, mask_path = paths
    confusion = ConfusionMatrix(num_classes)
    pred, mask = read_mask(pred_path), read_mask(mask_path)
    if pred.shape != mask.shape:
        raise UserError(
            f"{pred_path}: is {_size(pred)}, its mask {mask_path} is {_size(mask)}; "
            "both must have the picture's size"
        )
    for path, values in ((pred_path, pred), (mask_path, mask[mask != 255])):
        if values.size and values.max() >= num_classes:
            raise UserError(
                f"{path}: holds the value {values.max()}, the classes with background end at "
                f"{num_classes - 1}; give label maps of this data set"
            )
    confusion.update(pred, mask)
    return confusion


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def mask_paths_of(dataset: Dataset, split: str, mask_dir: Path | None = None) -> dict[str, Path]:
    """Image id -> true mask for a split; {} where not every picture has one and no ``mask_dir`` is given.

    Raises:
        UserError: A mask is missing in ``mask_dir``.
    """
    ids = dataset.image_ids(split)
    if mask_dir is None:
        return {i: dataset.mask_path(i) for i in ids} if dataset.has_masks(split) else {}
    paths = {i: Path(mask_dir) / f"{i}.png" for i in ids}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: no such mask; give a --mask-dir with one for every picture of {split}")
    return paths


def score_record(scores: Scores, class_names: Sequence[str]) -> dict:
    """Scores as plain values: means first, then one entry per class, background first; fractions."""
    names = ("background", *class_names)
    return {
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        **{mean: getattr(scores, mean) for _, mean in COLUMNS.values() if mean != "mean_iou"},
        "classes": [
            {"name": name, **{field: getattr(scores, field)[k] for field, _ in COLUMNS.values()}}
            for k, name in enumerate(names)
        ],
    }


def score_table(scores: Scores, class_names: Sequence[str]) -> str:
    """Scores in percent as a Markdown table, aligned for reading as text; "-" where there is no value.

    Classes that occur neither in the truth nor in the predictions have no row.
    """

    def percent(value: float) -> str:
        return "-" if np.isnan(value) else f"{100 * value:.2f}"

    rows = [("class", *COLUMNS)]
    for k, name in enumerate(("background", *class_names)):
        if not np.isnan(scores.iou[k]):
            rows.append((name, *(percent(getattr(scores, field)[k]) for field, _ in COLUMNS.values())))
    rows.append(("mean", *(percent(getattr(scores, mean)) for _, mean in COLUMNS.values())))
    rows.append(("pixel accuracy", percent(scores.pixel_accuracy), *[""] * (len(COLUMNS) - 1)))
    return "\n".join(markdown_table(rows))


def score_notes(confusion: ConfusionMatrix, class_names: Sequence[str]) -> list[str]:
    """What a reader must know beside the numbers."""
    predicted = confusion.counts.sum(axis=0)
    unused = [n for k, n in enumerate(class_names, 1) if n.startswith("unused_") and predicted[k]]
    if not unused:
        return []
    return [
        f"Numbers that COCO gives to no category are predicted ({', '.join(unused)}): each counts as a class "
        "with IoU 0, so the mean differs from that over 81 dense classes."
    ]


def write_score(
    output_dir: Path, confusion: ConfusionMatrix, class_names: Sequence[str], about: dict
) -> Scores:
    """Write score.json and score.md into a folder and log the table.

    Args:
        output_dir: The folder.
        confusion: What was counted.
        class_names: Foreground classes.
        about: What was scored ("split", "images", "mask_dir", ...); heads both files.
    """
    scores = confusion.scores()
    notes = score_notes(confusion, class_names)
    save_score(output_dir, scores, class_names, about, notes)
    for line in (*score_table(scores, class_names).split("\n"), *notes):
        log.info(line)
    return scores


def save_score(
    output_dir: Path, scores: Scores, class_names: Sequence[str], about: dict, notes: Sequence[str] = ()
) -> None:
    """``write_score`` without the log, for scores that are known.

    Args:
        notes: Of ``score_notes``.
    """
    record = about | score_record(scores, class_names) | {"notes": list(notes)}
    write_json(Path(output_dir) / "score.json", record)
    head = [
        f"- {key.replace('_', ' ')}: {value}" for key, value in about.items() if not isinstance(value, dict)
    ]
    table = score_table(scores, class_names)
    body = ["# Score", "", *head, "", "Percent; means over the classes present.", "", table]
    write_text(Path(output_dir) / "score.md", "\n".join([*body, *(f"\n{note}" for note in notes)]) + "\n")


def main(config: Config) -> None:
    dataset = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    split = config.split or dataset.val_split
    mask_paths = mask_paths_of(dataset, split, config.mask_dir)
    if not mask_paths:
        raise UserError(
            f"{config.data_path}: not every picture of {split} has a mask, so nothing can be scored; "
            "give --mask-dir or another --split"
        )
    if not config.pred_dir.is_dir():
        raise UserError(f"{config.pred_dir}: no such folder; give --pred-dir the folder of predictions")
    output_dir = open_run(
        config.output_dir,
        "wsss.score",
        result_options(config) | {"split": split},
        owned=("score.json", "score.md"),
        overwrite=config.overwrite,
    )
    confusion = score_masks(
        config.pred_dir, mask_paths, num_classes=dataset.num_fg_classes + 1, workers=config.workers
    )
    if not confusion.counts.any():
        raise UserError(f"{config.data_path}: every pixel of the masks of {split} is 255; give other masks")
    about = {
        "split": split,
        "images": len(mask_paths),
        "pred_dir": str(config.pred_dir),
        "mask_dir": str(next(iter(mask_paths.values())).parent),
    }
    log.info("%s: %d pictures, masks of %s", split, len(mask_paths), about["mask_dir"])
    scores = write_score(output_dir, confusion, dataset.class_names, about)
    log.info("mIoU  %.2f%%", 100 * scores.mean_iou)
    log.info("wrote %s, %s", output_dir / "score.json", output_dir / "score.md")
    log.info("next: %s", shlex.join(["cat", str(output_dir / "score.md")]))


def run() -> None:
    run_command(main, Config, prog="wsss.score", description=__doc__)


if __name__ == "__main__":
    run()
