"""Draw the README's figures from a run: the table of pictures, and the heat map of head weights.

Run through scripts/figures.sh. Reads the ``panels`` folders and head_weights.json (docs/formats.md).
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from wsss.config import REQUIRED, option, run_command
from wsss.errors import UserError
from wsss.io import VOC_PALETTE, atomic_write, read_image
from wsss.reporting.panels import COLUMNS, MAKERS, Group, groups
from wsss.reporting.read import HeadWeights, Run, read_run

log = logging.getLogger(__name__)

ENLARGED = 1.5
GAP, HEADING = 6, 30  # pixels: between panels, and of the lines of text
MOST_BYTES = 600_000  # of the table
LEVELS = (256, 64, 48, 40, 32, 24, 16, 12, 8)  # of red, green and blue: fewer until the file is small enough


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path = option(REQUIRED, "output folder of scripts/quickstart.sh")
    output_dir: Path = option(REQUIRED, "folder that receives quickstart.png and head_weights.png")
    rows: int = option(5, "pictures of the table, spread evenly over those with panels", minimum=1)


def main(config: Config) -> None:
    run = read_run(config.run)
    group = group_of(run)
    weights = head_weights_of(run)
    table = draw_table(group, config.rows, class_names_of(run))
    write_small_png(config.output_dir / "quickstart.png", table)
    with atomic_write(config.output_dir / "head_weights.png") as temporary:
        draw_head_weights(weights).savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    log.info("wrote %s, %s", config.output_dir / "quickstart.png", config.output_dir / "head_weights.png")


# -------------------------------------------------------------------------------------- what is shown


def group_of(run: Run) -> Group:
    """The panels of one list with a column of each kind: that of most pictures, if there are several lists.

    Of several predictions the one with CRF, the published test, is taken.

    Raises:
        UserError: No list has all columns.
    """
    with_crf = [f for f in run.of("segmentation.predict") if f.config.get("crf")]
    left_out = {f.name for f in run.of("segmentation.predict") if with_crf and f not in with_crf}
    run = replace(run, folders=[f for f in run.folders if f.name not in left_out])
    complete, missed = [], []
    for group in groups(run):
        columns = []
        for title in COLUMNS.values():
            columns += [c for c in group.columns if c.title == title or c.title.startswith(f"{title}, ")][:1]
        missed += [t for t in COLUMNS.values() if not any(c.title.startswith(t) for c in columns)]
        if len(columns) == len(COLUMNS):
            columns = [replace(c, title=t) for c, t in zip(columns, COLUMNS.values(), strict=True)]
            complete.append(replace(group, columns=columns))
    if not complete:
        makers = ", ".join(command for _, command in MAKERS.values())
        which = f"panels of {' and '.join(dict.fromkeys(missed))} are" if missed else "every panel is"
        raise UserError(f"{run.path}: {which} missing; run {makers} with --panels N, on one list")
    return max(complete, key=lambda group: len(group.ids()))


def head_weights_of(run: Run) -> HeadWeights:
    """Those over most pictures.

    Raises:
        UserError: There is no head_weights.json.
    """
    found = [folder.head_weights for folder in run.of("weaktr.generate_cam") if folder.head_weights]
    if not found:
        raise UserError(f"{run.path}: no head_weights.json; run weaktr.generate_cam with --panels N")
    return max(found, key=lambda weights: weights.images)


def class_names_of(run: Run) -> tuple[str, ...]:
    """Foreground classes; empty where no folder knows them."""
    return next((folder.facts.class_names for folder in run.folders if folder.facts), ())


# --------------------------------------------------------------------------------------------- drawing


def draw_table(group: Group, rows: int, class_names: Sequence[str]) -> Image.Image:
    """A row per picture, a column per panel, headings above, and each class in its colour below."""
    ids = group.shown(rows)
    cells = [[enlarge(column.paths.get(i)) for column in group.columns] for i in ids]
    widths = [max(cell.width for cell in column) for column in zip(*cells, strict=True)]
    heights = [max(cell.height for cell in row) for row in cells]
    size = (
        sum(widths) + GAP * (len(widths) + 1),
        HEADING * (1 + bool(class_names)) + sum(heights) + GAP * (len(heights) + 1),
    )
    table = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(table), ImageFont.truetype(findfont("DejaVu Sans"), 17)
    left = GAP
    for column, width in zip(group.columns, widths, strict=True):
        pen.text((left + width / 2, HEADING / 2 + GAP / 2), column.title, "black", font, anchor="mm")
        left += width + GAP
    top = HEADING + GAP
    for row, height in zip(cells, heights, strict=True):
        left = GAP
        for cell, width in zip(row, widths, strict=True):
            table.paste(cell, (left + (width - cell.width) // 2, top + (height - cell.height) // 2))
            left += width + GAP
        top += height + GAP
    draw_legend(pen, font, class_names, (GAP, top + HEADING // 2 - GAP // 2))
    return table


def draw_legend(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, names: Sequence[str], at: tuple[int, int]
) -> None:
    """A square of each class's colour and its name, from ``at`` (left, middle) to the right."""
    left, middle = at
    for k, name in enumerate(names, 1):
        colour = tuple(VOC_PALETTE[3 * k : 3 * k + 3])
        pen.rectangle((left, middle - 7, left + 14, middle + 7), colour, "grey")
        pen.text((left + 21, middle), name, "black", font, anchor="lm")
        left += 21 + round(font.getlength(name)) + 24


def enlarge(path: Path | None) -> Image.Image:
    """A panel ``ENLARGED`` times; a white pixel where there is none."""
    if path is None:
        return Image.new("RGB", (1, 1), "white")
    panel = Image.fromarray(read_image(path))
    size = (round(panel.width * ENLARGED), round(panel.height * ENLARGED))
    return panel.resize(size, Image.Resampling.BICUBIC)


def write_small_png(path: Path, picture: Image.Image) -> None:
    """PNG with as many levels of red, green and blue as fit into ``MOST_BYTES``: noise compresses badly.

    Raises:
        UserError: Not even with the fewest.
    """
    for count in LEVELS:
        levels = [round(round(value / 255 * (count - 1)) * 255 / (count - 1)) for value in range(256)]
        buffer = io.BytesIO()
        picture.point(levels * 3).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            with atomic_write(path) as temporary:
                temporary.write_bytes(buffer.getvalue())
            log.info("%s: %d levels of each colour, %d kB", path.name, count, buffer.tell() // 1000)
            return
    raise UserError(f"{path}: the table is too large for {MOST_BYTES // 1000} kB; draw fewer --rows")


def draw_head_weights(found: HeadWeights) -> Figure:
    """Blocks across, heads down, the number in each field; colours from 0, white, to 1."""
    weights = np.array(found.weights)
    heads, blocks = weights.shape
    digits = 2 if np.nanmax(weights) - np.nanmin(weights) >= 0.05 else 4
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.8 + 0.62 * blocks, 1.1 + 0.45 * heads), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.imshow(weights, cmap="Blues", aspect="auto", vmin=0, vmax=1)
        for (head, block), value in np.ndenumerate(weights):
            colour = "white" if value > 0.55 else "black"
            axes.text(block, head, f"{value:.{digits}f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(blocks), range(1, blocks + 1))
        axes.set_yticks(range(heads), range(1, heads + 1))
        axes.set(xlabel="block", ylabel="head", title=f"Head weights, mean over {found.images} pictures")
        figure.colorbar(drawn)
    return figure


if __name__ == "__main__":
    run_command(main, Config, prog="scripts/figures.py", description=__doc__)
