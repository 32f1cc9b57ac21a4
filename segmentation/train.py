"""Train the segmenter on masks: pseudo-masks of stage 1, or true ones for the supervised bound.

    python -m segmentation.train --dataset folder --data-path DATA --mask-dir OUT/masks/train \\
        --output-dir OUT/segmenter --backbone deit_tiny_patch16_224 --pretrained deit_tiny_patch16_224.pth

Alone or under torchrun (the batch size given is the global one). Defaults are the published recipe. The same
command continues a run that was stopped; on a CPU the result is bit-equal to an uninterrupted one.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from segmentation.data import SegmentationDataset, check_masks
from segmentation.engine import Clipping, evaluate, train_steps
from segmentation.inference import Protocol
from segmentation.memory import fitting_protocol
from segmentation.monitor import write_look, write_pictures, write_record
from segmentation.segmenter import Segmenter, build_segmenter, start_from_pretrained
from wsss.backbones import get_backbone
from wsss.config import DataOptions, as_plain, next_command, option, result_options, run_command
from wsss.datasets import load_dataset, split_name
from wsss.distributed import barrier, distributed_session, rank, world_size
from wsss.errors import UserError
from wsss.loading import StepBatchSampler, batches, make_loader
from wsss.optim import polynomial_rate
from wsss.run import open_run
from wsss.score import mask_paths_of
from wsss.training import amp_dtype, amp_name, load_training, save_training

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    mask_dir: Path | None = option(
        None, "folder of <id>.png to train on, such as stage 1's pseudo-masks (default: the data set's masks)"
    )
    backbone: str = option("deit_small_patch16_224", "network size and family, see wsss/backbones.py")
    pretrained: str = option(
        "hub",
        "ImageNet weights: a file, a timm name, hub for the backbone's own, or none to start from nothing",
    )
    train_split: str | None = option(None, "training list (default: the data set's)")
    val_split: str | None = option(None, "list with masks to evaluate on (default: the data set's, if any)")
    val_stride: int = option(1, "evaluate on every N-th picture of that list", minimum=1)
    epochs: int = option(100, "passes over the training list", minimum=1)
    iterations: int | None = option(None, "steps, in place of --epochs", minimum=1)
    eval_every: int | None = option(
        None, "evaluate after every N steps, and after the last (default: an epoch)", minimum=1
    )
    save_every: int = option(
        1000, "save last.pth after every N steps, and at evaluations", changes_result=False, minimum=1
    )
    batch_size: int = option(4, "pictures per step, over all processes", minimum=1)
    short_side: int = option(
        520, "short side of pictures, pixels; training draws half to twice that", minimum=1
    )
    crop_size: int = option(480, "side of the training crop, pixels", minimum=1)
    window: int | None = option(
        None, "side of the evaluation's window, pixels (default: the crop's)", minimum=1
    )
    stride: int | None = option(
        None, "stride of the evaluation's window, pixels (default: two thirds of the window)", minimum=1
    )
    gradient_clipping: bool = option(True, "take the gradient from pixels of high loss")
    clip_start: float = option(1.2, "mean loss below which clipping acts", above=0)
    clip_patch: int | None = option(
        None, "side of clipping's tiles, pixels (default: a quarter crop)", minimum=1
    )
    clip_scope: str = option(
        "global", "clipping's means: over the global batch, or each process's own, as published",
        choices=("global", "process"),
    )  # fmt: skip
    optimizer: str = option(
        "sgd",
        "sgd, as published, or adamw: learns in a hundredth of the steps, where lr 5e-4 suits",
        choices=("sgd", "adamw"),
    )
    lr: float = option(1e-4, "learning rate of the decoder at the first step", above=0)
    min_lr: float = option(1e-5, "learning rate of the decoder at the end", minimum=0)
    encoder_lr_scale: float = option(0.1, "learning rate of the encoder, times the decoder's", minimum=0)
    momentum: float = option(0.9, "SGD's, Nesterov", above=0, maximum=1)
    weight_decay: float = option(0.0, "the optimiser's, on every parameter", minimum=0)
    drop_path: float = option(0.1, "stochastic depth of the encoder's last block", minimum=0, maximum=0.99)
    dropout: float = option(0.1, "in the decoder", minimum=0, maximum=0.99)
    seed: int = option(504, "of initialisation, order, augmentation, dropout and stochastic depth", minimum=0)
    amp: str = option(
        "auto",
        "mixed precision of training; auto: bfloat16 on a GPU that has it, float16 on others, off on CPU",
        choices=("auto", "off", "bfloat16", "float16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    max_side: int | None = option(
        None, "evaluation: make probabilities of larger pictures at this longer side, pixels", minimum=1
    )
    overlays: int = option(
        4, "pictures of the evaluation whose overlays go to TensorBoard", changes_result=False, minimum=0
    )
    workers: int = option(
        min(8, os.cpu_count() or 1), "data-loading processes per process", changes_result=False, minimum=0
    )


def main(config: Config) -> None:
    with distributed_session(config.device) as device:
        train(config, device)


def train(config: Config, device: torch.device) -> None:
    started = time.time()
    spec = load_dataset(config.dataset, config.data_path)
    plan = make_plan(config, spec, device)
    output_dir = open_run(
        config.output_dir,
        "segmentation.train",
        plan.identity,
        owned=("*.pth", ".*.tmp", "log.jsonl", "tensorboard"),
        overwrite=config.overwrite,
    )
    torch.manual_seed(config.seed)
    resumed = (output_dir / "last.pth").is_file()
    model = new_model(config, plan, resumed=resumed).to(device)
    optimizer = new_optimizer(config, model)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.amp_dtype == torch.float16)
    state = resume(output_dir / "last.pth", model, model_args(config, plan), optimizer, scaler, spec)
    if not resumed:
        check_all_masks(config, spec, plan, model)
    network = DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model
    sampler, stream = training_stream(config, spec, plan, model, device, first_step=state["step"])
    writer = None
    if rank() == 0:
        if state["step"] < plan.steps:  # what was written at the last save's own step is kept
            writer = SummaryWriter(output_dir / "tensorboard", purge_step=state["step"] + 1)
        announce(config, plan, model, device, state["step"])
    progress = tqdm(
        total=plan.steps, initial=state["step"], desc="training", unit="step", disable=rank() != 0
    )
    rate = partial(polynomial_rate, peak=config.lr, floor=config.min_lr, steps=plan.steps)
    for steps in sections(state["step"], plan, config.save_every):
        section_started = time.time()
        record = train_steps(
            network,
            stream,
            optimizer,
            rate,
            steps=steps,
            sampler=sampler,
            image_ids=plan.train_ids,
            clipping=plan.clipping,
            seed=config.seed,
            device=device,
            amp_dtype=plan.amp_dtype,
            scaler=scaler,
            progress=progress,
            on_look=partial(write_look, writer),
        )
        record = {"step": steps[-1] + 1, "lr": rate(steps[-1]), **record}
        record["train_seconds"] = round(time.time() - section_started, 1)
        if plan.val_ids and is_evaluated(record["step"], plan):
            record |= validate(config, spec, plan, model)
        if rank() == 0:  # before the section is saved: killed in between, it is repeated and written again
            show(writer, config, spec, plan, model, record)
        finish_section(config, spec, plan, model, optimizer, scaler, state, record, output_dir)
        if rank() == 0:
            progress.write(record_line(record))
    progress.close()
    barrier()
    if rank() == 0:
        if writer is not None:
            writer.close()
        summarise(config, spec, plan, state, output_dir, time.time() - started)


@dataclass(frozen=True)
class Plan:
    """What follows from the options and the data set."""

    num_classes: int  # background included
    train_split: str
    train_ids: list[str]
    train_masks: dict[str, Path]
    val_split: str | None  # None: no masks to evaluate on
    val_ids: list[str]
    val_masks: dict[str, Path]
    steps: int
    eval_every: int
    protocol: Protocol  # of the evaluation: one scale, no mirror
    clipping: Clipping | None
    amp_dtype: torch.dtype | None
    identity: dict  # the options a continued run must share


def make_plan(config: Config, spec, device: torch.device) -> Plan:
    train_split = config.train_split or spec.train_split
    train_ids = spec.image_ids(train_split)
    train_masks = mask_paths_of(spec, train_split, config.mask_dir)
    if not train_masks:
        raise UserError(
            f"{missing_mask(spec, train_ids)}: no such mask; give --mask-dir the pseudo-masks of "
            f"weaktr.make_masks, or complete the data set's own of {train_split}"
        )
    val_split = config.val_split or (spec.val_split if spec.val_split in spec.splits else None)
    if val_split and not spec.has_masks(val_split):
        if config.val_split:
            missing = missing_mask(spec, spec.image_ids(val_split))
            raise UserError(f"{missing}: no such mask; leave --val-split {val_split} out, or give another")
        val_split = None
    val_ids = spec.image_ids(val_split)[:: config.val_stride] if val_split else []
    window = config.window or config.crop_size
    stride = config.stride or max(1, window * 2 // 3)
    if stride > window:
        raise UserError(f"--stride {stride}: larger than the window of {window} pixels; choose less")
    clip_patch = config.clip_patch or max(1, config.crop_size // 4)
    steps_per_epoch = -(-len(train_ids) // config.batch_size)
    steps = config.iterations or config.epochs * steps_per_epoch
    clipping = (
        Clipping(config.clip_start, clip_patch, config.clip_scope) if config.gradient_clipping else None
    )
    dtype = amp_dtype(config.amp, device)
    identity = result_options(config, leave_out=("amp", "epochs", "iterations"))
    identity |= {
        "train_split": train_split, "val_split": val_split, "window": window, "stride": stride,
        "clip_patch": clip_patch, "steps": steps, "amp": amp_name(dtype),
        "eval_every": config.eval_every or steps_per_epoch, "masks": fingerprint(train_masks),
    }  # fmt: skip
    return Plan(
        num_classes=spec.num_fg_classes + 1,
        train_split=train_split, train_ids=train_ids, train_masks=train_masks,
        val_split=val_split, val_ids=val_ids, val_masks={i: spec.mask_path(i) for i in val_ids},
        steps=steps, eval_every=config.eval_every or steps_per_epoch,
        protocol=Protocol(short_side=config.short_side, window=window, stride=stride),
        clipping=clipping, amp_dtype=dtype, identity=identity,
    )  # fmt: skip


def fingerprint(mask_paths: dict[str, Path]) -> str:
    """Hash of the masks' names and sizes in bytes: masks made anew under the same names are noticed."""
    sizes = "".join(f"{path.name} {path.stat().st_size}\n" for path in mask_paths.values() if path.is_file())
    return hashlib.sha256(sizes.encode()).hexdigest()[:16]


