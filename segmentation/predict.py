"""Predict label maps with a trained segmenter: of a data set's list, or of any pictures.

    python -m segmentation.predict --dataset folder --data-path DATA --checkpoint OUT/segmenter/best.pth \\
        --split val --output-dir OUT/predictions/val
    python -m segmentation.predict --images PHOTOS --checkpoint best.pth --output-dir OUT --overlays all

Alone or under torchrun. Writes, each at the picture's own size,

    ID.png                 palette PNG: 0 background, class + 1
    overlays/ID.png        the same over the picture (--overlays)
    panels/ID/NAME.png     picture, truth and prediction of a few, small (--panels)
    probabilities/ID.npz   before CRF (--probabilities): probs, float16 (K, H, W), and class_names (K,), both
                           with background first; with --decoder-blocks fused the K values add up to 1.8

and, where every picture of the list has a mask, score.json and score.md; with --submission, for the server
that scores PASCAL VOC's test list,

    results/VOC2012/Segmentation/comp6_SPLIT_cls/ID.png, packed as comp6_SPLIT_cls.tar.gz

Existing files are kept, so the same command continues a run that was stopped.
"""

import logging
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from segmentation.describe import chosen_by, result_line, result_record
from segmentation.inference import PUBLISHED_SCALES, Protocol
from segmentation.label_maps import Outputs, Task, finish_task, make_task, run_tasks
from segmentation.options import CRF_PRESETS, PredictionOptions, trained_with, window_sizes, with_released
from segmentation.segmenter import Segmenter, load_segmenter
from segmentation.submission import check_submission, write_submission
from wsss.checkpoint import check_classes
from wsss.config import next_command, option, result_options, run_command
from wsss.crf import check_crf_installed
from wsss.datasets import Dataset, list_pictures, load_dataset
from wsss.distributed import all_sum, barrier, distributed_session, rank, shard
from wsss.errors import UserError
from wsss.panels import panel_ids, write_label_panels
from wsss.run import open_run, sha256
from wsss.score import mask_paths_of, score_masks, write_score
from wsss.training import amp_dtype, amp_name

log = logging.getLogger(__name__)

OWNED = ("*.png", ".*.png.tmp", "overlays", "panels", "probabilities", "score.json", "score.md")
OWNED += ("results", "comp6_*_cls.tar.gz")


@dataclass(frozen=True, kw_only=True)
class Config(PredictionOptions):
    data_path: Path | None = option(None, "root folder of the data set; or give --images")
    images: Path | None = option(None, "any pictures: a file, or a folder (its files, not its subfolders)")
    scales: tuple[float, ...] | None = option(
        None, "sizes of the picture, times the short side (default: 1)", above=0
    )
    multi_scale: bool = option(
        False, f"the published scales, {' '.join(f'{s:g}' for s in PUBLISHED_SCALES)}, in place of --scales"
    )
    flip: bool | None = option(
        None, "also use every scale's mirror (default: where there is more than one scale)"
    )
    decoder_blocks: str = option(
        "last",
        "last: read the decoder after its last block; fused: 0.8 times the first block's probabilities plus "
        "the last's, as in the published test",
        choices=("last", "fused"),
    )
    crf: bool = option(False, "sharpen the result with a dense CRF")
    overlays: str = option(
        "0", "also write overlay PNGs of the first N pictures, or of all", changes_result=False
    )
    panels: int = option(
        0,
        "also write panels/ID of N pictures spread over the list: picture, truth and prediction, small",
        changes_result=False,
        minimum=0,
    )
    probabilities: bool = option(
        False, "also write probabilities: 2 K H W bytes per picture", changes_result=False
    )
    submission: bool = option(
        False,
        "voc12: also write results/VOC2012/Segmentation/comp6_SPLIT_cls and pack it for the official server",
        changes_result=False,
    )


def main(config: Config) -> None:
    with distributed_session(config.device) as device:
        config, _ = with_released(config)
        pictures = find_pictures(config)
        model, entries = load_segmenter(config.checkpoint, backbone=config.backbone)
        plan = make_plan(config, pictures, model, entries, device)
        output_dir = open_run(
            config.output_dir, "segmentation.predict", plan.identity, owned=OWNED, overwrite=config.overwrite
        )
        log.info("predicting %d pictures of %s, on %s", len(pictures.paths), pictures.name, device)
        written = predict(config, plan, pictures, model.to(device), output_dir)
        write_panels(config, pictures, output_dir)
        written = int(all_sum(torch.tensor(written, device=device)))
        barrier()
        if rank() == 0:
            report(config, plan, pictures, model, entries)
            kept = len(pictures.paths) - written
            log.info("wrote %d label maps to %s (%d were there already)", written, output_dir, kept)
            if config.submission:
                archive = write_submission(output_dir, pictures.paths, pictures.name)
                log.info("packed %d label maps for the server: %s", len(pictures.paths), archive)
            log.info(last_line(config, plan, pictures))


