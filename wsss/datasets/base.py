"""What every layout offers, and the listing of folders."""

import abc
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsss.errors import Report, UserError, passed_to, refuse
from wsss.io import read_numbered_lines
from wsss.labels import check_id

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


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
    found = {stem: path / name for stem, name in stems(path, PICTURE_SUFFIXES).items()}
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
        report: Gets every problem of what is read. ``refuse`` raises at the first. With another one, methods
            give what is left: lists without bad ids, labels without unknown classes.
        name: The layout, as given to ``load_dataset``.
        train_split: List that stage 1 trains on.
        cam_split: List on which CAMs are scored.
        val_split: List for validation.
        sizes: Pictures per list in the official files.
        mask_counts: Masks per folder in the official files.
    """

    root: Path
    report: Report = field(default=refuse, compare=False, repr=False)
    name: ClassVar[str]
    train_split: ClassVar[str] = "train"
    cam_split: ClassVar[str] = "train"
    val_split: ClassVar[str] = "val"
    sizes: ClassVar[Mapping[str, int]] = {}
    mask_counts: ClassVar[Mapping[str, int]] = {}

    @classmethod
    @abc.abstractmethod
    def at(cls, root: Path, report: Report = refuse) -> "Dataset":
        """The data set at ``root``; a problem if it lacks what the layout always has."""

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

    @property
    @abc.abstractmethod
    def pictures(self) -> Mapping[str, str]:
        """Id -> path below ``root``, of every picture there is."""

    def image_path(self, image_id: str) -> Path:
        """The picture of an id; UserError if there is none."""
        if image_id not in self.pictures:
            raise UserError(f"{self.root}: {self._no_picture(check_id(image_id))}")
        return self.root / self.pictures[image_id]

    @property
    def mask_folder(self) -> str:
        """Name of the folder of true masks below ``root``."""
        return "masks"

    @cached_property
    def masks(self) -> Mapping[str, str]:
        """Id -> name in ``mask_folder``, of every mask there is."""
        return stems(self.root / self.mask_folder, (".png",), self.report)

    def mask_path(self, image_id: str) -> Path:
        """Where the mask of an id is, or would be."""
        return self.root / self.mask_folder / self.masks.get(image_id, f"{check_id(image_id)}.png")

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
        return all(i in self.masks for i in self.image_ids(split))

    def check_image_labels(self, split: str) -> int:
        """Read the labels of every id of a list, so that a run fails at its start and not in the middle.

        Returns:
            How many pictures have no class at all.

        Raises:
            UserError: As ``image_ids`` and ``labels``.
        """
        return sum(not self.label_indices(i) for i in self.image_ids(split))

    # --------------------------------------------------------------- what a complete data set has

    def wants_labels(self, split: str) -> bool:
        """Whether pictures of the list should have labels."""
        return True

    def wants_masks(self, split: str) -> bool:
        """Whether, where one picture of the list has a mask, all should."""
        return True

    def unused_labels(self) -> list[str]:
        """Ids that a file of labels names and that have no picture."""
        return []

    def missing_split(self, split: str) -> str:
        """What to do about a list that is not among ``splits``."""
        return "choose one of these or add the list"

    # ---------------------------------------------------------------------------- for the layouts

    @cached_property
    def _ids_of(self) -> dict[str, list[str]]:
        return {}

    @abc.abstractmethod
    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        """(where it stands, id) of a list that is among ``splits``."""

    @abc.abstractmethod
    def _no_picture(self, image_id: str) -> str:
        """That an id has no picture, and the remedy."""

    def _read_split(self, split: str) -> list[str]:
        entries: Iterable[tuple[str, str]] | None = None
        with passed_to(self.report):
            if split.endswith(".txt"):
                entries = file_entries(Path(split))
            elif split in self.splits:
                entries = self._entries(split)
            else:
                raise UserError(
                    f"{self.root}: has no list {split!r} (there are: {', '.join(self.splits) or 'none'}); "
                    f"{self.missing_split(split)}"
                )
        if entries is None:
            return []
        seen: dict[str, str] = {}
        for where, image_id in entries:
            with passed_to(self.report):
                check_id(image_id, where)
                if image_id in seen:
                    raise UserError(
                        f"{where}: id {image_id!r} is there twice (first: {seen[image_id]}); remove one"
                    )
                seen[image_id] = where
                if self.pictures and image_id not in self.pictures:
                    raise UserError(f"{where}: {self._no_picture(image_id)}, or take the id out of the list")
        if seen and not self.pictures:  # one line, not one per id
            problem = self._no_picture(next(iter(seen)))
            self.report(f"{self.root}: no picture at all, of {len(seen)} in list {split!r}: {problem}")
        if not seen:
            remedy = "write one id per line" if split.endswith(".txt") else self.missing_split(split)
            self.report(f"{self.root}: list {split!r} is empty; {remedy}")
        return list(seen)


def file_entries(path: Path) -> list[tuple[str, str]]:
    """(file and line number, line) of the lines of a file that are not blank."""
    return [(f"{path}, line {number}", line) for number, line in read_numbered_lines(path)]


def file_names(folder: Path) -> frozenset[str]:
    """Names in a folder by one listing; none where it does not exist."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 (names are wanted, 100,000 Paths are slow)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def stems(folder: Path, suffixes: tuple[str, ...], report: Report = refuse) -> dict[str, str]:
    """Stem (NFC) -> file name for files with one of the suffixes, in any case; hidden files are left out.

    Two files that share a stem are a problem.
    """
    found: dict[str, str] = {}
    for name in sorted(file_names(folder)):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name.startswith(".") or suffix.lower() not in suffixes:
            continue
        stem = unicodedata.normalize("NFC", stem)
        if stem in found:
            report(f"{folder / name}: has the same id as {found[stem]}; rename or remove one of them")
        else:
            found[stem] = name
    return found
