"""Make the PASCAL VOC 2012 tree: pictures, annotations, lists, masks, and SegmentationClassAug.

From archives or folders given with --from, else downloaded into OUTPUT_DIR/downloads. A folder's files are
hard-linked where that is possible, else copied; nothing is written there. SegmentationClassAug is taken from
--aug-masks or --from if there is one, else derived from SBD's benchmark.tgz and VOC's own masks. Every step
is skipped when it is done. Lists and image labels need no files of their own: the loader reads train_aug off
the masks, and labels off the annotations. At the end the tree is checked.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from wsss.config import REQUIRED, option, run_command
from wsss.errors import UserError
from wsss.io import read_lines
from wsss.parallel import CPUS
from wsss.prepare import aug_masks
from wsss.prepare.archives import damaged_is_user_error, members, unpack
from wsss.prepare.files import (
    Archive,
    Found,
    Record,
    discard,
    fetch_archive,
    local_archive,
    names,
    place,
    search,
)
from wsss.prepare.finish import check_and_tell

log = logging.getLogger(__name__)

TRAINVAL = Archive(
    "VOCtrainval_11-May-2012.tar",
    (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    unpacked=2_000_000_000,
)
TEST = Archive(
    "VOC2012test.tar",
    (),  # the official address wants a login
    size=1_850_626_560,
    sha256="f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
)
SUFFIXES = {
    "JPEGImages": ".jpg",
    "Annotations": ".xml",
    "SegmentationClass": ".png",
    "ImageSets/Segmentation": ".txt",
}
COUNTS = {"JPEGImages": 17_125, "Annotations": 17_125, "SegmentationClass": 2_913}
LISTS = ("train.txt", "val.txt", "trainval.txt")  # users' folders hold others, which are not official


@dataclass(frozen=True, kw_only=True)
class Config:
    output_dir: Path = option(REQUIRED, "data root to make; receives VOCdevkit/VOC2012")
    from_: tuple[Path, ...] | None = option(
        None, "folders that hold the archives by their official names, or unpacked folders"
    )
    aug_masks: Path | None = option(
        None, "SegmentationClassAug, folder or archive; default: found in --from, else derived from SBD"
    )
    derive_masks: bool = option(
        False, "derive SegmentationClassAug from SBD though --from holds a finished one"
    )
    partial: bool = option(
        False, "accept a part of the official set: numbers and hashes may differ, nothing is downloaded"
    )
    keep_archives: bool = option(False, "keep what was downloaded after unpacking it")
    workers: int = option(CPUS, "processes; 0 computes in the command's own", minimum=0)


def main(config: Config) -> None:
    voc = tree(config.output_dir)
    found = search(config.from_, leave_out=[voc, config.output_dir / "downloads"])
    record = Record(config.output_dir)
    bring_trainval(voc, config, found, record)
    bring_test(voc, config, found)
    aug_masks.prepare(voc, config, found, record)
    check_and_tell("voc12", config)


def tree(root: Path) -> Path:
    """VOC2012 in a data root, in any of the nestings that the loader knows."""
    nestings = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((f for f in nestings if (f / "JPEGImages").is_dir()), nestings[0])


def counts(voc: Path) -> dict[str, int]:
    """Files in each folder of COUNTS."""
    return {folder: len(names(voc / folder, SUFFIXES[folder])) for folder in COUNTS}


def is_complete(voc: Path, least: dict[str, int]) -> bool:
    """Whether lists are there, each folder holds at least so many files, every annotation has its picture.

    Pictures of the test set, which lie among the others, cannot make up for one that is lost.
    """
    there = counts(voc)
    pictures = {name[:-4] for name in names(voc / "JPEGImages", ".jpg")}
    return (
        _list(voc, "train").is_file()
        and _list(voc, "val").is_file()
        and all(there[folder] >= number for folder, number in least.items())
        and all(name[:-4] in pictures for name in names(voc / "Annotations", ".xml"))
    )


def bring_trainval(voc: Path, config: Config, found: Found, record: Record) -> None:
    """Pictures, annotations, VOC's own masks, and the lists train, val and trainval."""
    before = counts(voc)
    done = record.get("trainval")
    may_grow = config.partial and config.from_  # a part that the user may have added to
    if done and not may_grow and is_complete(voc, done["files"] if config.partial else COUNTS):
        log.info("VOC2012: there already, %s", _summary(before))
        return
    folder = _folder(found, partial=config.partial)
    archive = local_archive(TRAINVAL, found, partial=config.partial) if folder is None else None
    if folder is None and archive is None:
        if is_complete(voc, dict.fromkeys(COUNTS, 1) if config.partial else COUNTS):
            log.info("VOC2012: there already, %s", _summary(before))
            return
        if config.partial:
            raise UserError(
                f"{voc}: holds no pictures, annotations, masks and lists, nor does --from; give --from the "
                f"folder that holds {TRAINVAL.name} or VOC2012 (--partial downloads nothing)"
            )
        archive = fetch_archive(TRAINVAL, config.output_dir, record)
    source = folder or archive
    log.info("VOC2012: from %s", source)
    if folder is not None:
        place(_pairs(folder, voc), desc="pictures, annotations")
    else:
        unpack(archive, lambda name: _target(name, voc), desc=f"unpacking {archive.name}")
    there = counts(voc)
    if not is_complete(voc, dict.fromkeys(COUNTS, 1) if config.partial else COUNTS):
        raise UserError(f"{source}: gives {_summary(there)}; {_wanted(config.partial)}")
    if done is None or there != before:
        record.set("trainval", {"from": str(source), "files": there})
    log.info("VOC2012: %s%s", "there already, " if there == before else "", _summary(there))
    if archive is not None:
        discard(archive, config.output_dir, record, keep=config.keep_archives)


