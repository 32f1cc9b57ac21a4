"""Pictures with masks for stage 2: training samples, and the check of all masks before training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from segmentation.augment import IGNORED, augment
from wsss.errors import UserError
from wsss.io import read_image, read_mask
from wsss.transforms import normalise


class SegmentationDataset(Dataset):
    """Samples ``{"image": float32 (3, S, S), "mask": int64 (S, S), "image_id": str}``, S = ``crop_size``.

    The mask is 255 where a pixel has no label and where the picture is padded (right and bottom, with 0 after
    normalisation).

    Args:
        spec: Data set from ``wsss.datasets.load_dataset``.
        image_ids: Pictures, in order.
        mask_paths: Image id -> mask of the picture's size: 0 background, class + 1, 255 no label.
        crop_size: Side of a sample, pixels.
        short_side: Nominal short side of a picture before the crop, pixels; half to twice that is drawn.
        mean, std: Pixel statistics of the network, for values in 0..1.
        num_classes: Background included.
        seed: With epoch and index, the only source of random numbers.
        exif: Honour the EXIF rotation.
    """

    def __init__(
        self,
        spec,
        image_ids: Sequence[str],
        mask_paths: Mapping[str, Path],
        *,
        crop_size: int,
        short_side: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        seed: int,
        exif: bool = False,
    ):
        self.spec, self.image_ids, self.mask_paths = spec, list(image_ids), mask_paths
        self.crop_size, self.short_side, self.mean, self.std = crop_size, short_side, mean, std
        self.num_classes, self.seed, self.exif = num_classes, seed, exif

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: tuple[int, int]) -> dict | UserError:
        """``key`` is (epoch, index). Bad input is handed on as a value (``wsss.loading.batches``)."""
        epoch, index = key
        image_id = self.image_ids[index]
        try:
            image_path = self.spec.image_path(image_id)
            image = read_image(image_path, exif=self.exif)
            mask = read_fitting_mask(
                self.mask_paths[image_id], image_path, image.shape[:2], num_classes=self.num_classes
            )
        except UserError as error:
            return error
        rng = np.random.default_rng((self.seed, epoch, index))
        image, mask = augment(image, mask, short_side=self.short_side, crop_size=self.crop_size, rng=rng)
        height, width = mask.shape
        padding = (0, self.crop_size - width, 0, self.crop_size - height)
        return {
            "image": F.pad(normalise(image, self.mean, self.std), padding),
            "mask": F.pad(torch.from_numpy(mask.astype(np.int64)), padding, value=IGNORED),
            "image_id": image_id,
        }


def read_fitting_mask(
    mask_path: Path, image_path: Path, size: tuple[int, int], *, num_classes: int
) -> np.ndarray:
    """The mask of a picture, uint8 ``size`` (H, W).

    Raises:
        UserError: As ``wsss.io.read_mask``; or the mask has another size, or holds a value that is neither a
            class (background included) nor 255.
    """
    mask = read_mask(mask_path)
    if mask.shape != tuple(size):
        raise UserError(
            f"{mask_path}: is {mask.shape[1]}x{mask.shape[0]}, its picture {image_path} is "
            f"{size[1]}x{size[0]}; make masks of these pictures, with the same --exif"
        )
    wrong = (mask >= num_classes) & (mask != IGNORED)
    if wrong.any():
        raise UserError(
            f"{mask_path}: holds the value {mask[wrong].max()}, the classes with background end at "
            f"{num_classes - 1} and only 255 may mark a pixel without label; give masks of this data set"
        )
    return mask
