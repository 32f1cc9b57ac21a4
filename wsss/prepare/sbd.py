"""SegmentationClassAug derived: the Semantic Boundaries Dataset's masks, and VOC's own where there are any.

SBD (Hariharan et al., ICCV 2011) marks 11,355 pictures of VOC 2011 without a border of 255. VOC's own 2,913
masks take precedence. Together 12,031 pictures.
"""

import functools
import io
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat
from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import read_mask, write_mask
from wsss.parallel import parallel_map
from wsss.prepare.archives import damaged_is_user_error, members
from wsss.prepare.files import Archive, Found, Record, names
from wsss.prepare.voc_masks import mask_problem, refuse_problems

log = logging.getLogger(__name__)

SBD = Archive(
    "benchmark.tgz",
    ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",),
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    about=1_420_000_000,
    unpacked=100_000_000,
)


class Source(NamedTuple):
    """One mask: its id, its file or a member's bytes, and what to call it in messages."""

    image_id: str
    content: Path | bytes
    name: str


def sbd_folder(found: Found) -> Path | None:
    """The folder of SBD's ``ID.mat`` files of classes, if SBD lies unpacked in ``--from``."""
    return next(
        (f for f in found.folders if f.name == "cls" and any(n.endswith(".mat") for n in names(f))), None
    )


def derive(voc: Path, sbd: Path, unfinished: Path, record: Record, *, count: int | None, workers: int) -> int:
    """Write SegmentationClassAug into ``unfinished``; what an interrupted run wrote there is kept.

    Args:
        voc: VOC2012, with JPEGImages and SegmentationClass.
        sbd: ``benchmark.tgz``, or the folder ``cls`` of it.
        unfinished: Folder for the masks; complete when this returns.
        record: Remembers which SBD ``unfinished`` was begun with: another one starts afresh.
        count: Of masks that must result; None: any.
        workers: Processes.

    Returns:
        The number of masks.

    Raises:
        UserError: Masks that do not suit their pictures (all counted, the first few named), a damaged
            archive, or another number of masks.
    """
    identity = {"name": sbd.name, "size": sbd.stat().st_size if sbd.is_file() else len(names(sbd, ".mat"))}
    if record.get("deriving") != identity and unfinished.exists():
        shutil.rmtree(unfinished)
    record.set("deriving", identity)
    own = {name[:-4] for name in names(voc / "SegmentationClass", ".png")}
    done = {name[:-4] for name in names(unfinished, ".png")}
    if done:
        log.info("%d masks are there from an earlier run", len(done))
    work = functools.partial(_write, pictures=voc / "JPEGImages", folder=unfinished)
    sources = _sources(voc / "SegmentationClass", own, sbd, done)
    results = parallel_map(work, sources, workers=workers)
    total = None if count is None else count - len(done)
    problems = [p for p in tqdm(results, total=total, desc="masks from SBD", unit="mask") if p]
    refuse_problems(problems, str(sbd), "fetch SBD again, or give finished masks with --aug-masks")
    written = len(names(unfinished, ".png"))
    if count is not None and written != count:
        raise UserError(f"{sbd}: gives {written:,} masks with VOC's own, not {count:,}; fetch SBD again")
    return written


def _sources(own_folder: Path, own: set[str], sbd: Path, done: set[str]) -> Iterator[Source]:
    """Masks still to be written: VOC's own first, then SBD's of other pictures."""
    for image_id in sorted(own - done):
        path = own_folder / f"{image_id}.png"
        yield Source(image_id, path, str(path))
    skip = own | done
    if sbd.is_dir():
        for name in names(sbd, ".mat"):
            if name[:-4] not in skip:
                yield Source(name[:-4], sbd / name, str(sbd / name))
        return

    def wanted(name: str) -> str | None:
        match = re.fullmatch(r"(?:.*/)?cls/([^/]+)\.mat", name)
        return match[1] if match and match[1] not in skip and not match[1].startswith(".") else None

    with damaged_is_user_error(sbd):
        for member in members(sbd, wanted):
            with member.open() as file:
                yield Source(member.wanted, file.read(), f"{sbd}, {member.wanted}.mat")


def _write(source: Source, pictures: Path, folder: Path) -> str | None:
    """Write one mask; the problem if it does not suit its picture."""
    try:
        is_own = isinstance(source.content, Path) and source.content.suffix == ".png"
        mask = read_mask(source.content) if is_own else read_sbd(source.content, source.name)
        if problem := mask_problem(mask, pictures / f"{source.image_id}.jpg"):
            return f"{source.name} {problem}"
    except UserError as error:
        return str(error)
    write_mask(folder / f"{source.image_id}.png", mask)
    return None


def read_sbd(content: Path | bytes, name: str) -> np.ndarray:
    """SBD's class indices of one picture, uint8 (H, W): 0 background, 1..20 in VOC's order.

    Args:
        content: A ``cls/ID.mat`` file or its bytes; field ``Segmentation`` of the struct ``GTcls``.
        name: For messages.

    Raises:
        UserError: Not such a file.
    """
    try:
        with io.BytesIO(content if isinstance(content, bytes) else content.read_bytes()) as file:
            mask = loadmat(file, variable_names=("GTcls",))["GTcls"]["Segmentation"][0, 0]
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error}); fetch it again") from None
    except Exception as error:  # damaged bytes make scipy's reader fail in many ways
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{name}: holds no GTcls.Segmentation ({reason}); fetch SBD again") from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise UserError(
            f"{name}: Segmentation is {mask.dtype} {mask.shape}, not uint8 (H, W); fetch SBD again"
        )
    return mask