def missing_mask(spec, image_ids: list[str]) -> Path:
    """The first of the data set's masks that is not there."""
    paths = list(map(spec.mask_path, image_ids))
    return next((path for path in paths if not path.is_file()), paths[0])


def new_model(config: Config, plan: Plan, *, resumed: bool) -> Segmenter:
    """The network with its starting weights, which a resumed run does not need again."""
    model = build_segmenter(**model_args(config, plan), drop_path=config.drop_path, dropout=config.dropout)
    if config.pretrained != "none" and not resumed:
        start_from_pretrained(model, config.pretrained)
    return model


def model_args(config: Config, plan: Plan) -> dict:
    """``build_segmenter``'s arguments, kept in the checkpoint so that it rebuilds the network alone."""
    patch = get_backbone(config.backbone).patch_size
    image_size = -(-config.crop_size // patch) * patch  # the crop as the network pads it
    return {"backbone": config.backbone, "num_classes": plan.num_classes, "image_size": image_size}


def new_optimizer(config: Config, model: Segmenter) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.encoder_lr_scale)
    how = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **how)
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=True, **how)


def parameter_groups(model: Segmenter, encoder_lr_scale: float) -> list[dict]:
    """Encoder, which starts from ImageNet; decoder, which starts fresh."""
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    return [
        {"params": encoder, "lr_scale": encoder_lr_scale},
        {"params": list(model.decoder.parameters()), "lr_scale": 1.0},
    ]


