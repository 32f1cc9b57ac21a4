"""Data sets: PASCAL VOC 2012, COCO 2014 and a plain folder, behind one interface.

``load_dataset`` looks only at which folders exist. Lists, labels and directory listings are read when first
asked for and kept. Layouts and rules are in docs/data.md. ``python -m wsss.datasets check`` lists everything
that is wrong with a data set.
"""

from pathlib import Path

from wsss.config import VOC_MASKS
from wsss.datasets.base import PICTURE_SUFFIXES, Dataset, list_pictures, split_name
from wsss.datasets.coco14 import COCO_CLASSES, SUBSET_SEED, Coco14
from wsss.datasets.folder import Folder
from wsss.datasets.voc12 import VOC_CLASSES, Voc12
from wsss.errors import Report, UserError, refuse

__all__ = [
    "COCO_CLASSES",
    "PICTURE_SUFFIXES",
    "SUBSET_SEED",
    "VOC_CLASSES",
    "Dataset",
    "list_pictures",
    "load_dataset",
    "split_name",
]


def load_dataset(kind: str, root: Path, *, voc_masks: str = VOC_MASKS[0], report: Report = refuse) -> Dataset:
    """The data set of layout ``kind`` ("voc12", "coco14" or "folder") at ``root``.

    Args:
        voc_masks: Of voc12: the folder of the true masks, "SegmentationClassAug" or "SegmentationClass".
            The list train_aug is derived from the first, whichever is given.
        report: Gets every problem of what the data set reads, which then goes on with the rest; by default
            the first is raised.

    Raises:
        UserError: No such folder, or not of that layout; ``voc_masks`` for another layout.
    """
    root = Path(root)
    if kind not in (layouts := {"voc12": Voc12, "coco14": Coco14, "folder": Folder}):
        raise UserError(f"--dataset {kind}: unknown layout; give one of {', '.join(layouts)}")
    if voc_masks not in VOC_MASKS:
        raise UserError(f"--voc-masks {voc_masks}: unknown folder of masks; give {' or '.join(VOC_MASKS)}")
    if kind != "voc12" and voc_masks != VOC_MASKS[0]:
        raise UserError(f"--voc-masks {voc_masks}: is for --dataset voc12 only; leave it out for {kind}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give --data-path the folder of the data set")
    if kind == "voc12":
        return Voc12.at(root, report, voc_masks)
    return layouts[kind].at(root, report)
