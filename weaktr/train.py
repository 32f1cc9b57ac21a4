"""Train WeakTr: a ViT classifier whose attention heads get learned weights, from image labels alone.

    python -m weaktr.train --dataset folder --data-path DATA --output-dir OUT/train \\
        --backbone deit_tiny_patch16_224 --pretrained deit_tiny_patch16_224.pth

Alone or under torchrun (the batch size given is the global one). Defaults are the published recipe. The same
command continues a run that was stopped; on a CPU the result is bit-equal to an uninterrupted one.
"""

import logging
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from weaktr.data import ImageLabelDataset, ShardBatchSampler
from weaktr.describe import chosen_by
from weaktr.engine import check_scorable, score_cams, train_one_epoch, validate
from weaktr.model import WeakTr, build_weaktr, start_from_pretrained
from weaktr.monitor import write_epoch, write_pictures, write_step
from weaktr.plan import Config, Plan, make_plan
from weaktr.thresholds import SWEEP
from wsss.config import as_plain, next_command, run_command
from wsss.datasets import load_dataset, split_name
from wsss.distributed import barrier, distributed_session, rank, world_size
from wsss.facts import write_dataset_facts
from wsss.loading import StepBatchSampler, batches, make_loader
from wsss.optim import published_stage1_rate, shifted_stage1_rate, warmup_cosine_rate
from wsss.pretrained import read_weights
from wsss.run import open_run
from wsss.training import load_training, save_training
from wsss.transforms import (
    classification_train_transform,
    classification_val_transform,
    geometric_train_transform,
)

log = logging.getLogger(__name__)


def main(config: Config) -> None:
    with distributed_session(config.device) as device:
        train(config, device)


def train(config: Config, device: torch.device) -> None:
    started = time.time()
    spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
    plan = make_plan(config, spec, device)
    output_dir = open_run(
        config.output_dir,
        "weaktr.train",
        plan.identity,
        owned=("*.pth", ".*.tmp", "log.jsonl", "tensorboard"),
        overwrite=config.overwrite,
    )
    torch.manual_seed(config.seed)
    resumed = (output_dir / "last.pth").is_file()
    model = new_model(config, spec, plan, resumed=resumed).to(device)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.new_lr_scale, config.token_lr_scale),
        lr=plan.peak_rate,
        weight_decay=config.weight_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=plan.amp_dtype == torch.float16)
    state = resume(output_dir / "last.pth", model, model_args(config, spec, plan), optimizer, scaler, spec)
    if state["epoch"] < config.epochs:
        log.info("checking %d pictures with masks, for scoring CAMs", len(plan.cam_ids))
        how = {"scales": config.cam_scales, "exif": config.exif, "max_side": config.max_side}
        check_scorable(model, spec, plan.cam_ids, **how)
    write_dataset_facts(output_dir, spec, (plan.train_split, plan.val_split, plan.cam_split))
    network = DistributedDataParallel(model, broadcast_buffers=False) if world_size() > 1 else model

    train_set, sampler, train_loader, val_loader = make_loaders(config, spec, plan, model, device)
    steps_per_epoch = sampler.steps_per_epoch
    rate_of_step = schedule(config, plan.peak_rate, steps_per_epoch)
    writer = None
    if rank() == 0:
        writer = SummaryWriter(output_dir / "tensorboard", purge_step=state["epoch"] * steps_per_epoch)
        log.info(
            "training %s on %d pictures of %s, %d classes: %d epochs of %d steps from epoch %d, %s, "
            "%s, selecting by %s",
            config.backbone, len(train_set), plan.train_split, spec.num_fg_classes, config.epochs,
            steps_per_epoch, state["epoch"], device, plan.amp_dtype or "float32", plan.select,
        )  # fmt: skip

    progress = tqdm(
        total=config.epochs * steps_per_epoch,
        initial=state["epoch"] * steps_per_epoch,
        desc="training",
        unit="step",
        disable=rank() != 0,
    )
    for epoch in range(state["epoch"], config.epochs):
        epoch_started = time.time()
        sampler.steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        # stochastic depth: a function of (seed, epoch, process), so that a restart repeats it
        torch.manual_seed(int(np.random.SeedSequence((config.seed, epoch, rank())).generate_state(1)[0]))
        losses = train_one_epoch(
            network,
            batches(train_loader),
            optimizer,
            rate_of_step,
            first_step=epoch * steps_per_epoch,
            device=device,
            amp_dtype=plan.amp_dtype,
            scaler=scaler,
            progress=progress,
            on_step=partial(write_step, writer),
        )
        record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], **losses}
        record["train_seconds"] = round(time.time() - epoch_started, 1)
        last = epoch + 1 == config.epochs
        if last or (epoch + 1) % config.eval_every == 0:
            record |= evaluate(config, plan, model, val_loader, spec, device)
        if rank() == 0:  # before the epoch is saved: killed in between, it is repeated and written again
            show(writer, config, plan, model, spec, record, (epoch + 1) * steps_per_epoch - 1)
        finish_epoch(config, plan, spec, model, optimizer, scaler, state, record, output_dir, last)
        if rank() == 0:
            progress.write(epoch_line(record))
    progress.close()
    barrier()
    if rank() == 0:
        writer.close()
        summarise(config, plan, state, output_dir, time.time() - started)


