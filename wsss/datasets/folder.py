"""Own data: a plain folder of pictures, labels and lists."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from wsss.datasets.base import PICTURE_SUFFIXES, Dataset, file_entries, file_names, stems
from wsss.errors import Report, UserError, passed_to, refuse
from wsss.io import read_numbered_lines
from wsss.labels import Labels, check_id, read_label_csv, read_label_json, read_voc_xml


@dataclass(frozen=True)
class Folder(Dataset):
    """Own data: ``classes.txt``, ``images/``, labels, lists as ``NAME.txt``, optionally ``masks/``."""

    name: ClassVar[str] = "folder"

    @classmethod
    def at(cls, root: Path, report: Report = refuse) -> "Folder":
        if not (root / "images").is_dir():
            report(f"{root / 'images'}: no such folder; put the pictures there")
        found = cls(root, report)
        with passed_to(report):
            found._check_class_file()
        return found

    def _check_class_file(self) -> Path:
        """classes.txt; UserError where there is none."""
        path = self.root / "classes.txt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; write the foreground classes, one per line")
        return path

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        path, lines = self.root / "classes.txt", []
        with passed_to(self.report):
            lines = read_numbered_lines(self._check_class_file())
            if not 1 <= len(lines) <= 254:
                self.report(f"{path}: holds {len(lines)} classes; write 1 to 254 names, one per line")
        first: dict[str, int] = {}
        for number, line in lines:
            where = f"{path}, line {number}"
            if line in first:
                self.report(f"{where}: class {line!r} is there twice (first: line {first[line]}); remove one")
            if ";" in line:
                self.report(f"{where}: class {line!r} holds ';', which separates labels; rename it")
            if line.lower() == "background":
                self.report(f"{where}: background is class 0 by itself; list the foreground classes only")
            first.setdefault(line, number)
        return tuple(line for _, line in lines)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        names = set(self._lists)
        return (*(s for s in ("train", "val") if s in names), *sorted(names - {"train", "val"}), "all")

    @cached_property
    def _lists(self) -> dict[str, Path]:
        lists = {}
        for name in sorted(file_names(self.root)):
            if name.endswith(".txt") and not name.startswith(".") and name != "classes.txt":
                lists[unicodedata.normalize("NFC", name[:-4])] = self.root / name
        if path := lists.pop("all", None):
            self.report(f"{path}: 'all' means every picture of images/; rename this list")
        return lists

    def missing_split(self, split: str) -> str:
        return f"write {self.root / f'{split}.txt'}, one id (picture name without its suffix) per line"

    def wants_labels(self, split: str) -> bool:
        return split != "all" or self.splits == ("all",)

    def wants_masks(self, split: str) -> bool:
        return split != "all"

    def unused_labels(self) -> list[str]:
        return sorted(set(self._label_table[1]) - set(self.pictures)) if self._label_table else []

    def _entries(self, split: str) -> Iterable[tuple[str, str]]:
        if split == "all":
            return [(str(self.root / self.pictures[i]), i) for i in sorted(self.pictures)]
        return file_entries(self._lists[split])

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        found = stems(self.root / "images", PICTURE_SUFFIXES, self.report)
        return {image_id: f"images/{name}" for image_id, name in found.items()}

    def _no_picture(self, image_id: str) -> str:
        stem, dot, suffix = image_id.rpartition(".")
        if dot and f".{suffix.lower()}" in PICTURE_SUFFIXES and stem in self.pictures:
            return f"id {image_id!r} ends in a picture's suffix; write {stem!r}"
        kinds = ", ".join(PICTURE_SUFFIXES)
        return f"id {image_id!r} has no picture in {self.root / 'images'} ({kinds}); put it there"

    def has_labels(self, image_id: str) -> bool:
        if self._label_table is None:
            return (self.root / "annotations" / f"{check_id(image_id)}.xml").is_file()
        return image_id in self._label_table[1]

    def label_indices(self, image_id: str) -> tuple[int, ...]:
        if self._label_table is None:
            if image_id not in self._xml_labels:
                path = self.root / "annotations" / f"{check_id(image_id)}.xml"
                self._xml_labels[image_id] = read_voc_xml(path, self.class_names, self.report)
            return self._xml_labels[image_id]
        path, table = self._label_table
        if image_id not in table:
            wrong = next((f"{image_id}{s}" for s in PICTURE_SUFFIXES if f"{image_id}{s}" in table), None)
            if wrong:
                self.report(f"{path}: names {wrong!r}; write the id without the suffix, {image_id!r}")
            else:
                self.report(f"{path}: no labels for id {image_id!r}; add it, or take the id out of the list")
            return ()
        return table[image_id]

    @cached_property
    def _xml_labels(self) -> Labels:
        return {}

    @cached_property
    def _label_table(self) -> tuple[Path, Labels] | None:
        """File and content of labels.csv, else of labels.json; None where annotations/ holds XML instead."""
        index = {c: i for i, c in enumerate(self.class_names)}
        if (path := self.root / "labels.csv").is_file():
            return path, read_label_csv(path, index, self.report)
        if (path := self.root / "labels.json").is_file():
            return path, read_label_json(path, index, self.report)
        if (self.root / "annotations").is_dir():
            return None
        path = self.root / "labels.csv"
        self.report(
            f"{path}: no such file, nor labels.json or annotations/; "
            "write a header 'image,labels' and a row per picture, class names separated by ';'"
        )
        return path, {}
