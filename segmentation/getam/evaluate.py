"""Score a network of GETAM, released or own, in one table: squares of three sizes, without and with CRF.

    python -m segmentation.getam.evaluate --dataset voc12 --data-path DATA --checkpoint getam_voc12_hybrid \\
        --pred-dir OUT/squares --crf-dir OUT/squares_crf --output-dir OUT

Reads what segmentation.getam.predict wrote, and checks that it belongs together; bash scripts/evaluate.sh
runs both. Writes evaluation.json and evaluation.md: the table, and what its numbers depend on.
"""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from segmentation.getam.inference import PUBLISHED_SQUARES
from wsss.config import REQUIRED, DataOptions, option, result_options, run_command
from wsss.datasets import load_dataset
from wsss.errors import UserError
from wsss.evaluation import FILES, Row, published_score, write_evaluation
from wsss.io import read_json
from wsss.released import find_released
from wsss.run import open_run, sha256

log = logging.getLogger(__name__)

SHARED = ("backbone", "squares", "amp", "saliency", "step", "mask_dir", "images")  # of both scores


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    checkpoint: Path = option(REQUIRED, "network that predicted: a file, or the name of a released one")
    pred_dir: Path = option(REQUIRED, "folder of segmentation.getam.predict without --crf")
    crf_dir: Path = option(REQUIRED, "folder of segmentation.getam.predict with --crf")
    split: str | None = option(None, "list of pictures (default: the data set's validation list)")


def main(config: Config) -> None:
    path, released = find_released(config.checkpoint)
    spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    split = config.split or spec.val_split
    digest = sha256(path)
    settings = {
        crf: prediction_settings(folder, split=split, crf=crf, checkpoint_sha256=digest)
        for folder, crf in ((config.pred_dir, False), (config.crf_dir, True))
    }
    identity = result_options(config, leave_out=("checkpoint",))
    identity |= {"split": split, "checkpoint_sha256": digest}
    output_dir = open_run(
        config.output_dir, "segmentation.getam.evaluate", identity, owned=FILES, overwrite=config.overwrite
    )
    squares = settings[True]["squares"]
    shown = " ".join(map(str, squares))
    published = published_score(released, config.dataset, split)
    rows, facts = [], {}
    for folder, crf in ((config.pred_dir, False), (config.crf_dir, True)):
        score = read_json(folder / "score.json") if (folder / "score.json").is_file() else {}
        what = f"squares {shown}, {'CRF getam' if crf else 'no CRF'}"
        is_published = crf and tuple(squares) == PUBLISHED_SQUARES
        rows.append(
            Row(
                "squares_crf" if crf else "squares",
                what + ": the published test" if is_published else what,
                score.get("mean_iou"),
                published if is_published else None,
            )
        )
        facts = {name: score.get(name) for name in SHARED} if score else facts
    notes = [] if facts else [f"No score: not every picture of {split} has a mask."]
    about = {
        "checkpoint": str(path),
        "checkpoint_sha256": digest,
        "released": released.name if released else None,
        "split": split,
    }
    write_evaluation(output_dir, rows, about | facts, notes)
    log.info("next: %s", shlex.join(["cat", str(output_dir / "evaluation.md")]))


def prediction_settings(folder: Path, *, split: str, crf: bool, checkpoint_sha256: str) -> dict:
    """config.json of a prediction.

    Raises:
        UserError: None there, or of another network, list or form.
    """
    found = read_json(folder / "config.json")
    wanted = {
        "command": "segmentation.getam.predict",
        "split": split,
        "crf": crf,
        "checkpoint_sha256": checkpoint_sha256,
    }
    for name, value in wanted.items():
        if not isinstance(found, dict) or found.get(name) != value:
            held = found.get(name) if isinstance(found, dict) else None
            raise UserError(
                f"{folder}: its {name} is {str(held)[:40]}, not {str(value)[:40]}; "
                "predict again: bash scripts/evaluate.sh makes both"
            )
    return found


def run() -> None:
    run_command(main, Config, prog="segmentation.getam.evaluate", description=__doc__)


if __name__ == "__main__":
    run()
