"""GETAM's losses of the joint step (arXiv 2112.02841, section 3.4)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from segmentation.getam.dense_energy import dense_energy
from wsss.distributed import all_sum, world_size
from wsss.io import IGNORED

ENERGY_WEIGHT = 1e-7
SALIENCY_TARGETS = ("published", "intended")


@dataclass(frozen=True)
class LossOptions:
    """Which of its forms a loss has.

    Attributes:
        energy_weight: Of the dense energy; 0 leaves it out.
        energy_gradient: See ``dense_energy``.
        saliency_target: See ``background_target``.
    """

    energy_weight: float = ENERGY_WEIGHT
    energy_gradient: str = "published"
    saliency_target: str = "published"


def classification_loss(class_logits: Tensor, targets: Tensor) -> Tensor:
    """Multilabel soft margin; logits and targets (B, C)."""
    return F.multilabel_soft_margin_loss(class_logits.float(), targets.float())


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the background pixels of the batch, and mean over its foreground pixels; 0 where it has none.

    Args:
        logits: (B, K, H, W), background first.
        labels: (B, H, W), integers; 255 does not count.
    """
    losses = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    parts = []
    for chosen in (labels == 0, (labels != 0) & (labels != IGNORED)):
        count = all_sum(chosen.sum().float()) / world_size()  # over the global batch
        parts.append((losses * chosen).sum() / count.clamp(min=1 / world_size()))
    return tuple(parts)


def background_target(salient: Tensor, claimed: Tensor, form: str) -> Tensor:
    """What the background's probability should be, (B, H, W).

    ``"published"``: 0 on the pixels that label completion claimed and 1 elsewhere, which integer arithmetic
    made of ``"intended"``: 0 on salient pixels, 1 elsewhere.

    Args:
        salient, claimed: bool (B, H, W).
    """
    if form not in SALIENCY_TARGETS:
        raise ValueError(f"saliency target {form!r}: one of {', '.join(SALIENCY_TARGETS)}")
    return (~(claimed if form == "published" else salient)).float()


def joint_losses(
    class_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    labels: Tensor,
    claimed: Tensor,
    levels: Tensor,
    crop_mask: Tensor,
    salient: Tensor | None,
    options: LossOptions,
) -> dict[str, Tensor]:
    """The parts of the joint step's loss, and their sum as ``loss``.

    Args:
        class_logits: (B, C).
        logits: (B, C + 1, H, W).
        targets: (B, C), image labels.
        labels, claimed: (B, H, W), from ``batch_labels``.
        levels: (B, 3, H, W), 0..255.
        crop_mask: (B, H, W), 1 on the picture, 0 on padding.
        salient: bool (B, H, W), or None: then there is no loss of saliency.
    """
    background, foreground = balanced_cross_entropy(logits, labels)
    losses = {
        "class": classification_loss(class_logits, targets),
        "background": background,
        "foreground": foreground,
    }
    probs = logits.float().softmax(1)
    if options.energy_weight:
        halves = half_resolution(probs, levels, crop_mask, labels)
        losses["energy"] = options.energy_weight * dense_energy(*halves, gradient=options.energy_gradient)
    if salient is not None:
        target = background_target(salient, claimed, options.saliency_target)
        # outside autocast's reach: cross-entropy of probabilities, not of logits
        losses["saliency"] = F.binary_cross_entropy(probs[:, 0].clamp(0, 1), target)
    return {"loss": sum(losses.values()), **losses}


def half_resolution(
    probs: Tensor, levels: Tensor, crop_mask: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities bilinearly, the rest by the nearest pixel, at half the sides."""
    nearest = [
        F.interpolate(x.float(), scale_factor=0.5, mode="nearest")
        for x in (levels, crop_mask[:, None], labels[:, None])
    ]
    small = F.interpolate(
        probs, scale_factor=0.5, mode="bilinear", align_corners=False, recompute_scale_factor=True
    )
    return small, nearest[0], nearest[1][:, 0], nearest[2][:, 0].to(labels.dtype)
