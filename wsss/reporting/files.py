"""The record files of a run folder (docs/formats.md) as plain values.

What ``..._of`` takes is a file's parsed JSON; where it is not as documented they raise LookupError,
TypeError, ValueError, AttributeError or OverflowError.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A ``score.json``; fractions, nan where there is no value."""

    mean_iou: float
    pixel_accuracy: float
    iou: dict[str, float]  # class -> IoU, background first
    split: str | None = None
    images: int | None = None
    threshold: float | None = None
    crf_preset: str | None = None
    notes: tuple[str, ...] = ()
    before_crf: "Score | None" = None


@dataclass(frozen=True)
class Threshold:
    """A ``threshold.json``; the lists are empty where nothing was measured."""

    chosen: float
    selected_by: str
    split: str | None
    images: int | None
    thresholds: list[float]
    curves: dict[str, list[float]]  # "mIoU", "FP", "FN" -> a fraction per threshold
    score: Score | None  # at the chosen threshold, if it is one of the curve's
    class_names: tuple[str, ...]  # background first


@dataclass(frozen=True)
class ListFacts:
    images: int
    with_masks: bool
    pictures_per_class: dict[str, int] | None  # None: not every picture has labels
    classes_per_picture: dict[int, int] | None


@dataclass(frozen=True)
class Facts:
    """A ``dataset.json``."""

    dataset: str
    root: str
    class_names: tuple[str, ...]  # foreground
    lists: dict[str, ListFacts]


@dataclass(frozen=True)
class HeadWeights:
    """A ``head_weights.json``: one row per head, one column per block."""

    images: int
    weights: list[list[float]]


def as_object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise TypeError(f"a JSON object is wanted, not {type(content).__name__}")
    return content


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


LARGEST = 1e100  # of a number that can be charted


def charted(value: float) -> float:
    """The number, or nan where it is too large for a chart."""
    number = float(value)
    return number if abs(number) <= LARGEST else math.nan


def _number(value: Any) -> float:
    """A JSON number; null is nan."""
    if value is None:
        return math.nan
    if not is_number(value):
        raise TypeError(f"a number is wanted, not {value!r:.60}")
    return charted(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"a count is wanted, not {value!r:.60}")
    return value


def _optional(parse: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else parse(value)


def config_of(content: Any) -> dict[str, Any]:
    if not isinstance(as_object(content)["command"], str):
        raise TypeError("its command is no text")
    return content


def score_of(content: Any) -> Score:
    content = as_object(content)
    return Score(
        mean_iou=_number(content["mean_iou"]),
        pixel_accuracy=_number(content["pixel_accuracy"]),
        iou={str(entry["name"]): _number(entry["iou"]) for entry in content["classes"]},
        split=_optional(str, content.get("split")),
        images=_optional(_count, content.get("images")),
        threshold=_optional(_number, content.get("threshold")),
        crf_preset=_optional(str, content.get("crf_preset")),
        notes=tuple(map(str, content.get("notes") or ())),
        before_crf=_optional(score_of, content.get("before_crf")),
    )


def threshold_of(content: Any) -> Threshold:
    content = as_object(content)
    chosen, curve = _number(content["threshold"]), as_object(content.get("curve") or {})
    thresholds = [_number(t) for t in curve.get("threshold", ())]
    names = tuple(map(str, content.get("class_names") or ()))
    keys = {"mIoU": "mean_iou", "FP": "mean_false_positive", "FN": "mean_false_negative"} if curve else {}
    curves = {label: [_number(v) for v in curve[key]] for label, key in keys.items()}
    if any(len(values) != len(thresholds) for values in curves.values()):
        raise ValueError("the curve's lists differ in length")
    split, images = _optional(str, content.get("split")), _optional(_count, content.get("images"))
    score = None
    at = [k for k, t in enumerate(thresholds) if abs(t - chosen) < 1e-6]
    if at:
        score = Score(
            mean_iou=curves["mIoU"][at[0]],
            pixel_accuracy=_number(curve["pixel_accuracy"][at[0]]),
            iou={name: _number(v) for name, v in zip(names, curve["iou"][at[0]], strict=True)},
            split=split,
            images=images,
            threshold=chosen,
        )
    return Threshold(
        chosen, str(content["selected_by"]), split, images, thresholds, curves, score, names
    )  # fmt: skip


def facts_of(content: Any) -> Facts:
    content = as_object(content)

    def counts(value: Any) -> dict[str, int]:
        return {key: _count(number) for key, number in as_object(value).items()}

    def by_number(value: Any) -> dict[int, int]:
        return {int(key): number for key, number in counts(value).items()}

    lists = {
        split: ListFacts(
            images=_count(entry["images"]),
            with_masks=bool(entry["with_masks"]),
            pictures_per_class=_optional(counts, entry["pictures_per_class"]),
            classes_per_picture=_optional(by_number, entry["classes_per_picture"]),
        )
        for split, entry in as_object(content["lists"]).items()
    }
    names = tuple(map(str, content["class_names"]))
    return Facts(str(content["dataset"]), str(content["root"]), names, lists)


def head_weights_of(content: Any) -> HeadWeights:
    rows = [[_number(value) for value in row] for row in as_object(content)["weights"]]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("the rows of weights are empty or differ in length")
    return HeadWeights(_count(content["images"]), rows)
