"""The released files as tables: for ``list``, and for checkpoints/README.md.

    python -c "from wsss.released_table import update_readme; update_readme()"

writes the README's table anew after a change of ``wsss.released``.
"""

from collections.abc import Sequence
from pathlib import Path

from wsss.backbones import BACKBONES
from wsss.io import read_text, write_text
from wsss.released import KINDS, RELEASED, Released, read_records

README = Path(__file__).resolve().parents[1] / "checkpoints" / "README.md"
BEGIN, END = "<!-- table of wsss/released.py -->", "<!-- end of the table -->"
WHAT = {
    "cam": "WeakTr, stage 1",
    "segmenter": "WeakTr, stage 2",
    "getam": "GETAM",
    "masks": "masks",
    "imagenet": "ImageNet weights",
}


def what(row: Released) -> str:
    """What a file is, in words."""
    return WHAT[row.kind] + (" for GETAM" if row.kind == "imagenet" and row.backbone not in BACKBONES else "")


def published_text(row: Released) -> str:
    """``val 74.0, test 74.1``: mIoU in percent; "-" where none was published."""
    return ", ".join(f"{split} {score:.1f}" for split, score in row.published.items()) or "-"


def list_lines(folder: Path) -> list[str]:
    """A table of all released files, with what a folder of checkpoints holds of them."""
    records = read_records(folder)
    rows = [("name", "what", "data", "backbone", "published mIoU %", "size", "sha256", "here")]
    for row in _in_order():
        record = records.get(row.name, {})
        here = "yes" if (folder / row.filename).exists() else "-"
        size = f"{record['size'] / 1e6:.1f} MB" if "size" in record else "-"
        digits = record.get("sha256") or row.sha256
        shown = f"{digits[:12]}{'...' if len(digits) > 8 else '... (published)'}" if digits else "-"
        rows.append(
            (row.name, what(row), row.data or "-", row.backbone, published_text(row), size, shown, here)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in rows
    ]


def _in_order() -> list[Released]:
    return sorted(RELEASED.values(), key=lambda row: KINDS.index(row.kind))


def readme_table() -> str:
    """The tables of checkpoints/README.md, as Markdown: released checkpoints and masks, ImageNet weights."""
    released, weights = [], []
    for row in _in_order():
        if row.kind == "imagenet":
            digits = f"`{row.sha256}...`" if row.sha256 else "-"
            weights.append((f"`{row.name}`", what(row), f"[{_short_address(row)}]({row.address})", digits))
        else:
            score = published_text(row) + (f" ({row.protocol})" if row.published else "")
            address = f"[{row.drive_id}]({row.address})"
            released.append((f"`{row.name}`", what(row), row.data, row.backbone, score, address))
    return "\n".join(
        [
            *_markdown(("name", "what", "data", "backbone", "published mIoU %", "Google Drive"), released),
            "",
            *_markdown(("name", "what", "address", "published digits of the sha256"), weights),
        ]
    )


def _short_address(row: Released) -> str:
    return row.url.split("/")[-1] if row.url else f"timm/{row.hub_name}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def update_readme(path: Path = README) -> None:
    """Write the table between the README's two marks."""
    before, rest = read_text(path).split(BEGIN)
    write_text(path, f"{before}{BEGIN}\n\n{readme_table()}\n\n{END}{rest.split(END)[1]}")
