"""SegmentationClassAug, the masks of VOC's enlarged training set: the user's own, verified, else from SBD."""

import logging
import shutil
from pathlib import Path, PurePosixPath

from wsss.errors import UserError
from wsss.labels import check_id
from wsss.prepare import sbd
from wsss.prepare.archives import damaged_is_user_error, members, unpack
from wsss.prepare.files import (
    ARCHIVE_SUFFIXES,
    Found,
    Record,
    discard,
    fetch_archive,
    local_archive,
    names,
    place,
)
from wsss.prepare.voc_masks import verify

log = logging.getLogger(__name__)

COUNT = 12_031
FOLDER = "SegmentationClassAug"
REMEDY = "correct or replace them, or have them derived from SBD with --derive-masks"


def prepare(voc: Path, config, found: Found, record: Record) -> None:
    """Make ``VOC2012/SegmentationClassAug``, which appears in one step when it is complete and verified.

    Args:
        voc: VOC2012, with JPEGImages and SegmentationClass.
        config: Of ``wsss.prepare.voc12``.
        found: What lies in ``--from``.
        record: Of the data set's folder.

    Raises:
        UserError: Masks that do not suit, none to be had, or too little space.
    """
    folder, count = voc / FOLDER, None if config.partial else COUNT
    if folder.is_dir():
        if config.aug_masks is not None:
            log.info("%s: not used, %s is there; remove that to replace it", config.aug_masks, folder)
        _accept(voc, record, count=count, workers=config.workers)
        return
    unfinished = voc / f".{FOLDER}.unfinished"
    own = config.aug_masks or (None if config.derive_masks else _own_masks(found))
    if own is not None:
        log.info("%s: taken from %s", FOLDER, own)
        if unfinished.exists():
            shutil.rmtree(unfinished)  # of another source, or of an earlier try
        record.set("deriving", None)
        number = _bring(own, voc, unfinished, count=count, workers=config.workers)
        done = {"from": str(own), "masks": number}
    else:
        source = sbd.sbd_folder(found) or local_archive(sbd.SBD, found, partial=config.partial)
        if source is None and config.partial:
            raise UserError(
                f"{folder}: no masks for it; give finished ones with --aug-masks, or --from a folder with "
                f"SBD's {sbd.SBD.name} (--partial downloads nothing)"
            )
        source = source or fetch_archive(sbd.SBD, config.output_dir, record)
        log.info("%s: derived from %s and VOC's own masks", FOLDER, source)
        number = sbd.derive(voc, source, unfinished, record, count=count, workers=config.workers)
        done = {"from": str(source), "derived": True, "masks": number}
    unfinished.rename(folder)
    record.set("deriving", None)
    record.set("aug_masks", done)
    log.info("%s: %s masks", FOLDER, f"{number:,}")
    if own is None:
        discard(source, config.output_dir, record, keep=config.keep_archives)


def _accept(voc: Path, record: Record, *, count: int | None, workers: int) -> None:
    """Masks that are in place: made by an earlier run, or the user's, which are verified once."""
    folder = voc / FOLDER
    number = len(names(folder, ".png"))
    known = record.get("aug_masks", {})
    if known.get("masks") == number and count in (None, number):
        log.info("%s: there already, %s masks", FOLDER, f"{number:,}")
        return
    remedy = "remove the folder and run the same command again, or correct it"
    verify(folder, voc / "JPEGImages", count=count, workers=workers, remedy=remedy)
    record.set("aug_masks", {"from": known.get("from", str(folder)), "masks": number})
    log.info("%s: there already, %s masks, verified", FOLDER, f"{number:,}")


def _own_masks(found: Found) -> Path | None:
    """Finished masks in ``--from``: a folder SegmentationClassAug, or an archive whose name begins so."""
    folders = [f for f in found.folders if f.name.lower() == FOLDER.lower() and names(f, ".png")]
    archives = [f for f in found.files if f.name.lower().startswith(FOLDER.lower()) and _is_archive(f)]
    return next(iter(folders + archives), None)


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def _bring(own: Path, voc: Path, unfinished: Path, *, count: int | None, workers: int) -> int:
    """Verify the user's masks, a folder or an archive, and lay them into ``unfinished``; their number."""
    if own.is_dir():
        folder = _folder_of_masks(own)
        verify(folder, voc / "JPEGImages", count=count, workers=workers, remedy=REMEDY)
        pairs = [(folder / name, unfinished / f"{name[:-4]}.png") for name in names(folder, ".png")]
        place(pairs, desc=FOLDER)
        return len(pairs)
    if not own.is_file():
        raise UserError(f"{own}: no such file or folder; give --aug-masks a folder, zip or tar of masks")
    nesting = _nesting(own)

    def target(name: str) -> Path | None:
        path = PurePosixPath(name)
        if path.parent != nesting or not _is_mask(path):
            return None
        return unfinished / f"{check_id(path.stem, str(own))}.png"

    number = len(unpack(own, target, desc=f"unpacking {own.name}"))
    try:
        where = {"pictures": voc / "JPEGImages", "name": str(own)}
        verify(unfinished, **where, count=count, workers=workers, remedy=REMEDY)
    except UserError:
        shutil.rmtree(unfinished)
        raise
    return number


def _is_mask(path: PurePosixPath) -> bool:
    return path.suffix.lower() == ".png" and not path.name.startswith(".")


def _nesting(archive: Path) -> PurePosixPath:
    """The folder of masks inside an archive."""

    def parent(name: str) -> PurePosixPath | None:
        path = PurePosixPath(name)
        return path.parent if _is_mask(path) and "__MACOSX" not in path.parts else None

    with damaged_is_user_error(archive):
        return _only(archive, {member.wanted for member in members(archive, parent)})


def _folder_of_masks(root: Path) -> Path:
    """``root`` itself if it holds PNG files, else the one folder below it that does."""
    if names(root, ".png"):
        return root
    return Path(_only(root, {path.parent for path in root.rglob("*.png") if not path.name.startswith(".")}))


def _only(where: Path, folders: set) -> Path | PurePosixPath:
    """The one folder of masks among several: the only one, or the one named SegmentationClassAug."""
    chosen = [f for f in folders if f.name == FOLDER] if len(folders) > 1 else list(folders)
    if len(chosen) == 1:
        return chosen[0]
    shown = ", ".join(sorted(map(str, folders))[:3]) or "none"
    raise UserError(
        f"{where}: which folder holds the masks is not clear (PNG files are in: {shown}); "
        f"give --aug-masks the one folder, or name it {FOLDER}"
    )