def resume(path: Path, model: Segmenter, arguments: dict, optimizer, scaler, spec) -> dict:
    """Load ``last.pth`` where there is one. Returns steps done, their records, and the best one."""
    content = load_training(path, model, arguments, optimizer, scaler, spec, background=True)
    if content is None:
        return {"step": 0, "history": [], "best": None}
    log.info("continuing %s after step %d", path, content["step"])
    return {key: content[key] for key in ("step", "history", "best")}


def check_all_masks(config: Config, spec, plan: Plan, model: Segmenter) -> None:
    """Look at every picture and mask before anything is trained; the first process does, the others wait."""
    if rank() == 0:
        how = {"num_classes": plan.num_classes, "exif": config.exif, "workers": config.workers}
        sizes = check_masks(spec, plan.train_ids, plan.train_masks, **how)
        predicted = plan.train_ids[: config.overlays]
        if plan.val_ids:
            sizes, predicted = check_masks(spec, plan.val_ids, plan.val_masks, **how), plan.val_ids
        for image_id in predicted:
            try:
                fitting_protocol(model, sizes[image_id], plan.protocol, max_side=config.max_side)
            except UserError as error:
                raise UserError(f"{spec.image_path(image_id)}: {error}") from error
    barrier()


def training_stream(
    config: Config, spec, plan: Plan, model: Segmenter, device: torch.device, *, first_step: int
) -> tuple[StepBatchSampler, Iterator[dict]]:
    """The sampler, and one stream of batches from ``first_step`` to the end of training."""
    train_set = SegmentationDataset(
        spec,
        plan.train_ids,
        plan.train_masks,
        crop_size=config.crop_size,
        short_side=config.short_side,
        mean=model.pixel_mean,
        std=model.pixel_std,
        num_classes=plan.num_classes,
        seed=config.seed,
        exif=config.exif,
    )
    sampler = StepBatchSampler(len(train_set), config.batch_size, seed=config.seed, drop_last=False)
    sampler.steps = range(first_step, plan.steps)
    return sampler, batches(make_loader(train_set, sampler, workers=config.workers, device=device))


