"""GETAM numbers its classes densely: COCO's 80 categories, where the data set has 90 numbers with gaps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.datasets import Dataset
from wsss.io import IGNORED
from wsss.labels import COCO_UNUSED


@dataclass(frozen=True)
class ClassTable:
    """Classes of the network, and the numbers that the data set gives them.

    Attributes:
        root: Of the data set, for errors.
        class_names: Foreground, in the network's order.
        indices: The data set's foreground index of each.
    """

    root: Path
    class_names: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def num_fg_classes(self) -> int:
        return len(self.class_names)

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """The data set's multi-hot labels as the network's, float32 (C,)."""
        return labels[list(self.indices)].astype(np.float32)

    def label_map(self, labels: np.ndarray) -> np.ndarray:
        """A map of the network's numbers (0 background, class + 1) in the data set's, uint8."""
        values = np.array([0, *(index + 1 for index in self.indices)], np.uint8)
        return values[labels]

    def network_map(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the data set's numbers in the network's; 255, and numbers of no class, are 255."""
        values = np.full(256, IGNORED, np.uint8)
        values[[0, *(index + 1 for index in self.indices)]] = np.arange(len(self.indices) + 1)
        return values[mask]


def class_table(spec: Dataset) -> ClassTable:
    """The classes of a data set that occur at all."""
    unused = {number - 1 for number in COCO_UNUSED} if spec.name == "coco14" else set()
    indices = tuple(k for k in range(spec.num_fg_classes) if k not in unused)
    return ClassTable(spec.root, tuple(spec.class_names[k] for k in indices), indices)
