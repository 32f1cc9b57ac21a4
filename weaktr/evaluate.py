"""Score a network of stage 1, released or own, in one table: its CAMs, and the pseudo-masks made of them.

    python -m weaktr.evaluate --dataset voc12 --data-path DATA --checkpoint weaktr_cam_voc12_deit_s \\
        --cam-dir OUT/cams/train --threshold-file OUT/threshold/threshold.json --pred-dir OUT/masks/train \\
        --output-dir OUT

Reads what weaktr.generate_cam, search_threshold and make_masks wrote, and checks that it belongs together;
bash scripts/evaluate.sh runs all of them. Writes

    ROW/score.json, ROW/score.md        IoU per class
    evaluation.json, evaluation.md      the table, and what its numbers depend on
"""

import logging
import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from weaktr.describe import chosen_by
from weaktr.generate_cam import PUBLISHED_SCALES
from weaktr.make_masks import CRF_PRESETS
from weaktr.model import load_weaktr
from weaktr.search_threshold import cams_identity
from weaktr.thresholds import PUBLISHED_THRESHOLDS
from wsss.checkpoint import check_classes
from wsss.config import REQUIRED, DataOptions, option, result_options, run_command
from wsss.datasets import Dataset, load_dataset
from wsss.errors import UserError
from wsss.evaluation import FILES, Row, published_score, write_evaluation
from wsss.io import read_json
from wsss.metrics import Scores
from wsss.released import Released, find_released
from wsss.run import open_run, sha256
from wsss.score import mask_paths_of, save_score, score_masks, score_notes

log = logging.getLogger(__name__)

ROWS = ("cam", "cam_best", "cam_crf")


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    checkpoint: Path = option(REQUIRED, "network that the CAMs are of: a file, or the name of a released one")
    cam_dir: Path = option(REQUIRED, "folder of weaktr.generate_cam")
    threshold_file: Path = option(REQUIRED, "threshold.json of weaktr.search_threshold")
    pred_dir: Path = option(REQUIRED, "folder of weaktr.make_masks")
    split: str | None = option(None, "list of pictures (default: the one on which CAMs are scored)")
    workers: int = option(2, "processes; 0 computes in the command's own", minimum=0, changes_result=False)


@dataclass(frozen=True)
class Made:
    """How the files were made: the records of the three commands."""

    cams: dict
    threshold: dict
    masks: dict


def main(config: Config) -> None:
    path, released = find_released(config.checkpoint)
    if released is not None and released.kind != "cam":
        raise UserError(f"{config.checkpoint}: {released.name} is no network of stage 1; give one that is")
    spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    split = config.split or spec.cam_split
    digest = sha256(path)
    made = read_records(config, split, digest)
    backbone = made.cams.get("backbone")
    model, entries = load_weaktr(path, backbone=backbone, pool=made.cams.get("pool", "max"))
    check_classes(path, model.num_classes, entries.get("class_names"), spec)
    identity = result_options(config, leave_out=("checkpoint",))
    identity |= {
        "split": split,
        "checkpoint_sha256": digest,
        "masks": sha256(config.pred_dir / "config.json"),
    }
    output_dir = open_run(
        config.output_dir, "weaktr.evaluate", identity, owned=(*ROWS, *FILES), overwrite=config.overwrite
    )
    facts = {
        "checkpoint": str(path),
        "checkpoint_sha256": digest,
        "released": released.name if released else None,
        "checkpoint_chosen_by": chosen_by(entries),
        "backbone": model.backbone,
        "backbone_from": backbone_source(released, entries, given=backbone is not None),
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        "split": split,
        "images": len(spec.image_ids(split)),
        "mask_dir": str(spec.mask_path(spec.image_ids(split)[0]).parent),
        "scales": made.cams["scales"],
        "mirrors": made.cams["flip"],
        "crf_preset": made.masks["crf_preset"],
    }
    masks = mask_paths_of(spec, split)
    rows, notes = rows_of(config, spec, made, released, masks, facts) if masks else ([], [])
    if not masks:
        rows = [Row(name, what, None) for name, what in descriptions(config, made).items()]
        notes = [f"No score: not every picture of {split} has a mask in {facts['mask_dir']}."]
        facts["mask_dir"] = None
    write_evaluation(output_dir, rows, facts, notes)
    log.info("next: %s", shlex.join(["cat", str(output_dir / "evaluation.md")]))


def read_records(config: Config, split: str, checkpoint_sha256: str) -> Made:
    """The records of the files that are scored.

    Raises:
        UserError: One is missing, or they are not of this network, this list, or one another.
    """
    cams = _record(config.cam_dir / "config.json", "weaktr.generate_cam")
    masks = _record(config.pred_dir / "config.json", "weaktr.make_masks")
    threshold = _record(config.threshold_file, None)
    identity = cams_identity(config.cam_dir)
    found = {
        config.cam_dir: (cams.get("checkpoint_sha256"), checkpoint_sha256, "CAMs of another checkpoint"),
        config.pred_dir: (masks.get("cams_config_sha256"), identity, "masks made of other CAMs"),
        config.threshold_file: (threshold.get("split", split), split, "measured on another list"),
        config.pred_dir / "config.json": (masks.get("split"), split, "masks of another list"),
    }
    for path, (value, wanted, problem) in found.items():
        if value != wanted:
            raise UserError(
                f"{path}: {problem} ({str(value)[:16]}, wanted {str(wanted)[:16]}); "
                "make it again: bash scripts/evaluate.sh makes all of them"
            )
    return Made(cams, threshold, masks)


