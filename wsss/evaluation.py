"""The table that an evaluation ends with: evaluation.json and evaluation.md, for both stages.

A number stands beside what it depends on: network, statistics, list, masks, and how anything was chosen.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wsss.io import write_json, write_text
from wsss.released import Released

log = logging.getLogger(__name__)

FILES = ("evaluation.json", "evaluation.md")


@dataclass(frozen=True)
class Row:
    """A way of turning pictures into label maps, and its score.

    Attributes:
        name: Of its folder.
        what: In words.
        mean_iou: Fraction; None where nothing could be scored.
        published: Fraction that was published for this row of this checkpoint; None where none was.
    """

    name: str
    what: str
    mean_iou: float | None
    published: float | None = None


def published_score(released: Released | None, dataset: str, split: str) -> float | None:
    """The published mIoU of a released checkpoint on a list, a fraction; None where there is none.

    Args:
        dataset: Layout: the number belongs to the data that the checkpoint was trained on.
        split: Name of the list.
    """
    if released is None or released.data != dataset or split not in released.published:
        return None
    return round(released.published[split] / 100, 6)


def write_evaluation(
    output_dir: Path, rows: Sequence[Row], facts: dict[str, object], notes: Sequence[str] = ()
) -> None:
    """Write both files and log the table with what is below it.

    Args:
        output_dir: The folder.
        rows: In the table's order.
        facts: What all rows depend on, by name; None is left out of the text.
        notes: Sentences a reader must know.
    """
    record = {"rows": [asdict(row) for row in rows], **facts, "notes": list(notes)}
    write_json(Path(output_dir) / "evaluation.json", record)
    below = [
        f"{name.replace('_', ' ')}: {_text(value)}" for name, value in facts.items() if value is not None
    ]
    table = evaluation_table(rows)
    body = ["# Evaluation", "", "mIoU in percent.", "", table, "", *(f"- {line}" for line in below)]
    body += [part for note in notes for part in ("", note)]
    write_text(Path(output_dir) / "evaluation.md", "\n".join(body) + "\n")
    for line in (*table.split("\n"), *below, *notes):
        log.info(line)


def evaluation_table(rows: Sequence[Row]) -> str:
    """Markdown, aligned for reading as text; "-" where there is no number."""
    cells = [("row", "what", "mIoU", "published")]
    cells += [
        (row.name, row.what, _percent(row.mean_iou, 2), _percent(row.published, 1)) for row in rows
    ]  # two decimals as measured, one as published
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            c.rjust(w) if i > 1 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i > 1 else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _percent(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{100 * value:.{decimals}f}"


def _text(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
