"""Train GETAM: image labels in, a segmentation network out, in one stage.

    python -m segmentation.getam.train --dataset folder --data-path DATA --output-dir OUT/getam \\
        --backbone deit_tiny --pretrained deit_tiny_patch16_224.pth

The first half of the steps trains classification alone; the second half makes pseudo-labels of each batch
from the gradients of its class scores and trains segmentation on them as well. Alone or under torchrun (the
batch size given is the global one). Defaults are the published recipe for VOC12. The same command continues a
run that was stopped; on a CPU the result is bit-equal to an uninterrupted one.
"""

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from segmentation.getam.data import GetamDataset
from segmentation.getam.engine import JointOptions, rate_of_step, train_steps
from segmentation.getam.model import Getam, build_getam, start_from_pretrained
from segmentation.getam.monitor import show, validate, write_look
from segmentation.getam.plan import Config, Plan, make_plan
from wsss.config import as_plain, next_command, run_command
from wsss.datasets import load_dataset, split_name
from wsss.distributed import barrier, distributed_session, rank, world_size
from wsss.facts import write_dataset_facts
from wsss.loading import StepBatchSampler, batches, make_loader
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
    spec.check_image_labels(plan.train_split)
    output_dir = open_run(
        config.output_dir,
        "segmentation.getam.train",
        plan.identity,
        owned=("*.pth", ".*.tmp", "log.jsonl", "tensorboard"),
        overwrite=config.overwrite,
    )
    torch.manual_seed(config.seed)
    resumed = (output_dir / "last.pth").is_file()
    model = new_model(config, plan, resumed=resumed).to(device)
    optimizer = new_optimizer(config, model)
    scaler = torch.amp.GradScaler(device.type, enabled=False)  # bfloat16 and float32 need none
    last, arguments = output_dir / "last.pth", model_args(config, plan)
    state = resume_steps(last, model, arguments, optimizer, scaler, plan.table, background=False)
    write_dataset_facts(output_dir, spec, (plan.train_split, plan.val_split))
    sampler, stream = training_stream(config, spec, plan, model, device, first_step=state["step"])
    writer = None
    if rank() == 0:
        if state["step"] < plan.steps:
            writer = SummaryWriter(output_dir / "tensorboard", purge_step=state["step"] + 1)
        announce(config, plan, model, device, state["step"])
    rate = partial(
        rate_of_step,
        peak=config.lr,
        steps=plan.steps,
        first_joint_step=plan.first_joint_step,
        joint_scale=config.joint_lr_scale,
    )
    saliency = config.saliency_dir is not None
    options = JointOptions(config.start_layer, saliency, plan.rules, plan.losses)
    progress = tqdm(
        total=plan.steps, initial=state["step"], desc="training", unit="step", disable=rank() != 0
    )
    for steps in sections(state["step"], plan, config.save_every):
        section_started = time.time()
        joint = steps[0] >= plan.first_joint_step
        record = train_steps(
            model,
            stream,
            optimizer,
            rate,
            steps=steps,
            joint=joint,
            sampler=sampler,
            image_ids=plan.train_ids,
            options=options,
            seed=config.seed,
            device=device,
            amp_dtype=plan.amp_dtype,
            progress=progress,
            on_look=partial(write_look, writer),
        )
        where = {"step": steps[-1] + 1, "part": "joint" if joint else "class", "lr": rate(steps[-1])}
        record = where | record
        record["train_seconds"] = round(time.time() - section_started, 1)
        if joint and plan.val_ids and is_evaluated(record["step"], plan):
            record |= validate(config, spec, plan, model)
        if rank() == 0:
            show(writer, config, spec, plan, model, record)
        finish_section(config, plan, model, optimizer, scaler, state, record, output_dir)
        if rank() == 0:
            progress.write(record_line(record))
    progress.close()
    barrier()
    if rank() == 0:
        if writer is not None:
            writer.close()
        summarise(config, spec, plan, state, output_dir, time.time() - started)


def new_model(config: Config, plan: Plan, *, resumed: bool) -> Getam:
    """The network with its starting weights, which a resumed run does not need again."""
    model = build_getam(**model_args(config, plan))
    if config.pretrained != "none" and not resumed:
        start_from_pretrained(model, config.pretrained)
    return model


def model_args(config: Config, plan: Plan) -> dict:
    """``build_getam``'s arguments, kept in the checkpoint so that it rebuilds the network alone."""
    return {"backbone": config.backbone, "num_classes": plan.table.num_fg_classes}


def new_optimizer(config: Config, model: Getam) -> torch.optim.Optimizer:
    """SGD as published (the decay 5e-4 given in the momentum's place), as intended, or AdamW."""
    encoder = [p for p in model.pretrained.model.parameters() if p.requires_grad]
    known = set(map(id, encoder))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": encoder, "lr_scale": config.encoder_lr_scale}, {"params": rest, "lr_scale": 1.0}]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.01)
    how = {"momentum": 5e-4} if config.optimizer == "published" else {"weight_decay": 5e-4}
    return torch.optim.SGD(groups, lr=config.lr, **how)


