"""COCO 2014 with its official annotations, pictures renamed or as they came."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsss.datasets.base import Dataset, file_names
from wsss.errors import Report, refuse
from wsss.labels import COCO_UNUSED, Labels, read_coco_json, read_coco_labels

# Named unused_ID where COCO has no such category.
_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_names = iter(_COCO_NAMES)
COCO_CLASSES = tuple(f"unused_{i}" if i in COCO_UNUSED else next(_names) for i in range(1, 91))

SUBSET_SEED = 504  # the published subsets of COCO were not released: ours are drawn with the recipe's seed


@dataclass(frozen=True)
class Coco14(Dataset):
    """``annotations/instances_{train,val}2014.json`` with ``images/`` or ``{train,val}2014/``, 90 classes.

    ``annotations/image_labels_{train,val}2014.json``, which the preparation writes, is read in place of the
    large file. An id is the 12-digit number of the picture. The two subsets stand in for the published ones,
    which were not released.
    """

    name: ClassVar[str] = "coco14"
    cam_split: ClassVar[str] = "train_1250"
    sizes: ClassVar[Mapping[str, int]] = {"train": 82081, "val": 40137}
    _subsets: ClassVar[dict[str, tuple[str, int]]] = {
        "train_1250": ("train", 1250),
        "val_5000": ("val", 5000),
    }

    @classmethod
    def at(cls, root: Path, report: Report = refuse) -> "Coco14":
        if not any((root / name).is_dir() for name in ("images", "train2014", "val2014")):
            report(
                f"{root}: no folder images, train2014 or val2014 in it; "
                "give --data-path the folder that holds COCO's pictures and annotations"
            )
        return cls(root, report)

    @property
    def class_names(self) -> tuple[str, ...]:
        return COCO_CLASSES

    def _json(self, part: str) -> Path:
        return self.root / "annotations" / f"instances_{part}2014.json"

    def _labels_json(self, part: str) -> Path:
        return self.root / "annotations" / f"image_labels_{part}2014.json"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        parts = [p for p in ("train", "val") if self._labels_json(p).is_file() or self._json(p).is_file()]
        return (*parts, *(s for s, (part, _) in self._subsets.items() if part in parts))

    def missing_split(self, split: str) -> str:
        part, _ = self._subsets.get(split, (split, None))
        if part not in ("train", "val"):
            return "choose one of these"
        return f"put {self._json(part)} there or choose another list"

    @cached_property
    def _parts(self) -> dict[str, Labels]:
        return {}

    def _source(self, part: str) -> Path:
        """The file that the labels of a part are read from."""
        short = self._labels_json(part)
        return short if short.is_file() else self._json(part)

    def _part(self, part: str) -> Labels:
        """Classes of every picture of an annotation file, pictures without annotation included."""
        if part not in self._parts:
            path = self._source(part)
            if path == self._json(part):
                self._parts[part] = read_coco_json(path, self.report)
            else:
                self._parts[part] = read_coco_labels(path, self._json(part), self.report)
        return self._parts[part]

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        part, size = self._subsets.get(split, (split, None))
        ids = sorted(i for i, classes in self._part(part).items() if classes)
        if size is not None and size < len(ids):
            ids = sorted(np.random.RandomState(SUBSET_SEED).permutation(ids)[:size].tolist())
        return [(str(self._source(part)), i) for i in ids]

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        """The renamed ones first, else those of the official folders."""
        names = file_names(self.root / "images")
        found = {name[:-4]: f"images/{name}" for name in names if re.fullmatch(r"\d{12}\.jpg", name)}
        for part in ("train2014", "val2014"):
            for name in file_names(self.root / part):
                if match := re.fullmatch(rf"COCO_{part}_(\d{{12}})\.jpg", name):
                    found.setdefault(match[1], f"{part}/{name}")
        return found

    def _no_picture(self, image_id: str) -> str:
        return (
            f"image {image_id} has no picture images/{image_id}.jpg or "
            f"{{train,val}}2014/COCO_{{train,val}}2014_{image_id}.jpg in {self.root}; put it there"
        )

    def has_labels(self, image_id: str) -> bool:
        return any(image_id in self._part(part) for part in ("train", "val") if part in self.splits)

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        loaded_first = sorted(("train", "val"), key=lambda part: part not in self._parts)
        for part in loaded_first:
            if part in self.splits and image_id in self._part(part):
                return self._part(part)[image_id]
        self.report(
            f"{self.root / 'annotations'}: no image {image_id!r} in instances_{{train,val}}2014.json; "
            "put the official files there"
        )
        return ()
