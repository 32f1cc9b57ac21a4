"""Sections of the report about the data set, training, attention heads and the threshold."""

import math
from collections.abc import Sequence

from wsss.reporting.figures import Chart, Line, draw
from wsss.reporting.files import Facts, HeadWeights, ListFacts, Threshold
from wsss.reporting.page import (
    bar_cell,
    beside,
    cell,
    charts,
    details,
    escape,
    missing,
    paragraph,
    percent,
    row,
    table,
)
from wsss.reporting.read import Run
from wsss.reporting.scores import in_order

MANY_CLASSES = 30  # above, the table of classes is folded


# ---------------------------------------------------------------------------------------- data set


def data_facts(run: Run) -> str:
    merged: dict[tuple, dict[str, ListFacts]] = {}
    for facts in (folder.facts for folder in in_order(run.folders) if folder.facts):
        lists = merged.setdefault((facts.dataset, facts.root, facts.class_names), {})
        merged[facts.dataset, facts.root, facts.class_names] = facts.lists | lists
    if not merged:
        return missing(
            "No facts of the data set: there is no dataset.json, which the training commands write."
        )
    return "\n".join(_facts_of(Facts(*key, lists)) for key, lists in merged.items())


def _facts_of(facts: Facts) -> str:
    splits = list(facts.lists)
    lists = "; ".join(
        f"{split}: {entry.images} pictures {'with' if entry.with_masks else 'without'} masks"
        for split, entry in facts.lists.items()
    )
    about = f"{facts.root} ({facts.dataset}), {len(facts.class_names)} classes. {lists}."
    per_class = {s: facts.lists[s].pictures_per_class or {} for s in splits}
    names = dict.fromkeys([*facts.class_names, *(name for counts in per_class.values() for name in counts)])
    rows = [row(name, [_bar(per_class[s], name) for s in splits]) for name in names]
    numbers = range(1, len(splits) + 1)
    tables = [
        details(
            "Pictures per class",
            table(["class", *splits], rows, numbers=numbers),
            open=len(names) <= MANY_CLASSES,
        )
    ]
    per_picture = {s: facts.lists[s].classes_per_picture for s in splits}
    counts = sorted({k for of in per_picture.values() if of for k in of})
    rows = [row(k, [_count(per_picture[s], k) for s in splits]) for k in counts]
    tables.append(
        details(
            "Classes per picture", table(["classes in a picture", *splits], rows, numbers=numbers), open=True
        )
    )
    unlabelled = [s for s in splits if per_picture[s] is None]
    notes = [missing(f"No classes of {s}: not every picture of it has labels.") for s in unlabelled]
    return "\n".join([paragraph(about), *notes, beside(tables)])


def _bar(counts: dict[str, int], name: str) -> str:
    return bar_cell(counts.get(name, 0), max(counts.values())) if counts else cell("–", "n")


def _count(counts: dict[int, int] | None, key: int) -> str:
    return cell("–" if counts is None else counts.get(key, 0), "n")


# ---------------------------------------------------------------------------------------- training


def _line(log: list[dict[str, float]], x: str, y: str, label: str, scale: float = 1, **look) -> Line:
    points = [(record[x], scale * record[y]) for record in log if x in record and y in record]
    return Line(label, [p[0] for p in points], [p[1] for p in points], **look)


