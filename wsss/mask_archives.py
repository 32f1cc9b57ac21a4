"""Archives of label maps, unpacked into a folder of <id>.png that every command takes as masks.

zip, tar (compressed or not), or a folder that a browser has unpacked already. Only PNG files are taken, by
their own names: the folders inside do not matter, and nothing can be written elsewhere.
"""

import functools
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import IGNORED, read_mask
from wsss.parallel import parallel_map
from wsss.prepare.archives import Member, damaged_is_user_error, members
from wsss.run import sha256

log = logging.getLogger(__name__)

LARGEST = 64 << 20  # bytes of one PNG: those of a VOC picture are some 10 KB
_IDS = {"voc12": re.compile(r"\d{4}_\d{6}"), "coco14": re.compile(r"\d{12}")}


class Unpacked(NamedTuple):
    files: int
    content_sha256: str  # of names and contents, whatever archive they came in


def unpack_masks(archive: Path, folder: Path, *, data: str, num_classes: int, workers: int = 0) -> Unpacked:
    """Unpack an archive of masks into ``folder``/ID.png, all of them or none.

    Of COCO's names the prefix ``COCO_train2014_`` or ``COCO_val2014_`` is removed. PNG files that are not
    named like a picture of the data are left out and counted.

    Args:
        archive: zip, tar, tar.gz, ..., recognised by content, or a folder.
        folder: Must not exist.
        data: "voc12" or "coco14".
        num_classes: Background included: values are below it or 255.
        workers: Processes for the check.

    Raises:
        UserError: Not an archive, damaged, without masks, two masks of one picture, a name that leads out of
            the archive, a link, or a mask that is none of the data.
    """
    staging = folder.with_name(f".{folder.name}.incoming")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _extract(archive, staging, data)
        unpacked = check_masks_folder(staging, archive, num_classes=num_classes, workers=workers)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return unpacked


def check_masks_folder(folder: Path, source: Path, *, num_classes: int, workers: int = 0) -> Unpacked:
    """Read every PNG of a folder as a mask.

    Args:
        source: Named in errors.

    Raises:
        UserError: A file is damaged, no mask, or holds a value that is neither a class nor 255.
    """
    paths = sorted(folder.glob("*.png"))
    check = functools.partial(_check_values, source=source, num_classes=num_classes)
    results = parallel_map(check, paths, workers=workers)
    for _ in tqdm(results, total=len(paths), desc=f"checking {source.name}", unit="mask"):
        pass
    return Unpacked(len(paths), content_hash(folder))


def content_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of a folder's PNG files."""
    paths = sorted(folder.glob("*.png"))
    lines = (f"{path.name} {sha256(path)}\n" for path in tqdm(paths, desc="hashing", unit="mask", delay=5))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_values(path: Path, source: Path, num_classes: int) -> None:
    try:
        mask = read_mask(path)
    except UserError as error:  # the folder's own name is gone when the user reads it
        raise UserError(f"{source}: {str(error).replace(str(path), path.name)}") from None
    wrong = mask[(mask >= num_classes) & (mask != IGNORED)]
    if wrong.size:
        raise UserError(
            f"{source}: {path.name} holds the value {wrong.max()}, the classes with background end at "
            f"{num_classes - 1}; give the archive of this data set"
        )


def _extract(archive: Path, staging: Path, data: str) -> None:
    with damaged_is_user_error(archive):
        origin, others = _extract_pngs(archive, staging, data)
    if not origin:
        seen = f" (its PNG files: {', '.join(others[:3])}, ...)" if others else ""
        raise UserError(
            f"{archive}: holds no mask named like a picture of {data}{seen}; give the masks' archive"
        )
    if others:
        log.info("%s: left out %d PNG files that no picture is named like, first %s",
                 archive, len(others), others[0])  # fmt: skip


def _extract_pngs(archive: Path, staging: Path, data: str) -> tuple[dict[str, str], list[str]]:
    """Write the masks; returns id -> name in the archive, and the names that were left out."""
    origin, others = {}, []
    for name, size, open_member in _pngs(archive):
        stem = PurePosixPath(name).stem
        if data == "coco14":
            stem = re.sub(r"^COCO_(train|val)2014_", "", stem)
        if not _IDS[data].fullmatch(stem):
            others.append(name)
            continue
        if stem in origin:
            raise UserError(f"{archive}: holds two masks of {stem}, {origin[stem]} and {name}; give only one")
        if size > LARGEST:
            raise UserError(f"{archive}: {name} has {size} bytes, too many for a mask; fetch it again")
        origin[stem] = name
        with open_member() as file:
            (staging / f"{stem}.png").write_bytes(file.read())
    return origin, others


def _pngs(archive: Path) -> Iterator[Member]:
    """Every PNG file of an archive or a folder; each is wanted by its name."""
    if not archive.is_dir():
        yield from members(archive, lambda name: name if _is_mask_name(name) else None)
        return
    for path in sorted(archive.rglob("*")):
        if path.is_file() and _is_mask_name(path.name):
            yield Member(
                str(path.relative_to(archive)), path.stat().st_size, functools.partial(path.open, "rb")
            )


def _is_mask_name(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = parts and (parts[-1].startswith(".") or "__MACOSX" in parts)
    return name.lower().endswith(".png") and not hidden
