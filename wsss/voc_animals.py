"""Make the voc-animals folder from an official PASCAL VOC 2012 tree.

1,360 photographs of VOC 2012 (1,100 train, 260 val) whose image labels are all among six classes, with their
SegmentationClassAug masks renumbered: the data of the small runs in docs/results.md. The ids are in
data/voc_animals/. Needs JPEGImages, Annotations and SegmentationClassAug; takes about half a minute.

Running it again repeats the work and gives the same files.
"""

import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from wsss.config import REQUIRED, option, run_command
from wsss.datasets import VOC_CLASSES, Dataset, load_dataset
from wsss.errors import UserError
from wsss.io import atomic_write, read_image, read_lines, read_mask, write_mask, write_text
from wsss.labels import check_id, read_voc_xml
from wsss.prepare.files import hard_link

log = logging.getLogger(__name__)

CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
LISTS_DIR = Path(__file__).resolve().parents[1] / "data" / "voc_animals"
TEXT_FILES = ("classes.txt", "labels.csv", "train.txt", "val.txt")


@dataclass(frozen=True, kw_only=True)
class Config:
    voc_root: Path = option(REQUIRED, "official tree: VOC2012, VOCdevkit, or the folder that holds it")
    output_dir: Path = option(REQUIRED, "folder to make")
    link: bool = option(False, "hard-link the pictures instead of copying them (same disk only)")
    verify: Path | None = option(None, "existing voc-animals folder to compare the result with, file by file")


def main(config: Config) -> None:
    if not LISTS_DIR.is_dir():
        raise UserError(
            f"{LISTS_DIR}: no such folder; its lists are in the source tree only: "
            "run this command in a checkout, or install it with pip install -e"
        )
    lists = {split: read_lines(LISTS_DIR / f"{split}.txt") for split in ("train", "val")}
    make_folder(load_dataset("voc12", config.voc_root), config.output_dir, lists, link=config.link)
    counts = ", ".join(f"{len(ids)} {split}" for split, ids in lists.items())
    log.info(f"wrote {config.output_dir}: {counts}, classes {', '.join(CLASSES)}")
    if config.verify is not None:
        differences = compare_folders(config.output_dir, config.verify)
        for line in differences:
            log.info(line)
        if differences:
            raise UserError(
                f"{config.output_dir}: {len(differences)} differences from {config.verify}, listed above"
            )
        log.info(f"equal to {config.verify}, file by file")
    words = ["bash", "scripts/stage1.sh", "folder", str(config.output_dir), "runs/voc-animals"]
    log.info(f"next: {shlex.join(words)}")


def make_folder(voc: Dataset, output_dir: Path, lists: dict[str, list[str]], *, link: bool = False) -> None:
    """Write pictures, masks, labels.csv, lists and, last, classes.txt, each file atomically.

    Args:
        voc: The official tree, ``load_dataset("voc12", ...)``.
        output_dir: A new folder, or one that an earlier run made or began.
        lists: Ids per list name.
        link: Hard-link pictures instead of copying them.

    Raises:
        UserError: A picture, annotation or mask is missing, damaged, or not as VOC's; the folder holds
            another data set; links are not possible. Missing files are found before anything is written.
    """
    output_dir = Path(output_dir)
    classes = "".join(f"{name}\n" for name in CLASSES)
    if (output_dir / "classes.txt").exists() and read_lines(output_dir / "classes.txt") != list(CLASSES):
        raise UserError(
            f"{output_dir}: holds another data set (see its classes.txt); give another --output-dir"
        )
    ids = sorted(check_id(i) for split_ids in lists.values() for i in split_ids)
    labels = label_table(voc, ids)
    for path in (path for i in ids for path in (voc.image_path(i), voc.mask_path(i))):
        if not path.is_file():
            raise UserError(f"{path}: no such file; complete the VOC tree")

    for image_id in tqdm(ids, desc="voc-animals", unit="picture"):
        source, mask_source = voc.image_path(image_id), voc.mask_path(image_id)
        mask = renumber(read_mask(mask_source), mask_source)
        if (size := read_image(source).shape[:2]) != mask.shape:
            raise UserError(
                f"{mask_source}: is {mask.shape}, its picture {size} (height, width); fetch both again"
            )
        _place(source, output_dir / "images" / source.name, link=link)
        write_mask(output_dir / "masks" / mask_source.name, mask)
    write_text(output_dir / "labels.csv", labels)
    for split, split_ids in lists.items():
        write_text(output_dir / f"{split}.txt", "".join(f"{i}\n" for i in split_ids))
    write_text(output_dir / "classes.txt", classes)


def label_table(voc: Dataset, ids: list[str]) -> str:
    """labels.csv: a row per id, in the given order, classes in the order of ``CLASSES``."""
    rows = ["image,labels\n"]
    for image_id in ids:
        found = read_voc_xml(voc.root / "Annotations" / f"{image_id}.xml", CLASSES)
        rows.append(f"{image_id},{';'.join(CLASSES[c] for c in found)}\n")
    return "".join(rows)


def renumber(mask: np.ndarray, path: Path) -> np.ndarray:
    """VOC's class indices, uint8 (H, W), to 0 background, 1..6 in the order of ``CLASSES``, 255 ignored.

    Raises:
        UserError: The mask, read from ``path``, holds anything else.
    """
    table = np.full(256, -1)
    table[[0, 255]] = 0, 255
    for new, name in enumerate(CLASSES, 1):
        table[VOC_CLASSES.index(name) + 1] = new
    result = table[mask]
    if (result < 0).any():
        raise UserError(f"{path}: holds class {mask[result < 0][0]}, none of the six; fetch the file again")
    return result.astype(np.uint8)


def _place(source: Path, target: Path, *, link: bool) -> None:
    """Copy or hard-link a file; the target is never seen half-written."""
    if not link:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    if problem := hard_link(source, target):
        raise UserError(f"{target}: cannot be hard-linked ({problem}); leave --link out")


def compare_folders(made: Path, reference: Path) -> list[str]:
    """One line per difference: text files and pictures by bytes, masks by mode and pixels; names both ways.

    Files beside these (a README, for one) are not looked at.
    """
    differences = []
    for name in TEXT_FILES:
        if _bytes(made / name) != _bytes(reference / name):
            differences.append(f"{name}: differs")
    for folder, content in (("images", _bytes), ("masks", _mask_content)):
        names, expected = ({p.name for p in root.glob(f"{folder}/*")} for root in (made, reference))
        differences += [f"{folder}/{name}: not in {reference}" for name in sorted(names - expected)]
        differences += [f"{folder}/{name}: only in {reference}" for name in sorted(expected - names)]
        for name in tqdm(sorted(names & expected), desc=f"comparing {folder}"):
            if content(made / folder / name) != content(reference / folder / name):
                differences.append(f"{folder}/{name}: differs")
    return differences


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _mask_content(path: Path) -> tuple | str:
    try:
        mask = read_mask(path)
    except UserError as error:
        return str(error)
    with Image.open(path) as image:
        return image.mode, image.getpalette(), mask.shape, mask.tobytes()


def run() -> None:
    run_command(main, Config, prog="wsss.voc_animals", description=__doc__)


if __name__ == "__main__":
    run()
