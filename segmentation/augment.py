"""The published augmentation of stage 2: resize, crop, flip, photometric distortion, one function per step.

Every random number comes from the generator that is handed in. Pictures are uint8 RGB (H, W, 3), masks uint8
(H, W) with 255 where a pixel has no label.
"""

import cv2
import numpy as np

from wsss.io import IGNORED
from wsss.transforms import resize_bilinear, resize_nearest, resized_size

RATIOS = (0.5, 2.0)  # short side of the resized picture, over the nominal one
CROP_DRAWS = 10
MAX_SHARE = 0.75  # of one class in the labelled part of a crop
BRIGHTNESS = 32  # of 255, added or subtracted
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180 steps of 2 degrees


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    short_side: int,
    crop_size: int,
    rng: np.random.Generator,
    photometric: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A training crop of a picture (H, W, 3) and of its mask (H, W): uint8 (h, w, 3) and (h, w).

    h and w are ``crop_size``, or less where the resized picture is smaller. ``photometric=False`` leaves the
    colours as they are.
    """
    size = resized_size(mask.shape, short_side, rng.uniform(*RATIOS))
    image, mask = resize_bilinear(image, size), resize_nearest(mask, size)
    window = draw_crop(mask, crop_size, rng)
    image, mask = image[window], mask[window]
    if heads(rng):
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    return distort(image, rng) if photometric else image, mask


def heads(rng: np.random.Generator) -> bool:
    """True with probability 1/2."""
    return bool(rng.integers(2))


# ---------------------------------------------------------------------------------------------- crop


def draw_crop(mask: np.ndarray, crop_size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a random crop of (H, W): the first of ten that ``is_varied``, else the tenth.

    Where the picture is smaller than the crop, all of it is taken.
    """
    for _ in range(CROP_DRAWS):
        top, left = (int(rng.integers(max(side - crop_size, 0) + 1)) for side in mask.shape)
        window = slice(top, top + crop_size), slice(left, left + crop_size)
        if is_varied(mask[window]):
            break
    return window


def is_varied(mask: np.ndarray) -> bool:
    """Whether the labelled part holds more than one class, the largest with less than 75% of it.

    A class of exactly 75% is too large, as in the published code. Never true where nothing is labelled.
    """
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return int(counts.max()) < MAX_SHARE * int(counts.sum())  # one class alone has 100%


# ---------------------------------------------------------------------------- photometric distortion


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation, hue, each with probability 1/2.

    Contrast comes second or last, with equal chance. Each step ends in whole numbers of 0..255.
    """
    if heads(rng):
        image = adjust_brightness(image, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_last = heads(rng)
    if not contrast_last and heads(rng):
        image = adjust_contrast(image, rng.uniform(*CONTRAST))
    if heads(rng):
        image = adjust_saturation(image, rng.uniform(*SATURATION))
    if heads(rng):
        image = shift_hue(image, int(rng.integers(-HUE, HUE)))
    if contrast_last and heads(rng):
        image = adjust_contrast(image, rng.uniform(*CONTRAST))
    return image


def adjust_brightness(image: np.ndarray, delta: float) -> np.ndarray:
    """Add ``delta`` to every value; clip, truncate."""
    return cv2.LUT(image, _table(1, delta))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply every value by ``factor``; clip, truncate."""
    return cv2.LUT(image, _table(factor, 0))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply S of OpenCV's 8-bit HSV by ``factor``; clip, truncate."""
    return _in_hsv(image, saturation=_table(factor, 0))


def shift_hue(image: np.ndarray, steps: int) -> np.ndarray:
    """Turn H of OpenCV's 8-bit HSV (0..179) by ``steps`` of 2 degrees."""
    return _in_hsv(image, hue=((np.arange(256) + steps) % 180).astype(np.uint8))


_VALUES = np.arange(256, dtype=np.uint8)


def _table(factor: float, delta: float) -> np.ndarray:
    """What becomes of each of the 256 values, computed in float32 as published."""
    return np.clip(_VALUES.astype(np.float32) * factor + delta, 0, 255).astype(np.uint8)


def _in_hsv(image: np.ndarray, *, hue: np.ndarray = _VALUES, saturation: np.ndarray = _VALUES) -> np.ndarray:
    """Look up H and S in tables of 256 values, V as it is."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv = cv2.LUT(hsv, np.stack([hue, saturation, _VALUES], axis=-1)[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
