"""Data sets: PASCAL VOC 2012, COCO 2014 and a plain folder, behind one interface.

``load_dataset`` looks only at which folders exist. Lists, labels and directory listings are read when first
asked for and kept. Layouts and rules are in docs/data.md.
"""

import abc
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsss.errors import UserError
from wsss.io import read_lines, read_numbered_lines
from wsss.labels import (
    COCO_UNUSED,
    check_id,
    read_coco_json,
    read_label_csv,
    read_label_json,
    read_voc_xml,
)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

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

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SUBSET_SEED = 504  # the published subsets of COCO were not released: ours are drawn with the recipe's seed


def load_dataset(kind: str, root: Path) -> "Dataset":
    """The data set of layout ``kind`` ("voc12", "coco14" or "folder") at ``root``.

    Raises:
        UserError: No such folder, or not of that layout.
    """
    root = Path(root)
    if kind not in (layouts := {"voc12": Voc12, "coco14": Coco14, "folder": Folder}):
        raise UserError(f"--dataset {kind}: unknown layout; give one of {', '.join(layouts)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give --data-path the folder of the data set")
    return layouts[kind].at(root)


def list_pictures(path: Path) -> dict[str, Path]:
    """Id (the name without its suffix) -> picture: of one file, or of a folder's own files in sorted order.

    In a folder, files without a picture's suffix, hidden ones and subfolders are left out. A file that is
    named itself may have any suffix.

    Raises:
        UserError: Nothing there, no picture in the folder, or two of them share an id.
    """
    path = Path(path)
    if path.is_file():
        return {unicodedata.normalize("NFC", path.stem): path}
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give --images a picture or a folder of pictures")
    found = {stem: path / name for stem, name in _stems(path, PICTURE_SUFFIXES).items()}
    found = {stem: file for stem, file in found.items() if file.is_file()}
    if not found:
        kinds = ", ".join(PICTURE_SUFFIXES)
        raise UserError(f"{path}: no picture in this folder ({kinds}); give --images one that holds some")
    return found


def split_name(split: str) -> str:
    """What a list is called in the names of folders: ``lists/half.txt`` is ``half``."""
    return Path(split).stem if split.endswith(".txt") else split


@dataclass(frozen=True)
class Dataset(abc.ABC):
    """What every layout offers. Classes are foreground only; masks hold 0 background, class + 1, 255 ignored.

    Attributes:
        root: The folder of the data set.
        name: The layout, as given to ``load_dataset``.
        train_split: List that stage 1 trains on.
        cam_split: List on which CAMs are scored.
        val_split: List for validation.
    """

    root: Path
    name: ClassVar[str]
    train_split: ClassVar[str] = "train"
    cam_split: ClassVar[str] = "train"
    val_split: ClassVar[str] = "val"

    @classmethod
    @abc.abstractmethod
    def at(cls, root: Path) -> "Dataset":
        """The data set at ``root``; UserError if it lacks what the layout always has."""

    @property
    @abc.abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Foreground classes, in index order."""

    @property
    def num_fg_classes(self) -> int:
        return len(self.class_names)

    @property
    @abc.abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the lists that exist here."""

    def image_ids(self, split: str) -> list[str]:
        """Ids of a list, in its order: one of ``splits``, or the path of any text file ending in ``.txt``.

        Raises:
            UserError: No such list, an empty one, an id twice, an id that is no plain file name, or an id
                without a picture (all of them are looked up, by listing the picture folder once).
        """
        if split not in self._ids_of:
            self._ids_of[split] = self._read_split(split)
        return list(self._ids_of[split])

    @abc.abstractmethod
    def image_path(self, image_id: str) -> Path:
        """The picture of an id; UserError if there is none."""

    @abc.abstractmethod
    def mask_path(self, image_id: str) -> Path:
        """Where the mask of an id is, or would be."""

    @abc.abstractmethod
    def label_indices(self, image_id: str) -> tuple[int, ...]:
        """Classes of a picture, ascending, each once. Errors as ``labels``."""

    @abc.abstractmethod
    def has_labels(self, image_id: str) -> bool:
        """Whether the picture has an entry of labels, be it an empty one."""

    def labels(self, image_id: str) -> np.ndarray:
        """Classes of a picture as a multi-hot vector, float32 (C,); all zero is allowed.

        Raises:
            UserError: No labels for this id, or an unknown class among them.
        """
        vector = np.zeros(self.num_fg_classes, np.float32)
        vector[list(self.label_indices(image_id))] = 1
        return vector

    def has_masks(self, split: str) -> bool:
        """Whether every id of the list has a mask file."""
        ids = self.image_ids(split)
        names = _file_names(self.mask_path(ids[0]).parent)
        return all(self.mask_path(i).name in names for i in ids)

    def check_image_labels(self, split: str) -> int:
        """Read the labels of every id of a list, so that a run fails at its start and not in the middle.

        Returns:
            How many pictures have no class at all.

        Raises:
            UserError: As ``image_ids`` and ``labels``.
        """
        return sum(not self.label_indices(i) for i in self.image_ids(split))

    # -------------------------------------------------------------------------------- for the layouts

    @cached_property
    def _ids_of(self) -> dict[str, list[str]]:
        return {}

    @abc.abstractmethod
    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        """(where it stands, id) of a list that is among ``splits``."""

    @abc.abstractmethod
    def _has_picture(self, image_id: str) -> bool: ...

    def _read_split(self, split: str) -> list[str]:
        if split.endswith(".txt"):
            entries = [(f"{split}, line {n}", line) for n, line in read_numbered_lines(Path(split))]
        elif split in self.splits:
            entries = self._entries(split)
        else:
            raise UserError(
                f"{self.root}: has no list {split!r} (there are: {', '.join(self.splits) or 'none'}); "
                f"{self._missing_split_remedy(split)}"
            )
        seen: dict[str, str] = {}
        for where, image_id in entries:
            check_id(image_id, where)
            if image_id in seen:
                raise UserError(
                    f"{where}: id {image_id!r} is there twice (first: {seen[image_id]}); remove one"
                )
            if not self._has_picture(image_id):
                raise UserError(f"{where}: {self._no_picture(image_id)}, or take the id out of the list")
            seen[image_id] = where
        if not seen:
            raise UserError(f"{self.root}: list {split!r} is empty; write one id per line")
        return list(seen)

    def _missing_split_remedy(self, split: str) -> str:
        return "choose one of these or add the list"

    def _no_picture(self, image_id: str) -> str:
        return f"id {image_id!r} has no picture {self.image_path(image_id)}; put it there"