def sections(first_step: int, plan: Plan, save_every: int) -> list[range]:
    """The steps from ``first_step`` to the end, cut wherever something is saved."""
    cuts = {*range(save_every, plan.steps, save_every), plan.steps}
    cuts |= set(range(plan.eval_every, plan.steps, plan.eval_every))
    ends = sorted({first_step, *(cut for cut in cuts if cut > first_step)})
    return [range(a, b) for a, b in pairwise(ends)]


def is_evaluated(step: int, plan: Plan) -> bool:
    return step == plan.steps or step % plan.eval_every == 0


def validate(config: Config, spec, plan: Plan, model: Segmenter) -> dict:
    """mIoU at one scale, of the last decoder block, without CRF."""
    started = time.time()
    how = {"exif": config.exif, "max_side": config.max_side, "amp_dtype": plan.amp_dtype}
    scores = evaluate(model, spec, plan.val_ids, plan.val_masks, plan.protocol, **how)
    seconds = round(time.time() - started, 1)
    return {"val_miou": scores.mean_iou, "val_pixel_accuracy": scores.pixel_accuracy, "eval_seconds": seconds}


def show(writer: SummaryWriter, config: Config, spec, plan: Plan, model: Segmenter, record: dict) -> None:
    """The section in TensorBoard; pictures where it was evaluated."""
    write_record(writer, record)
    if is_evaluated(record["step"], plan):
        shown, masks = (plan.val_ids, plan.val_masks) if plan.val_ids else (plan.train_ids, plan.train_masks)
        how = {"exif": config.exif, "max_side": config.max_side, "amp_dtype": plan.amp_dtype}
        write_pictures(
            writer, model, spec, shown[: config.overlays], masks, plan.protocol, record["step"], **how
        )


