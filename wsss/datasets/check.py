"""Check a data set: every problem of its lists, labels, pictures and masks, one per line, and what it holds.

    python -m wsss.datasets check --dataset voc12 --data-path DIR

Writes nothing. Ends with a table of the lists and the number of pictures per class. Exit status 2 if there is
a problem; what may be meant so (pictures in no list, a class without picture) is a note.
"""

import dataclasses
import logging
import shlex
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from wsss.config import VOC_MASKS, DataSource, option, run_command
from wsss.datasets import Dataset, load_dataset
from wsss.datasets.files import check_files
from wsss.errors import UserError
from wsss.parallel import CPUS
from wsss.tables import markdown_table

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataSource):
    partial: bool = option(False, "the data set is a part of the official one: other counts are only noted")
    decode: bool = option(False, "read every pixel of the pictures, not only their headers")
    workers: int = option(CPUS, "processes; 0 computes in the command's own", minimum=0)


@dataclasses.dataclass(frozen=True)
class ListFacts:
    """What was found of one list."""

    pictures: int  # ids of which the picture is there
    expected: int | None  # official number; None: there is none
    labelled: int  # ids whose labels can be read
    masked: dict[str, int]  # by folder of masks
    classes: Counter[int]  # pictures per class index


@dataclasses.dataclass(frozen=True)
class Checked:
    """Everything that ``check_dataset`` found.

    Attributes:
        problems: One line each, in a fixed order, each once.
        notes: Lines worth knowing that may be meant so.
        lists: By name.
        class_names: Foreground.
        pictures, masks: How many different ones were opened.
    """

    problems: list[str]
    notes: list[str]
    lists: dict[str, ListFacts]
    class_names: tuple[str, ...]
    pictures: int
    masks: int

    def table(self) -> list[str]:
        """Lines of a Markdown table: what each list has; none without a list."""
        if not self.lists:
            return []
        folders = next((list(facts.masked) for facts in self.lists.values()), [])
        heads = ["with masks"] if len(folders) <= 1 else [f"in {folder}" for folder in folders]
        rows = [("list", "pictures", "expected", "with labels", *heads)]
        for name, facts in self.lists.items():
            expected = "-" if facts.expected is None else f"{facts.expected:,}"
            counts = (facts.labelled, *(facts.masked[folder] for folder in folders))
            rows.append((name, f"{facts.pictures:,}", expected, *(f"{n:,}" for n in counts)))
        return markdown_table(rows)

    def histogram(self) -> list[str]:
        """Lines of a Markdown table: pictures per class of every list that has labels.

        The numbers that COCO gives to no category have a row only if a picture is labelled with them. Without
        any label there are no lines.
        """
        lists = {name: facts for name, facts in self.lists.items() if facts.labelled}
        if not lists:
            return []
        rows = [("pictures per class", *lists)]
        for k, name in enumerate(self.class_names):
            counts = [facts.classes[k] for facts in lists.values()]
            if any(counts) or not name.startswith("unused_"):
                rows.append((name, *(f"{n:,}" for n in counts)))
        return markdown_table(rows)


def check_dataset(
    kind: str, root: Path, *, partial: bool = False, decode: bool = False, workers: int = 0
) -> Checked:
    """Read everything there is of a data set and collect all problems.

    Args:
        kind, root: As for ``load_dataset``.
        partial: Other counts than the official ones are notes.
        decode: Read all pixels of the pictures; their headers only otherwise. Masks are always read.
        workers: Processes for pictures and masks; 0 computes in this one.

    Raises:
        UserError: No such folder or layout, so that there is nothing to check.
    """
    problems: dict[str, None] = {}  # in order, each once
    notes: dict[str, None] = {}
    spec = load_dataset(kind, root, report=problems.setdefault)
    variants = mask_variants(spec)
    names = spec.class_names
    ids = {split: spec.image_ids(split) for split in spec.splits}
    _check_counts(spec, variants, ids, problems, notes, partial=partial)
    labels = _check_labels(spec, ids, problems, notes)
    _check_missing_masks(variants, ids, problems)
    opened = check_files(
        spec, variants, list(dict.fromkeys(i for found in ids.values() for i in found)), labels,
        report=problems.setdefault, decode=decode, workers=workers,
    )  # fmt: skip
    lists = {
        split: ListFacts(
            pictures=sum(i in spec.pictures for i in found),
            expected=spec.sizes.get(split),
            labelled=sum(i in labels for i in found),
            masked={name: sum(i in v.masks for i in found) for name, v in variants.items()},
            classes=Counter(c for i in found for c in labels.get(i, ())),
        )
        for split, found in ids.items()
    }
    notes |= _list_notes(spec, variants, ids) | _class_notes(spec, ids, labels, lists)
    return Checked(list(problems), list(notes), lists, names, *opened)


def mask_variants(spec: Dataset) -> dict[str, Dataset]:
    """The data set with each folder of true masks that it has, by the folder's name."""
    if spec.name != "voc12":
        return {spec.mask_folder: spec}
    there = [name for name in VOC_MASKS if (spec.root / name).is_dir()]
    return {name: dataclasses.replace(spec, mask_folder=name) for name in there or VOC_MASKS[:1]}


def _check_counts(
    spec: Dataset, variants: dict[str, Dataset], ids: dict[str, list[str]],
    problems: dict, notes: dict, *, partial: bool,
) -> None:  # fmt: skip
    """Compare with the official numbers. A missing test list is only a note: most trees have none."""
    differences = notes if partial else problems
    remedy = "" if partial else "; complete the data set, or give --partial if it is a part on purpose"
    for split, size in spec.sizes.items():
        if split not in ids:
            line = f"{spec.root}: no list {split!r} of {size:,} pictures; {spec.missing_split(split)}"
            (notes if split == "test" else differences).setdefault(line)
        elif len(ids[split]) != size:
            line = f"{spec.root}: pictures in list {split!r}: {len(ids[split]):,}, officially {size:,}"
            differences.setdefault(line + remedy)
    for folder, count in spec.mask_counts.items():
        if folder in variants and len(variants[folder].masks) != count:
            line = f"{spec.root / folder}: masks in it: {len(variants[folder].masks):,}, officially {count:,}"
            differences.setdefault(line + remedy)


