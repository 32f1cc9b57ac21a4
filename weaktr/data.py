"""Pictures with image-level labels, for training and validation."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset

from wsss.distributed import shard
from wsss.errors import UserError
from wsss.io import read_image
from wsss.loading import seeded


class ImageLabelDataset(Dataset):
    """Samples ``{"image": (3, S, S), "labels": (C,), "image_id": str}``.

    Args:
        spec: Data set from ``wsss.datasets.load_dataset``.
        image_ids: Pictures, in order.
        transform: PIL picture to normalised tensor; may draw from the global random generators.
        seed: With epoch and index, the only source of those draws.
        exif: Honour the EXIF rotation.
    """

    def __init__(self, spec, image_ids: Sequence[str], transform: Callable, *, seed: int, exif: bool = False):
        self.spec, self.image_ids, self.transform = spec, list(image_ids), transform
        self.seed, self.exif = seed, exif

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: tuple[int, int]) -> dict | UserError:
        """``key`` is (epoch, index). Bad input is handed on as a value (``wsss.loading.batches``)."""
        epoch, index = key
        image_id = self.image_ids[index]
        try:
            image = Image.fromarray(read_image(self.spec.image_path(image_id), exif=self.exif))
            labels = torch.as_tensor(self.spec.labels(image_id))
        except UserError as error:
            return error
        with seeded(self.seed, epoch, index):
            return {"image": self.transform(image), "labels": labels, "image_id": image_id}


class ShardBatchSampler:
    """Consecutive batches of this process's share of a list, as (0, index) pairs."""

    def __init__(self, length: int, batch_size: int):
        indices = shard(range(length))
        self.batches = [
            [(0, i) for i in indices[start : start + batch_size]]
            for start in range(0, len(indices), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)
