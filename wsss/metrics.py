"""Segmentation scores from one confusion matrix, and mean average precision of image labels.

Everything is a fraction in 0..1. A class that occurs neither in the truth nor in the prediction has no
score (nan) and is left out of every mean.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from wsss.distributed import all_sum


@dataclass(frozen=True)
class Scores:
    """Scores per class, shape (..., K), and over classes or pixels, shape (...).

    With TP, P and T the numbers of pixels of a class that are right, predicted and true, and
    union = P + T - TP, the definitions are those of the published evaluation. The means are over the classes
    where the value exists: ``precision`` is nan for a class never predicted, ``recall`` for one never true.
    """

    iou: np.ndarray  # TP / union
    false_positive: np.ndarray  # (P - TP) / union
    false_negative: np.ndarray  # (T - TP) / union
    precision: np.ndarray  # TP / P
    recall: np.ndarray  # TP / T
    mean_iou: float | np.ndarray
    mean_false_positive: float | np.ndarray
    mean_false_negative: float | np.ndarray
    mean_precision: float | np.ndarray
    mean_recall: float | np.ndarray
    pixel_accuracy: float | np.ndarray


def scores_from_totals(correct, predicted, truth) -> Scores:
    """Scores from pixel totals per class, each (..., K): TP, P and T, integers."""
    correct, predicted, truth = (np.asarray(x, dtype=np.float64) for x in (correct, predicted, truth))
    union = predicted + truth - correct
    per_class = {
        "iou": _ratio(correct, union),
        "false_positive": _ratio(predicted - correct, union),
        "false_negative": _ratio(truth - correct, union),
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, truth),
    }
    means = {f"mean_{name}": _mean_over_classes(values) for name, values in per_class.items()}
    accuracy = _ratio(correct.sum(-1), truth.sum(-1))
    return Scores(**per_class, **means, pixel_accuracy=accuracy if accuracy.ndim else float(accuracy))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def _mean_over_classes(values: np.ndarray) -> float | np.ndarray:
    exists = ~np.isnan(values)
    mean = _ratio(np.where(exists, values, 0).sum(-1), exists.sum(-1))
    return mean if mean.ndim else float(mean)


class ConfusionMatrix:
    """Pixel counts per (truth, prediction).

    Args:
        num_classes: K, background included.
        ignore_index: Value in the truth whose pixels do not count; None counts them all. Where it is one of
            the classes, that class has no score, and predicting it elsewhere is an error of the true class.

    Attributes:
        counts: int64 (K, K), rows truth, columns prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255):
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, pred, target) -> None:
        """Count one picture or batch.

        Args:
            pred: Class indices, integers, array or tensor of any shape; 0..K-1 where the truth counts.
            target: The truth, same shape, 0..K-1 or ``ignore_index``.

        Raises:
            ValueError: Shapes differ, values are not integers or lie outside the classes.
        """
        pred, target = _integers(pred, "pred"), _integers(target, "target")
        if pred.shape != target.shape:
            raise ValueError(f"pred has shape {pred.shape}, target {target.shape}")
        if self.ignore_index is not None:
            counted = target != self.ignore_index
            pred, target = pred[counted], target[counted]
        self._check(pred, "pred")
        self._check(target, "target")
        index = target.ravel().astype(np.int64) * self.num_classes + pred.ravel().astype(np.int64)
        self.counts += np.bincount(index, minlength=self.num_classes**2).reshape(self.counts.shape)

    def _check(self, values: np.ndarray, name: str) -> None:
        if values.size and not 0 <= values.min() <= values.max() < self.num_classes:
            raise ValueError(
                f"{name} holds values {values.min()}..{values.max()}, "
                f"the {self.num_classes} classes are 0..{self.num_classes - 1}"
            )

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add another matrix's counts, in place; returns self."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ValueError("confusion matrices of different classes cannot be merged")
        self.counts += other.counts
        return self

    def all_sum(self, device: torch.device | str = "cpu") -> "ConfusionMatrix":
        """Sum over the processes of a torchrun job, in place; returns self. ``device`` is the backend's."""
        self.counts = all_sum(torch.from_numpy(self.counts).to(device)).cpu().numpy()
        return self

    def scores(self) -> Scores:
        """IoU and the rest, per class (K,) and over all, as fractions; absent classes nan."""
        predicted = self.counts.sum(0)
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            predicted[self.ignore_index] = 0  # neither true nor predicted: no score, outside the means
        return scores_from_totals(np.diagonal(self.counts), predicted, self.counts.sum(1))


def _integers(values, name: str) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integer class indices, got {values.dtype}")
    return values


def sample_mean_ap(labels, scores) -> float:
    """Mean over images of the average precision of each image's classes: the published "mAP".

    Args:
        labels: (N, C) of 0 and 1. Images without a label are skipped.
        scores: (N, C), higher means more likely; any monotone scale.

    Returns:
        A fraction; nan if no image has a label.
    """
    labels, scores = _label_arrays(labels, scores)
    rows = labels.any(1)
    if not rows.any():
        return float("nan")
    return float(average_precision_score(labels[rows], scores[rows], average="samples"))


def class_mean_ap(labels, scores) -> float:
    """Mean over classes of the average precision over images; classes without a positive are skipped.

    Arguments and result as ``sample_mean_ap``.
    """
    labels, scores = _label_arrays(labels, scores)
    columns = labels.any(0)
    if not columns.any():
        return float("nan")
    return float(average_precision_score(labels[:, columns], scores[:, columns], average="macro"))


def _label_arrays(labels, scores) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = (
        x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        for x in (labels, scores)
    )
    if labels.shape != scores.shape or labels.ndim != 2:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must both be (N, C)")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    return labels.astype(bool), scores
