"""Fetch released checkpoints, masks and ImageNet weights, check them, and record their hashes.

    python -m wsss.download_checkpoints --name weaktr_voc12_deit_s

Names of the list; groups: all (every checkpoint), weaktr, getam, voc12 or coco14 (the checkpoints of these),
masks, imagenet; or list, which shows the table and what is here. What is here already is checked against its
recorded hash. Stopped downloads are continued. Of several, all are tried, and what failed is told at the end.
"""

import contextlib
import datetime
import logging
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsss.config import option, run_command
from wsss.errors import UserError
from wsss.fetch import DISK_FULL, download
from wsss.hosts import download_drive, download_hub
from wsss.io import atomic_write
from wsss.mask_archives import Unpacked, check_masks_folder, content_hash, unpack_masks
from wsss.released import (
    RECORD,
    RELEASED,
    SCRIPT,
    Released,
    checkpoints_folder,
    find_released,
    read_records,
    write_record,
)
from wsss.released_check import check_file, refuse_web_page
from wsss.released_table import list_lines
from wsss.run import sha256

log = logging.getLogger(__name__)

_CHECKPOINTS = ("cam", "segmenter", "getam")
GROUPS = {
    "all": lambda row: row.kind in _CHECKPOINTS,
    "weaktr": lambda row: row.kind in ("cam", "segmenter"),
    "getam": lambda row: row.kind == "getam",
    "voc12": lambda row: row.kind in _CHECKPOINTS and row.data == "voc12",
    "coco14": lambda row: row.kind in _CHECKPOINTS and row.data == "coco14",
    "masks": lambda row: row.kind == "masks",
    "imagenet": lambda row: row.kind == "imagenet",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    name: tuple[str, ...] = option(("list",), f"released files, groups ({', '.join(GROUPS)}), or list")
    from_: Path | None = option(None, "file that a browser has fetched, to register under the one name given")
    output_dir: Path | None = option(
        None, "folder of checkpoints; default: WEAKTR_CHECKPOINTS, else checkpoints/ of the checkout"
    )
    workers: int = option(2, "processes that check masks; 0 checks in the command's own", minimum=0)


def main(config: Config) -> None:
    folder = config.output_dir or checkpoints_folder()
    if config.name == ("list",):
        for line in list_lines(folder):
            log.info(line)
        log.info("next: %s NAME", SCRIPT)
        return
    rows = expand(config.name)
    if config.from_ is not None and len(rows) != 1:
        raise UserError(f"--from {config.from_}: is one file, and {len(rows)} names are given; give its name")
    failures = {}
    for row in rows:
        try:
            if config.from_ is None:
                log.info("%s: %s", row.name, obtain(row, folder, workers=config.workers))
            else:
                log.info("%s: %s", row.name, register(row, folder, config.from_, workers=config.workers))
        except UserError as error:
            failures[row.name] = " ".join(str(error).split())
            if len(rows) > 1:
                log.warning("%s: failed, going on", row.name)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise UserError(f"{folder}: disk full; free space and run the same command again") from None
            raise
    if len(rows) == 1 and failures:
        raise UserError(failures[rows[0].name])
    if failures:
        log.info("\n%d of %d are here; failed:", len(rows) - len(failures), len(rows))
        for name, reason in failures.items():
            log.info("  %s: %s", name, reason)
        raise UserError(f"{len(failures)} of {len(rows)} could not be fetched; the reasons stand above")
    log.info("next: %s", next_step(rows[-1], folder))


def expand(words: Iterable[str]) -> list[Released]:
    """The rows of names and groups, each once.

    Raises:
        UserError: A word that is neither.
    """
    rows = {}
    for word in words:
        if word in GROUPS:
            rows |= {row.name: row for row in RELEASED.values() if GROUPS[word](row)}
        elif word in RELEASED:
            rows[word] = RELEASED[word]
        elif word == "list":
            raise UserError("list: shows the table, and stands alone; leave it out to fetch")
        else:
            find_released(word)  # says what is wrong with a name
            raise UserError(f"{word}: is a file, not a released name; see the names with: {SCRIPT} list")
    return list(rows.values())


def next_step(row: Released, folder: Path) -> str:
    """What to do with a file that is here."""
    path = shlex.quote(str(folder / row.filename))
    if row.kind == "imagenet":
        return f"give it to a training: --pretrained {path}"
    if row.kind == "masks":
        return f"bash scripts/stage2.sh {row.data} DATA {path} OUT"
    if row.kind == "getam":
        return f"{SCRIPT} list"
    elsewhere = folder.resolve() != checkpoints_folder().resolve()
    variable = f"WEAKTR_CHECKPOINTS={shlex.quote(str(folder))} " if elsewhere else ""
    return f"{variable}bash scripts/evaluate.sh {row.name} {row.data} DATA"


# -------------------------------------------------------------------------------------------- one file


def obtain(row: Released, folder: Path, *, workers: int = 0) -> str:
    """Fetch a released file, or check the one that is here; returns what was done, in words.

    Raises:
        UserError: Not fetched, or not what it should be.
    """
    place = folder / row.filename
    if place.exists():
        return _check_here(row, folder, workers)
    incoming = folder / ".incoming" / (f"{row.name}.archive" if row.kind == "masks" else place.name)
    _fetch(row, incoming, f"{SCRIPT} {row.name} --from FILE")
    try:
        done = _accept(row, folder, incoming, f"what {row.address} delivered", row.address, workers)
    except UserError:
        incoming.unlink()
        raise
    _tidy(incoming)
    return f"fetched, {done}"


def _tidy(incoming: Path) -> None:
    incoming.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # of another download
        incoming.parent.rmdir()


def _fetch(row: Released, path: Path, remedy: str) -> None:
    if path.is_file():
        return  # whole; stopped before it was checked
    if row.drive_id:
        download_drive(row.drive_id, path, remedy=remedy)
    elif row.url:
        try:
            download(row.url, path, sha256=row.sha256)
        except UserError as error:
            raise UserError(f"{error}; or get the file elsewhere and register it: {remedy}") from None
    else:
        download_hub(f"timm/{row.hub_name}", "model.safetensors", path, remedy=remedy)


def register(row: Released, folder: Path, source: Path, *, workers: int = 0) -> str:
    """Take a file that was fetched by other means; returns what was done, in words.

    Args:
        source: A checkpoint or weights, linked or copied; of masks the archive, or the unpacked folder.

    Raises:
        UserError: No such file, not what it should be, or another one is here.
    """
    if not source.exists() or (source.is_dir() and row.kind != "masks"):
        raise UserError(f"{source}: no such file; give --from the file that the browser has saved")
    place = folder / row.filename
    if source.resolve() == place.resolve():
        return _check_here(row, folder, workers)
    if place.exists():
        recorded = read_records(folder).get(row.name, {}).get("sha256")
        here = recorded if row.kind == "masks" else sha256(place)
        if source.is_dir() or sha256(source) != here:
            raise UserError(
                f"{place}: is here already and may differ from {source}; to replace it, delete it and "
                f"the entry {row.name} of {folder / RECORD}"
            )
        return _check_here(row, folder, workers)
    if row.kind == "masks":
        return f"registered, {_accept(row, folder, source, source, source.name, workers)}"
    incoming = folder / ".incoming" / place.name
    _link(source, incoming)
    try:
        return f"registered, {_accept(row, folder, incoming, source, source.name, workers)}"
    finally:
        _tidy(incoming)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the two places cannot share one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)


