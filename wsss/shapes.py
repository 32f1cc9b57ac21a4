"""The embedded data set: textured objects of six classes on clutter, drawn by the project itself.

A folder data set (docs/data.md) for scripts/quickstart.sh: one to three classes per picture, image labels,
and masks for scoring. The same at every run with the same seed.

An object's texture has two colours: one of its class's band of hues, and a duller one of any hue, which
covers more. Clutter has the objects' outlines and textures in greyish colours, and thin and small things of
any hue, most often of the picture's own classes. So neither colour nor texture alone tells an object
(``wsss.shapes_baseline`` measures how far colour goes).
"""

import colorsys
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from wsss.config import REQUIRED, option, result_options, run_command
from wsss.errors import UserError
from wsss.io import read_json, write_image, write_mask, write_text
from wsss.run import open_run

log = logging.getLogger(__name__)

OUTLINES = ("disc", "square", "triangle", "star", "cross", "leaf")
TEXTURES = ("stripes", "checks", "waves", "dots", "grid", "rings")


class Kind(NamedTuple):
    """What a class's objects look like: outline, texture, and the centre of its band of hues, 0..1."""

    outline: str
    texture: str
    hue: float


OBJECTS = (0.6, 0.3, 0.1)  # share of pictures with one, two and three of them
HUE_BAND = 0.045  # half width of a class's hues
CLASSES = {
    "ball": Kind("disc", "stripes", 0 / 6),
    "crate": Kind("square", "checks", 1 / 6),
    "tent": Kind("triangle", "waves", 2 / 6),
    "star": Kind("star", "dots", 3 / 6),
    "kite": Kind("cross", "grid", 4 / 6),
    "leaf": Kind("leaf", "rings", 5 / 6),
}


LAST_FILE = "classes.txt"  # written last: where it stands, the data set is complete


@dataclass(frozen=True, kw_only=True)
class Config:
    output_dir: Path = option(REQUIRED, "folder that receives the data set")
    train: int = option(400, "training pictures", minimum=1)
    val: int = option(100, "validation pictures", minimum=1)
    seed: int = option(504, "of all that is drawn", minimum=0)


class Picture(NamedTuple):
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # uint8 (H, W): 0, or 1 + place of the object in the list of kinds


def main(config: Config) -> None:
    output_dir = config.output_dir
    refuse_other_data(output_dir, result_options(config))
    open_run(output_dir, "wsss.shapes", result_options(config), owned=())
    if (output_dir / LAST_FILE).is_file():
        log.info("%s is there already", output_dir)
        return
    names, kinds = list(CLASSES), list(CLASSES.values())
    ids = [f"{number:04d}" for number in range(config.train + config.val)]
    rows = ["image,labels"]
    for number, image_id in enumerate(tqdm(ids, desc="drawing", unit="picture")):
        rng = np.random.default_rng((config.seed, number))
        chosen = rng.permutation(len(kinds))[: rng.choice(3, p=OBJECTS) + 1]
        image, places = draw([kinds[c] for c in chosen], rng)
        mask = np.append(0, chosen + 1).astype(np.uint8)[places]
        write_image(output_dir / "images" / f"{image_id}.jpg", image)
        write_mask(output_dir / "masks" / f"{image_id}.png", mask)
        rows.append(f"{image_id},{';'.join(names[value - 1] for value in np.unique(mask) if value)}")
    write_text(output_dir / "labels.csv", "\n".join(rows) + "\n")
    write_text(output_dir / "train.txt", "\n".join(ids[: config.train]) + "\n")
    write_text(output_dir / "val.txt", "\n".join(ids[config.train :]) + "\n")
    write_text(output_dir / LAST_FILE, "\n".join(names) + "\n")
    log.info("wrote %s: %d train, %d val, classes %s", output_dir, config.train, config.val, ", ".join(names))
    log.info("next: %s", shlex.join(["bash", "scripts/stage1.sh", "folder", str(output_dir), "OUT"]))


