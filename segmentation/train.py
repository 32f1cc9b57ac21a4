"""Train the segmenter on masks: pseudo-masks of stage 1, or true ones for the supervised bound.

    python -m segmentation.train --dataset folder --data-path DATA --mask-dir OUT/masks/train \\
        --output-dir OUT/segmenter --backbone deit_tiny_patch16_224 --pretrained deit_tiny_patch16_224.pth

Alone or under torchrun (the batch size given is the global one). Defaults are the published recipe. The same
command continues a run that was stopped; on a CPU the result is bit-equal to an uninterrupted one.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from segmentation.data import SegmentationDataset, check_masks
from segmentation.engine import evaluate, train_steps
from segmentation.memory import fitting_protocol
from segmentation.monitor import write_look, write_pictures, write_record
from segmentation.plan import Config, Plan, make_plan
from segmentation.segmenter import Segmenter, build_segmenter, start_from_pretrained
from wsss.backbones import get_backbone
from wsss.config import as_plain, next_command, run_command
from wsss.datasets import load_dataset, split_name
from wsss.distributed import barrier, distributed_session, rank, world_size
from wsss.errors import UserError
from wsss.facts import write_dataset_facts
from wsss.loading import StepBatchSampler, batches, make_loader
from wsss.optim import polynomial_rate
from wsss.run import open_run
from wsss.training import amp_name, note_section, resume_steps, save_training, step_sections

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
    last = output_dir / "last.pth"
    state = resume_steps(last, model, model_args(config, plan), optimizer, scaler, spec, background=True)
    if not resumed:
        check_all_masks(config, spec, plan, model)
    write_dataset_facts(output_dir, spec, (plan.train_split, plan.val_split))
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
        photometric=config.photometric,
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
    return step_sections(first_step, plan.steps, save_every, plan.eval_every)


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
    steps_per_epoch = -(-len(plan.train_ids) // config.batch_size)
    how = {"steps_per_epoch": steps_per_epoch, "split": plan.val_split, "every": config.val_stride}
    improved = note_section(state, record, **how)
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


def run() -> None:
    run_command(main, Config, prog="segmentation.train", description=__doc__)


if __name__ == "__main__":
    run()
