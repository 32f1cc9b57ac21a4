"""What a folder of VOC masks must be: of the pictures' sizes, with VOC's values, complete."""

import functools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsss.errors import UserError
from wsss.io import read_mask, read_size
from wsss.parallel import parallel_map
from wsss.prepare.files import names

VALUES = (*range(21), 255)  # background, 20 classes, no label


def verify(
    folder: Path, pictures: Path, *, count: int | None, workers: int, remedy: str, name: str | None = None
) -> None:
    """Check masks by content: sizes as the pictures', values 0..20 and 255, their number.

    Args:
        folder: ``ID.png``, grey or palette.
        pictures: JPEGImages.
        count: How many there must be; None: any number but 0.
        workers: Processes.
        remedy: End of the message.
        name: Of the masks in messages; default: the folder.

    Raises:
        UserError: With the number of problems, and the first few of them.
    """
    found = names(folder, ".png")
    problems = []
    if not found or len(found) != (count or len(found)):
        problems.append(f"{len(found):,} masks instead of {f'{count:,}' if count else 'at least one'}")
    work = functools.partial(_problem, folder=folder, pictures=pictures)
    results = parallel_map(work, found, workers=workers)
    problems += [p for p in tqdm(results, total=len(found), desc="verifying masks", unit="mask") if p]
    refuse_problems(problems, name or str(folder), remedy)


def _problem(name: str, folder: Path, pictures: Path) -> str | None:
    try:
        problem = mask_problem(read_mask(folder / name), pictures / f"{name[:-4]}.jpg")
    except UserError as error:
        return str(error)
    return f"{name} {problem}" if problem else None


def mask_problem(mask: np.ndarray, picture: Path) -> str | None:
    """Why a mask cannot be the picture's: no such picture, another size, a value that is no class of VOC."""
    if not picture.is_file():
        return f"has no picture {picture.name}"
    if (size := read_size(picture)) != mask.shape:
        return f"is {mask.shape[1]}x{mask.shape[0]}, its picture {size[1]}x{size[0]}"
    values = [int(v) for v in np.unique(mask) if v not in VALUES]
    return f"holds the value {values[0]}; VOC's are 0..20 and 255" if values else None


def refuse_problems(problems: list[str], where: str, remedy: str) -> None:
    """UserError with the number of problems and the first three of them, if there are any."""
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        noun = "problem" if len(problems) == 1 else "problems"
        raise UserError(f"{where}: {len(problems):,} {noun} with masks: {shown}; {remedy}")