def _drawn(title: str, x: str, y_label: str, lines: Sequence[Line]) -> list[tuple[bytes, str]]:
    """The chart, and its last values in words; nothing where no line has a point."""
    lines = [line for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return []
    unit = "%" if y_label == "%" else ""
    last = ", ".join(f"{line.label} {line.y[-1]:.4g}{unit}" for line in lines)
    columns = 2 if len(lines) > 4 else 4
    return [(draw(Chart(title, x, y_label, lines, legend_columns=columns)), f"{title}; last: {last}.")]


def _stage1_charts(log: list[dict[str, float]]) -> list[tuple[bytes, str]]:
    losses = {"loss": "sum", "class": "class tokens", "coarse": "coarse CAM", "fine": "fine CAM"}
    maps = [
        _line(
            log, "epoch", f"{mean}_map_{name}", f"{label}, over {over}", 100, dashed=mean == "class", colour=k
        )
        for mean, over in (("sample", "pictures"), ("class", "classes"))
        for k, (name, label) in enumerate([("class", "class tokens"), ("coarse", "coarse"), ("fine", "fine")])
    ]
    return [
        *_drawn("Losses", "epoch", "loss", [_line(log, "epoch", key, name) for key, name in losses.items()]),
        *_drawn("mAP on the validation list", "epoch", "%", maps),
        *_drawn("CAM mIoU", "epoch", "%", [_line(log, "epoch", "cam_miou", "CAM mIoU", 100)]),
    ]


def _stage2_charts(log: list[dict[str, float]]) -> list[tuple[bytes, str]]:
    losses = {"loss": "all pixels", "clipped_loss": "after clipping"}
    shares = {"clipped_pixels": "share of labelled pixels"}
    scores = {"val_miou": "mIoU", "val_pixel_accuracy": "pixel accuracy"}
    return [
        *_drawn("Loss", "step", "loss", [_line(log, "step", key, name) for key, name in losses.items()]),
        *_drawn("Clipped pixels", "step", "%", [_line(log, "step", k, n, 100) for k, n in shares.items()]),
        *_drawn("Validation", "step", "%", [_line(log, "step", k, n, 100) for k, n in scores.items()]),
    ]


def _getam_charts(log: list[dict[str, float]]) -> list[tuple[bytes, str]]:
    losses = {
        "loss": "sum", "class": "class logits", "background": "background pixels",
        "foreground": "foreground pixels", "energy": "dense energy", "saliency": "saliency",
    }  # fmt: skip
    labels = {
        "labelled_background": "background", "labelled_foreground": "foreground", "unknown": "unknown",
        "claimed": "by label completion",
    }  # fmt: skip
    scores = {"val_miou": "mIoU", "val_pixel_accuracy": "pixel accuracy"}
    return [
        *_drawn("Losses", "step", "loss", [_line(log, "step", key, name) for key, name in losses.items()]),
        *_drawn(
            "Labels of the crops", "step", "%", [_line(log, "step", k, n, 100) for k, n in labels.items()]
        ),
        *_drawn("Validation", "step", "%", [_line(log, "step", k, n, 100) for k, n in scores.items()]),
    ]


CHARTS = {
    "weaktr.train": _stage1_charts,
    "segmentation.train": _stage2_charts,
    "segmentation.getam.train": _getam_charts,
}


def training(run: Run, command: str) -> str:
    """The curves of every folder of a training command."""
    folders = run.of(command)
    parts = []
    for folder in folders:
        drawn = CHARTS[command](folder.log)
        parts.append(f"<h3>{escape(folder.name)}</h3>")
        parts.append(charts(drawn) if drawn else missing("No curves: log.jsonl holds no epoch or step yet."))
    return "\n".join(parts) or missing(f"No training of this stage: no folder of {command}.")


def head_weights(run: Run) -> str:
    folders = [folder for folder in run.folders if folder.head_weights]
    if not folders:
        return missing(
            "No head weights: there is no head_weights.json, which weaktr.generate_cam --panels N writes."
        )
    return "\n".join(_heat_map(folder.name, folder.head_weights) for folder in folders)


def _heat_map(name: str, learned: HeadWeights) -> str:
    values = [v for weights in learned.weights for v in weights if math.isfinite(v)]
    low, high = min(values, default=0), max(values, default=1)
    digits = 2 if high - low >= 0.05 else 4  # after long training all are close to 1
    rows = [
        row(h + 1, [_heat_cell(value, low, high, digits) for value in weights])
        for h, weights in enumerate(learned.weights)
    ]
    headings = ["head \\ block", *(str(b + 1) for b in range(len(learned.weights[0])))]
    words = (
        f"Heads down, blocks across; mean over {learned.images} pictures; between 0 and 1. "
        f"White is the lowest, {low:.{digits}f}, dark the highest, {high:.{digits}f}."
    )
    return f"<h3>{escape(name)}</h3>\n{table(headings, rows, kind='heat')}{paragraph(words, 'note')}"


def _heat_cell(value: float, low: float, high: float, digits: int) -> str:
    if not math.isfinite(value):
        return cell("–")
    share = (value - low) / (high - low) if high > low else 0
    red, green, blue = (round(255 + share * (end - 255)) for end in (18, 74, 140))
    colour = "#fff" if share > 0.55 else "#1c2430"
    return cell(f"{value:.{digits}f}", style=f"background: rgb({red}, {green}, {blue}); color: {colour}")


# --------------------------------------------------------------------------------------- threshold


def thresholds(run: Run) -> str:
    folders = [folder for folder in run.folders if folder.threshold]
    if not folders:
        return missing("No background threshold: no threshold.json of weaktr.search_threshold.")
    return "\n".join(_threshold_of(folder.name, folder.threshold) for folder in folders)


def _threshold_of(name: str, found: Threshold) -> str:
    parts = [f"<h3>{escape(name)}</h3>", paragraph(f"{found.chosen:.2f}: {found.selected_by}.")]
    if not found.thresholds:
        return "\n".join([*parts, missing("No curve: nothing was measured, for want of masks.")])
    lines = [Line(key, found.thresholds, [100 * v for v in values]) for key, values in found.curves.items()]
    y = 100 * found.score.mean_iou if found.score else math.nan
    text = f"chosen {found.chosen:.2f}" + (f": mIoU {y:.1f}%" if math.isfinite(y) else "")
    chart = Chart(
        "Scores over the threshold", "background threshold", "%, mean over classes", lines,
        y_range=(0, 100), mark=(found.chosen, y, text), whole_x=False,
    )  # fmt: skip
    best = max((v for v in found.curves["mIoU"] if math.isfinite(v)), default=math.nan)
    about = "" if found.images is None else f", {found.images} pictures of {found.split}"
    words = (
        f"mIoU, false positives (FP) and false negatives (FN){about}; {text}; best mIoU {percent(best, 1)}%."
    )
    return "\n".join([*parts, charts([(draw(chart), words)])])