def finish_section(
    config: Config, spec, plan: Plan, model, optimizer, scaler, state: dict, record: dict, output_dir: Path
) -> None:
    """Update ``state`` and save. best.pth is the best evaluation; without one there is no best.pth."""
    state["step"] = record["step"]
    state["history"].append(record)
    score = record.get("val_miou", math.nan)
    improved = score > (state["best"]["score"] if state["best"] else -1)
    if improved:
        steps_per_epoch = -(-len(plan.train_ids) // config.batch_size)
        state["best"] = {
            "step": record["step"], "epoch": round(record["step"] / steps_per_epoch, 2), "score": score,
            "measure": "val_miou", "split": plan.val_split, "every": config.val_stride,
        }  # fmt: skip
    if rank() == 0:
        content = {
            "model_args": model_args(config, plan),
            "class_names": list(spec.class_names),
            "preprocessing": {
                "pixel_mean": list(model.pixel_mean),
                "pixel_std": list(model.pixel_std),
                "interpolation": "bilinear",
                "short_side": plan.protocol.short_side,
                "window": plan.protocol.window,
                "stride": plan.protocol.stride,
            },
            "options": as_plain(config),
            **state,
        }
        save_training(output_dir, content, model, optimizer, scaler, improved=improved)
    barrier()


def announce(config: Config, plan: Plan, model: Segmenter, device: torch.device, first_step: int) -> None:
    """Log what is about to be trained, on what, and how."""
    levels = (" ".join(f"{255 * v:.2f}" for v in values) for values in (model.pixel_mean, model.pixel_std))
    folder = next(iter(plan.train_masks.values())).parent
    masks = folder if config.mask_dir else f"{folder}, the data set's own (supervised)"
    clipping = "none"
    if plan.clipping:
        clipping = f"below a mean loss of {plan.clipping.start:g}, tiles of {plan.clipping.patch} pixels"
    evaluated = f"{len(plan.val_ids)} pictures of {plan.val_split}" if plan.val_ids else "nothing, no masks"
    log.info("network: %s, mean/std %s, %d classes", model.backbone, " / ".join(levels), plan.num_classes)
    log.info("data: %d pictures of %s, masks of %s", len(plan.train_ids), plan.train_split, masks)
    log.info("gradient clipping: %s; evaluating on: %s", clipping, evaluated)
    log.info(
        "training: step %d to %d, batches of %d, %s, %s",
        first_step, plan.steps, config.batch_size, device, amp_name(plan.amp_dtype),
    )  # fmt: skip
    if (idle := world_size() - config.batch_size) > 0:
        log.warning("warning: %d processes get no picture of a batch; give a larger --batch-size", idle)


def record_line(record: dict) -> str:
    parts = [f"step {record['step']}", f"loss {record['loss']:.4f}"]
    if record["clipping_steps"]:
        parts.append(f"clipped {record['clipped_loss']:.4f}")
        share, steps = 100 * record["clipped_pixels"], 100 * record["clipping_steps"]
        parts.append(f"{share:.1f}% of pixels in {steps:.0f}% of steps")
    if "val_miou" in record:
        parts.append(f"val mIoU {100 * record['val_miou']:.2f}%")
    return ", ".join([*parts, f"{record['train_seconds']:.0f} s"])


def summarise(config: Config, spec, plan: Plan, state: dict, output_dir: Path, seconds: float) -> None:
    best, last = state["best"], output_dir / "last.pth"
    if best:
        every = f", one picture in {best['every']}" if best["every"] > 1 else ""
        choice = (
            f"step {best['step']}, mIoU {100 * best['score']:.2f}% on {best['split']}{every}, chosen on it"
        )
        log.info("wrote %s, best.pth (%s), log.jsonl, tensorboard/ in %.0f s", last, choice, seconds)
    else:
        log.info("wrote %s (no masks to evaluate on), log.jsonl, tensorboard/ in %.0f s", last, seconds)
    split = plan.val_split or (spec.val_split if spec.val_split in spec.splits else plan.train_split)
    where = {"split": split, "output_dir": output_dir.parent / "predictions" / split_name(split)}
    log.info(next_command("segmentation.predict", config, checkpoint=last, exif=config.exif, **where))


if __name__ == "__main__":
    run_command(main, Config, prog="segmentation.train", description=__doc__)
