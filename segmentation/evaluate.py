"""Score a segmenter, released or own, in one table: one scale, six with mirrors, CRF; last block and both.

    python -m segmentation.evaluate --dataset voc12 --data-path DATA --checkpoint weaktr_voc12_deit_s \\
        --output-dir OUT

Alone or under torchrun. Every picture goes through the network once for all rows. Writes

    ROW/ID.png                          label maps, palette PNG: 0 background, class + 1
    ROW/score.json, ROW/score.md        IoU per class
    evaluation.json, evaluation.md      the table, and what its numbers depend on

Label maps that are there are kept, so the same command continues a run that was stopped, and further --rows
may be added to it. A row's label maps are those that segmentation.predict writes with its options.
"""

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from segmentation.describe import chosen_by, result_record
from segmentation.inference import PUBLISHED_SCALES, Protocol
from segmentation.label_maps import Task, finish_task, make_row_tasks, run_tasks
from segmentation.options import CRF_PRESETS, PredictionOptions, trained_with, window_sizes, with_released
from segmentation.segmenter import Segmenter, load_segmenter
from wsss.checkpoint import check_classes
from wsss.config import next_command, option, result_options, run_command
from wsss.crf import check_crf_installed
from wsss.datasets import Dataset, load_dataset
from wsss.distributed import all_sum, barrier, distributed_session, rank, shard
from wsss.errors import UserError
from wsss.evaluation import FILES, Row, published_score, write_evaluation
from wsss.released import Released
from wsss.run import open_run, sha256
from wsss.score import mask_paths_of, save_score, score_masks, score_notes
from wsss.training import amp_dtype, amp_name

log = logging.getLogger(__name__)


class Way(NamedTuple):
    """How a row's label maps are made."""

    what: str
    multi_scale: bool  # the published scales with mirrors; else scale 1 alone
    decoder_blocks: str
    crf: bool


_SINGLE, _MULTI = "one scale", "six scales with mirrors"
_LAST, _BOTH = "last decoder block", "both decoder blocks"
ROWS = {
    "single_last": Way(f"{_SINGLE}, {_LAST}", False, "last", False),
    "single_fused": Way(f"{_SINGLE}, {_BOTH}", False, "fused", False),
    "multi_last": Way(f"{_MULTI}, {_LAST}", True, "last", False),
    "multi_fused": Way(f"{_MULTI}, {_BOTH}", True, "fused", False),
    "multi_crf_last": Way(f"{_MULTI}, {_LAST}, CRF", True, "last", True),
    "multi_crf_fused": Way(f"{_MULTI}, {_BOTH}, CRF: the published test", True, "fused", True),
}
PUBLISHED_ROW = "multi_crf_fused"


@dataclass(frozen=True, kw_only=True)
class Config(PredictionOptions):
    rows: tuple[str, ...] = option(tuple(ROWS), "rows of the table to make", changes_result=False)


@dataclass(frozen=True)
class Plan:
    """What follows from the options, the data set and the checkpoint."""

    spec: Dataset
    split: str
    paths: dict[str, Path]
    masks: dict[str, Path]  # true ones; none: no score
    rows: dict[str, tuple[Protocol, bool]]  # name: protocol, whether with CRF
    crf_preset: str
    amp_dtype: torch.dtype | None
    identity: dict  # the options that a continued run must share


def main(config: Config) -> None:
    with distributed_session(config.device) as device:
        backbone_given = config.backbone is not None
        config, released = with_released(config)
        spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
        model, entries = load_segmenter(config.checkpoint, backbone=config.backbone)
        check_classes(config.checkpoint, model.num_classes - 1, entries.get("class_names"), spec)
        plan = make_plan(config, spec, model, entries, device)
        output_dir = open_run(
            config.output_dir,
            "segmentation.evaluate",
            plan.identity,
            owned=(*ROWS, *FILES),
            overwrite=config.overwrite,
        )
        log.info("predicting %d pictures of %s for %d rows, on %s",
                 len(plan.paths), plan.split, len(plan.rows), device)  # fmt: skip
        written = predict(config, plan, model.to(device), output_dir)
        written = int(all_sum(torch.tensor(written, device=device)))
        barrier()
        if rank() == 0:
            total = len(plan.paths) * len(plan.rows)
            log.info(
                "wrote %d label maps to %s (%d were there already)", written, output_dir, total - written
            )
            source = backbone_source(released, entries, given=backbone_given)
            report(config, plan, model, entries, released, source)
            log.info(last_line(config, plan))


def make_plan(config: Config, spec: Dataset, model: Segmenter, entries: dict, device) -> Plan:
    unknown = [name for name in config.rows if name not in ROWS]
    if unknown:
        raise UserError(f"--rows {unknown[0]}: no such row; there are {', '.join(ROWS)}")
    sizes = window_sizes(config, trained_with(entries))
    rows = {}
    for name in (name for name in ROWS if name in config.rows):
        way = ROWS[name]
        scales = PUBLISHED_SCALES if way.multi_scale else (1.0,)
        how = {"flip": way.multi_scale, "decoder_blocks": way.decoder_blocks}
        rows[name] = (Protocol(scales=scales, **how, **sizes), way.crf)
    if any(crf for _, crf in rows.values()):
        try:
            check_crf_installed()
        except UserError as error:
            without = " ".join(name for name, way in ROWS.items() if not way.crf)
            raise UserError(
                f"{str(error).rsplit(', or', 1)[0]}, or go without it: --rows {without}"
            ) from None
    split = config.split or spec.val_split
    paths = {image_id: spec.image_path(image_id) for image_id in spec.image_ids(split)}
    preset = config.crf_preset or CRF_PRESETS[config.dataset]
    dtype = amp_dtype(config.amp, device)
    identity = result_options(config, leave_out=("checkpoint",)) | {
        "split": split, "backbone": model.backbone, "short_side": sizes["short_side"],
        "window": sizes["window"], "stride": sizes["stride"], "crf_preset": preset, "amp": amp_name(dtype),
        "checkpoint_sha256": sha256(config.checkpoint),
    }  # fmt: skip
    return Plan(spec, split, paths, mask_paths_of(spec, split), rows, preset, dtype, identity)


