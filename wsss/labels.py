"""Image labels from VOC's XML, COCO's JSON, and a folder's CSV or JSON; and what may be an image id.

Every reader gives class indices, ascending, each once, and names the file (and line) of what it refuses. One
that is given a ``report`` (``wsss.errors``) calls it for each problem and goes on with what is left; without,
it raises ``UserError`` at the first.
"""

import csv
import io
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsss.errors import Report, UserError, passed_to, refuse
from wsss.io import read_bytes, read_json, read_text

# COCO's category ids run from 1 to 90 and skip ten numbers; class c (from 0) is category c + 1, as published.
COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COCO_CATEGORIES = frozenset(range(1, 91)) - frozenset(COCO_UNUSED)

Labels = dict[str, tuple[int, ...]]  # id -> class indices


def check_id(image_id: str, where: str = "image id") -> str:
    """Return an id that is safe as a file name on every system.

    Raises:
        UserError: Empty, with a path separator, a drive letter, ``..`` or control characters, or beginning
            with a dot: such an id could name a file outside the data set or the output folder.
    """
    if (
        not image_id
        or image_id.startswith(".")
        or ".." in image_id
        or re.search(r"[/\\\x00-\x1f\x7f]|^[A-Za-z]:", image_id)
    ):
        raise UserError(
            f"{where}: id {image_id!r} is not a plain file name; "
            "use a picture's name without folder and suffix"
        )
    return image_id


def class_indices(
    names: Iterable[str], index: dict[str, int], where: str, report: Report = refuse
) -> tuple[int, ...]:
    """Indices of class names, ascending, each once; every unknown one is a problem of ``where``.

    An empty ``index`` knows no name: the list of classes could not be read, which is a problem of its own.
    """
    found = set()
    for name in dict.fromkeys(unicodedata.normalize("NFC", name.strip()) for name in names):
        if name in index:
            found.add(index[name])
        elif index:
            known = ", ".join(index) if len(index) <= 20 else f"{len(index)} classes"
            report(f"{where}: unknown class {name!r} (known: {known}); correct it or add the class")
    return tuple(sorted(found))


def read_voc_xml(path: Path, class_names: tuple[str, ...], report: Report = refuse) -> tuple[int, ...]:
    """Classes of one VOC annotation: the name of every ``<object>`` directly below the root.

    Objects marked difficult or truncated count; the ``<part>`` of an object (head, hand, foot) does not.

    Problems: no such file, not XML, no annotation, names outside ``class_names``.
    """
    with passed_to(report):
        try:
            annotation = ElementTree.fromstring(read_bytes(path))
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise UserError(f"{path}: not valid XML ({error}); mend it or fetch it again") from None
        if annotation.tag != "annotation":
            raise UserError(
                f"{path}: root element <{annotation.tag}>, not VOC's <annotation>; fetch the file again"
            )
        names = [thing.findtext("name") or "" for thing in annotation.findall("object")]
        return class_indices(names, {c: i for i, c in enumerate(class_names)}, str(path), report)
    return ()


# ---------------------------------------------------------------------------------------------- COCO


def read_coco_json(path: Path, report: Report = refuse) -> Labels:
    """Classes (category id - 1) of every image of a COCO instances file, crowds included, by 12-digit id.

    Problems: no such file, not COCO's format, categories that COCO does not have.
    """

    def drop_outlines(entry: dict) -> dict:
        entry.pop("segmentation", None)  # nine tenths of the memory, not needed here
        return entry

    classes: dict[int, set[int]] = {}
    with passed_to(report):
        content = read_json(path, object_hook=drop_outlines)
        try:
            classes = {int(image["id"]): set() for image in content["images"]}
            for annotation in content["annotations"]:
                number, category = annotation["image_id"], annotation["category_id"]
                if number not in classes:
                    report(
                        f"{path}: annotation {annotation.get('id')} is of image {number!r}, which is not "
                        "among the file's images; fetch the official file"
                    )
                elif category not in _COCO_CATEGORIES:
                    report(
                        f"{path}: annotation {annotation.get('id')} has category {category!r}, "
                        "which COCO does not have; fetch the official file"
                    )
                else:
                    classes[number].add(category - 1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a COCO instances file ({type(error).__name__}: {error}); "
                "fetch the official file"
            ) from None
    return {f"{number:012d}": tuple(sorted(found)) for number, found in classes.items()}


