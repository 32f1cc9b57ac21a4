"""The table that scripts/all.sh ends with: mIoU of each stage's results beside the published ones.

python scripts/summary.py OUT      output folder of scripts/all.sh
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from wsss.released import RELEASED
from wsss.tables import markdown_table

sys.path.insert(0, str(Path(__file__).parent))
from steps import read_object

HEADING = ("mIoU, %", "list", "here", "published")


def rows(out: Path) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(what, list, measured fraction, published percent); a number is None where there is none."""
    stage1, stage2 = out / "stage1", out / "stage2"
    threshold = read_object(stage1 / "threshold" / "threshold.json")
    scored = threshold.get("split")  # None: no masks
    if scored:
        curve = threshold["curve"]
        nearest = min(
            range(len(curve["threshold"])), key=lambda k: abs(curve["threshold"][k] - threshold["threshold"])
        )
        yield f"CAMs, threshold {threshold['threshold']:.2f}", scored, curve["mean_iou"][nearest], None
    for folder in sorted((*stage1.glob("score/*"), *stage1.glob("masks/*"))):
        if score := read_object(folder / "score.json"):
            # the published list is the one that CAMs are scored on
            published = published_of(stage1, "cam").get("train") if score.get("split") == scored else None
            yield "pseudo-masks, CAM + CRF", score.get("split"), score.get("mean_iou"), published
    for kind, what in (("single", "segmenter, one scale"), ("multi_crf", "segmenter, published test")):
        for folder in sorted(stage2.glob(f"{kind}/*")):
            if score := read_object(folder / "score.json"):
                published = published_of(stage2, "segmenter").get(score.get("split"))
                shown = published if kind == "multi_crf" else None
                yield what, score.get("split"), score.get("mean_iou"), shown


def published_of(stage: Path, kind: str) -> dict[str, float]:
    """List -> mIoU in percent, as released for this data set and network; empty where nothing is."""
    config = read_object(stage / "train" / "config.json")
    wanted = (kind, config.get("dataset"), config.get("backbone"))
    for row in RELEASED.values():
        if (row.kind, row.data, row.backbone) == wanted:
            return RELEASED[f"{row.name}_masks"].published | row.published
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    table = [HEADING]
    for what, split, measured, published in rows(out):
        here = "-" if measured is None else f"{100 * measured:.1f}"
        table.append((what, str(split), here, "-" if published is None else f"{published:.1f}"))
    lines = markdown_table(table) if len(table) > 1 else ["no score: not every picture of a list has a mask"]
    report = shlex.join(["python", "-m", "wsss.report", "--run", str(out)])
    sys.stdout.write("\n".join([*lines, "", f"next: {report}"]) + "\n")


if __name__ == "__main__":
    main()
