"""Make the COCO 2014 folder: pictures, annotations, image labels, and class masks from the annotations.

From archives or folders given with --from, else downloaded into OUTPUT_DIR/downloads. A folder's files are
hard-linked where that is possible, else copied; nothing is written there. Every step is skipped when it is
done; labels and masks are made again when the annotation file is another one. At the end the folder is
checked.

Masks: category id, 0 background; the smaller region on top where two overlap; a crowd region takes part in
that order with the value 255.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from wsss.config import REQUIRED, option, run_command
from wsss.errors import UserError
from wsss.io import read_json, write_text
from wsss.labels import read_coco_json
from wsss.parallel import CPUS
from wsss.prepare import coco_masks
from wsss.prepare.archives import unpack
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
from wsss.run import sha256

log = logging.getLogger(__name__)

PARTS = ("train", "val")
ANNOTATIONS = Archive(
    "annotations_trainval2014.zip",
    ("http://images.cocodataset.org/annotations/annotations_trainval2014.zip",),
    size=252_872_794,
    sha256="031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    unpacked=500_000_000,
)
PICTURES = {
    "train": Archive(
        "train2014.zip",
        ("http://images.cocodataset.org/zips/train2014.zip",),
        size=13_510_573_713,
        sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        unpacked=13_600_000_000,
    ),
    "val": Archive(
        "val2014.zip",
        ("http://images.cocodataset.org/zips/val2014.zip",),
        size=6_645_013_297,
        sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        unpacked=6_700_000_000,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    output_dir: Path = option(REQUIRED, "data root to make; receives pictures, annotations/ and masks/")
    from_: tuple[Path, ...] | None = option(
        None, "folders that hold the archives by their official names, or unpacked folders"
    )
    masks: bool = option(True, "make class masks, needed for scoring and for choosing thresholds")
    partial: bool = option(
        False, "accept a part of the official set: numbers and hashes may differ, nothing is downloaded"
    )
    keep_archives: bool = option(False, "keep what was downloaded after unpacking it")
    workers: int = option(CPUS, "processes; 0 computes in the command's own", minimum=0)


def main(config: Config) -> None:
    made = ("train2014", "val2014", "images", "annotations", "masks", "downloads")
    found = search(config.from_, leave_out=[config.output_dir / name for name in made])
    record = Record(config.output_dir)
    bring_annotations(config, found, record)
    parts = [part for part in PARTS if instances(config.output_dir, part).is_file()]
    labels = {part: write_labels(config.output_dir, part) for part in parts}
    for part in parts:
        bring_pictures(part, labels[part]["labels"], config, found, record)
    for part in parts if config.masks else ():
        write_masks(part, labels, config, record)
    check_and_tell("coco14", config)


def instances(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}2014.json"


# -------------------------------------------------------------------------------------- annotations


def bring_annotations(config: Config, found: Found, record: Record) -> None:
    """``annotations/instances_{train,val}2014.json``: from a folder, the archive, or the network."""
    targets = {instances(config.output_dir, part).name: instances(config.output_dir, part) for part in PARTS}
    sources = [(found.file(name), target) for name, target in targets.items() if found.file(name)]
    if place(sources, desc="annotations"):
        log.info("annotations: from %s", sources[0][0].parent)
    missing = [target for target in targets.values() if not target.is_file()]
    if missing and not (config.partial and len(missing) < len(targets)):
        archive = local_archive(ANNOTATIONS, found, partial=config.partial)
        if archive is None and config.partial:
            raise UserError(
                f"{missing[0]}: no such file, nor in --from; give --from the folder that holds it or "
                f"{ANNOTATIONS.name} (--partial downloads nothing)"
            )
        archive = archive or fetch_archive(ANNOTATIONS, config.output_dir, record)
        unpack(archive, lambda name: targets.get(name.split("/")[-1]), desc=f"unpacking {archive.name}")
        lacking = [t for t in targets.values() if not t.is_file()]
        if lacking and not (config.partial and len(lacking) < len(targets)):
            raise UserError(f"{archive}: holds no {lacking[0].name}; fetch the official archive")
        log.info("annotations: from %s", archive)
        discard(archive, config.output_dir, record, keep=config.keep_archives)
    elif not sources:
        log.info("annotations: there already")


def write_labels(root: Path, part: str) -> dict[str, dict]:
    """Write ``image_labels_{part}2014.json`` unless it was made from this annotation file.

    Returns:
        The content: ``source``, the file it was made from; ``labels``, id -> class indices (category id - 1)
        of every image, also without annotation.
    """
    source, path = instances(root, part), root / "annotations" / f"image_labels_{part}2014.json"
    identity = {"file": source.name, "size": source.stat().st_size, "sha256": sha256(source)}
    if path.is_file():
        content = read_json(path)
        if isinstance(content, dict) and content.get("source") == identity and "labels" in content:
            log.info("%s: there already", path.name)
            return content
    log.info("%s: reading %s", path.name, source)
    labels = {image_id: list(classes) for image_id, classes in sorted(read_coco_json(source).items())}
    content = {"source": identity, "labels": labels}
    write_text(path, json.dumps(content) + "\n")
    used = sum(bool(classes) for classes in labels.values())
    log.info("%s: %s images, %s of them with an annotation", path.name, f"{len(labels):,}", f"{used:,}")
    return content


# ----------------------------------------------------------------------------------------- pictures


def picture_files(folder: Path, part: str) -> dict[str, str]:
    """Id -> name of the pictures in a folder: COCO_{part}2014_ID.jpg, or ID.jpg in a folder ``images``."""
    pattern = r"(\d{12})\.jpg" if folder.name == "images" else rf"COCO_{part}2014_(\d{{12}})\.jpg"
    return {match[1]: name for name in names(folder, ".jpg") if (match := re.fullmatch(pattern, name))}


def bring_pictures(part: str, ids: dict, config: Config, found: Found, record: Record) -> None:
    """Every picture of the annotation file, in {part}2014/, or in images/ where the source is named so."""
    root = config.output_dir
    missing = set(ids) - set(picture_files(root / "images", part))
    missing -= set(picture_files(root / f"{part}2014", part))
    if not missing:
        log.info("%s pictures: there already, %s", part, f"{len(ids):,}")
        return
    folder = _folder(part, missing, found, partial=config.partial)
    if folder is not None:
        target = root / ("images" if folder.name == "images" else f"{part}2014")
        files = picture_files(folder, part)
        pairs = [(folder / files[i], target / files[i]) for i in sorted(missing & files.keys())]
        place(pairs, desc=f"{part} pictures")
        log.info("%s pictures: %s from %s", part, f"{len(pairs):,}", folder)
        return
    archive = local_archive(PICTURES[part], found, partial=config.partial)
    if archive is None and config.partial:
        if len(missing) == len(ids):
            raise UserError(
                f"{root / f'{part}2014'}: no pictures, nor in --from; give --from the folder that holds "
                f"{part}2014 or {PICTURES[part].name} (--partial downloads nothing)"
            )
        return  # the check at the end says which
    archive = archive or fetch_archive(PICTURES[part], root, record)
    written = unpack(
        archive, lambda name: _target(name, part, missing, root), desc=f"unpacking {archive.name}"
    )
    if len(written) < len(missing) and not config.partial:
        raise UserError(
            f"{archive}: lacks {len(missing) - len(written):,} pictures of {instances(root, part).name}; "
            "give the official archives, or accept a part with --partial"
        )
    log.info("%s pictures: %s from %s", part, f"{len(written):,}", archive)
    discard(archive, root, record, keep=config.keep_archives)


def _target(name: str, part: str, missing: set[str], root: Path) -> Path | None:
    """Where a member of the official archive goes; None: not needed."""
    match = re.fullmatch(rf"(?:.*/)?{part}2014/(COCO_{part}2014_(\d{{12}})\.jpg)", name)
    return root / f"{part}2014" / match[1] if match and match[2] in missing else None


def _folder(part: str, missing: set[str], found: Found, *, partial: bool) -> Path | None:
    """The folder of ``--from`` with most of the missing pictures; one without all only if ``partial``."""
    candidates = [f for f in found.folders if f.name in (f"{part}2014", "images")]
    covered = {f: len(missing & picture_files(f, part).keys()) for f in candidates}
    best = max(covered, key=covered.get, default=None)
    if best is None or not covered[best]:
        return None
    if covered[best] < len(missing) and not partial:
        log.info(
            "%s: not used, it holds %s of %s pictures; complete it, or accept a part with --partial",
            best, f"{covered[best]:,}", f"{len(missing):,}",
        )  # fmt: skip
        return None
    return best


# -------------------------------------------------------------------------------------------- masks


def write_masks(part: str, labels: dict[str, dict], config: Config, record: Record) -> None:
    """``masks/ID.png`` of every picture of a part with an annotation.

    ``prepared.json`` holds the hash of the annotation file that the masks were made from: those of another
    file are removed first. Masks of unknown origin are never touched.

    Raises:
        UserError: ``masks/`` holds masks that this command has not made, or a region cannot be drawn.
    """
    folder, key, sha = config.output_dir / "masks", f"masks_{part}", labels[part]["source"]["sha256"]
    wanted = {i for i, classes in labels[part]["labels"].items() if classes}
    there = {name[:-4] for name in names(folder, ".png")}
    begun = record.get(key)
    if begun is None and wanted & there:
        raise UserError(
            f"{folder}: holds masks that this command has not made; keep them and leave the masks out with "
            "--no-masks, or move the folder away"
        )
    if begun and begun["sha256"] == sha and begun["done"] and wanted <= there:
        log.info("%s masks: there already, %s", part, f"{len(wanted):,}")
        return
    if begun and begun["sha256"] != sha:
        others = {i for other in labels if other != part for i in labels[other]["labels"]}
        stale = {i for i in there - others if re.fullmatch(r"\d{12}", i)}
        log.info("%s masks: removing %s of another annotation file", part, f"{len(stale):,}")
        for image_id in stale:
            (folder / f"{image_id}.png").unlink()
    record.set(key, {"sha256": sha, "done": False})
    source = instances(config.output_dir, part)
    log.info("%s masks: reading the outlines of %s", part, source)
    pictures = coco_masks.read_pictures(source)
    written, dropped = coco_masks.make_masks(pictures, folder, source=str(source), workers=config.workers)
    if dropped:
        log.info("%s masks: left out %s outlines of fewer than three points", part, f"{dropped:,}")
    record.set(key, {"sha256": sha, "done": True})
    log.info("%s masks: wrote %s, kept %s", part, f"{written:,}", f"{len(wanted) - written:,}")


def run() -> None:
    run_command(main, Config, prog="wsss.prepare.coco14", description=__doc__)


if __name__ == "__main__":
    run()