def _check_labels(
    spec: Dataset, ids: dict[str, list[str]], problems: dict, notes: dict
) -> dict[str, tuple[int, ...]]:
    """Class indices of every id whose labels can be read."""
    labels: dict[str, tuple[int, ...]] = {}
    read = set()
    needed = {spec.train_split, spec.cam_split, spec.val_split}
    for split, found in ids.items():
        there = {i for i in found if spec.has_labels(i)}
        wanted = spec.wants_labels(split)
        if found and not there and wanted:
            line = f"{spec.root}: list {split!r} of {len(found):,} pictures has no labels"
            (problems if split in needed else notes).setdefault(f"{line}; it can be predicted only")
            continue
        todo = [i for i in found if i not in read and (i in there or (wanted and _exists(spec, i)))]
        read.update(todo)
        for image_id in tqdm(todo, desc=f"labels of {split}", unit="img", disable=not todo):
            before = len(problems)
            indices = spec.label_indices(image_id)
            if image_id in there and len(problems) == before:
                labels[image_id] = indices
    return labels


def _check_missing_masks(variants: dict[str, Dataset], ids: dict[str, list[str]], problems: dict) -> None:
    seen = set()
    for spec in variants.values():
        for split, found in ids.items():
            without = [spec.mask_path(i) for i in found if i not in spec.masks and _exists(spec, i)]
            there = sum(i in spec.masks for i in found)
            if not there or not spec.wants_masks(split):
                continue
            have = f"{there:,} of the {there + len(without):,} pictures of {split} have one"
            for path in without:
                if path not in seen:
                    seen.add(path)
                    problems.setdefault(f"{path}: no such mask, but {have}; put it there")


def _exists(spec: Dataset, image_id: str) -> bool:
    """Whether labels and masks of an id may be missed: not without its picture, which is a problem itself."""
    return image_id in spec.pictures or not spec.pictures


def _some(things: list[str]) -> str:
    """How many, and the first three."""
    return f"{len(things):,} ({', '.join(things[:3])}{', ...' if len(things) > 3 else ''})"


def _list_notes(spec: Dataset, variants: dict[str, Dataset], ids: dict[str, list[str]]) -> dict[str, None]:
    """What is in no list, or in two that should not share it."""
    listed = {i for split, found in ids.items() if split != "all" for i in found}
    notes: dict[str, None] = {}
    for split in ("train", "val"):
        if split not in ids and split not in spec.sizes:
            notes[f"{spec.root}: no list {split!r}; {spec.missing_split(split)}"] = None
    unlisted = sorted(set(spec.pictures) - listed)
    if unlisted and listed:
        notes[f"pictures in no list: {_some(unlisted)}"] = None
    if unused := spec.unused_labels():
        notes[f"labels without a picture: {_some(unused)}"] = None
    for name, variant in variants.items():
        extra = sorted(set(variant.masks) - (listed or set(spec.pictures)))
        if extra:
            notes[f"{name}: masks of pictures in no list: {_some(extra)}"] = None
    if both := sorted(set(ids.get(spec.train_split, ())) & set(ids.get(spec.val_split, ()))):
        line = f"ids in both {spec.train_split} and {spec.val_split}: {_some(both)}"
        notes[f"{line}; scores on the second are not of unseen pictures"] = None
    return notes


def _class_notes(
    spec: Dataset, ids: dict[str, list[str]], labels: dict[str, tuple[int, ...]], lists: dict[str, ListFacts]
) -> dict[str, None]:
    """Pictures without class, and classes without picture in the training list."""
    notes: dict[str, None] = {}
    for split in lists:
        empty = [i for i in ids[split] if labels.get(i) == ()]
        if empty and spec.wants_labels(split):
            notes[f"{split}: pictures without a class: {_some(empty)}"] = None
    if (facts := lists.get(spec.train_split)) and facts.labelled:
        none = [
            n for k, n in enumerate(spec.class_names) if not facts.classes[k] and not n.startswith("unused_")
        ]
        if none:
            notes[f"{spec.train_split}: classes without a picture: {_some(none)}"] = None
    return notes


def main(config: Config) -> None:
    found = check_dataset(
        config.dataset, config.data_path,
        partial=config.partial, decode=config.decode, workers=config.workers,
    )  # fmt: skip
    for line in (*found.problems, *(f"note: {note}" for note in found.notes)):
        log.info(line)
    for table in (found.table(), found.histogram()):
        for line in ("", *table) if table else ():
            log.info(line)
    log.info("")
    how = "read in full" if config.decode else "by their headers; --decode reads all pixels"
    log.info("checked %s pictures (%s) and %s masks", f"{found.pictures:,}", how, f"{found.masks:,}")
    if found.problems:
        many = f"{len(found.problems):,} problems" if len(found.problems) > 1 else "1 problem"
        raise UserError(f"{many} in {config.data_path}, listed above; mend them and check again")
    log.info("no problem in %s", config.data_path)
    words = ["bash", "scripts/all.sh", config.dataset, str(config.data_path), f"runs/{config.dataset}"]
    log.info("next: %s", shlex.join(words))


def run(argv: list[str] | None = None) -> None:
    run_command(main, Config, argv, prog="wsss.datasets.check", description=__doc__)


if __name__ == "__main__":
    run()
