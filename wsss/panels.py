"""Panels: small pictures of a few examples, one column each, which later pages put side by side.

    FOLDER/panels/ID/NAME.png    RGB, longer side at most 256 pixels

FOLDER is a command's output folder. A class has the same colour in every column, that of the VOC palette.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from wsss.errors import UserError
from wsss.io import VOC_PALETTE, read_image, read_mask, write_image
from wsss.visualize import overlay

PANEL_SIDE = 256  # longer side, pixels


def panel_ids(image_ids: Sequence[str], count: int) -> list[str]:
    """``count`` pictures spread evenly over a list: the same ones for every command that has the same list.

    All of them where the list has no more.
    """
    count = min(count, len(image_ids))
    return [image_ids[k * len(image_ids) // count] for k in range(count)]


def panel_path(folder: Path, image_id: str, name: str) -> Path:
    return Path(folder) / "panels" / image_id / f"{name}.png"


def write_panel(folder: Path, image_id: str, name: str, picture: np.ndarray) -> None:
    """Write one column of one picture, uint8 (H, W, 3), shrunk to ``PANEL_SIDE`` and never enlarged."""
    height, width = picture.shape[:2]
    factor = PANEL_SIDE / max(height, width)
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    write_image(panel_path(folder, image_id, name), picture)


def write_picture_panels(folder: Path, image_id: str, image: np.ndarray, mask_path: Path | None) -> None:
    """The columns ``picture`` and, where ``mask_path`` is a file, ``truth``.

    Raises:
        UserError: The mask is bad, or not of the picture's size.
    """
    write_panel(folder, image_id, "picture", image)
    if mask_path is not None and mask_path.is_file():
        write_panel(folder, image_id, "truth", _over(image, mask_path))


def write_label_panels(
    folder: Path,
    name: str,
    pictures: Iterable[tuple[str, Path, Path | None]],
    *,
    exif: bool,
) -> None:
    """The panels of pictures whose label maps ``FOLDER/ID.png`` are there already; ``name`` is their column.

    Args:
        folder: A command's output folder.
        name: Of the column that shows the label map.
        pictures: (id, picture, its true mask or None) each; a true mask that is not there is left out.
        exif: Turn pictures as their EXIF tag says; as for the label maps.

    Raises:
        UserError: A picture, label map or mask is missing or bad, or their sizes differ.
    """
    for image_id, image_path, mask_path in pictures:
        image = read_image(image_path, exif=exif)
        write_picture_panels(folder, image_id, image, mask_path)
        write_panel(folder, image_id, name, _over(image, Path(folder) / f"{image_id}.png"))


def cam_overlay(
    image: np.ndarray, cams: np.ndarray, class_ids: Sequence[int], *, alpha: float = 0.8
) -> np.ndarray:
    """The strongest map of each pixel over the picture: its class's colour, the more opaque the higher it is.

    Args:
        image: uint8 (H, W, 3).
        cams: (n, H, W) in 0..1; of equal maps the first wins. Where n is 0 the picture stays as it is.
        class_ids: (n,) foreground class indices, counted from 0.
        alpha: Share of the colour where the map is 1.
    """
    if len(cams) == 0:
        return image
    if image.shape[:2] != cams.shape[1:]:
        raise ValueError(f"picture {image.shape[:2]} and maps {cams.shape[1:]} differ in size")
    palette = np.frombuffer(VOC_PALETTE, np.uint8).reshape(256, 3)
    colours = palette[np.asarray(class_ids)[cams.argmax(0)] + 1]
    opacity = alpha * np.clip(cams.max(0).astype(np.float32), 0, 1)[..., None]
    return np.rint(image * (1 - opacity) + colours * opacity).astype(np.uint8)


def _over(image: np.ndarray, mask_path: Path) -> np.ndarray:
    labels = read_mask(mask_path)
    if labels.shape != image.shape[:2]:
        raise UserError(
            f"{mask_path}: is {labels.shape[1]}x{labels.shape[0]}, its picture "
            f"{image.shape[1]}x{image.shape[0]}; give masks of these pictures, with the same --exif"
        )
    return overlay(image, labels)
