"""Pictures with masks for stage 2: training samples, and the check of all masks before training."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from segmentation.augment import augment
from wsss.distributed import rank
from wsss.errors import UserError
from wsss.io import IGNORED, read_image, read_mask
from wsss.parallel import parallel_map
from wsss.transforms import normalise

log = logging.getLogger(__name__)


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
        photometric: bool = True,
        exif: bool = False,
    ):
        self.spec, self.image_ids, self.mask_paths = spec, list(image_ids), mask_paths
        self.crop_size, self.short_side, self.mean, self.std = crop_size, short_side, mean, std
        self.num_classes, self.seed, self.photometric, self.exif = num_classes, seed, photometric, exif

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
        image, mask = augment(
            image,
            mask,
            short_side=self.short_side,
            crop_size=self.crop_size,
            rng=rng,
            photometric=self.photometric,
        )
        height, width = mask.shape
        sample = {
            "image": torch.zeros(3, self.crop_size, self.crop_size),
            "mask": torch.full((self.crop_size, self.crop_size), IGNORED),
            "image_id": image_id,
        }
        sample["image"][:, :height, :width] = normalise(image, self.mean, self.std)
        sample["mask"][:height, :width] = torch.from_numpy(mask)
        return sample


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


def check_masks(
    spec,
    image_ids: Sequence[str],
    mask_paths: Mapping[str, Path],
    *,
    num_classes: int,
    exif: bool = False,
    workers: int = 0,
) -> dict[str, tuple[int, int]]:
    """Read every picture and mask once, so that a run fails at its start and not in the middle.

    Pictures are decoded whole, so that truncated ones are found too: 2.5 ms for one of 500x375 with its mask.
    Nothing is shared between the processes of a run: let the first one check, with ``workers`` processes of
    its own. Masks without any label and masks of background alone are counted in a warning.

    Returns:
        Image id -> size (H, W).

    Raises:
        UserError: A picture has no mask; a picture or mask is missing, damaged or unsuitable; a mask does not
            fit (``read_fitting_mask``); or no mask of the list holds a labelled pixel.
    """
    for image_id in image_ids:
        if image_id not in mask_paths:
            raise UserError(
                f"{spec.mask_path(image_id)}: no such mask; put one there for every picture that is trained "
                "on, or give --mask-dir a folder of them"
            )
    pairs = [(spec.image_path(i), mask_paths[i]) for i in image_ids]
    results = parallel_map(
        functools.partial(_check_pair, num_classes=num_classes, exif=exif), pairs, workers=workers
    )
    unlabelled = background_only = 0
    sizes = {}
    bar = tqdm(results, total=len(pairs), desc="checking masks", unit="mask", disable=rank() != 0)
    for image_id, (size, labelled, foreground) in zip(image_ids, bar, strict=True):
        sizes[image_id] = size
        unlabelled += not labelled
        background_only += labelled and not foreground
    total, folder = len(pairs), mask_paths[image_ids[0]].parent
    if unlabelled == total:
        raise UserError(f"{folder}: every pixel of all {total} masks is 255; give masks with labels")
    if unlabelled:
        log.warning("warning: %d of %d masks in %s are 255 everywhere", unlabelled, total, folder)
    if background_only:
        log.warning("warning: %d of %d masks in %s hold background only", background_only, total, folder)
    return sizes


def _check_pair(
    paths: tuple[Path, Path], *, num_classes: int, exif: bool
) -> tuple[tuple[int, int], bool, bool]:
    """Size (H, W); whether the mask has labelled pixels, and whether any of these is foreground."""
    image_path, mask_path = paths
    size = read_image(image_path, exif=exif).shape[:2]
    mask = read_fitting_mask(mask_path, image_path, size, num_classes=num_classes)
    labelled = mask[mask != IGNORED]
    return mask.shape, labelled.size > 0, bool(labelled.any())
