"""Markdown tables that read well as plain text."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table, columns aligned: the first ``left`` ones to the left, the others to the right.

    Args:
        rows: The heading, then the body; all of one length.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(_aligned(row, widths, left)) + " |" for row in rows]
    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [lines[0], f"|{rule}|", *lines[1:]]


def _aligned(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells]
