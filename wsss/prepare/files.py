"""What the preparation starts from and where it puts it: found, fetched, verified, linked or copied."""

import errno
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from wsss import fetch
from wsss.errors import UserError
from wsss.io import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

DEPTH = 5  # levels below --from that are looked at: train_val/VOCdevkit/VOC2012 and the like
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
GB = 1e9
RECORD = "prepared.json"


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        name: Its file name.
        urls: Addresses, tried in this order.
        size: Bytes; for an archive whose size is not known, ``about`` holds an estimate.
        sha256, md5: Hex digests, where they are known.
        unpacked: Bytes of what is needed out of it, an upper estimate.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    about: int = 0
    unpacked: int = 0

    def verify(self, path: Path) -> None:
        """UserError if the file is not this archive."""
        log.info("%s: checking size and hash", path)
        fetch.verify(path, size=self.size, sha256=self.sha256, md5=self.md5)


@dataclass(frozen=True)
class Found:
    """What lies below the folders of ``--from``: shallow ones first, then by name."""

    folders: tuple[Path, ...]
    files: tuple[Path, ...]

    def file(self, name: str) -> Path | None:
        """The first file of that name."""
        return next((path for path in self.files if path.name == name), None)


def search(roots: Iterable[Path] | None, *, leave_out: Iterable[Path]) -> Found:
    """Folders, archives and JSON files in ``roots``, ``DEPTH`` levels deep; hidden ones are left out.

    Args:
        roots: Folders, or archives themselves.
        leave_out: Folders that are being made: what lies there is no source.

    Raises:
        UserError: One of ``roots`` does not exist.
    """
    folders, files, seen = [], [], {path.resolve() for path in leave_out}
    level = []
    for root in roots or ():
        if not root.exists():
            raise UserError(f"{root}: no such file or folder; give --from what holds the archives or folders")
        (level if root.is_dir() else files).append(root)
    for _ in range(DEPTH + 1):
        below = []
        for folder in level:
            if (real := folder.resolve()) in seen:
                continue  # a link back to where we were
            seen.add(real)
            folders.append(folder)
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    below.append(folder / entry.name)
                elif entry.name.lower().endswith((*ARCHIVE_SUFFIXES, ".json")):
                    files.append(folder / entry.name)
        level = below
    return Found(tuple(folders), tuple(files))


def names(folder: Path, suffix: str = "") -> list[str]:
    """Sorted names in a folder that end in ``suffix``, in any case, hidden ones left out; none without it."""
    try:
        found = os.listdir(folder)  # noqa: PTH208 (names are wanted, 100,000 Paths are slow)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if name.lower().endswith(suffix) and not name.startswith("."))


# ------------------------------------------------------------------------------------------ placing


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there with that many bytes."""
    try:
        return path.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def hard_link(source: Path, target: Path) -> str | None:
    """Hard-link a file in one step, in place of what is there.

    Returns:
        None, or why links are not possible here (another disk, a file system or a user without links).
    """
    source = Path(source).resolve()  # the file itself where the name is a symbolic link
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return None
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return error.strerror
        raise
    temporary.replace(target)
    return None


def place(pairs: Iterable[tuple[Path, Path]], *, desc: str) -> int:
    """Hard-link files, or copy them where links are not possible; the sources are never written to.

    A target of the source's size is left as it is.

    Args:
        pairs: (source, target).
        desc: Of the progress bar.

    Returns:
        How many files were placed.

    Raises:
        UserError: Too little space for copies.
    """
    todo = [(s, t, size) for s, t in pairs if not has_size(t, size := s.stat().st_size)]
    if not todo:
        return 0
    link = hard_link(*todo[0][:2]) is None
    if not link:
        check_room(todo[0][1].parent, sum(size for *_, size in todo), "copying")
    for source, target, _ in tqdm(todo, desc=desc, unit="file"):
        if link and hard_link(source, target) is None:
            continue
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
    return len(todo)


def check_room(folder: Path, needed: int, what: str) -> None:
    """UserError if the disk of ``folder`` (which may not exist yet) has less than ``needed`` bytes free."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{folder}: {what} needs {needed / GB:.1f} GB, {free / GB:.1f} GB are free; "
            "free space or choose another folder"
        )


# ------------------------------------------------------------------------------- record and downloads


class Record:
    """``prepared.json`` of the data set's folder: which steps are done, and from what.

    A step's entry is written when it is done; ``downloaded`` names the archives that the command itself has
    fetched, which it may remove.
    """

    def __init__(self, output_dir: Path):
        self.path = output_dir / RECORD
        self._content = read_json(self.path) if self.path.is_file() else {}
        if not isinstance(self._content, dict):
            raise UserError(f"{self.path}: is not a JSON object; remove it and run the same command again")

    def get(self, step: str, default=None):
        return self._content.get(step, default)

    def set(self, step: str, value) -> None:
        """Write an entry; None removes it."""
        if self._content.get(step) != value:
            changed = self._content | {step: value}
            self._content = {name: entry for name, entry in changed.items() if entry is not None}
            write_json(self.path, self._content)


def local_archive(archive: Archive, found: Found, *, partial: bool) -> Path | None:
    """The archive in ``--from``, verified unless ``partial``; None if there is none."""
    path = found.file(archive.name)
    if path is not None and not partial:
        archive.verify(path)
    return path


def fetch_archive(archive: Archive, output_dir: Path, record: Record) -> Path:
    """The archive in ``downloads/``, downloaded and verified.

    Raises:
        UserError: Too little space for it and what is in it, or no address delivers it.
    """
    path = output_dir / "downloads" / archive.name
    if path.exists():
        archive.verify(path)
        return path
    size = archive.size or archive.about
    part = path.with_name(f".{path.name}.part")
    missing = max(size - (part.stat().st_size if part.exists() else 0), 0)
    check_room(path, missing + archive.unpacked, f"downloading and unpacking {archive.name}")
    record.set("downloaded", sorted({*record.get("downloaded", ()), archive.name}))
    problems = []
    for url in archive.urls:
        log.info("downloading %s (%.1f GB) from %s", archive.name, size / GB, url)
        try:
            return fetch.download(url, path, size=archive.size, sha256=archive.sha256, md5=archive.md5)
        except UserError as error:
            problems.append(str(error))
    raise UserError(
        f"{archive.name}: could not be downloaded ({'; '.join(problems)}); run the same command again, "
        "or fetch it elsewhere and give its folder with --from"
    )


def discard(archive: Path, output_dir: Path, record: Record, *, keep: bool) -> None:
    """Remove an archive that this command has downloaded and unpacked; the user's own stay."""
    ours = archive.parent == output_dir / "downloads" and archive.name in record.get("downloaded", ())
    if not ours or keep:
        return
    archive.unlink(missing_ok=True)
    record.set("downloaded", [n for n in record.get("downloaded") if n != archive.name] or None)
    log.info("removed %s (--keep-archives keeps it)", archive)
    if not any(archive.parent.iterdir()):
        archive.parent.rmdir()