def predict(config: Config, plan: Plan, model: Segmenter, output_dir: Path) -> int:
    """Write what is missing of this process's share; returns how many label maps that were."""
    share = shard(list(plan.paths))
    missing = {
        i: [name for name in plan.rows if not (output_dir / name / f"{i}.png").is_file()] for i in share
    }
    todo = [i for i in share if missing[i]]
    how = {"max_side": config.max_side, "exif": config.exif, "amp_dtype": plan.amp_dtype}

    def make(image_id: str) -> Iterator[Task]:
        rows = [(output_dir / name / f"{image_id}.png", *plan.rows[name]) for name in missing[image_id]]
        return make_row_tasks(model, plan.paths[image_id], rows, **how)

    finish = partial(
        finish_task, crf_preset=plan.crf_preset, class_names=("background", *plan.spec.class_names)
    )
    run_tasks(todo, make, finish, workers=config.workers, done=len(share) - len(todo))
    return sum(map(len, missing.values()))


def backbone_source(released: Released | None, entries: dict, *, given: bool) -> str:
    """Where the backbone's name comes from."""
    if released is not None:
        return f"known of the released {released.name}"
    if "model_args" in entries:
        return "recorded in the checkpoint"
    return "given with --backbone" if given else "inferred from the tensors"


def report(
    config: Config, plan: Plan, model: Segmenter, entries: dict, released: Released | None, source: str
) -> None:
    """Score every row, and write the table with what it depends on."""
    facts = {
        "checkpoint": str(config.checkpoint),
        "checkpoint_sha256": plan.identity["checkpoint_sha256"],
        "released": released.name if released else None,
        "checkpoint_chosen_by": chosen_by(entries),
        "backbone": model.backbone,
        "backbone_from": source,
        "split": plan.split,
        "images": len(plan.paths),
        "mask_dir": str(plan.spec.mask_path(next(iter(plan.paths))).parent),
    }
    published = published_score(released, config.dataset, plan.split)
    if not published_settings(config, plan):
        published = None
    rows, notes = [], []
    for name, (protocol, crf) in plan.rows.items():
        how = {"crf_preset": plan.crf_preset if crf else None, "amp_dtype": plan.amp_dtype}
        own = result_record(model, protocol, **how)
        score, note = _score(config, plan, name, model.num_classes, facts | own) if plan.masks else (None, [])
        rows.append(Row(name, ROWS[name].what, score, published if name == PUBLISHED_ROW else None))
        notes += [f"{name}: {line}" for line in note]
    shared = ("pixel_mean", "pixel_std", "short_side", "window", "stride", "amp")
    facts |= {name: own[name] for name in shared}
    facts |= {"crf_preset": plan.crf_preset, "max_side": config.max_side, "exif": config.exif}
    if not plan.masks:
        notes.append(f"No score: not every picture of {plan.split} has a mask in {facts['mask_dir']}.")
        facts["mask_dir"] = None
    write_evaluation(config.output_dir, rows, facts, notes)


def published_settings(config: Config, plan: Plan) -> bool:
    """Whether sizes and CRF are those of the published test, so that its number may stand beside ours."""
    protocol = next(iter(plan.rows.values()))[0]
    sizes = (protocol.short_side, protocol.window, protocol.stride)
    preset = CRF_PRESETS[config.dataset]
    return sizes == (Protocol.short_side, Protocol.window, Protocol.stride) and (
        (plan.crf_preset, config.max_side, config.exif) == (preset, None, False)
    )


def _score(
    config: Config, plan: Plan, name: str, num_classes: int, about: dict
) -> tuple[float | None, list[str]]:
    """mIoU of a row, None where no pixel counts, and what a reader must know."""
    folder = config.output_dir / name
    confusion = score_masks(folder, plan.masks, num_classes=num_classes, workers=config.workers)
    if not confusion.counts.any():
        return None, ["no score, every pixel of the masks is 255"]
    about = {"split": about["split"], "images": about["images"], "pred_dir": str(folder), **about}
    about |= {"max_side": config.max_side, "exif": config.exif}
    scores, notes = confusion.scores(), score_notes(confusion, plan.spec.class_names)
    save_score(folder, scores, plan.spec.class_names, about, notes)
    return scores.mean_iou, notes


def last_line(config: Config, plan: Plan) -> str:
    if plan.masks or config.dataset != "voc12":
        return f"next: {shlex.join(['cat', str(config.output_dir / 'evaluation.md')])}"
    where = {"split": plan.split, "output_dir": config.output_dir / "submission"}
    how = {"checkpoint": config.checkpoint, "backbone": config.backbone}
    how |= {"multi_scale": True, "decoder_blocks": "fused", "crf": True, "submission": True}
    return next_command("segmentation.predict", config, **where, **how)


def run() -> None:
    run_command(main, Config, prog="segmentation.evaluate", description=__doc__)


if __name__ == "__main__":
    run()
