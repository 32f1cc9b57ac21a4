"""Training crops with image labels and, where there are any, saliency maps."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from segmentation.getam.classes import ClassTable
from wsss.errors import UserError
from wsss.io import read_image, read_mask
from wsss.transforms import normalise, resize_bilinear, resize_nearest

LONG_SIDE = (230 / 256, 292 / 256)  # range of the long side, times the crop's; both ends are drawn
SALIENT = 128  # level of a saliency map from which a pixel is salient


class GetamDataset(Dataset):
    """Samples of S = ``crop_size`` pixels a side.

    ``image`` float32 (3, S, S), normalised, 0 where padded; ``crop_mask`` float32 (S, S), 1 on the picture;
    ``targets`` float32 (C,); ``salient`` bool (S, S), all False without saliency maps; ``image_id``.

    Args:
        spec: Data set from ``wsss.datasets.load_dataset``.
        table: Its classes as the network numbers them.
        image_ids: Pictures, in order.
        mean, std: Pixel statistics of the network, for values in 0..1.
        saliency_dir: Folder of ``<id>.png`` of the pictures' sizes, or None.
        seed: With epoch and index, the only source of random numbers.
        exif: Honour the EXIF rotation.
    """

    def __init__(
        self,
        spec,
        table: ClassTable,
        image_ids: Sequence[str],
        *,
        crop_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        saliency_dir: Path | None,
        seed: int,
        exif: bool = False,
    ):
        self.spec, self.table, self.image_ids = spec, table, list(image_ids)
        self.crop_size, self.mean, self.std = crop_size, mean, std
        self.saliency_dir, self.seed, self.exif = saliency_dir, seed, exif

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: tuple[int, int]) -> dict | UserError:
        """``key`` is (epoch, index). Bad input is handed on as a value (``wsss.loading.batches``)."""
        epoch, index = key
        image_id = self.image_ids[index]
        try:
            image = read_image(self.spec.image_path(image_id), exif=self.exif)
            salient = np.zeros(image.shape[:2], np.uint8)
            if self.saliency_dir is not None:
                salient = read_saliency(self.saliency_dir / f"{image_id}.png", image.shape[:2])
            targets = self.table.targets(self.spec.labels(image_id))
        except UserError as error:
            return error
        rng = np.random.default_rng((self.seed, epoch, index))
        image, salient = _resize_and_flip(image, salient, self.crop_size, rng)
        S = self.crop_size
        source, target = _crop(image.shape[:2], S, rng)
        sample = {
            "image": torch.zeros(3, S, S),
            "crop_mask": torch.zeros(S, S),
            "salient": torch.zeros(S, S, dtype=torch.bool),
            "targets": torch.from_numpy(targets),
            "image_id": image_id,
        }
        sample["image"][:, *target] = normalise(np.ascontiguousarray(image[source]), self.mean, self.std)
        sample["crop_mask"][target] = 1
        sample["salient"][target] = torch.from_numpy(salient[source] >= SALIENT)
        return sample


def read_saliency(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A saliency map, uint8 ``size`` (H, W): grey, 255 salient; a map of 0 and 1 is taken as 0 and 255.

    Raises:
        UserError: Missing, damaged, or of another size than the picture.
    """
    found = read_mask(path)
    if found.shape != tuple(size):
        raise UserError(
            f"{path}: is {found.shape[1]}x{found.shape[0]}, its picture is {size[1]}x{size[0]}; "
            "give saliency maps of these pictures, with the same --exif"
        )
    return found * 255 if found.max(initial=0) == 1 else found


def _resize_and_flip(
    image: np.ndarray, salient: np.ndarray, crop_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    low, high = (round(crop_size * limit) for limit in LONG_SIDE)
    long_side = int(rng.integers(low, high + 1))
    factor = long_side / max(image.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in image.shape[:2])
    image, salient = resize_bilinear(image, size), resize_nearest(salient, size)
    if rng.random() < 0.5:
        image, salient = cv2.flip(image, 1), cv2.flip(salient, 1)
    return image, salient


def _crop(size: tuple[int, int], crop_size: int, rng: np.random.Generator) -> tuple[tuple, tuple]:
    """Slices of the picture and of the crop, (rows, columns) each: a side that is longer than the crop is cut
    at a random offset, a shorter one lies at a random offset in the crop."""
    source, target = [], []
    for side in size:
        offset = int(rng.integers(abs(side - crop_size) + 1))
        length = min(side, crop_size)
        cut = side > crop_size
        source.append(slice(offset, offset + length) if cut else slice(0, length))
        target.append(slice(0, length) if cut else slice(offset, offset + length))
    return tuple(source), tuple(target)