class Pictures(NamedTuple):
    """What is predicted."""

    name: str  # of the list; of --images, its path
    paths: dict[str, Path]
    masks: dict[str, Path]  # true ones; none: no score
    spec: Dataset | None  # None: --images


@dataclass(frozen=True)
class Plan:
    """What follows from the options, the pictures and the checkpoint."""

    protocol: Protocol
    crf_preset: str | None  # None: no CRF
    class_names: tuple[str, ...]  # background first
    overlaid: frozenset[str]
    amp_dtype: torch.dtype | None
    identity: dict  # the options that a continued run must share


def find_pictures(config: Config) -> Pictures:
    """The pictures and, where there are any, their masks."""
    if (config.images is None) == (config.data_path is None):
        raise UserError("--images: give it, or --data-path for a data set, and not both")
    if config.images is not None:
        if config.split is not None:
            raise UserError("--split: lists belong to a data set (--data-path); leave it out with --images")
        found = Pictures(str(config.images), list_pictures(config.images), {}, None)
    else:
        spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
        split = config.split or spec.val_split
        paths = {image_id: spec.image_path(image_id) for image_id in spec.image_ids(split)}
        found = Pictures(split, paths, mask_paths_of(spec, split), spec)
    if config.submission:
        check_submission(found.spec and found.spec.name, found.name)
    folders = {path.parent for path in (*found.paths.values(), *found.masks.values())}
    if config.output_dir.resolve() in {folder.resolve() for folder in folders}:
        raise UserError(
            f"{config.output_dir}: holds the pictures or their masks, which would be written over; "
            "choose another --output-dir"
        )
    return found


def make_plan(config: Config, pictures: Pictures, model: Segmenter, entries: dict, device) -> Plan:
    names = entries.get("class_names")
    if pictures.spec is not None:
        check_classes(config.checkpoint, model.num_classes - 1, names, pictures.spec)
        names = pictures.spec.class_names
    trained = trained_with(entries)
    protocol = make_protocol(config, trained)
    layout = config.dataset if pictures.spec is not None else trained.get("dataset", config.dataset)
    preset = (config.crf_preset or CRF_PRESETS[layout]) if config.crf else None
    if config.crf:
        check_crf_installed()
    dtype = amp_dtype(config.amp, device)
    if pictures.spec is None:
        identity = result_options(
            config, leave_out=("multi_scale", "checkpoint", "dataset", "data_path", "voc_masks")
        )
        identity["images"] = str(config.images.resolve())
    else:
        identity = result_options(config, leave_out=("multi_scale", "checkpoint")) | {"split": pictures.name}
    identity |= {
        "backbone": model.backbone, "scales": list(protocol.scales), "flip": protocol.flip,
        "short_side": protocol.short_side, "window": protocol.window, "stride": protocol.stride,
        "crf_preset": preset, "amp": amp_name(dtype), "checkpoint_sha256": sha256(config.checkpoint),
    }  # fmt: skip
    return Plan(
        protocol=protocol,
        crf_preset=preset,
        class_names=("background", *(names or (f"class {k}" for k in range(1, model.num_classes)))),
        overlaid=frozenset(list(pictures.paths)[: number_of_overlays(config.overlays)]),
        amp_dtype=dtype,
        identity=identity,
    )


def make_protocol(config: Config, trained: dict) -> Protocol:
    """From the command line, else as in training, else as published.

    Args:
        trained: ``short_side``, ``window`` and ``stride``, where the checkpoint knows them.
    """
    if config.multi_scale and config.scales:
        raise UserError("--multi-scale: stands for the published --scales; give one of the two")
    scales = PUBLISHED_SCALES if config.multi_scale else config.scales or (1.0,)
    flip = len(scales) > 1 if config.flip is None else config.flip
    sizes = window_sizes(config, trained)
    return Protocol(scales=tuple(scales), flip=flip, decoder_blocks=config.decoder_blocks, **sizes)


