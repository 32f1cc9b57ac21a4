"""Image labels from VOC's XML, COCO's JSON, and a folder's CSV or JSON; and what may be an image id.

Every reader gives class indices, ascending, each once, and names the file (and line) of what it refuses.
"""

import csv
import io
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from wsss.errors import UserError
from wsss.io import read_bytes, read_json, read_text

# COCO's category ids run from 1 to 90 and skip ten numbers; class c (from 0) is category c + 1, as published.
COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


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


def class_indices(names: Iterable[str], index: dict[str, int], where: str) -> tuple[int, ...]:
    """Indices of class names, ascending, each once; UserError beginning with ``where`` on an unknown one."""
    found = set()
    for name in (unicodedata.normalize("NFC", name.strip()) for name in names):
        if name not in index:
            known = ", ".join(index) if len(index) <= 20 else f"{len(index)} classes"
            raise UserError(f"{where}: unknown class {name!r} (known: {known}); correct it or add the class")
        found.add(index[name])
    return tuple(sorted(found))


def read_voc_xml(path: Path, class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Classes of one VOC annotation: the name of every ``<object>`` directly below the root.

    Objects marked difficult or truncated count; the ``<part>`` of an object (head, hand, foot) does not.

    Raises:
        UserError: No such file, not XML, no annotation, or a name outside ``class_names``.
    """
    try:
        annotation = ElementTree.fromstring(read_bytes(path))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not valid XML ({error}); mend it or fetch it again") from None
    if annotation.tag != "annotation":
        raise UserError(
            f"{path}: root element <{annotation.tag}>, not VOC's <annotation>; fetch the file again"
        )
    names = [thing.findtext("name") or "" for thing in annotation.findall("object")]
    return class_indices(names, {c: i for i, c in enumerate(class_names)}, str(path))


def read_coco_json(path: Path) -> dict[str, tuple[int, ...]]:
    """Classes (category id - 1) of every image of a COCO instances file, crowds included, by 12-digit id.

    Raises:
        UserError: No such file, not COCO's format, or a category that COCO does not have.
    """

    def drop_outlines(entry: dict) -> dict:
        entry.pop("segmentation", None)  # nine tenths of the memory, not needed here
        return entry

    content = read_json(path, object_hook=drop_outlines)
    valid = set(range(1, 91)) - set(COCO_UNUSED)
    try:
        classes: dict[int, set[int]] = {int(image["id"]): set() for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["category_id"] not in valid:
                raise UserError(
                    f"{path}: annotation {annotation.get('id')} has category {annotation['category_id']!r}, "
                    "which COCO does not have; fetch the official file"
                )
            classes[annotation["image_id"]].add(annotation["category_id"] - 1)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a COCO instances file ({type(error).__name__}: {error}); fetch the official file"
        ) from None
    return {f"{number:012d}": tuple(sorted(found)) for number, found in classes.items()}


def read_label_csv(path: Path, index: dict[str, int]) -> dict[str, tuple[int, ...]]:
    reader = csv.reader(io.StringIO(unicodedata.normalize("NFC", read_text(path)), newline=""), strict=True)
    table: dict[str, tuple[int, ...]] = {}
    lines: dict[str, int] = {}
    header = None
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = cells
                if cells != ["image", "labels"]:
                    raise UserError(
                        f"{where}: header {','.join(row)!r}; the first line must be 'image,labels'"
                    )
                continue
            if len(cells) != 2:
                raise UserError(
                    f"{where}: {len(cells)} columns instead of 2; write 'image,labels', class names "
                    "separated by ';' (quoted if a name has a comma), nothing where there is no class"
                )
            image_id = check_id(cells[0], where)
            if image_id in table:
                raise UserError(
                    f"{where}: id {image_id!r} is there twice (first: line {lines[image_id]}); remove one"
                )
            lines[image_id] = reader.line_num
            names = [name for name in cells[1].split(";") if name.strip()]
            table[image_id] = class_indices(names, index, where)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error}); mend this line") from None
    if header is None:
        raise UserError(f"{path}: is empty; the first line must be 'image,labels'")
    return table


def read_label_json(path: Path, index: dict[str, int]) -> dict[str, tuple[int, ...]]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            key = unicodedata.normalize("NFC", key)
            if key in found:
                raise UserError(f"{path}: id {key!r} is there twice; remove one")
            found[key] = value
        return found

    content = read_json(path, object_pairs_hook=unique)
    form = 'write {"id": ["class", ...], ...}'
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object; {form}")
    table = {}
    for image_id, names in content.items():
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UserError(f"{path}: labels of id {image_id!r} are not a list of names; {form}")
        table[check_id(image_id, str(path))] = class_indices(names, index, f"{path}, id {image_id!r}")
    return table
