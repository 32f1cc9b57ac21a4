"""GETAM's two kinds of training step: classification alone, and the joint one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from segmentation.getam.attention_maps import ranked_maps
from segmentation.getam.losses import LossOptions, classification_loss, joint_losses
from segmentation.getam.model import Getam
from segmentation.getam.pamr import PAMR
from segmentation.getam.pseudo_labels import LabelRules, batch_labels
from wsss.distributed import all_sum, rank, world_size
from wsss.io import IGNORED
from wsss.loading import StepBatchSampler
from wsss.optim import polynomial_rate
from wsss.training import broken_loss, check_weights

LOOK_EVERY = 20  # steps between looks at the loss


@dataclass(frozen=True)
class JointOptions:
    """What the joint step depends on.

    Attributes:
        start_layer: First block, from 0, whose attention makes the maps.
        saliency: The batches hold saliency maps.
        rules: How maps become labels.
        losses: Which of its forms a loss has.
    """

    start_layer: int
    saliency: bool
    rules: LabelRules
    losses: LossOptions


def rate_of_step(step: int, *, peak: float, steps: int, first_joint_step: int, joint_scale: float) -> float:
    """Learning rate of a step: polynomial, power 0.9, to 0; times ``joint_scale`` in the joint part."""
    rate = polynomial_rate(step, peak=peak, floor=0.0, steps=steps)
    return rate * joint_scale if step >= first_joint_step else rate


def train_steps(
    model: Getam,
    batches: Iterator[dict],
    optimizer: torch.optim.Optimizer,
    rate,
    *,
    steps: range,
    joint: bool,
    sampler: StepBatchSampler,
    image_ids: Sequence[str],
    options: JointOptions,
    seed: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    progress: tqdm,
    on_look,
) -> dict[str, float]:
    """Take the given global steps, all of one kind.

    Dropout draws from a generator that is seeded anew from (seed, step, process) at every step, so that a
    restart repeats it.

    Args:
        batches: One batch per step, in order.
        rate: Learning rate of a global step; a group's is that times its ``lr_scale``.
        joint: The joint step; else classification alone.
        options: Of the joint step.
        on_look: Told the steps done and the last step's values.

    Returns:
        Means over steps and processes.

    Raises:
        UserError: A loss, or at the end a weight, is not finite; names the batch's pictures.
    """
    model.train()
    pamr = PAMR()
    total: dict[str, Tensor] = {}
    broken = torch.full((), -1, device=device)  # first step whose loss is not finite
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["lr_scale"]
        batch = {k: v.to(device, non_blocking=True) for k, v in next(batches).items() if k != "image_id"}
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            if joint:
                values = joint_step(model, batch, pamr, options)
            else:
                values = {"loss": classification_loss(_class_logits(model, batch["image"]), batch["targets"])}
                values["class"] = values["loss"]
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        average_gradients(model)
        optimizer.step()
        broken = torch.where((broken < 0) & ~torch.isfinite(values["loss"].detach()), step, broken)
        for name, value in values.items():
            total[name] = total.get(name, 0) + value.detach().double()
        if (step + 1) % LOOK_EVERY == 0 or step == steps[-1]:
            if (at := int(broken)) >= 0:
                raise broken_loss("not finite", at, [image_ids[i] for i in sampler.batch(at)])
            shown = {name: float(value.detach()) for name, value in values.items()}
            on_look(step + 1, shown | {"lr": rate(step)})
            progress.set_postfix(loss=f"{shown['loss']:.3f}", lr=f"{rate(step):.2e}", refresh=False)
        progress.update()
    average_statistics(model)
    check_weights(model, steps[-1], [image_ids[i] for i in sampler.batch(steps[-1])])
    means = all_sum(torch.stack(list(total.values()))) / (len(steps) * world_size())
    return dict(zip(total, means.tolist(), strict=True))


def _class_logits(model: Getam, images: Tensor) -> Tensor:
    return model.classify(model.encode(images))


def joint_step(
    model: Getam, batch: dict[str, Tensor], pamr: PAMR, options: JointOptions
) -> dict[str, Tensor]:
    """Maps, labels and losses of one batch, from one forward pass; call ``backward`` on ``loss``.

    Returns:
        The losses, and the shares of the crops' pixels, padding left out, that are labelled background,
        foreground, unknown, and claimed by completion.
    """
    features = model.encode(batch["image"], rows_from=options.start_layer)
    class_logits = model.classify(features)
    with torch.autocast(batch["image"].device.type, enabled=False):
        maps, classes = ranked_maps(
            features.class_rows,
            class_logits,
            batch["targets"],
            grid=features.grid,
            prefix=model.pretrained.model.num_prefix_tokens,
        )
        levels = pixel_levels(batch["image"], model.pixel_mean, model.pixel_std)
        salient = batch["salient"] if options.saliency else None
        labels, claimed = batch_labels(maps, classes, levels, salient, pamr=pamr, rules=options.rules)
    logits = model.segment(features)
    with torch.autocast(batch["image"].device.type, enabled=False):
        values = joint_losses(
            class_logits,
            logits,
            batch["targets"],
            labels,
            claimed,
            levels,
            batch["crop_mask"],
            salient,
            options.losses,
        )
    inside = batch["crop_mask"] > 0
    shares = {
        "labelled_background": labels == 0,
        "labelled_foreground": (labels > 0) & (labels != IGNORED),
        "unknown": labels == IGNORED,
        "claimed": claimed,
    }
    return values | {name: (chosen & inside).sum() / inside.sum() for name, chosen in shares.items()}


def pixel_levels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images back to levels, 0..255; padding becomes the mean colour."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (mean, std))
    return ((images.float() * std + mean) * 255).clamp(0, 255)


def average_gradients(model: Getam) -> None:
    """The mean of the processes' gradients. Not DDP: which parameters have one differs between the parts of
    training, and a map's own gradients are taken in between."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = all_sum(torch.cat([g.flatten() for g in gradients])) / world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_statistics(model: Getam) -> None:
    """The mean of the processes' batch norm statistics: evaluation, checkpoint and a continued run then hold
    one network. Running averages are linear, so that it does not matter how often this is done."""
    if world_size() == 1:
        return
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    flat = all_sum(torch.cat([b.flatten() for b in buffers])) / world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