def training_stream(
    config: Config, spec, plan: Plan, model: Getam, device: torch.device, *, first_step: int
) -> tuple[StepBatchSampler, Iterator[dict]]:
    """The sampler, and one stream of batches from ``first_step`` to the end of training."""
    train_set = GetamDataset(
        spec,
        plan.table,
        plan.train_ids,
        crop_size=config.crop_size,
        mean=model.pixel_mean,
        std=model.pixel_std,
        saliency_dir=config.saliency_dir,
        seed=config.seed,
        exif=config.exif,
    )
    sampler = StepBatchSampler(len(train_set), config.batch_size, seed=config.seed, drop_last=True)
    sampler.steps = range(first_step, plan.steps)
    return sampler, batches(make_loader(train_set, sampler, workers=config.workers, device=device))


def sections(first_step: int, plan: Plan, save_every: int) -> list[range]:
    """The steps from ``first_step`` to the end, cut at epochs, saves, and where the joint part begins."""
    how = {"once": (plan.first_joint_step,)}
    return step_sections(first_step, plan.steps, save_every, plan.steps_per_epoch, **how)


def is_evaluated(step: int, plan: Plan) -> bool:
    return step == plan.steps or step % plan.steps_per_epoch == 0


def finish_section(
    config: Config, plan: Plan, model, optimizer, scaler, state: dict, record: dict, output_dir: Path
) -> None:
    """Update ``state`` and save. best.pth is the best evaluation; without one there is no best.pth."""
    how = {"steps_per_epoch": plan.steps_per_epoch, "split": plan.val_split, "every": config.val_stride}
    improved = note_section(state, record, **how)
    if rank() == 0:
        content = {
            "model_args": model_args(config, plan),
            "class_names": list(plan.table.class_names),
            "preprocessing": {
                "pixel_mean": list(model.pixel_mean),
                "pixel_std": list(model.pixel_std),
                "interpolation": "bilinear",
            },
            "saliency": config.saliency_dir is not None,
            "options": as_plain(config),
            **state,
        }
        save_training(output_dir, content, model, optimizer, scaler, improved=improved)
    barrier()


def announce(config: Config, plan: Plan, model: Getam, device: torch.device, first_step: int) -> None:
    """Log what is about to be trained, on what, and how."""
    log.info("network: %s, %d foreground classes", model.backbone, plan.table.num_fg_classes)
    log.info("data: %d pictures of %s, image labels only", len(plan.train_ids), plan.train_split)
    if config.saliency_dir is None:
        log.info(
            "saliency: none; background where its score wins, unknown from there up to %g: "
            "not the published system",
            plan.rules.band,
        )
    else:
        log.info("saliency: maps of %s", config.saliency_dir)
    evaluated = f"{len(plan.val_ids)} pictures of {plan.val_split}" if plan.val_ids else "nothing, no masks"
    log.info("evaluating on: %s, in the joint part", evaluated)
    log.info(
        "training: step %d to %d, joint from %d, batches of %d in %d processes, %s, %s",
        first_step, plan.steps, plan.first_joint_step, config.batch_size, world_size(), device,
        amp_name(plan.amp_dtype),
    )  # fmt: skip


def record_line(record: dict) -> str:
    parts = [f"step {record['step']}", record["part"], f"loss {record['loss']:.4f}"]
    if record["part"] == "joint":
        shares = ("labelled_background", "labelled_foreground", "unknown")
        parts.append("labels " + " / ".join(f"{100 * record[name]:.0f}%" for name in shares))
        parts.append("background / foreground / unknown")
    if "val_miou" in record:
        parts.append(f"val mIoU {100 * record['val_miou']:.2f}%")
    return ", ".join([*parts, f"{record['train_seconds']:.0f} s"])


def summarise(config: Config, spec, plan: Plan, state: dict, output_dir: Path, seconds: float) -> None:
    best, last = state["best"], output_dir / "last.pth"
    log.info("wrote %s%s, log.jsonl, tensorboard/ in %.0f s", last, ", best.pth" if best else "", seconds)
    if best:
        log.info(
            "best.pth: step %d, mIoU %.2f%% on %s, chosen on it",
            best["step"], 100 * best["score"], best["split"],
        )  # fmt: skip
    split = plan.val_split or (spec.val_split if spec.val_split in spec.splits else plan.train_split)
    where = {"split": split, "output_dir": output_dir.parent / "predictions" / split_name(split)}
    log.info(next_command("segmentation.getam.predict", config, checkpoint=last, crf=True, **where))


def run() -> None:
    run_command(main, Config, prog="segmentation.getam.train", description=__doc__)


if __name__ == "__main__":
    run()
