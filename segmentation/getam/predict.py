"""Predict label maps with GETAM: squares of three sizes, logits averaged, softmax, a dense CRF (--crf).

    python -m segmentation.getam.predict --dataset folder --data-path DATA --checkpoint OUT/getam/last.pth \\
        --split val --crf --output-dir OUT/getam_predictions/val

Alone or under torchrun. Writes ID.png (palette PNG at the picture's own size: 0 background, class + 1; COCO's
category ids), overlays/ID.png (--overlays), and, where every picture of the list has a mask, score.json and
score.md. Existing files are kept, so the same command continues a run that was stopped.
"""

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segmentation.getam.classes import ClassTable, class_table
from segmentation.getam.generate_cam import check_squares, find_getam
from segmentation.getam.inference import PUBLISHED_SQUARES, predict_probs
from segmentation.getam.model import STRIDE, Getam
from segmentation.label_maps import Outputs, Task, finish_task
from wsss.config import REQUIRED, DataOptions, option, result_options, run_command
from wsss.crf import check_crf_installed
from wsss.datasets import Dataset, load_dataset
from wsss.distributed import all_sum, barrier, distributed_session, rank, shard
from wsss.errors import UserError
from wsss.io import read_image
from wsss.parallel import CPUS, parallel_map
from wsss.run import open_run, sha256
from wsss.score import mask_paths_of, score_masks, write_score
from wsss.training import amp_dtype, amp_name

log = logging.getLogger(__name__)

