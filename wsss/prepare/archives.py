"""Zip and tar archives, read one needed member after the other.

Names that lead outside, links and special files are refused where they are needed, and never followed.
"""

import contextlib
import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import atomic_write
from wsss.prepare.files import check_room, has_size

T = TypeVar("T")


class Member(NamedTuple):
    """A file in an archive: what the reader wants it for, its bytes, and how to open it."""

    wanted: object
    size: int
    open: Callable[[], BinaryIO]


@contextlib.contextmanager
def damaged_is_user_error(path: Path) -> Iterator[None]:
    """Turn what the archive readers raise on damage into a UserError that names the archive."""
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
        NotImplementedError,  # zip: a compression or encryption unknown to Python
    ) as error:  # fmt: skip
        raise UserError(f"{path}: damaged or incomplete archive ({error}); fetch it again") from None


def members(path: Path, wanted: Callable[[str], T | None]) -> Iterator[Member]:
    """The files of an archive that are wanted, in its order; use within ``damaged_is_user_error``.

    Args:
        path: Zip, or tar of any compression; told by content.
        wanted: Name of a member, with "/" between folders, to what it is wanted for; None: not needed.

    Raises:
        UserError: Not an archive; a wanted member with an unsafe name, or that is no plain file.
    """
    if zipfile.is_zipfile(path):
        yield from _zip_members(path, wanted)
    elif tarfile.is_tarfile(path):
        yield from _tar_members(path, wanted)
    else:
        raise UserError(
            f"{path}: neither a zip nor a tar archive, or its beginning is damaged; fetch it again"
        )


def _zip_members(path: Path, wanted: Callable[[str], T | None]) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG) and not info.is_dir()
            if info.is_dir() or (use := _use(path, info.filename, wanted, plain)) is None:
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path}: {info.filename!r} is encrypted; unpack it and give the folder")
            yield Member(use, info.file_size, lambda info=info: archive.open(info))


def _tar_members(path: Path, wanted: Callable[[str], T | None]) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isdir() or (use := _use(path, info.name, wanted, info.isreg())) is None:
                continue
            yield Member(use, info.size, lambda info=info: archive.extractfile(info))


def _use(path: Path, name: str, wanted: Callable[[str], T | None], plain: bool) -> T | None:
    """What a member is wanted for; UserError if it is, and is unsafe."""
    parts = re.split(r"[/\\]", name)
    use = wanted("/".join(part for part in parts if part != "."))
    if use is None:
        return None
    if not plain:
        raise UserError(f"{path}: member {name!r} is a link or special file; fetch the official archive")
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{path}: member {name!r} leads outside its folder; fetch the official archive")
    return use


def unpack(path: Path, target: Callable[[str], Path | None], *, desc: str) -> list[Path]:
    """Write the needed files of an archive, each atomically; one that is there with its size is left.

    Args:
        path: The archive.
        target: Name of a member to the file to write; None: not needed.
        desc: Of the progress bar.

    Returns:
        All files that were needed, those left as they were included.

    Raises:
        UserError: A damaged archive, an unsafe member, or too little space.
    """
    with damaged_is_user_error(path):
        needed = {member.wanted: member.size for member in members(path, target)}
        missing = {file for file, size in needed.items() if not has_size(file, size)}
        if missing:
            total = sum(needed[file] for file in missing)
            check_room(next(iter(missing)).parent, total, f"unpacking {path.name}")
            chosen = members(path, lambda name: file if (file := target(name)) in missing else None)
            for member in tqdm(chosen, total=len(missing), desc=desc, unit="file"):
                with (
                    member.open() as source,
                    atomic_write(member.wanted) as temporary,
                    temporary.open("wb") as written,
                ):
                    shutil.copyfileobj(source, written, 1 << 20)  # both readers raise where bytes are missing
    return list(needed)
