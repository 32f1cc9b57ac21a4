"""Pictures to look at: label maps and CAMs over photographs. Everything is uint8 RGB, (H, W, 3)."""

import cv2
import numpy as np

from wsss.io import VOC_PALETTE


def overlay(image: np.ndarray, labels: np.ndarray, *, alpha: float = 0.5) -> np.ndarray:
    """A label map in the VOC palette over its picture; background (0) and ignored pixels (255) stay as is.

    Args:
        image: uint8 (H, W, 3).
        labels: integers (H, W).
        alpha: Share of the palette's colour, 0..1.
    """
    _check_size(image, labels)
    colours = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3)[labels]
    mixed = np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)
    shown = (labels != 0) & (labels != 255)
    return np.where(shown[..., None], mixed, image)


def heat_overlay(image: np.ndarray, cam: np.ndarray, *, alpha: float = 0.5) -> np.ndarray:
    """A map in 0..1, (H, W), in OpenCV's JET colours (blue 0, red 1) over its uint8 (H, W, 3) picture."""
    _check_size(image, cam)
    levels = np.rint(np.clip(cam.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures in one row, top edges aligned, white below the lower ones."""
    height = max(len(picture) for picture in pictures)
    return np.concatenate(
        [
            np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=255)
            for p in pictures
        ],
        axis=1,
    )  # fmt: skip


def _check_size(image: np.ndarray, other: np.ndarray) -> None:
    if image.shape[:2] != other.shape:
        raise ValueError(f"picture {image.shape[:2]} and map {other.shape} differ in size")
