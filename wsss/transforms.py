"""Picture transforms that both stages use."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from wsss.compat import clamp_posterize

GENTLE_AREA = (0.5, 1.0)  # of the crop, for pictures whose objects are small


def geometric_train_transform(image_size: int, mean: Sequence[float], std: Sequence[float]):
    """Random resized crop of half the picture's area or more (bicubic) and flip: colours stay as they are."""
    return create_transform(
        image_size,
        is_training=True,
        scale=GENTLE_AREA,
        color_jitter=None,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )


def classification_train_transform(image_size: int, mean: Sequence[float], std: Sequence[float]):
    """DeiT's training transform: PIL picture to normalised (3, S, S).

    Random resized crop (area 0.08..1, aspect 3/4..4/3, bicubic), flip, RandAugment, random erasing. Colour
    jitter is given as published, and unused by timm where RandAugment is on.
    """
    clamp_posterize()
    return create_transform(
        image_size,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )


def classification_val_transform(image_size: int, mean: Sequence[float], std: Sequence[float]):
    """Resize the short side to 256/224 of the crop (bicubic), centre crop, normalise."""
    return create_transform(image_size, interpolation="bicubic", mean=mean, std=std, crop_pct=224 / 256)


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (H, W, 3) to float32 (3, H, W): to 0..1, minus mean, over std."""
    pixels = torch.tensor(image).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def resize_bicubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's bicubic resize of a uint8 (H, W, 3) picture to ``size`` (H', W')."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def resized_size(
    size: tuple[int, int], short_side: float, ratio: float = 1.0, *, max_ratio: float = 8
) -> tuple[int, int]:
    """(H', W') of a picture of ``size`` (H, W) brought to ``short_side * ratio``, as published for stage 2.

    The long side is at most ``max_ratio * short_side * ratio``: a longer picture gets a shorter short side.
    Both sides are rounded half up from the original ones, and are at least 1 pixel.
    """
    target = short_side * ratio
    factor = min(target / min(size), max_ratio * target / max(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's bilinear resize (no antialiasing) of uint8 (H, W, 3) to ``size`` (H', W')."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's nearest resize of uint8 (H, W) to ``size`` (H', W'): row i is row int(i * H / H')."""
    if mask.shape == tuple(size):
        return mask
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
