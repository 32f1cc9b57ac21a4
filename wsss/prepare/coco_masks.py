"""Class masks from COCO's instance annotations.

Mask value = category id, 0 background. Regions are painted by falling number of pixels, so that the smaller
one is on top where they overlap; of two equal ones, the one with the higher annotation id. A crowd region
(many objects outlined as one) takes part in that order with the value 255, ignored.
"""

import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco
from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import IGNORED, read_json, read_size, write_mask
from wsss.parallel import parallel_map
from wsss.prepare.files import names

log = logging.getLogger(__name__)


class Region(NamedTuple):
    """One annotation: polygons as float64 arrays x0 y0 x1 y1 ..., or the run lengths as the file has them."""

    number: int
    category: int
    crowd: bool
    outline: list[np.ndarray] | dict


class Picture(NamedTuple):
    image_id: str
    size: tuple[int, int]  # H, W
    regions: list[Region]


def read_pictures(path: Path) -> list[Picture]:
    """The pictures of an instances file that have annotations, by id, with their regions.

    Outlines become arrays while the file is read: Python's numbers would take four times the memory.

    Raises:
        UserError: No such file, not COCO's format, or a region that is neither polygons nor run lengths.
    """

    def compact(entry: dict) -> dict:
        outline = entry.get("segmentation")
        if isinstance(outline, list):
            entry["segmentation"] = [np.asarray(polygon, np.float64) for polygon in outline]
        elif isinstance(outline, dict) and isinstance(outline.get("counts"), list):
            outline["counts"] = np.asarray(outline["counts"], np.uint32)
        return entry

    where = ""
    try:
        content = read_json(path, object_hook=compact)
        sizes = {int(image["id"]): (int(image["height"]), int(image["width"])) for image in content["images"]}
        regions: dict[int, list[Region]] = {}
        for entry in content.pop("annotations"):
            where = f", annotation {entry.get('id')}"
            region = Region(
                int(entry["id"]), int(entry["category_id"]), bool(entry.get("iscrowd")), entry["segmentation"]
            )
            if entry["image_id"] not in sizes or not 1 <= region.category <= 254:
                raise ValueError(f"image {entry['image_id']}, category {region.category}")
            regions.setdefault(int(entry["image_id"]), []).append(region)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}{where}: not as COCO's ({type(error).__name__}: {error}); fetch the official file"
        ) from None
    return [Picture(f"{number:012d}", sizes[number], regions[number]) for number in sorted(regions)]


def make_masks(pictures: list[Picture], folder: Path, *, source: str, workers: int) -> tuple[int, int]:
    """Write ``ID.png`` of every picture; one that is there with the picture's size is kept.

    Each process gets one picture's regions at a time.

    Args:
        pictures: From ``read_pictures``; emptied, as the regions are large.
        folder: Receives the masks.
        source: The instances file, for messages.
        workers: Processes.

    Returns:
        How many masks were written, and how many outlines of fewer than three points were left out.

    Raises:
        UserError: A region that cannot be drawn.
    """
    there = {name[:-4] for name in names(folder, ".png")}
    work = functools.partial(_make, folder=folder, source=source)
    written = dropped = 0
    total = len(pictures)
    results = parallel_map(work, _emptying(pictures, there), workers=workers)
    for made, points in tqdm(results, total=total, desc="masks", unit="mask"):
        written, dropped = written + made, dropped + points
    return written, dropped


def _emptying(pictures: list[Picture], there: set[str]) -> Iterator[tuple[Picture, bool]]:
    """(picture, whether a mask of that name is there), in order."""
    pictures.reverse()
    while pictures:
        picture = pictures.pop()
        yield picture, picture.image_id in there


def _make(task: tuple[Picture, bool], folder: Path, source: str) -> tuple[int, int]:
    """Make one mask; how many were written (0 or 1), and how many outlines were left out."""
    picture, there = task
    path = folder / f"{picture.image_id}.png"
    if there and _has_picture_size(path, picture.size):
        return 0, 0
    mask, dropped = draw(picture, source)
    write_mask(path, mask)
    return 1, dropped


def _has_picture_size(path: Path, size: tuple[int, int]) -> bool:
    try:
        return read_size(path) == size
    except UserError:
        return False  # damaged: made again


def draw(picture: Picture, source: str = "annotations") -> tuple[np.ndarray, int]:
    """The class mask of a picture, uint8 (H, W), and the number of outlines left out.

    Raises:
        UserError: As ``make_masks``.
    """
    layers, dropped = [], 0
    for region in picture.regions:
        where = f"{source}, annotation {region.number}"
        runs, points = encode(region.outline, picture.size, where)
        dropped += points
        if runs is not None:
            layers.append((-int(coco.area(runs)), region.number, region, runs))
    mask = np.zeros(picture.size, np.uint8)
    for *_, region, runs in sorted(layers, key=lambda layer: layer[:2]):
        mask[coco.decode(runs) > 0] = IGNORED if region.crowd else region.category
    return mask, dropped


def encode(outline: list[np.ndarray] | dict, size: tuple[int, int], where: str) -> tuple[dict | None, int]:
    """A region as compressed run lengths, and how many outlines without area were left out.

    Args:
        outline: Polygons; or ``{"counts", "size"}``, run lengths down the columns, as numbers or compressed.
        size: (H, W) of the picture.
        where: For messages.

    Returns:
        (None, n) if nothing is left of the region.

    Raises:
        UserError: Odd numbers of coordinates, run lengths of another size, or neither form.
    """
    height, width = size
    if isinstance(outline, list):
        bad = [p for p in outline if p.ndim != 1 or len(p) % 2 or not np.isfinite(p).all()]
        if bad:
            raise UserError(f"{where}: an outline that is no list of x, y; fetch the official file")
        # two points have no area, and pycocotools would take four numbers for a box
        polygons = [p.tolist() for p in outline if len(p) >= 6]
        runs = coco.merge(coco.frPyObjects(polygons, height, width)) if polygons else None
        return runs, len(outline) - len(polygons)
    if not isinstance(outline, dict) or list(outline.get("size", ())) != [height, width]:
        found = outline.get("size") if isinstance(outline, dict) else type(outline).__name__
        raise UserError(f"{where}: run lengths of {found}, not of {[height, width]}; fetch the official file")
    counts = outline.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
        lengths = run_lengths(counts)
    else:
        lengths = (
            np.atleast_1d(np.asarray(counts, np.int64)) if isinstance(counts, (list, np.ndarray)) else None
        )
    # pycocotools does not look: with too few it returns whatever lay in memory
    if lengths is None or lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise UserError(f"{where}: run lengths do not add up to {width}x{height}; fetch the official file")
    if isinstance(counts, bytes):
        return {"counts": counts, "size": [height, width]}, 0
    return coco.frPyObjects({"counts": lengths.tolist(), "size": [height, width]}, height, width), 0


def run_lengths(counts: bytes) -> np.ndarray | None:
    """Lengths in COCO's compressed form, int64; None if the string is not of that form.

    Digits of 5 bits, the lowest first, the sign in the last; from the fourth length on, the difference from
    the length two before (``rleFrString`` of the COCO API).
    """
    if not re.fullmatch(rb"[0-o]+", counts):
        return None
    lengths: list[int] = []
    value = shift = 0
    for byte in counts:
        digit = byte - 48
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:  # more digits follow
            if shift > 50:
                return None
            continue
        if digit & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return None if shift else np.array(lengths, np.int64)