def refuse_other_data(folder: Path, options: dict) -> None:
    """Leave a folder alone that holds anything but this data set, or a part of it.

    Args:
        options: As in the folder's config.json if it is.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give --output-dir a new folder")
    path = folder / "config.json"
    if path.is_file() and read_json(path) == {"command": "wsss.shapes", **options}:
        return
    if any(not found.name.endswith(".tmp") for found in folder.iterdir()):
        raise UserError(f"{folder}: holds other files, or is drawn with other options; give a new folder")


def draw(kinds: list[Kind], rng: np.random.Generator, *, radius: tuple[float, float] = (17, 32)) -> Picture:
    """A picture of 96 to 128 pixels a side with one object of each kind.

    Later objects lie over earlier ones, by a tenth at most where that can be had; borders may cut a part off.

    Args:
        kinds: Objects, at most three.
        radius: Of an object, pixels; several objects are smaller.
    """
    height, width = (int(v) for v in rng.integers(96, 129, 2))
    size = (height, width)
    hues = [kind.hue for kind in kinds]
    image, mask = draw_clutter(size, hues, rng), np.zeros(size, np.uint8)
    largest = radius[1] - (3 * len(kinds) if len(kinds) > 1 else 0)
    for place, kind in enumerate(kinds, 1):
        for _ in range(20):
            r = rng.uniform(radius[0], largest)
            centre = rng.uniform((0.7 * r, 0.7 * r), (width - 0.7 * r, height - 0.7 * r))
            inside = outline(kind.outline, size, centre, r, rng)
            if (mask[inside] > 0).mean() < 0.1:
                break
        first = colour(
            kind.hue + rng.uniform(-HUE_BAND, HUE_BAND), rng.uniform(0.45, 0.9), rng.uniform(0.5, 1)
        )
        second = colour(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.1, 0.9))
        image[inside] = np.where(texture(kind.texture, size, centre, rng)[..., None], first, second)[inside]
        mask[inside] = place
    light = cv2.resize(rng.uniform(0.7, 1.15, (2, 2)).astype(np.float32), (width, height))
    image = cv2.GaussianBlur(image, (0, 0), 0.6) * light[..., None] + rng.normal(0, 12, image.shape)
    return Picture(np.clip(np.rint(image), 0, 255).astype(np.uint8), mask)


def draw_clutter(size: tuple[int, int], hues: list[float], rng: np.random.Generator) -> np.ndarray:
    """Background, float32 (H, W, 3): shades, greyish pieces like objects, and small things of any hue.

    Args:
        size: (H, W).
        hues: Of the picture's objects.
    """
    height, width = size
    shades = rng.uniform(70, 185, (5, 6, 1)) + rng.normal(0, 14, (5, 6, 3))
    image = cv2.resize(shades.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(4, 8)):
        centre = rng.uniform(0, (width, height))
        inside = outline(rng.choice(OUTLINES), size, centre, rng.uniform(8, 26), rng)
        first, second = (rng.uniform(40, 215) + rng.normal(0, 16, 3) for _ in range(2))
        if rng.random() < 0.4:
            second = first
        pattern = texture(rng.choice(TEXTURES), size, centre, rng)
        image[inside] = np.where(pattern[..., None], first, second)[inside]
    for _ in range(rng.integers(10, 19)):  # thin and small things of any colour
        hue = rng.choice(hues) + rng.uniform(-HUE_BAND, HUE_BAND) if rng.random() < 0.3 else rng.random()
        tint = colour(hue, rng.uniform(0.5, 1), rng.uniform(0.4, 1)).tolist()
        point = rng.integers(0, (width, height))
        if rng.random() < 0.5:
            end = point + rng.integers(-40, 41, 2)
            cv2.line(image, point.tolist(), end.tolist(), tint, int(rng.integers(1, 3)))
        else:
            cv2.circle(image, point.tolist(), int(rng.integers(2, 5)), tint, -1)
    return image


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """float32 (3,), 0..255; the hue, in turns, may lie outside 0..1."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def outline(
    name: str, size: tuple[int, int], centre: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Inside of a shape, turned at random: bool (H, W). ``centre`` is (x, y), pixels."""
    if name == "cross":
        arm = 0.38
        quarter = [(arm, -1), (arm, -arm), (1, -arm)]
        turns = [np.linalg.matrix_power([[0, 1], [-1, 0]], k) for k in range(4)]
        points = np.concatenate([np.array(quarter) @ turn for turn in turns])
    else:
        corners, stretch = {
            "disc": (40, 1), "leaf": (40, 1), "square": (4, 1.15), "triangle": (3, 1.25), "star": (10, 1.1)
        }[name]  # fmt: skip
        angles = np.arange(corners) * 2 * np.pi / corners
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * stretch
        if name == "star":
            points[1::2] *= 0.45
        if name == "leaf":
            points[:, 1] *= 0.55
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inside = np.zeros(size, np.uint8)
    cv2.fillPoly(inside, [np.rint(points @ turn * radius + centre).astype(np.int32)], 1)
    return inside > 0


def texture(name: str, size: tuple[int, int], centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where a texture has its first colour, bool (H, W); periods of 6 to 9 pixels, turned at random."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x, y = columns - centre[0], rows - centre[1]
    angle, step = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(6, 9)
    u = (x * np.cos(angle) + y * np.sin(angle)) * step
    v = (y * np.cos(angle) - x * np.sin(angle)) * step
    if name == "stripes":
        return np.sin(u) > 0.3
    if name == "checks":
        return np.sin(u) * np.sin(v) < -0.1
    if name == "waves":
        return np.sin(u + 1.5 * np.sin(0.6 * v)) > 0.3
    if name == "dots":
        return (np.sin(u) > -0.3) & (np.sin(v) > -0.3)
    if name == "grid":
        return (np.cos(u) > 0.7) | (np.cos(v) > 0.7)
    return np.sin(np.hypot(x, y) * step) > 0.3  # rings


def run() -> None:
    run_command(main, Config, prog="wsss.shapes", description=__doc__)


if __name__ == "__main__":
    run()
