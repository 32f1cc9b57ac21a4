"""What training consists of: some steps, an evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from segmentation.data import read_fitting_mask
from segmentation.inference import Protocol
from segmentation.losses import gradient_clipping_loss, pixel_cross_entropy
from segmentation.memory import predict_in_memory
from segmentation.segmenter import Segmenter
from wsss.distributed import all_sum, rank, shard, world_size
from wsss.errors import UserError
from wsss.io import IGNORED, read_image
from wsss.loading import StepBatchSampler
from wsss.metrics import ConfusionMatrix, Scores
from wsss.training import broken_loss, check_weights

LOOK_EVERY = 20  # steps between looks at the loss: each look waits for the device


@dataclass(frozen=True)
class Clipping:
    """See ``gradient_clipping_loss``."""

    start: float
    patch: int
    scope: str = "global"  # statistics of the global batch, or of each "process", as published


def train_steps(
    model: nn.Module,
    batches: Iterator[dict],
    optimizer: torch.optim.Optimizer,
    rate_of_step: Callable[[int], float],
    *,
    steps: range,
    sampler: StepBatchSampler,
    image_ids: Sequence[str],
    clipping: Clipping | None,
    seed: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    scaler: torch.amp.GradScaler,
    progress: tqdm,
    on_look: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Take the given global steps.

    Dropout and stochastic depth draw from a generator that is seeded anew from (seed, step, process) at every
    step, so that a restart repeats them.

    Args:
        model: The network, under DDP where there are several processes.
        batches: One batch per step, in order.
        rate_of_step: Learning rate of a global step; a group's is that times its ``lr_scale``.
        sampler: Where the batches come from.
        image_ids: The sampler's pictures, to name them.
        clipping: None for plain cross-entropy.
        amp_dtype: Autocast's type, None for float32 throughout.
        scaler: Loss scaler; enabled for float16 only.
        progress: Advanced by one per step.
        on_look: Told the steps done, and the means since the last look (of this process's part) and rates.

    Returns:
        Means over steps and processes, as ``Tally.means``.

    Raises:
        UserError: A loss, or at the end a weight, is not finite; names the batch's pictures.
    """
    model.train()
    total, recent = Tally(device), Tally(device)
    broken = torch.full((), -1, device=device)  # first step whose loss is not finite
    for step in steps:
        rate = rate_of_step(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        batch = next(batches)
        images = batch["image"].to(device, non_blocking=True)
        masks = batch["mask"].to(device, non_blocking=True)
        if sampler.local_size(step) == 0:
            masks.fill_(IGNORED)  # a filler: takes part in the collectives, adds nothing
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            logits = model(images)
        loss, counts = step_loss(logits, masks, clipping, sampler, step)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        broken = torch.where((broken < 0) & ~torch.isfinite(loss.detach()), step, broken)
        total.sums += counts
        recent.sums += counts
        if (step + 1) % LOOK_EVERY == 0 or step == steps[-1]:
            if (at := int(broken)) >= 0:
                raise broken_loss("not finite", at, [image_ids[i] for i in sampler.batch(at)])
            means = recent.means(processes=world_size())
            rates = {"lr/decoder": rate, "lr/encoder": optimizer.param_groups[0]["lr"]}
            on_look(step + 1, means | rates)
            progress.set_postfix(loss=f"{means['loss']:.3f}", lr=f"{rate:.2e}", refresh=False)
            recent = Tally(device)
        progress.update()
    check_weights(model, steps[-1], [image_ids[i] for i in sampler.batch(steps[-1])])
    all_sum(total.sums)
    return total.means(processes=world_size())


def step_loss(
    logits: Tensor, masks: Tensor, clipping: Clipping | None, sampler: StepBatchSampler, step: int
) -> tuple[Tensor, Tensor]:
    """The loss to be minimised, and what the step adds to a ``Tally``.

    DDP averages gradients over processes, and what is wanted is the sum of the parts over the global batch:
    so this process's part counts ``world_size()`` times.
    """
    plain = pixel_cross_entropy(logits, masks)
    used = plain if clipping is None else clip(plain, clipping, sampler, step)
    pixels = masks[0].numel() * sampler.global_size(step)
    counts = count_step(plain.detach(), used.detach(), masks, pixels)
    return used.sum() / pixels * world_size(), counts


def clip(pixel_loss: Tensor, clipping: Clipping, sampler: StepBatchSampler, step: int) -> Tensor:
    """Gradient clipping with the statistics of the global batch or of this process's part."""
    how = {"start": clipping.start, "patch": clipping.patch}
    if clipping.scope == "process":
        return gradient_clipping_loss(pixel_loss, **how)
    return gradient_clipping_loss(pixel_loss, **how, batch_size=sampler.global_size(step), all_sum=all_sum)


def count_step(plain: Tensor, used: Tensor, masks: Tensor, pixels: int) -> Tensor:
    """What a step adds to a ``Tally``, float64 (6,): mean loss before and after clipping, clipped pixels,
    labelled pixels, whether any was clipped, 1.

    Args:
        plain, used: Loss before and after clipping, (B, H, W).
        pixels: Of the global batch, labelled or not.
    """
    clipped = (used < plain).sum()
    values = (
        plain.sum(dtype=torch.float64) / pixels,
        used.sum(dtype=torch.float64) / pixels,
        clipped,
        (masks != IGNORED).sum(),
        clipped > 0,
        torch.ones_like(clipped),
    )
    return torch.stack([v.double() for v in values])


class Tally:
    """Sums of ``count_step`` that stay on the device until they are looked at."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)

    def means(self, processes: int = 1) -> dict[str, float]:
        """``loss`` and ``clipped_loss`` per pixel; ``clipped_pixels``, share of the labelled pixels that gave
        no gradient; ``clipping_steps``, share of the steps in which there was one."""
        plain, used, clipped, labelled, clipping, steps = self.sums.tolist()
        return {
            "loss": plain * processes / steps,
            "clipped_loss": used * processes / steps,
            "clipped_pixels": clipped / max(labelled, 1),
            "clipping_steps": clipping / steps,
        }


def evaluate(
    model: Segmenter,
    spec,
    image_ids: Sequence[str],
    mask_paths: Mapping[str, Path],
    protocol: Protocol,
    *,
    exif: bool = False,
    max_side: int | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Scores:
    """Predict pictures, keep nothing, and score them; over all processes.

    Raises:
        UserError: The network gives values that are not finite, or a picture or mask is bad.
    """
    model.eval()
    device = next(model.parameters()).device
    confusion = ConfusionMatrix(model.num_classes)
    for image_id in tqdm(shard(image_ids), desc="evaluating", unit="img", disable=rank() != 0, leave=False):
        image_path = spec.image_path(image_id)
        image = read_image(image_path, exif=exif)
        size = {"num_classes": model.num_classes}
        mask = read_fitting_mask(mask_paths[image_id], image_path, image.shape[:2], **size)
        try:
            probs = predict_in_memory(model, image, protocol, max_side=max_side, amp_dtype=amp_dtype)
        except UserError as error:
            raise UserError(f"{image_path}: {error}") from error
        confusion.update(probs.argmax(0), mask)
    return confusion.all_sum(device).scores()
