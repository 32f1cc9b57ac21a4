"""From a picture to its files: network, CRF, label map, overlay, probabilities.

``make_task`` needs the network; ``finish_task`` does not, and runs in a process of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from segmentation.inference import Protocol
from segmentation.memory import predict_each_in_memory, predict_in_memory
from segmentation.segmenter import Segmenter
from wsss.crf import crf_from_probs
from wsss.distributed import rank
from wsss.errors import UserError
from wsss.io import atomic_write, read_image, read_mask, write_image, write_mask
from wsss.parallel import parallel_map
from wsss.visualize import overlay


class Outputs(NamedTuple):
    """Where the files of a picture go; None where one is not asked for."""

    mask: Path
    overlay: Path | None
    probabilities: Path | None

    def missing(self) -> list[Path]:
        return [path for path in self if path is not None and not path.is_file()]


class Task(NamedTuple):
    """What is needed to finish a picture."""

    outputs: Outputs
    image: np.ndarray  # uint8 (H, W, 3)
    labels: np.ndarray  # uint8 (H, W), before CRF
    winners: np.ndarray | None  # float32 (n, H, W): probabilities of the n classes in labels, for the CRF
    probs: np.ndarray | None  # float16 (K, H, W), to be written


def make_task(
    model: Segmenter,
    image_path: Path,
    outputs: Outputs,
    *,
    protocol: Protocol,
    crf: bool,
    max_side: int | None = None,
    exif: bool = False,
    amp_dtype: torch.dtype | None = None,
) -> Task:
    """Read a picture and predict it.

    Args:
        crf: The result will go through the CRF.
        max_side: As for ``predict_probs``.
        amp_dtype: Autocast's type, None for float32.

    Raises:
        UserError: A bad picture, too large for the memory, or values that are not finite.
    """
    image = read_image(image_path, exif=exif)
    missing = outputs.missing()
    if missing == [outputs.overlay]:  # made from the label map that is there
        labels = read_mask(outputs.mask)
        if labels.shape != image.shape[:2]:
            raise UserError(f"{outputs.mask}: {image_path} has another size now; delete this label map")
        return Task(outputs, image, labels, None, None)
    try:
        probs = predict_in_memory(model, image, protocol, max_side=max_side, amp_dtype=amp_dtype)
    except UserError as error:
        raise UserError(f"{image_path}: {error}") from error
    labels, winners = _labels(probs, crf=crf)
    written = probs.to(torch.float16).cpu().numpy() if outputs.probabilities in missing else None
    return Task(outputs, image, labels, winners, written)


def make_row_tasks(
    model: Segmenter,
    image_path: Path,
    rows: Sequence[tuple[Path, Protocol, bool]],
    *,
    max_side: int | None = None,
    exif: bool = False,
    amp_dtype: torch.dtype | None = None,
) -> Iterator[Task]:
    """Read a picture and predict it once for several label maps.

    Args:
        rows: Of each label map, where it goes, its protocol, and whether it will go through the CRF.
        max_side, amp_dtype: As for ``make_task``.

    Raises:
        UserError: As ``make_task``.
    """
    image = read_image(image_path, exif=exif)
    protocols = list(dict.fromkeys(protocol for _, protocol, _ in rows))
    found = predict_each_in_memory(model, image, protocols, max_side=max_side, amp_dtype=amp_dtype)
    try:
        for used, probs in zip(protocols, found, strict=True):
            own = [(path, crf) for path, protocol, crf in rows if protocol == used]
            labels, winners = _labels(probs, crf=any(crf for _, crf in own))
            for path, crf in own:
                yield Task(Outputs(path, None, None), image, labels, winners if crf else None, None)
    except UserError as error:
        raise UserError(f"{image_path}: {error}") from error


def _labels(probs: torch.Tensor, *, crf: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """``labels`` and ``winners`` of a ``Task``."""
    labels = probs.argmax(0).to(torch.uint8).cpu().numpy()
    classes = np.unique(labels).tolist()
    return labels, probs[classes].cpu().numpy() if crf and len(classes) > 1 else None


def finish_task(task: Task, *, crf_preset: str | None, class_names: tuple[str, ...]) -> None:
    """CRF, and every file that is missing.

    Args:
        crf_preset: A name in ``wsss.crf.PRESETS``; None for no CRF.
        class_names: Background first; written with the probabilities.
    """
    labels, missing = task.labels, task.outputs.missing()
    if task.winners is not None:
        # equal to the CRF on all probabilities, in which the winning classes alone take part
        labels = np.unique(labels)[crf_from_probs(task.image, task.winners, preset=crf_preset)]
    if task.outputs.mask in missing:
        write_mask(task.outputs.mask, labels)
    if task.outputs.overlay in missing:
        write_image(task.outputs.overlay, overlay(task.image, labels))
    if task.probs is not None:
        # an open file: given a name, savez would append .npz to the temporary one
        with atomic_write(task.outputs.probabilities) as temporary, temporary.open("wb") as file:
            np.savez(file, probs=task.probs, class_names=np.array(class_names))


def run_tasks(
    todo: Sequence[str],
    make: Callable[[str], Iterable[Task]],
    finish: Callable[[Task], None],
    *,
    workers: int,
    done: int = 0,
) -> None:
    """Make and finish the tasks of pictures: the network goes on while other processes finish.

    At a bad picture it stops, when the files of those before are written.

    Args:
        todo: Ids of the pictures.
        make: The tasks of a picture.
        finish: ``finish_task`` with its settings.
        workers: Processes that finish; 0 does it here.
        done: Pictures of before, for the progress shown.
    """
    failures = []

    def tasks() -> Iterator[Task]:
        counts = {"initial": done, "total": done + len(todo)}
        for image_id in tqdm(todo, "predicting", unit="img", disable=rank() != 0, **counts):
            try:
                yield from make(image_id)
            except UserError as error:
                failures.append(error)
                return

    for _ in parallel_map(finish, tasks(), workers=min(workers, len(todo))):
        pass
    if failures:
        raise failures[0]
