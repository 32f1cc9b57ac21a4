"""What one epoch does: train, validate the classifier, score the CAMs."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from weaktr.cams import multi_scale_cams, network_sizes
from weaktr.model import WeakTr, weaktr_loss
from weaktr.thresholds import ThresholdAccumulator, ThresholdCurve
from wsss.distributed import all_sum, gather_objects, rank, shard, world_size
from wsss.errors import UserError
from wsss.io import read_image, read_mask
from wsss.metrics import class_mean_ap, sample_mean_ap
from wsss.training import broken_loss, check_weights


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[dict],
    optimizer: torch.optim.Optimizer,
    rate_of_step: Callable[[int], float],
    *,
    first_step: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    scaler: torch.amp.GradScaler,
    progress: tqdm,
    on_step: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """One pass over the training list.

    Args:
        model: The network, under DDP where there are several processes.
        rate_of_step: Learning rate of a global step.
        first_step: Global step of the first batch.
        amp_dtype: Autocast's type, None for float32 throughout.
        scaler: Loss scaler; enabled for float16 only.
        progress: Advanced by one per step.
        on_step: Told the step and this process's losses.

    Returns:
        Means over steps and processes of loss, class, coarse and fine loss.

    Raises:
        UserError: The loss, or at the end a weight, is not finite; names the batch's pictures.
    """
    model.train()
    totals: dict[str, float] = {}
    step = first_step
    for batch in batches:
        rate = rate_of_step(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        images = batch["image"].to(device, non_blocking=True)
        labels = batch["labels"].to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            logits = model(images)
        losses = weaktr_loss(logits, labels)
        values = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise broken_loss(values["loss"], step, batch["image_id"])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(losses["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value
        on_step(step, values | {"lr": rate})
        progress.set_postfix(loss=f"{values['loss']:.3f}", lr=f"{rate:.2e}", refresh=False)
        progress.update()
        step += 1
    check_weights(model, step - 1, batch["image_id"])
    means = torch.tensor(list(totals.values()), dtype=torch.float64)
    means = all_sum(means.to(device)).cpu() / (world_size() * (step - first_step))
    return dict(zip(totals, means.tolist(), strict=True))


@torch.no_grad()
def validate(model: WeakTr, batches: Iterable[dict], device: torch.device) -> dict[str, float]:
    """Mean average precision, per image ("sample", the published mAP) and per class, of all three logits."""
    model.eval()
    labels, scores = [], {}
    for batch in batches:
        labels.append(batch["labels"].numpy())
        for name, value in model(batch["image"].to(device))._asdict().items():
            scores.setdefault(name.removesuffix("_logits"), []).append(value.float().cpu().numpy())
    parts = gather_objects((labels, scores))
    truth = np.concatenate([x for part_labels, _ in parts for x in part_labels])
    results = {}
    for name in ("class", "coarse", "fine"):
        values = np.concatenate([x for _, part in parts for x in part.get(name, [])])
        results[f"sample_map_{name}"] = sample_mean_ap(truth, values)
        results[f"class_map_{name}"] = class_mean_ap(truth, values)
    return results


def check_scorable(
    model: WeakTr,
    spec,
    image_ids: Sequence[str],
    *,
    scales: Sequence[float] = (1.0,),
    exif: bool = False,
    max_side: int | None = None,
) -> None:
    """Look at every picture and mask that ``score_cams`` will read, so that no epoch is lost to a bad one."""
    device = next(model.parameters()).device
    counted = torch.zeros(1, dtype=torch.int64)
    for image_id in shard(image_ids):
        image, path = read_image(spec.image_path(image_id), exif=exif), spec.mask_path(image_id)
        mask = read_mask(path)
        if mask.shape != image.shape[:2]:
            raise UserError(
                f"{path}: mask of {mask.shape[1]}x{mask.shape[0]}, its picture has "
                f"{image.shape[1]}x{image.shape[0]} pixels; give a mask of the picture's size"
            )
        values = mask[mask != 255]
        if values.size and values.max() > spec.num_fg_classes:
            raise UserError(
                f"{path}: holds {values.max()}, there are {spec.num_fg_classes} classes; "
                "give masks of these classes (0 background, class + 1, 255 not counted)"
            )
        counted += values.size
        try:
            network_sizes(model, mask.shape, scales, num_maps=spec.num_fg_classes, max_side=max_side)
        except UserError as error:
            raise UserError(f"{spec.image_path(image_id)}: {error}") from error
    if image_ids and not all_sum(counted.to(device)).item():
        raise UserError(f"{spec.root}: every pixel of the masks is 255; use --select last or other masks")


def score_cams(
    model: WeakTr,
    spec,
    image_ids: Sequence[str],
    *,
    thresholds: np.ndarray,
    scales: Sequence[float] = (1.0,),
    exif: bool = False,
    max_side: int | None = None,
) -> ThresholdCurve:
    """Generate CAMs of labelled pictures that have masks, keep nothing, and score them at every threshold."""
    model.eval()
    device = next(model.parameters()).device
    accumulator = ThresholdAccumulator(spec.num_fg_classes, thresholds)
    for image_id in tqdm(shard(image_ids), desc="scoring CAMs", unit="img", disable=rank() != 0, leave=False):
        labels = spec.labels(image_id)
        image = read_image(spec.image_path(image_id), exif=exif)
        try:
            cams = multi_scale_cams(model, image, labels, scales=scales, max_side=max_side)
        except UserError as error:
            raise UserError(f"{spec.image_path(image_id)}: {error}") from error
        mask_path = spec.mask_path(image_id)
        try:
            accumulator.update(cams.astype(np.float16), np.flatnonzero(labels), read_mask(mask_path))
        except ValueError as error:
            raise UserError(
                f"{mask_path}: does not fit its picture ({error}); give a mask of its size and classes"
            ) from None
    accumulator.all_sum(device)
    return accumulator.curve()