def new_model(config: Config, spec, plan: Plan, *, resumed: bool) -> WeakTr:
    """The network with its starting weights, which a resumed run does not need again."""
    model = build_weaktr(**model_args(config, spec, plan), drop_path=config.drop_path)
    if config.pretrained != "none" and not resumed:
        start_from_pretrained(model, read_weights(config.pretrained, config.backbone), config.pretrained)
    return model


def model_args(config: Config, spec, plan: Plan) -> dict:
    """``build_weaktr``'s arguments, kept in the checkpoint so that it rebuilds the network alone."""
    return {
        "backbone": config.backbone,
        "num_classes": spec.num_fg_classes,
        "reduction": config.reduction,
        "pool": config.pool,
        "feat_reduction": config.feat_reduction,
        "image_size": plan.image_size,
    }


def parameter_groups(model: WeakTr, new_lr_scale: float, token_lr_scale: float) -> list[dict]:
    """Backbone; head with AAF, which start fresh; class tokens, which start as copies of one."""
    new, tokens, backbone = [], [], []
    for name, parameter in model.named_parameters():
        if name == "cls_token":
            tokens.append(parameter)
        elif name.startswith(("head.", "adaptive_attention_fusion.")):
            new.append(parameter)
        else:
            backbone.append(parameter)
    scaled = ((backbone, 1.0), (new, new_lr_scale), (tokens, token_lr_scale))
    groups = [([p for p in parameters if p.requires_grad], scale) for parameters, scale in scaled]
    return [{"params": parameters, "lr_scale": scale} for parameters, scale in groups]


def make_loaders(config: Config, spec, plan: Plan, model: WeakTr, device: torch.device):
    statistics = (model.pixel_mean, model.pixel_std)
    transforms = {"published": classification_train_transform, "geometric": geometric_train_transform}
    train_set = ImageLabelDataset(
        spec,
        plan.train_ids,
        transforms[config.augmentation](plan.image_size, *statistics),
        seed=config.seed,
        exif=config.exif,
    )
    sampler = StepBatchSampler(len(train_set), config.batch_size, seed=config.seed, drop_last=True)
    make = partial(make_loader, workers=config.workers, device=device)
    val_loader = None
    if plan.val_split:
        transform = classification_val_transform(plan.image_size, *statistics)
        val_ids = spec.image_ids(plan.val_split)
        val_set = ImageLabelDataset(spec, val_ids, transform, seed=config.seed, exif=config.exif)
        val_loader = make(val_set, ShardBatchSampler(len(val_set), config.batch_size))
    return train_set, sampler, make(train_set, sampler), val_loader


def schedule(config: Config, peak: float, steps_per_epoch: int):
    """Learning rate of a global step, as a pure function."""
    if config.schedule == "step":
        steps, warmup = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
        return partial(warmup_cosine_rate, peak=peak, steps=steps, warmup_steps=warmup)
    rate = published_stage1_rate if config.schedule == "published" else shifted_stage1_rate

    def rate_of_step(step: int) -> float:
        epoch = step // steps_per_epoch
        return rate(epoch, peak=peak, epochs=config.epochs, warmup_epochs=config.warmup_epochs)

    return rate_of_step


