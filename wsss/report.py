"""One page that shows a run: scores, training curves, threshold, pictures of every step, settings, times.

    python -m wsss.report --run OUT

reads what the commands left in OUT and the folders below, of whichever data set, and writes OUT/report.html:
one file that needs nothing else, no network and no script. What a run lacks is said in its place.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsss.config import REQUIRED, option, run_command
from wsss.errors import UserError
from wsss.io import write_text
from wsss.reporting.page import escape, page, paragraph
from wsss.reporting.panels import section as picture_section
from wsss.reporting.read import Run, read_run
from wsss.reporting.record import head, machines, settings
from wsss.reporting.scores import class_table, in_order, results, summary_table
from wsss.reporting.sections import data_facts, head_weights, thresholds, training

log = logging.getLogger(__name__)

GETAM = "segmentation.getam.train"  # a system of its own: its section is there where it was trained


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path = option(REQUIRED, "folder of a run, such as the OUT of scripts/stage1.sh")
    output: Path | None = option(None, "the page (default: report.html in the run's folder)")
    title: str | None = option(None, "heading of the page (default: the run's name)")
    panels: int = option(12, "pictures shown, at most", minimum=0)

    @property
    def output_dir(self) -> Path:
        """The page: what ``run_command`` names where the disk is full."""
        return self.output or self.run / "report.html"


def class_names_of(run: Run) -> tuple[str, ...]:
    """Foreground classes in order; () where no file names them."""
    folders = in_order(run.folders)
    for folder in folders:
        if folder.facts:
            return folder.facts.class_names
    for folder in folders:
        if folder.threshold and folder.threshold.class_names:
            return folder.threshold.class_names[1:]
        if folder.score:
            return tuple(folder.score.iou)[1:]
    return ()


def render(run: Run, *, title: str, panels: int) -> str:
    """The page of a run, the same at every call.

    Args:
        run: What was read.
        title: Heading, plain text.
        panels: Most pictures shown.
    """
    found = results(run)
    pictures, bad_pictures = picture_section(run, class_names_of(run), panels)
    unreadable = [problem.removeprefix(f"{run.path}/") for problem in (*run.unreadable, *bad_pictures)]
    sections = [
        ("Scores", summary_table(found)),
        ("Data set", data_facts(run)),
        ("Stage 1 training", training(run, "weaktr.train")),
        ("Stage 2 training", training(run, "segmentation.train")),
        *([("GETAM training", training(run, GETAM))] if run.of(GETAM) else []),
        ("Weights of attention heads", head_weights(run)),
        ("Background threshold", thresholds(run)),
        ("Pictures", pictures),
        ("IoU per class", class_table(found)),
        ("Settings", settings(run)),
        ("Machines, versions, times", machines(run)),
    ]
    if unreadable:
        sections.append(("Not readable", _unreadable(unreadable)))
    return page(title, head(run), sections)


def _unreadable(problems: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return paragraph("These files are left out of the page:") + f"\n<ul>\n{items}\n</ul>"


def main(config: Config) -> None:
    run = read_run(config.run)
    output = config.output_dir
    if output.is_dir():
        raise UserError(f"{output}: is a folder; give --output the name of a file, such as report.html")
    title = config.title or f"Run {config.run.resolve().name}"
    write_text(output, render(run, title=title, panels=config.panels))
    log.info("wrote %s (%d steps, %.1f MB)", output, len(run.folders), output.stat().st_size / 1e6)


def run() -> None:
    run_command(main, Config, prog="wsss.report", description=__doc__)


if __name__ == "__main__":
    run()
