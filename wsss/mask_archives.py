"""Archives of label maps, unpacked into a folder of <id>.png that every command takes as masks.

zip, tar (compressed or not), or a folder that a browser has unpacked already. Only PNG files are taken, by
their own names: the folders inside do not matter, and nothing can be written elsewhere.
"""

import functools
import gzip
import hashlib
import logging
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import IGNORED, read_mask
from wsss.parallel import parallel_map
from wsss.run import sha256

log = logging.getLogger(__name__)

LARGEST = 64 << 20  # bytes of one PNG: those of a VOC picture are some 10 KB
Member = tuple[str, int, Callable[[], bytes]]  # name, bytes, what reads it
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
    NotImplementedError,
)  # fmt: skip
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
    try:
        origin, others = _extract_pngs(archive, staging, data)
    except _DAMAGED as error:
        raise UserError(f"{archive}: damaged or truncated archive ({error}); fetch it again") from None
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
    for name, size, read in _members(archive):
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
        (staging / f"{stem}.png").write_bytes(read())
    return origin, others


def _members(archive: Path) -> Iterator[Member]:
    """Every PNG file."""
    if archive.is_dir():
        for path in sorted(archive.rglob("*")):
            if path.is_file() and _is_mask_name(path.name):
                yield str(path.relative_to(archive)), path.stat().st_size, path.read_bytes
    elif zipfile.is_zipfile(archive):
        yield from _zip_members(archive)
    elif tarfile.is_tarfile(archive):
        yield from _tar_members(archive)
    else:
        raise UserError(f"{archive}: neither a zip nor a tar archive; fetch it again")


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.filename.replace("\\", "/")
            if info.is_dir() or not _is_mask_name(name):
                continue
            _refuse_outside(archive, name, link=(info.external_attr >> 16) & 0o170000 == 0o120000)
            if info.flag_bits & 1:
                raise UserError(f"{archive}: is encrypted; give one without a password")
            yield name, info.file_size, functools.partial(opened.read, info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as opened:
        for info in opened:
            name = info.name.replace("\\", "/")
            if info.isdir() or not _is_mask_name(name):
                continue
            _refuse_outside(archive, name, link=not info.isfile())
            yield name, info.size, opened.extractfile(info).read
        # tarfile takes a cut or damaged header for the end, which is a block of zeros
        opened.fileobj.seek(opened.offset)
        if opened.fileobj.read(512).strip(b"\0") or opened.fileobj.tell() != opened.offset + 512:
            raise tarfile.ReadError("no end of the archive")


def _is_mask_name(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = parts and (parts[-1].startswith(".") or "__MACOSX" in parts)
    return name.lower().endswith(".png") and not hidden


def _refuse_outside(archive: Path, name: str, *, link: bool) -> None:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{archive}: the name {name} leads out of the archive; do not trust this file")
    if link:
        raise UserError(f"{archive}: {name} is a link or device, not a file; do not trust this archive")