def number_of_overlays(text: str) -> int | None:
    """``--overlays``; None is all."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError(f"--overlays {text}: give a number of pictures, or all")
    return int(text)


def predict(config: Config, plan: Plan, pictures: Pictures, model: Segmenter, output_dir: Path) -> int:
    """Write what is missing of this process's share; returns how many label maps that were.

    The network goes on while other processes run the CRF and write. At a bad picture it stops, when the files
    of those before are written.
    """
    share = {i: outputs_of(config, plan, output_dir, i) for i in shard(list(pictures.paths))}
    todo = [i for i, outputs in share.items() if outputs.missing()]
    new = sum(outputs.mask in outputs.missing() for outputs in share.values())
    how = {"protocol": plan.protocol, "crf": plan.crf_preset is not None, "amp_dtype": plan.amp_dtype}
    how |= {"max_side": config.max_side, "exif": config.exif}

    def make(image_id: str) -> list[Task]:
        return [make_task(model, pictures.paths[image_id], share[image_id], **how)]

    finish = partial(finish_task, crf_preset=plan.crf_preset, class_names=plan.class_names)
    run_tasks(todo, make, finish, workers=config.workers, done=len(share) - len(todo))
    return new


def write_panels(config: Config, pictures: Pictures, output_dir: Path) -> None:
    """Panels of those pictures that are in this process's share, from their label maps."""
    ids = list(pictures.paths)
    chosen = set(panel_ids(ids, config.panels))
    mask_of = pictures.spec.mask_path if pictures.spec is not None else lambda image_id: None
    shown = [(i, pictures.paths[i], mask_of(i)) for i in shard(ids) if i in chosen]
    write_label_panels(output_dir, "prediction", shown, exif=config.exif)
    if chosen:
        log.info("wrote panels of %d pictures to %s", len(chosen), output_dir / "panels")


def outputs_of(config: Config, plan: Plan, output_dir: Path, image_id: str) -> Outputs:
    return Outputs(
        output_dir / f"{image_id}.png",
        output_dir / "overlays" / f"{image_id}.png" if image_id in plan.overlaid else None,
        output_dir / "probabilities" / f"{image_id}.npz" if config.probabilities else None,
    )


def report(config: Config, plan: Plan, pictures: Pictures, model: Segmenter, entries: dict) -> None:
    """The score, where there are masks, with all that it depends on."""
    how = {"crf_preset": plan.crf_preset, "amp_dtype": plan.amp_dtype}
    parts = [f"{pictures.name}, {len(pictures.paths)} pictures", result_line(model, plan.protocol, **how)]
    score = "no score, not every picture has a mask"
    if pictures.masks:
        size = {"num_classes": model.num_classes, "workers": config.workers}
        confusion = score_masks(config.output_dir, pictures.masks, **size)
        score = "no score, every pixel of the masks is 255"
        if confusion.counts.any():
            about = {
                "split": pictures.name,
                "images": len(pictures.paths),
                "pred_dir": str(config.output_dir),
                "mask_dir": str(next(iter(pictures.masks.values())).parent),
                "checkpoint": str(config.checkpoint),
                "checkpoint_sha256": plan.identity["checkpoint_sha256"],
                "checkpoint_chosen_by": chosen_by(entries),
                **result_record(model, plan.protocol, **how),
                "max_side": config.max_side,
                "exif": config.exif,
            }
            scores = write_score(config.output_dir, confusion, plan.class_names[1:], about)
            score = f"mIoU {100 * scores.mean_iou:.2f}%"
    if pictures.spec is not None:
        parts.insert(0, score)
    log.info(" | ".join(parts))


def last_line(config: Config, plan: Plan, pictures: Pictures) -> str:
    """What may come next: the published test where this was less, else the score's table."""
    if pictures.spec is None:
        return "done: --overlays all shows label maps over their pictures; existing files are kept"
    if config.submission and not pictures.masks:
        return 'done: upload the archive as "comp6" at http://host.robots.ox.ac.uk:8080'
    if plan.crf_preset and len(plan.protocol.scales) > 1:
        table = config.output_dir / "score.md"
        return f"next: {shlex.join(['cat', str(table)])}" if pictures.masks else "done"
    names = ("checkpoint", "backbone", "short_side", "window", "stride", "max_side", "exif")
    same = {name: getattr(config, name) for name in names}
    published = {"multi_scale": True, "decoder_blocks": "fused", "crf": True, "submission": config.submission}
    output_dir = config.output_dir.with_name(f"{config.output_dir.name}_multi_crf")
    where = {"split": pictures.name, "output_dir": output_dir}
    return next_command("segmentation.predict", config, **where, **same, **published)


def run() -> None:
    run_command(main, Config, prog="segmentation.predict", description=__doc__)


if __name__ == "__main__":
    run()