# ------------------------------------------------------------------------------------- PASCAL VOC 2012


@dataclass(frozen=True)
class Voc12(Dataset):
    """``VOC2012/{JPEGImages,Annotations,SegmentationClassAug,ImageSets/Segmentation}``, 20 classes."""

    name: ClassVar[str] = "voc12"
    train_split: ClassVar[str] = "train_aug"

    @classmethod
    def at(cls, root: Path) -> "Voc12":
        for folder in (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root):
            if (folder / "JPEGImages").is_dir():
                return cls(folder)
        raise UserError(
            f"{root}: no JPEGImages in it, in VOC2012 or in VOCdevkit/VOC2012; "
            "give --data-path the folder that holds VOCdevkit"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return VOC_CLASSES

    def _list(self, split: str) -> Path:
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    @property
    def _masks(self) -> Path:
        return self.root / "SegmentationClassAug"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        found = {s: self._list(s).is_file() for s in ("train", "val", "test")}
        found["train_aug"] = found["val"] and self._masks.is_dir()
        return tuple(s for s in ("train", "val", "train_aug", "test") if found[s])

    def _missing_split_remedy(self, split: str) -> str:
        if split == "train_aug":
            return (
                "it is every mask of SegmentationClassAug but those of val: put that folder and val.txt there"
            )
        return f"put {self._list(split)} there or choose another list"

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        if split != "train_aug":
            path = self._list(split)
            return [(f"{path}, line {n}", line) for n, line in read_numbered_lines(path)]
        # The 12,031 masks without the 1,449 of val: 10,582 pictures, as everybody's train_aug.
        with_mask = {name[:-4] for name in _file_names(self._masks) if name.endswith(".png")}
        return [
            (str(self._masks / f"{i}.png"), i) for i in sorted(with_mask - set(read_lines(self._list("val"))))
        ]

    @cached_property
    def _pictures(self) -> frozenset[str]:
        return _file_names(self.root / "JPEGImages")

    def _has_picture(self, image_id: str) -> bool:
        return f"{image_id}.jpg" in self._pictures

    def image_path(self, image_id: str) -> Path:
        return self.root / "JPEGImages" / f"{check_id(image_id)}.jpg"

    def mask_path(self, image_id: str) -> Path:
        return self._masks / f"{check_id(image_id)}.png"

    @cached_property
    def _labels(self) -> dict[str, tuple[int, ...]]:
        return {}

    def has_labels(self, image_id: str) -> bool:
        return (self.root / "Annotations" / f"{check_id(image_id)}.xml").is_file()

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        if image_id not in self._labels:
            path = self.root / "Annotations" / f"{check_id(image_id)}.xml"
            self._labels[image_id] = read_voc_xml(path, VOC_CLASSES)
        return self._labels[image_id]


# ------------------------------------------------------------------------------------------ COCO 2014


@dataclass(frozen=True)
class Coco14(Dataset):
    """``annotations/instances_{train,val}2014.json`` with ``images/`` or ``{train,val}2014/``, 90 classes.

    An id is the 12-digit number of the picture. The two subsets stand in for the published ones, which were
    not released.
    """

    name: ClassVar[str] = "coco14"
    cam_split: ClassVar[str] = "train_1250"
    _subsets: ClassVar[dict[str, tuple[str, int]]] = {
        "train_1250": ("train", 1250),
        "val_5000": ("val", 5000),
    }

    @classmethod
    def at(cls, root: Path) -> "Coco14":
        if not any((root / name).is_dir() for name in ("images", "train2014", "val2014")):
            raise UserError(
                f"{root}: no folder images, train2014 or val2014 in it; "
                "give --data-path the folder that holds COCO's pictures and annotations"
            )
        return cls(root)

    @property
    def class_names(self) -> tuple[str, ...]:
        return COCO_CLASSES

    def _json(self, part: str) -> Path:
        return self.root / "annotations" / f"instances_{part}2014.json"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        parts = [p for p in ("train", "val") if self._json(p).is_file()]
        return (*parts, *(s for s, (part, _) in self._subsets.items() if part in parts))

    def _missing_split_remedy(self, split: str) -> str:
        return f"put {self._json(split.split('_')[0])} there or choose another list"

    @cached_property
    def _parts(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {}

    def _part(self, part: str) -> dict[str, tuple[int, ...]]:
        """Classes of every picture of an annotation file, pictures without annotation included."""
        if part not in self._parts:
            self._parts[part] = read_coco_json(self._json(part))
        return self._parts[part]

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        part, size = self._subsets.get(split, (split, None))
        ids = sorted(i for i, classes in self._part(part).items() if classes)
        if size is not None and size < len(ids):
            ids = sorted(np.random.RandomState(SUBSET_SEED).permutation(ids)[:size].tolist())
        return [(str(self._json(part)), i) for i in ids]

    @cached_property
    def _pictures(self) -> dict[str, Path]:
        """Path of every picture: of the renamed ones first, else of the official folders."""
        folder = self.root / "images"
        found = {
            name[:-4]: folder / name for name in _file_names(folder) if re.fullmatch(r"\d{12}\.jpg", name)
        }
        for part in ("train2014", "val2014"):
            for name in _file_names(self.root / part):
                if match := re.fullmatch(rf"COCO_{part}_(\d{{12}})\.jpg", name):
                    found.setdefault(match[1], self.root / part / name)
        return found

    def _has_picture(self, image_id: str) -> bool:
        return image_id in self._pictures

    def _no_picture(self, image_id: str) -> str:
        return (
            f"image {image_id} has no picture images/{image_id}.jpg or "
            f"{{train,val}}2014/COCO_{{train,val}}2014_{image_id}.jpg in {self.root}; put it there"
        )

    def image_path(self, image_id: str) -> Path:
        if image_id not in self._pictures:
            raise UserError(f"{self.root}: {self._no_picture(image_id)}")
        return self._pictures[image_id]

    def mask_path(self, image_id: str) -> Path:
        return self.root / "masks" / f"{check_id(image_id)}.png"

    def has_labels(self, image_id: str) -> bool:
        return any(image_id in self._part(part) for part in ("train", "val") if part in self.splits)

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        loaded_first = sorted(("train", "val"), key=lambda part: part not in self._parts)
        for part in loaded_first:
            if part in self.splits and image_id in self._part(part):
                return self._part(part)[image_id]
        raise UserError(
            f"{self.root / 'annotations'}: no image {image_id!r} in instances_{{train,val}}2014.json; "
            "put the official files there"
        )


# --------------------------------------------------------------------------------------------- folder


@dataclass(frozen=True)
class Folder(Dataset):
    """Own data: ``classes.txt``, ``images/``, labels, lists as ``NAME.txt``, optionally ``masks/``."""

    name: ClassVar[str] = "folder"

    @classmethod
    def at(cls, root: Path) -> "Folder":
        if not (root / "images").is_dir():
            raise UserError(f"{root / 'images'}: no such folder; put the pictures there")
        if not (root / "classes.txt").is_file():
            raise UserError(
                f"{root / 'classes.txt'}: no such file; write the foreground classes, one per line"
            )
        return cls(root)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        path = self.root / "classes.txt"
        lines: dict[str, int] = {}
        for number, line in read_numbered_lines(path):
            where = f"{path}, line {number}"
            if line in lines:
                raise UserError(
                    f"{where}: class {line!r} is there twice (first: line {lines[line]}); remove one"
                )
            if ";" in line:
                raise UserError(f"{where}: class {line!r} holds ';', which separates labels; rename it")
            if line.lower() == "background":
                raise UserError(f"{where}: background is class 0 by itself; list the foreground classes only")
            lines[line] = number
        if not 1 <= len(lines) <= 254:
            raise UserError(f"{path}: holds {len(lines)} classes; write 1 to 254 names, one per line")
        return tuple(lines)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        names = {unicodedata.normalize("NFC", path.stem) for path in self._lists.values()}
        return (*(s for s in ("train", "val") if s in names), *sorted(names - {"train", "val"}), "all")

    @cached_property
    def _lists(self) -> dict[str, Path]:
        lists = {}
        for name in sorted(_file_names(self.root)):
            if name.endswith(".txt") and not name.startswith(".") and name != "classes.txt":
                lists[unicodedata.normalize("NFC", name[:-4])] = self.root / name
        if "all" in lists:
            raise UserError(f"{lists['all']}: 'all' means every picture of images/; rename this list")
        return lists

    def _missing_split_remedy(self, split: str) -> str:
        return f"write {self.root / f'{split}.txt'}, one id (picture name without its suffix) per line"

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        if split == "all":
            return [(str(self.root / "images" / self._pictures[i]), i) for i in sorted(self._pictures)]
        path = self._lists[split]
        return [(f"{path}, line {number}", line) for number, line in read_numbered_lines(path)]

    @cached_property
    def _pictures(self) -> dict[str, str]:
        return _stems(self.root / "images", PICTURE_SUFFIXES)

    @cached_property
    def _masks(self) -> dict[str, str]:
        return _stems(self.root / "masks", (".png",))

    def _has_picture(self, image_id: str) -> bool:
        return image_id in self._pictures

    def _no_picture(self, image_id: str) -> str:
        stem, dot, suffix = image_id.rpartition(".")
        if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES and stem in self._pictures:
            return f"id {image_id!r} ends in a picture's suffix; write {stem!r}"
        kinds = ", ".join(PICTURE_SUFFIXES)
        return f"id {image_id!r} has no picture in {self.root / 'images'} ({kinds}); put it there"

    def image_path(self, image_id: str) -> Path:
        if image_id not in self._pictures:
            raise UserError(f"{self.root}: {self._no_picture(check_id(image_id))}")
        return self.root / "images" / self._pictures[image_id]

    def mask_path(self, image_id: str) -> Path:
        return self.root / "masks" / self._masks.get(image_id, f"{check_id(image_id)}.png")

    def has_labels(self, image_id: str) -> bool:
        if self._label_table is None:
            return (self.root / "annotations" / f"{check_id(image_id)}.xml").is_file()
        return image_id in self._label_table[1]

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        if self._label_table is None:
            if image_id not in self._xml_labels:
                path = self.root / "annotations" / f"{check_id(image_id)}.xml"
                self._xml_labels[image_id] = read_voc_xml(path, self.class_names)
            return self._xml_labels[image_id]
        path, table = self._label_table
        if image_id not in table:
            stem = image_id
            wrong = next((f"{stem}{s}" for s in PICTURE_SUFFIXES if f"{stem}{s}" in table), None)
            if wrong:
                raise UserError(f"{path}: names {wrong!r}; write the id without the suffix, {image_id!r}")
            raise UserError(f"{path}: no labels for id {image_id!r}; add it, or take the id out of the list")
        return table[image_id]

    @cached_property
    def _xml_labels(self) -> dict[str, tuple[int, ...]]:
        return {}

    @cached_property
    def _label_table(self) -> tuple[Path, dict[str, tuple[int, ...]]] | None:
        """File and content of labels.csv, else of labels.json; None where annotations/ holds XML instead."""
        index = {c: i for i, c in enumerate(self.class_names)}
        if (path := self.root / "labels.csv").is_file():
            return path, read_label_csv(path, index)
        if (path := self.root / "labels.json").is_file():
            return path, read_label_json(path, index)
        if not (self.root / "annotations").is_dir():
            raise UserError(
                f"{self.root / 'labels.csv'}: no such file, nor labels.json or annotations/; "
                "write a header 'image,labels' and a row per picture, class names separated by ';'"
            )
        return None


# ------------------------------------------------------------------------------------------- helpers


def _file_names(folder: Path) -> frozenset[str]:
    """Names in a folder by one listing; none where it does not exist."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 (names are wanted, 100,000 Paths are slow)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _stems(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Stem (NFC) -> file name for files with one of the suffixes, in any case; hidden files are left out.

    Raises:
        UserError: Two files share a stem.
    """
    found: dict[str, str] = {}
    for name in sorted(_file_names(folder)):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name.startswith(".") or suffix.lower() not in suffixes:
            continue
        stem = unicodedata.normalize("NFC", stem)
        if stem in found:
            raise UserError(
                f"{folder / name}: has the same id as {found[stem]}; rename or remove one of them"
            )
        found[stem] = name
    return found