def _accept(row: Released, folder: Path, path: Path, source, origin: str, workers: int) -> str:
    """Check a file that has arrived, move or unpack it to its place, record its hash."""
    refuse_web_page(row, path, source)
    digest = None if path.is_dir() else sha256(path)
    known = read_records(folder).get(row.name, {}).get("sha256")
    _refuse_change(row, folder, source, digest, known)
    place = folder / row.filename
    record = {"file": row.filename, "source": origin, "date": datetime.date.today().isoformat()}
    if digest:
        record |= {"size": path.stat().st_size, "sha256": digest}
    if row.kind == "masks":
        unpacked = unpack_masks(path, place, data=row.data, num_classes=row.num_classes, workers=workers)
        record |= unpacked._asdict()
        done = f"{unpacked.files} masks in {place}"
    else:
        check_file(row, path, source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
        done = f"{place}, {record['size'] / 1e6:.1f} MB"
    write_record(folder, row.name, record)
    shown = f"; sha256 {digest[:12]}... " + ("as recorded" if known else "recorded") if digest else ""
    return done + shown


def _refuse_change(row: Released, folder: Path, source, digest: str | None, known: str | None) -> None:
    if digest and row.sha256 and not digest.startswith(row.sha256):
        raise UserError(
            f"{source}: has the sha256 {digest}, published is {row.sha256}...; fetch {row.address} again"
        )
    if digest and known and digest != known:
        raise UserError(
            f"{source}: has the sha256 {digest}, at its first download {row.name} had {known}; if the change "
            f"is wanted, delete the entry {row.name} of {folder / RECORD} and run the same command again"
        )


def _check_here(row: Released, folder: Path, workers: int) -> str:
    """Compare what is here with its record; make the record where a hand has put the file there."""
    place, record = folder / row.filename, read_records(folder).get(row.name, {})
    if row.kind == "masks":
        known, found = record.get("content_sha256"), content_hash(place)
    else:
        known, found = record.get("sha256"), sha256(place)
    if known == found:
        return f"is here, unchanged since {record.get('date')}: {place}, sha256 {found[:12]}..."
    if known:
        raise UserError(
            f"{place}: has changed since {record.get('date')} (sha256 {found}, recorded {known}); delete it "
            f"to fetch it again, or, if this is wanted, delete the entry {row.name} of {folder / RECORD}"
        )
    record = {"file": row.filename, "source": "put there by hand", "date": datetime.date.today().isoformat()}
    if row.kind == "masks":
        unpacked: Unpacked = check_masks_folder(place, place, num_classes=row.num_classes, workers=workers)
        if not unpacked.files:
            raise UserError(f"{place}: holds no masks; delete it to fetch them")
        record |= unpacked._asdict()
    else:
        _refuse_change(row, folder, place, found, None)
        check_file(row, place, place)
        record |= {"size": place.stat().st_size, "sha256": found}
    write_record(folder, row.name, record)
    return f"was put there by hand: checked, sha256 {found[:12]}... recorded ({place})"


def run() -> None:
    run_command(main, Config, prog="wsss.download_checkpoints", description=__doc__)


if __name__ == "__main__":
    run()