def read_coco_labels(path: Path, instances: Path, report: Report = refuse) -> Labels:
    """Classes of every image from image_labels_{train,val}2014.json, which stands for the instances file.

    Args:
        path: ``{"source": {"file", "size", "sha256"}, "labels": {"000000000009": [50, 52], ...}}``, class
            indices (category id - 1), images without annotation included.
        instances: Where the instances file lies that it was made from, if it is still there.

    Problems: no such file, another format, ids and classes that COCO does not have; or the instances file is
    there and its size differs from the recorded one.
    """
    remedy = "delete it and run data/prepare_coco14.sh again"
    table: Labels = {}
    with passed_to(report):
        content = read_json(path)
        try:
            source, size = content["source"]["file"], content["source"]["size"]
            labels = dict(content["labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a file of image labels ({type(error).__name__}: {error}); {remedy}"
            ) from None
        if source != instances.name:
            report(f"{path}: was made from {source!r}, not from {instances.name}; {remedy}")
        if instances.is_file() and (found := instances.stat().st_size) != size:
            report(
                f"{path}: was made from a file of {size} bytes, {instances} has {found}; {remedy}, "
                "or put the official instances file there"
            )
        for image_id, classes in labels.items():
            if not re.fullmatch(r"\d{12}", image_id):
                report(f"{path}: image {image_id!r} is not a number of 12 digits; {remedy}")
            elif not _are_coco_classes(classes):
                report(f"{path}: classes of image {image_id} are {classes!r}, not COCO's; {remedy}")
            else:
                table[image_id] = tuple(sorted(set(classes)))
    return table


def _are_coco_classes(classes: object) -> bool:
    return isinstance(classes, list) and all(type(c) is int and c + 1 in _COCO_CATEGORIES for c in classes)


# -------------------------------------------------------------------------------------------- folder


def read_label_csv(path: Path, index: dict[str, int], report: Report = refuse) -> Labels:
    """Labels from ``image,labels`` rows, class names separated by ``;``.

    Problems: another header, malformed rows, bad ids, ids twice, unknown classes. A bad row of a good id
    leaves that id without the classes that cannot be told.
    """
    table: Labels = {}
    lines: dict[str, int] = {}
    header = content = None
    with passed_to(report):
        content = unicodedata.normalize("NFC", read_text(path))
    if content is None:
        return table
    for number, row in _csv_rows(path, content, report):
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in row]
        if header is None:
            header = cells
            if cells != ["image", "labels"]:
                report(f"{where}: header {','.join(row)!r}; the first line must be 'image,labels'")
            continue
        with passed_to(report):
            if len(cells) != 2:
                report(
                    f"{where}: {len(cells)} columns instead of 2; write 'image,labels', class names "
                    "separated by ';' (quoted if a name has a comma), nothing where there is no class"
                )
                table.setdefault(check_id(cells[0], where), ())
                continue
            image_id = check_id(cells[0], where)
            if image_id in lines:
                report(f"{where}: id {image_id!r} is there twice (first: line {lines[image_id]}); remove one")
                continue
            lines[image_id] = number
            names = [name for name in cells[1].split(";") if name.strip()]
            table[image_id] = class_indices(names, index, where, report)
    if header is None:
        report(f"{path}: is empty; the first line must be 'image,labels'")
    return table


def _csv_rows(path: Path, content: str, report: Report) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the rows that are not blank."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report(f"{path}, line {reader.line_num}: not valid CSV ({error}); mend this line")
            continue
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def read_label_json(path: Path, index: dict[str, int], report: Report = refuse) -> Labels:
    """Labels from ``{"id": ["class", ...], ...}``.

    Problems: another form, bad ids, ids twice, unknown classes.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            key = unicodedata.normalize("NFC", key)
            if key in found:
                report(f"{path}: id {key!r} is there twice; remove one")
            else:
                found[key] = value
        return found

    form = 'write {"id": ["class", ...], ...}'
    table: Labels = {}
    with passed_to(report):
        content = read_json(path, object_pairs_hook=unique)
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a JSON object; {form}")
        for image_id, names in content.items():
            with passed_to(report):
                check_id(image_id, str(path))
                if isinstance(names, list) and all(isinstance(n, str) for n in names):
                    table[image_id] = class_indices(names, index, f"{path}, id {image_id!r}", report)
                else:
                    table[image_id] = ()
                    report(f"{path}: labels of id {image_id!r} are not a list of names; {form}")
    return table
