"""The archive that the PASCAL VOC evaluation server takes: label maps in its own folders, packed."""

import gzip
import tarfile
from collections.abc import Iterable
from pathlib import Path

from wsss.errors import UserError
from wsss.io import atomic_write, read_bytes

LISTS = ("train", "val", "test")  # the official ones; the server scores test


def check_submission(dataset: str | None, split: str) -> None:
    """Refuse what the server does not score.

    Args:
        dataset: Layout; None for any pictures.
        split: Name of the list.
    """
    if dataset != "voc12":
        raise UserError(
            "--submission: the server scores PASCAL VOC 2012 alone; give --dataset voc12 with its "
            "--data-path, or leave it out"
        )
    if split not in LISTS:
        raise UserError(f"--submission: {split} is no official list; give --split test (or val, train)")


def write_submission(output_dir: Path, image_ids: Iterable[str], split: str) -> Path:
    """Copy label maps to ``results/VOC2012/Segmentation/comp6_SPLIT_cls`` and pack that folder.

    Copies that are there with the same content are kept. Equal label maps give an archive of equal bytes.

    Args:
        output_dir: Holds ``ID.png`` of every picture.
        image_ids: The pictures.
        split: Name of the list.

    Returns:
        The archive, ``output_dir/comp6_SPLIT_cls.tar.gz``; written atomically.
    """
    name = f"comp6_{split}_cls"
    folder = Path(output_dir) / "results" / "VOC2012" / "Segmentation" / name
    files = sorted(f"{image_id}.png" for image_id in image_ids)
    for file in files:
        content, copy = read_bytes(Path(output_dir) / file), folder / file
        if not copy.is_file() or copy.read_bytes() != content:
            with atomic_write(copy) as temporary:
                temporary.write_bytes(content)
    archive = Path(output_dir) / f"{name}.tar.gz"
    with (
        atomic_write(archive) as temporary,
        temporary.open("wb") as raw,
        # no name and no time in the header
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for file in files:
            member = tarfile.TarInfo(f"results/VOC2012/Segmentation/{name}/{file}")
            member.size, member.mode = (folder / file).stat().st_size, 0o644
            with (folder / file).open("rb") as content:
                tar.addfile(member, content)
    return archive
