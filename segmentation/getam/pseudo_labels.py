"""Pseudo-labels of a training crop from its attention maps, with label completion (arXiv 2112.02841, 3.3)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmentation.getam.pamr import PAMR
from wsss.io import IGNORED

EPSILON = 1e-5  # in the division of a map by its maximum
BACKGROUND_POWER = 32
COMPLETION_QUANTILES = {"voc12": 0.9, "folder": 0.9, "coco14": 0.95}
OPENING = 10  # pixels, side of the structuring element


@dataclass(frozen=True)
class LabelRules:
    """How maps become labels.

    Attributes:
        completion: Fill classes in on pixels of label 0.
        quantile: Of a class's positive values there, above which it is filled in.
        band: Without saliency maps: where no map reaches this, a pixel that is not background is unknown.
    """

    completion: bool = True
    quantile: float = 0.9
    band: float = 0.3


def refine_maps(maps: Tensor, levels: Tensor, pamr: PAMR) -> Tensor:
    """Attention maps to scores of 0..1 at the crop's size.

    Args:
        maps: (B, R, h, w).
        levels: The crops, (B, 3, H, W), 0..255.

    Returns:
        (B, R, H, W): resized bilinearly (align_corners True), refined, divided by each map's maximum + 1e-5.
    """
    maps = F.interpolate(maps, levels.shape[-2:], mode="bilinear", align_corners=True)
    maps = pamr(levels, maps)
    return maps / (maps.amax((2, 3), keepdim=True) + EPSILON)


def make_labels(
    scores: np.ndarray, classes: np.ndarray, salient: np.ndarray | None, rules: LabelRules
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of one crop.

    With a saliency map, as published: the largest of the scores and of the background's, (1 - max)^32, wins;
    where the background wins the pixel is unknown (255), and what is not salient is background (0).
    Without one, where 0 could never occur: where the background wins (below 0.077) a pixel is background, and
    from there up to ``rules.band`` it is unknown. This is not published.

    Args:
        scores: float (n, H, W), ``refine_maps`` of the present classes.
        classes: (n,) their foreground indices, ascending.
        salient: bool (H, W), or None.

    Returns:
        Labels, uint8 (H, W): 0, class + 1, 255; and bool (H, W), the pixels that completion claimed.
    """
    top = scores.max(0)
    background = (1 - top) ** BACKGROUND_POWER
    labels = (classes[scores.argmax(0)] + 1).astype(np.uint8)
    if salient is None:
        labels[top < rules.band] = IGNORED
        labels[background >= top] = 0
    else:
        labels[background >= top] = IGNORED
        labels[~salient] = 0
    claimed = np.zeros(labels.shape, bool)
    if rules.completion:
        labels, claimed = complete_labels(labels, scores, classes, quantile=rules.quantile)
    return labels, claimed


def complete_labels(
    labels: np.ndarray, scores: np.ndarray, classes: np.ndarray, *, quantile: float
) -> tuple[np.ndarray, np.ndarray]:
    """Label completion: the brightest of the pixels called background get their class.

    Of each class, in the order of ``classes``, the pixels of label 0 whose score is above element
    int(quantile * n) of the n positive scores there, sorted, become the class; the first to claim a pixel
    keeps it. Then whatever an opening of the non-zero region by a square of 10 pixels removes is background.

    Args:
        labels: uint8 (H, W): 0, class + 1, 255.
        scores: float (n, H, W).
        classes: (n,) foreground indices.

    Returns:
        New labels; and bool (H, W), the pixels claimed and kept.
    """
    free = labels == 0
    claimed = np.zeros(labels.shape, bool)
    completed = labels.copy()
    for score, index in zip(scores, classes, strict=True):
        values = np.sort(score[free & (score > 0)])
        element = min(int(quantile * len(values)), len(values) - 1)  # a quantile of 1: none is above
        if element <= 0:
            continue
        new = free & (score > values[element]) & ~claimed
        completed[new] = index + 1
        claimed |= new
    # OpenCV's opening with an even side lies one pixel further down and right: kept
    kept = cv2.morphologyEx(
        (completed > 0).astype(np.uint8), cv2.MORPH_OPEN, np.ones((OPENING, OPENING), np.uint8)
    )
    completed[kept == 0] = 0
    return completed, claimed & (kept > 0)


def batch_labels(
    maps: Tensor,
    classes: Tensor,
    levels: Tensor,
    salient: Tensor | None,
    *,
    pamr: PAMR,
    rules: LabelRules,
) -> tuple[Tensor, Tensor]:
    """Labels of a batch of crops: int64 (B, H, W), and the pixels claimed by completion, bool (B, H, W).

    Args:
        maps, classes: From ``ranked_maps``: (B, R, h, w) and (B, R), -1 for none.
        levels: (B, 3, H, W), 0..255.
        salient: bool (B, H, W), or None.
    """
    scores = refine_maps(maps, levels, pamr).cpu().numpy() if maps.shape[1] else None
    labels = np.zeros((len(levels), *levels.shape[-2:]), np.uint8)
    claimed = np.zeros(labels.shape, bool)
    for b, found in enumerate(classes.cpu().numpy()):
        present = found >= 0
        if present.any():
            own = None if salient is None else salient[b].cpu().numpy()
            labels[b], claimed[b] = make_labels(scores[b][present], found[present], own, rules)
    device = levels.device
    return torch.from_numpy(labels).long().to(device), torch.from_numpy(claimed).to(device)