def _wanted(partial: bool) -> str:
    if partial:
        return "give some of each, a picture for every annotation, and the lists train.txt and val.txt"
    return (
        f"official are {_summary(COUNTS)}, a picture for every annotation, and the lists: complete it, or "
        "accept a part with --partial"
    )


def _summary(there: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {folder}" for folder, number in there.items())


def _folder(found: Found, *, partial: bool) -> Path | None:
    """An unpacked VOC2012 in ``--from``: one of that name first; an incomplete one only if ``partial``."""
    least = dict.fromkeys(COUNTS, 1) if partial else COUNTS
    candidates = [f for f in found.folders if (f / "JPEGImages").is_dir() and (f / "Annotations").is_dir()]
    for folder in sorted(candidates, key=lambda f: f.name != "VOC2012"):
        if is_complete(folder, least):
            return folder
        log.info("%s: not used, it holds %s; %s", folder, _summary(counts(folder)), _wanted(partial))
    return None


def _pairs(folder: Path, voc: Path) -> list[tuple[Path, Path]]:
    """(source, target) of what is needed in an unpacked VOC2012; lists last."""
    wanted = {f: names(folder / f, SUFFIXES[f]) for f in COUNTS} | {"ImageSets/Segmentation": LISTS}
    return [
        (source, voc / part / name)
        for part, files in wanted.items()
        for name in files
        if (source := folder / part / name).is_file()
    ]


def _target(name: str, voc: Path) -> Path | None:
    """Where a member of the official archive goes; None: not needed (instance masks, other tasks' lists)."""
    match = re.fullmatch(r"(?:.*/)?VOC2012/(JPEGImages|Annotations|SegmentationClass|ImageSets/Segmentation)/"
                         r"([^/]+)", name)  # fmt: skip
    if not match or match[2].startswith(".") or not match[2].endswith(SUFFIXES[match[1]]):
        return None
    if match[1] == "ImageSets/Segmentation" and match[2] not in LISTS:
        return None
    return voc / match[1] / match[2]


# --------------------------------------------------------------------------------------------- test


def bring_test(voc: Path, config: Config, found: Found) -> None:
    """The 1,456 pictures of the test list and the list itself, where ``--from`` holds them."""
    if _has_test(voc):
        log.info("test: there already, %s pictures", f"{len(read_lines(_list(voc, 'test'))):,}")
        return
    folder = next((f for f in found.folders if _has_test(f)), None)
    if folder is not None:
        ids = read_lines(_list(folder, "test"))
        parts = [f"JPEGImages/{i}.jpg" for i in ids] + ["ImageSets/Segmentation/test.txt"]
        place([(folder / part, voc / part) for part in parts], desc="test pictures")
    elif (archive := local_archive(TEST, found, partial=config.partial)) is not None:
        ids = _unpack_test(archive, voc)
    else:
        log.info(
            "test: left out, as --from holds no %s (its official address wants a login); "
            "needed only for results on the evaluation server", TEST.name,
        )  # fmt: skip
        return
    log.info("test: %s pictures from %s", f"{len(ids):,}", folder or archive)


def _list(voc: Path, split: str) -> Path:
    return voc / "ImageSets" / "Segmentation" / f"{split}.txt"


def _has_test(voc: Path) -> bool:
    """Whether there is a test list and every picture of it."""
    if not _list(voc, "test").is_file():
        return False
    ids = read_lines(_list(voc, "test"))
    return bool(ids) and {f"{i}.jpg" for i in ids} <= set(names(voc / "JPEGImages", ".jpg"))


def _unpack_test(archive: Path, voc: Path) -> list[str]:
    """The list and its pictures; the list is written last."""
    suffix = "VOC2012/ImageSets/Segmentation/test.txt"
    with damaged_is_user_error(archive):
        ids = None
        for member in members(archive, lambda name: True if f"/{name}".endswith("/" + suffix) else None):
            with member.open() as file:
                ids = file.read().decode("utf8", "replace").split()
    if not ids:
        raise UserError(f"{archive}: holds no list {suffix}; give --from the official {TEST.name}")
    wanted = {f"{i}.jpg" for i in ids}

    def picture(name: str) -> Path | None:
        match = re.fullmatch(r"(?:.*/)?VOC2012/JPEGImages/([^/]+)", name)
        return voc / "JPEGImages" / match[1] if match and match[1] in wanted else None

    found = {path.name for path in unpack(archive, picture, desc=f"unpacking {archive.name}")}
    if missing := sorted(wanted - found):
        raise UserError(
            f"{archive}: lacks {len(missing):,} pictures of its list, such as {missing[0]}; "
            f"give --from the official {TEST.name}"
        )
    unpack(archive, lambda n: _list(voc, "test") if f"/{n}".endswith("/" + suffix) else None, desc="list")
    return ids


def run() -> None:
    run_command(main, Config, prog="wsss.prepare.voc12", description=__doc__)


if __name__ == "__main__":
    run()