def resume(path: Path, model: WeakTr, arguments: dict, optimizer, scaler, spec) -> dict:
    """Load ``last.pth`` where there is one. Returns epochs done, their records, and the best one."""
    content = load_training(path, model, arguments, optimizer, scaler, spec, background=False)
    if content is None:
        return {"epoch": 0, "history": [], "best": None}
    log.info("continuing %s after epoch %d", path, content["epoch"] - 1)
    return {key: content[key] for key in ("epoch", "history", "best")}


@torch.no_grad()
def evaluate(config: Config, plan: Plan, model: WeakTr, val_loader, spec, device: torch.device) -> dict:
    """Both mAPs where there is a validation list, CAM mIoU where there are masks."""
    started = time.time()
    record = {}
    if val_loader is not None:
        scores = validate(model, batches(val_loader), device)
        record |= {name: value for name, value in scores.items() if not math.isnan(value)}
    if plan.cam_split:
        curve = score_cams(
            model,
            spec,
            plan.cam_ids,
            thresholds=SWEEP,
            scales=config.cam_scales,
            exif=config.exif,
            max_side=config.max_side,
        )
        record |= {"cam_miou": curve.best_mean_iou, "cam_threshold": curve.best_threshold}
    record["eval_seconds"] = round(time.time() - started, 1)
    return record


def finish_epoch(
    config, plan: Plan, spec, model, optimizer, scaler, state, record, output_dir: Path, last: bool
):
    """Update ``state`` and save."""
    state["epoch"] = record["epoch"] + 1
    state["history"].append(record)
    measure = {"miou": "cam_miou", "map": "sample_map_class", "last": "epoch"}[plan.select]
    score = record.get(measure)
    best = state["best"]
    improved = score is not None and (best is None or score > best["score"])
    if plan.select == "last" or (last and best is None and not improved):
        measure, score, improved = "epoch", record["epoch"], last
    if improved:
        split = {"cam_miou": plan.cam_split, "sample_map_class": plan.val_split, "epoch": None}[measure]
        state["best"] = {
            "epoch": record["epoch"], "score": score, "measure": measure, "split": split,
            "every": config.cam_stride if measure == "cam_miou" else 1,
        }  # fmt: skip
    if rank() == 0:
        content = {
            "model_args": model_args(config, spec, plan),
            "class_names": list(spec.class_names),
            "preprocessing": {
                "pixel_mean": list(model.pixel_mean),
                "pixel_std": list(model.pixel_std),
                "interpolation": "bicubic",
                "image_size": plan.image_size,
            },
            "options": as_plain(config),
            **state,
        }
        save_training(output_dir, content, model, optimizer, scaler, improved=improved)
    barrier()


def show(writer: SummaryWriter, config: Config, plan: Plan, model, spec, record: dict, step: int) -> None:
    """The epoch in TensorBoard; pictures only where it was evaluated."""
    write_epoch(writer, record, step)
    if "eval_seconds" in record:
        shown = [i for i in (plan.cam_ids or plan.train_ids) if spec.labels(i).any()][: config.overlays]
        how = {"image_size": plan.image_size, "exif": config.exif, "max_side": config.max_side}
        write_pictures(writer, model, spec, shown, step, **how)


def epoch_line(record: dict) -> str:
    parts = [f"epoch {record['epoch']}", f"loss {record['loss']:.4f}"]
    if "sample_map_class" in record:
        parts.append(f"sample mAP {100 * record['sample_map_class']:.2f}%")
        parts.append(f"class mAP {100 * record['class_map_class']:.2f}%")
    if "cam_miou" in record:
        parts.append(f"CAM mIoU {100 * record['cam_miou']:.2f}% (t {record['cam_threshold']:.2f})")
    return ", ".join([*parts, f"{record['train_seconds']:.0f} s"])


def summarise(config: Config, plan: Plan, state: dict, output_dir: Path, seconds: float) -> None:
    log.info("%s", epoch_line(state["history"][-1]))
    log.info(
        "wrote %s (%s), last.pth, log.jsonl, tensorboard/ in %.0f s",
        output_dir / "best.pth",
        chosen_by(state),
        seconds,
    )
    split = plan.train_split
    where = {"split": split, "output_dir": output_dir.parent / "cams" / split_name(split)}
    checkpoint = output_dir / "best.pth"
    log.info(next_command("weaktr.generate_cam", config, checkpoint=checkpoint, exif=config.exif, **where))


def run() -> None:
    run_command(main, Config, prog="weaktr.train", description=__doc__)


if __name__ == "__main__":
    run()