CRF_PRESET = "getam"
OWNED = ("*.png", ".*.png.tmp", "overlays", "score.json", "score.md")


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    checkpoint: Path = option(
        REQUIRED, "network: a checkpoint of segmentation.getam.train, or a released one, by file or by name"
    )
    backbone: str | None = option(None, "encoder of a released checkpoint, where its file leaves it open")
    split: str | None = option(None, "list of pictures (default: the data set's validation list)")
    squares: tuple[int, ...] = option(
        PUBLISHED_SQUARES, f"sides of the squares a picture is resized to, pixels, multiples of {STRIDE}",
        minimum=STRIDE,
    )  # fmt: skip
    crf: bool = option(False, "sharpen the result with a dense CRF, as in the published test")
    amp: str = option(
        "auto",
        "mixed precision; auto: bfloat16 on a GPU that has it, float16 on others, off on CPU",
        choices=("auto", "off", "bfloat16", "float16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    overlays: int = option(
        0, "also write overlay PNGs of the first N pictures", changes_result=False, minimum=0
    )
    workers: int = option(
        min(4, CPUS),
        "processes for CRF and writing, per process; 0 does both in the command's own",
        minimum=0,
        changes_result=False,
    )


def main(config: Config) -> None:
    check_squares(config.squares)
    if config.crf:
        check_crf_installed()
    with distributed_session(config.device) as device:
        spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
        table = class_table(spec)
        split = config.split or spec.val_split
        image_ids = spec.image_ids(split)
        masks = mask_paths_of(spec, split)
        path, model, entries = find_getam(config.checkpoint, config.backbone, table)
        dtype = amp_dtype(config.amp, device)
        identity = result_options(config, leave_out=("checkpoint", "backbone", "amp"))
        identity |= {"split": split, "backbone": model.backbone, "amp": amp_name(dtype)}
        identity["checkpoint_sha256"] = sha256(path)
        output_dir = open_run(
            config.output_dir,
            "segmentation.getam.predict",
            identity,
            owned=OWNED,
            overwrite=config.overwrite,
        )
        log.info("predicting %d pictures of %s, on %s", len(image_ids), split, device)
        written = predict(config, spec, table, model.to(device), image_ids, output_dir, dtype)
        written = int(all_sum(torch.tensor(written, device=device)))
        barrier()
        if rank() == 0:
            report(config, spec, split, masks, model, entries, identity)
            kept = len(image_ids) - written
            log.info("wrote %d label maps to %s (%d were there already)", written, output_dir, kept)
            table_path = shlex.join(["cat", str(output_dir / "score.md")])
            log.info(f"next: {table_path}" if masks else "done")


def predict(
    config: Config,
    spec: Dataset,
    table: ClassTable,
    model: Getam,
    image_ids: list[str],
    output_dir: Path,
    dtype: torch.dtype | None,
) -> int:
    """Write what is missing of this process's share; returns how many label maps that were."""
    overlaid = set(image_ids[: config.overlays])
    share = {
        i: Outputs(
            output_dir / f"{i}.png", output_dir / "overlays" / f"{i}.png" if i in overlaid else None, None
        )
        for i in shard(image_ids)
    }
    todo = [i for i, outputs in share.items() if outputs.missing()]
    new = sum(share[i].mask in share[i].missing() for i in todo)
    failures = []

    def tasks() -> Iterator[Task]:
        counts = {"initial": len(share) - len(todo), "total": len(share)}
        for image_id in tqdm(todo, "predicting", unit="img", disable=rank() != 0, **counts):
            try:
                image = read_image(spec.image_path(image_id), exif=config.exif)
                probs = predict_probs(model, image, squares=config.squares, amp_dtype=dtype)
            except UserError as error:
                failures.append(error)
                return
            yield make_task(table, image, probs, share[image_id], crf=config.crf)

    finish = partial(finish_task, crf_preset=CRF_PRESET if config.crf else None, class_names=())
    for _ in parallel_map(finish, tasks(), workers=min(config.workers, len(todo))):
        pass
    if failures:
        raise failures[0]
    return new


def make_task(
    table: ClassTable, image: np.ndarray, probs: torch.Tensor, outputs: Outputs, *, crf: bool
) -> Task:
    """What ``finish_task`` needs, in the data set's numbers: they ascend as the network's do."""
    labels = probs.argmax(0).cpu().numpy()
    classes = np.unique(labels).tolist()
    winners = probs[classes].cpu().numpy() if crf and len(classes) > 1 else None
    return Task(outputs, image, table.label_map(labels), winners, None)


def report(
    config: Config, spec, split: str, masks: dict, model: Getam, entries: dict, identity: dict
) -> None:
    """The score, where there are masks, with all that it depends on."""
    squares = " ".join(map(str, config.squares))
    options = entries.get("options", {})
    saliency = entries.get("saliency")
    trained = (
        "not recorded" if saliency is None else "with saliency maps" if saliency else "without saliency maps"
    )
    parts = [
        f"{split}, {len(spec.image_ids(split))} pictures",
        f"GETAM, {model.backbone}, squares {squares}",
        f"CRF {CRF_PRESET}" if config.crf else "no CRF",
        f"trained {trained}",
    ]
    score = "no score, not every picture has a mask"
    if masks:
        num_classes = spec.num_fg_classes + 1
        confusion = score_masks(config.output_dir, masks, num_classes=num_classes, workers=config.workers)
        score = "no score, every pixel of the masks is 255"
        if confusion.counts.any():
            about = {
                "split": split,
                "images": len(masks),
                "pred_dir": str(config.output_dir),
                "mask_dir": str(next(iter(masks.values())).parent),
                "checkpoint": str(config.checkpoint),
                "checkpoint_sha256": identity["checkpoint_sha256"],
                "backbone": model.backbone,
                "squares": list(config.squares),
                "crf_preset": CRF_PRESET if config.crf else None,
                "amp": identity["amp"],
                "saliency": trained,
                "step": entries.get("step"),
                "seed": options.get("seed"),
            }
            scores = write_score(config.output_dir, confusion, spec.class_names, about)
            score = f"mIoU {100 * scores.mean_iou:.2f}%"
    log.info(" | ".join([score, *parts]))


def run() -> None:
    run_command(main, Config, prog="segmentation.getam.predict", description=__doc__)


if __name__ == "__main__":
    run()
