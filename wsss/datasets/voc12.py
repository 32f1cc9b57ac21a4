"""PASCAL VOC 2012 in the devkit's layout."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from wsss.config import VOC_MASKS
from wsss.datasets.base import Dataset, file_entries, file_names, stems
from wsss.errors import Report, refuse
from wsss.io import read_lines
from wsss.labels import check_id, read_voc_xml

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Voc12(Dataset):
    """``VOC2012/{JPEGImages,Annotations,SegmentationClassAug,ImageSets/Segmentation}``, 20 classes.

    Attributes:
        mask_folder: Where the true masks are: SegmentationClassAug, or VOC's own SegmentationClass. The list
            train_aug comes from the first, whichever is given.
    """

    mask_folder: str = VOC_MASKS[0]
    name: ClassVar[str] = "voc12"
    train_split: ClassVar[str] = "train_aug"
    sizes: ClassVar[Mapping[str, int]] = {"train": 1464, "val": 1449, "train_aug": 10582, "test": 1456}
    mask_counts: ClassVar[Mapping[str, int]] = {"SegmentationClassAug": 12031, "SegmentationClass": 2913}

    @classmethod
    def at(cls, root: Path, report: Report = refuse, mask_folder: str = VOC_MASKS[0]) -> "Voc12":
        places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
        found = next((place for place in places if (place / "JPEGImages").is_dir()), None)
        if found is None:
            report(
                f"{root}: no JPEGImages in it, in VOC2012 or in VOCdevkit/VOC2012; "
                "give --data-path the folder that holds VOCdevkit"
            )
            found = next(place for place in places if place.is_dir())
        return cls(found, report, mask_folder)

    @property
    def class_names(self) -> tuple[str, ...]:
        return VOC_CLASSES

    def _list(self, split: str) -> Path:
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    @property
    def _augmented(self) -> Path:
        return self.root / "SegmentationClassAug"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        found = {s: self._list(s).is_file() for s in ("train", "val", "test")}
        found["train_aug"] = found["val"] and self._augmented.is_dir()
        return tuple(s for s in ("train", "val", "train_aug", "test") if found[s])

    def missing_split(self, split: str) -> str:
        if split == "train_aug":
            return (
                "it is every mask of SegmentationClassAug but those of val: put that folder and val.txt there"
            )
        return f"put {self._list(split)} there or choose another list"

    def wants_labels(self, split: str) -> bool:
        return split != "test"

    def wants_masks(self, split: str) -> bool:
        return split != "train_aug" or self.mask_folder == self._augmented.name

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        if split != "train_aug":
            return file_entries(self._list(split))
        # The 12,031 masks without the 1,449 of val: 10,582 pictures, as everybody's train_aug.
        ids = {name[:-4] for name in file_names(self._augmented) if name.endswith(".png")}
        ids -= set(read_lines(self._list("val")))
        return [(str(self._augmented / f"{i}.png"), i) for i in sorted(ids)]

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        found = stems(self.root / "JPEGImages", (".jpg",), self.report)
        return {image_id: f"JPEGImages/{name}" for image_id, name in found.items()}

    def _no_picture(self, image_id: str) -> str:
        return f"id {image_id!r} has no picture {self.root / 'JPEGImages' / image_id}.jpg; put it there"

    @cached_property
    def _labels(self) -> dict[str, tuple[int, ...]]:
        return {}

    def has_labels(self, image_id: str) -> bool:
        return (self.root / "Annotations" / f"{check_id(image_id)}.xml").is_file()

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        if image_id not in self._labels:
            path = self.root / "Annotations" / f"{check_id(image_id)}.xml"
            self._labels[image_id] = read_voc_xml(path, VOC_CLASSES, self.report)
        return self._labels[image_id]