def _record(path: Path, command: str | None) -> dict:
    content = read_json(path)
    if not isinstance(content, dict) or (command and content.get("command") != command):
        raise UserError(
            f"{path}: not written by {command or 'weaktr.search_threshold'}; give the folder it wrote"
        )
    return content


def backbone_source(released: Released | None, entries: dict, *, given: bool) -> str:
    """Where the backbone's name comes from."""
    if "model_args" in entries:
        return "recorded in the checkpoint"
    if given:
        return "given with --backbone"
    return (
        f"known of the released {released.name}"
        if released
        else "inferred from the tensors: DeiT of that size"
    )


def descriptions(config: Config, made: Made) -> dict[str, str]:
    """What each row is, in words."""
    cam = "fused CAM" if made.cams["attention"] == "fused" else f"{made.cams['attention']} CAM"
    published = PUBLISHED_THRESHOLDS[config.dataset]
    best = made.threshold.get("best_threshold")
    at_best = "its best threshold" if best is None else f"its best threshold {best:.2f}"
    used, preset = made.masks["threshold"], made.masks["crf_preset"]
    crf = "CRF" if preset else "no CRF"
    is_published = ": the published pseudo-masks" if preset and math.isclose(used, published) else ""
    return {
        "cam": f"{cam}, threshold {published:.2f} as published",
        "cam_best": f"{cam}, {at_best}, chosen on these masks",
        "cam_crf": f"{cam}, threshold {used:.2f}, {crf}{is_published}",
    }


def rows_of(
    config: Config, spec: Dataset, made: Made, released: Released | None, masks: dict[str, Path], facts: dict
) -> tuple[list[Row], list[str]]:
    """The rows with their scores, and what a reader must know."""
    what = descriptions(config, made)
    thresholds = {
        "cam": PUBLISHED_THRESHOLDS[config.dataset],
        "cam_best": made.threshold.get("best_threshold"),
    }
    rows, notes = [], []
    for name, threshold in thresholds.items():
        scores = scores_at(config.threshold_file, made.threshold, threshold)
        save_score(config.output_dir / name, scores, spec.class_names, facts | {"threshold": threshold})
        rows.append(Row(name, what[name], scores.mean_iou))
    size = {"num_classes": spec.num_fg_classes + 1, "workers": config.workers}
    confusion = score_masks(config.pred_dir, masks, **size)
    scores, notes = confusion.scores(), score_notes(confusion, spec.class_names)
    about = facts | {"pred_dir": str(config.pred_dir), "threshold": made.masks["threshold"]}
    save_score(config.output_dir / "cam_crf", scores, spec.class_names, about, notes)
    published = (
        published_score(released, config.dataset, "train") if is_published_row(config, spec, made) else None
    )
    rows.append(Row("cam_crf", what["cam_crf"], scores.mean_iou, published))
    if published is not None and facts["split"] != "train":
        subset = (
            f"The published number is of 1,250 pictures of train; which, is not known. {facts['split']} is"
        )
        notes = [*notes, f"{subset} drawn by seed."]
    return rows, notes


def is_published_row(config: Config, spec: Dataset, made: Made) -> bool:
    """Whether list, CAMs, threshold and CRF are the published ones: the number may stand beside ours."""
    cams, masks = made.cams, made.masks
    return (
        (config.split or spec.cam_split) == spec.cam_split
        and tuple(cams["scales"]) == PUBLISHED_SCALES[config.dataset]
        and (cams["flip"], cams["attention"], cams["refine"], cams["max_side"]) == (True, "fused", True, None)
        and math.isclose(masks["threshold"], PUBLISHED_THRESHOLDS[config.dataset])
        and masks["crf_preset"] == CRF_PRESETS[config.dataset]
    )


def scores_at(path: Path, record: dict, threshold: float | None) -> Scores:
    """The scores that threshold.json holds for one threshold.

    Raises:
        UserError: It holds none, or not for this one.
    """
    curve = record.get("curve")
    at = (
        [i for i, t in enumerate(curve["threshold"]) if threshold and math.isclose(t, threshold)]
        if curve
        else []
    )
    if not at:
        raise UserError(
            f"{path}: holds no scores at the threshold {threshold}; "
            "run weaktr.search_threshold with its own --thresholds, where the masks are"
        )
    # null: a class, or a mean, without a value
    values = {f.name: np.array(curve[f.name], float)[at[0]] for f in fields(Scores)}
    return Scores(**{name: float(v) if v.ndim == 0 else v for name, v in values.items()})


def run() -> None:
    run_command(main, Config, prog="weaktr.evaluate", description=__doc__)


if __name__ == "__main__":
    run()
