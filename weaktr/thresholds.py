"""Scores of thresholded CAMs at many background thresholds at once, and a threshold found without masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wsss.distributed import all_sum
from wsss.metrics import Scores, scores_from_totals

PUBLISHED_THRESHOLDS = {"voc12": 0.43, "coco14": 0.42, "folder": 0.43}
SWEEP = tuple(i / 100 for i in range(40, 60))  # what the published search may visit


@dataclass(frozen=True)
class ThresholdCurve:
    """Scores at T thresholds over K classes (background first), as fractions; see ``wsss.metrics.Scores``."""

    thresholds: np.ndarray  # (T,)
    scores: Scores  # iou (T, K), mean_iou (T,), ...

    @property
    def mean_iou(self) -> np.ndarray:
        return self.scores.mean_iou

    @property
    def best_index(self) -> int:
        """Of equal values, the lowest threshold."""
        best = np.flatnonzero(self.mean_iou == np.max(self.mean_iou))
        return int(best[np.argmin(self.thresholds[best])])

    @property
    def best_threshold(self) -> float:
        return float(self.thresholds[self.best_index])

    @property
    def best_mean_iou(self) -> float:
        return float(self.mean_iou[self.best_index])

    @property
    def published_threshold(self) -> float | None:
        """The published search: 0.40, 0.41, ... 0.59, stopped by the first value not above the best so far.

        None where the curve lacks one of these thresholds.
        """
        visited = [self.index(t) for t in SWEEP]
        if None in visited:
            return None
        best = visited[0]
        for i in visited[1:]:
            if not self.mean_iou[i] > self.mean_iou[best]:
                break
            best = i
        return float(self.thresholds[best])

    def index(self, threshold: float) -> int | None:
        """Position of a threshold in the curve, None if it is not there."""
        found = np.flatnonzero(np.isclose(self.thresholds, threshold, rtol=0, atol=1e-9))
        return int(found[0]) if len(found) else None

    def mean_iou_at(self, threshold: float) -> float | None:
        index = self.index(threshold)
        return None if index is None else float(self.mean_iou[index])


class ThresholdAccumulator:
    """Counts that give the scores at every threshold, from one look at each picture.

    Args:
        num_fg_classes: C, foreground classes; K = C + 1.
        thresholds: T values, in any order; the curve keeps it.

    Attributes:
        counts: int64 (C, K, T + 1): pixels by class of the largest CAM, true class, and number of thresholds
            that the CAM exceeds.
    """

    def __init__(self, num_fg_classes: int, thresholds: Sequence[float]):
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if self.thresholds.ndim != 1 or not self.thresholds.size or not np.isfinite(self.thresholds).all():
            raise ValueError("thresholds must be a list of finite numbers")
        self.num_fg_classes = num_fg_classes
        self.num_classes = num_fg_classes + 1
        # A float16 has 65,536 values: look up how many thresholds lie below each
        every_float16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
        self._exceeded = np.searchsorted(np.sort(self.thresholds), every_float16, side="left")
        self.counts = np.zeros((num_fg_classes, self.num_classes, len(self.thresholds) + 1), dtype=np.int64)

    def update(self, cams: np.ndarray, class_ids: np.ndarray, mask: np.ndarray) -> None:
        """Count one picture.

        Args:
            cams: (n, H, W), rounded to float16 if it is not; n may be 0: background everywhere.
            class_ids: (n,) foreground class indices, counted from 0.
            mask: (H, W), 0 background, c + 1, 255 not counted.

        Raises:
            ValueError: Sizes differ, or a class does not exist.
        """
        cams, class_ids = np.asarray(cams).astype(np.float16, copy=False), np.asarray(class_ids, np.int64)
        if cams.shape != (len(class_ids), *mask.shape):
            raise ValueError(
                f"CAMs have the shape {cams.shape} for {len(class_ids)} classes, the mask {mask.shape}"
            )
        if len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < self.num_fg_classes:
            raise ValueError(f"class indices {class_ids.tolist()} are not all below {self.num_fg_classes}")
        counted = mask != 255
        truth = mask[counted].astype(np.int64)
        if truth.size and not 0 <= truth.min() <= truth.max() < self.num_classes:
            raise ValueError(f"the mask holds {truth.max()}, there are {self.num_fg_classes} classes")
        if not len(class_ids):  # exceeds no threshold: background, whatever class it is filed under
            self.counts[0, :, 0] += np.bincount(truth, minlength=self.num_classes)
            return
        winner, largest = cams.argmax(axis=0)[counted], cams.max(axis=0)[counted]
        exceeded = self._exceeded[largest.view(np.uint16)]
        steps = self.counts.shape[2]
        index = (winner * self.num_classes + truth) * steps + exceeded
        shape = (len(class_ids), *self.counts.shape[1:])
        found = np.bincount(index, minlength=np.prod(shape)).reshape(shape)
        np.add.at(self.counts, class_ids, found)

    def merge(self, other: "ThresholdAccumulator") -> "ThresholdAccumulator":
        """Add another accumulator's counts, in place; returns self."""
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("accumulators of different thresholds cannot be merged")
        self.counts += other.counts
        return self

    def all_sum(self, device: torch.device | str = "cpu") -> "ThresholdAccumulator":
        """Sum over the processes of a torchrun job, in place; returns self. ``device`` is the backend's."""
        self.counts = all_sum(torch.from_numpy(self.counts).to(device)).cpu().numpy()
        return self

    def curve(self) -> ThresholdCurve:
        """The scores at every threshold.

        Raises:
            ValueError: Nothing was counted.
        """
        truth = self.counts.sum(axis=(0, 2))
        if not truth.any():
            raise ValueError("no pixel was counted")
        # above[c, g, t]: pixels of truth g given to class c at the threshold number t in increasing order
        above = self.counts[:, :, :0:-1].cumsum(axis=2)[:, :, ::-1]
        above = above[:, :, self.thresholds.argsort().argsort()]  # in the order given
        foreground = above.sum(axis=1)
        background = truth.sum() - foreground.sum(axis=0)
        own = np.arange(self.num_fg_classes)
        background_correct = truth[0] - above[:, 0].sum(axis=0)
        correct = np.concatenate([background_correct[None], above[own, own + 1]]).T
        predicted = np.concatenate([background[None], foreground]).T
        return ThresholdCurve(
            self.thresholds, scores_from_totals(correct, predicted, np.broadcast_to(truth, correct.shape))
        )


def otsu_threshold(histogram: np.ndarray) -> float:
    """The threshold that best parts a histogram of values in 0..1 in two (Otsu, 1979): no mask is needed.

    Args:
        histogram: (bins,) weights of equal bins over 0..1.

    Raises:
        ValueError: All weights are 0.
    """
    histogram = np.asarray(histogram)
    if not histogram.any():
        raise ValueError("the histogram is empty: no value to part")
    weights = histogram / histogram.sum()
    centres = (np.arange(len(weights)) + 0.5) / len(weights)
    below, moment = np.cumsum(weights), np.cumsum(weights * centres)
    between = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float((np.argmax(between[:-1]) + 1) / len(weights))


def threshold_values(first: float, last: float, step: float) -> tuple[float, ...]:
    """``first, first + step, ..., last``, rounded to 6 decimals, so that 0.43 is the number 0.43."""
    return tuple(round(first + i * step, 6) for i in range(round((last - first) / step) + 1))
