"""The report's scores: every one that a run folder holds, as rows of one table and columns of another."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from wsss.reporting.files import Score
from wsss.reporting.page import cell, missing, paragraph, percent, row, shaded_cell, table
from wsss.reporting.read import Folder, Run

COMMANDS = {  # in the order of the work -> what a command's folder is called here
    "wsss.shapes": "Data set",
    "wsss.shapes_baseline": "Baseline by hue",
    "weaktr.train": "Stage 1 training",
    "weaktr.generate_cam": "CAMs",
    "weaktr.search_threshold": "Background threshold",
    "weaktr.make_masks": "Pseudo-masks",
    "wsss.score": "Score",
    "segmentation.train": "Stage 2 training",
    "segmentation.predict": "Prediction",
    "segmentation.getam.train": "GETAM training",
    "segmentation.getam.generate_cam": "GETAM maps",
    "segmentation.getam.predict": "GETAM prediction",
}


def in_order(folders: Iterable[Folder]) -> list[Folder]:
    """By the order of the work, unknown commands last; within a command by folder."""
    order = {command: k for k, command in enumerate(COMMANDS)}
    return sorted(folders, key=lambda f: (order.get(f.command, len(order)), f.command, f.name))


def title_of(folder: Folder) -> str:
    return COMMANDS.get(folder.command, folder.command)


@dataclass(frozen=True)
class Result:
    """A score with what the reader must know beside it."""

    what: str
    score: Score
    split: str
    folder: str
    notes: tuple[str, ...]


def results(run: Run) -> list[Result]:
    """Every score of a run, in the order of the work."""
    found = []
    for folder in in_order(run.folders):
        if folder.threshold and folder.threshold.score:
            at = folder.threshold
            what = f"CAMs at threshold {at.chosen:.2f}"
            found.append(Result(what, at.score, at.split or "–", folder.name, (at.selected_by,)))
        if folder.score:
            found += _of_score(run, folder, folder.score)
    return found


def _of_score(run: Run, folder: Folder, score: Score) -> list[Result]:
    split = score.split or folder.split or "–"
    notes = (*_settings(folder, score), *score.notes)
    what = {
        "weaktr.make_masks": "pseudo-masks",
        "segmentation.predict": "prediction",
        "segmentation.getam.predict": "prediction of GETAM",
        "wsss.shapes_baseline": "baseline by hue",
    }.get(folder.command, folder.command)
    if folder.command == "wsss.score":
        what = f"masks in {_scored_folder(run, folder)}"
    found = [Result(what, score, split, folder.name, notes)]
    if score.before_crf:
        before = tuple(note for note in notes if not note.startswith("CRF"))
        without = dataclasses.replace(score.before_crf, images=score.images)  # which it does not repeat
        found.insert(0, Result(f"{what} before CRF", without, split, folder.name, before))
    return found


def _settings(folder: Folder, score: Score) -> list[str]:
    """What a score depends on, in few words."""
    config, notes = folder.config, []
    if score.threshold is not None:
        notes.append(f"threshold {score.threshold:.2f}")
    if folder.command == "segmentation.predict":
        scales = config.get("scales")
        if isinstance(scales, list):
            notes.append(("scale " if len(scales) == 1 else "scales ") + " ".join(map(str, scales)))
        notes += ["mirrors"] if config.get("flip") is True else []
        notes += ["both decoder blocks"] if config.get("decoder_blocks") == "fused" else []
    elif isinstance(squares := config.get("squares"), list):
        notes.append("squares " + " ".join(map(str, squares)))
    elif folder.command not in COMMANDS or folder.command == "wsss.shapes_baseline":
        notes += [key.replace("_", " ") for key, value in config.items() if value is True and key != "crf"]
    if score.crf_preset or config.get("crf") is True:
        notes.append(f"CRF {score.crf_preset or config.get('crf_preset') or ''}".strip())
    return notes


def _scored_folder(run: Run, folder: Folder) -> str:
    """The folder that ``wsss.score`` looked at: by its name in the run, also where the run was moved."""
    given = str(folder.config.get("pred_dir")).replace("\\", "/").rstrip("/")
    inside = [f.name for f in run.folders if f is not folder and f"/{given}".endswith(f"/{f.name}")]
    return max(inside, key=len) if inside else "/".join(given.split("/")[-2:])


def summary_table(found: list[Result]) -> str:
    if not found:
        return missing(
            "No scores: there is no score.json and no measured threshold.json; both need true masks."
        )
    rows = [
        row(
            r.what,
            [
                cell(r.split),
                cell("–" if r.score.images is None else r.score.images, "n"),
                shaded_cell(r.score.mean_iou),
                cell(percent(r.score.pixel_accuracy), "n"),
                cell("; ".join(r.notes)),
                cell(r.folder),
            ],
        )
        for r in found
    ]
    headings = ("scored", "list", "pictures", "mIoU", "pixel accuracy", "notes", "folder")
    note = paragraph("Percent. mIoU is the mean over classes, background included.", "note")
    return table(headings, rows, numbers=(2, 3, 4)) + note


def class_table(found: list[Result]) -> str:
    """IoU per class, one column per score."""
    if not found:
        return missing("No IoU per class: there are no scores.")
    names = list(dict.fromkeys(name for r in found for name in r.score.iou))
    rows = [row(name, [shaded_cell(r.score.iou.get(name, float("nan"))) for r in found]) for name in names]
    rows.append(row("mean", [shaded_cell(r.score.mean_iou) for r in found], "total"))
    headings = ["class", *(f"{r.what}, {r.split} ({r.folder})" for r in found)]
    note = "Percent; a dash where the class occurs neither in the masks nor in the prediction."
    return table(headings, rows, numbers=range(1, len(headings))) + paragraph(note, "note")
