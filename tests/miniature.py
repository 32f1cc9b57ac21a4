"""A miniature data set that the tests draw for themselves, the same at every run.

    python tests/miniature.py DIR [--layout folder|voc12|coco14] [--no-masks] [--train 24] [--val 8]

One or two striped, checked or dotted shapes per picture, each class in its own hues, on greyish clutter;
sides of 96..130 pixels; masks with a border of 255. Some names in the folder layout hold spaces and non-ASCII
letters; VOC annotations hold parts and difficult objects, COCO's a crowd.
"""

import argparse
import colorsys
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SHAPES = ("disc", "square", "triangle")
VOC_NAMES = {"disc": "aeroplane", "square": "dog", "triangle": "tvmonitor"}  # indices 0, 11, 19
COCO_IDS = {"disc": 1, "square": 18, "triangle": 90}
HUES = {"disc": 0.02, "square": 0.35, "triangle": 0.62}


def draw(index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Picture ``index``: uint8 (H, W, 3); mask uint8 (H, W) with 0, 1..3, 255; (shape, x y w h) list."""
    rng = np.random.RandomState(504 + index)
    height, width = rng.randint(96, 131, 2)
    grey = cv2.resize(rng.randint(60, 190, (9, 9)).astype(np.float32), (int(width), int(height)))
    image = grey[..., None] + rng.normal(0, 8, (height, width, 3))
    for _ in range(6):  # clutter: lines of any grey
        ends = [(int(rng.randint(width)), int(rng.randint(height))) for _ in range(2)]
        cv2.line(image, *ends, (float(rng.randint(40, 210)),) * 3, int(rng.randint(1, 4)))
    mask = np.zeros((height, width), np.uint8)
    count = 1 + index % 2
    objects = []
    for k, shape in enumerate(rng.permutation(3)[:count].tolist()):
        radius = int(rng.randint(18, 27)) if count == 2 else int(rng.randint(24, 36))
        # two objects keep to the two halves, so that neither hides the other
        low, high = radius + 2 + k * (width // 2), width // count * (k + 1) - radius - 2
        x = int(rng.randint(low, high)) if high > low else (low + high) // 2
        y = int(rng.randint(radius + 2, height - radius - 2))
        inside = np.zeros((height, width), np.uint8)
        if SHAPES[shape] == "disc":
            cv2.circle(inside, (x, y), radius, 1, -1)
        elif SHAPES[shape] == "square":
            cv2.rectangle(inside, (x - radius + 3, y - radius + 3), (x + radius - 3, y + radius - 3), 1, -1)
        else:
            corners = [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)]
            cv2.fillPoly(inside, [np.array(corners)], 1)
        texture = _texture(SHAPES[shape], height, width, rng)
        image = np.where(inside[..., None] > 0, texture, image)
        border = cv2.dilate(inside, np.ones((3, 3), np.uint8)) - cv2.erode(inside, np.ones((3, 3), np.uint8))
        mask[inside > 0] = shape + 1
        mask[border > 0] = 255
        objects.append((shape, cv2.boundingRect(inside)))
    return np.clip(image, 0, 255).astype(np.uint8), mask, objects


def _texture(name: str, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    pattern = {
        "disc": (rows + columns) // 5 % 2,
        "square": (rows // 6 + columns // 6) % 2,
        "triangle": (rows % 8 < 4) & (columns % 8 < 4),
    }[name]
    colours = [
        np.array(colorsys.hsv_to_rgb((HUES[name] + rng.uniform(-0.04, 0.04)) % 1, 0.85, v)) * 255
        for v in (rng.uniform(0.45, 0.6), rng.uniform(0.8, 1.0))
    ]
    return np.where(pattern[..., None] > 0, *colours) + rng.normal(0, 10, (height, width, 3))


def _save(folder: Path, name: str, image: np.ndarray, palette: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if palette:
        picture.putpalette([v for i in range(256) for v in (i * 67 % 256, i * 131 % 256, i * 29 % 256)])
    picture.save(folder / name, **({"quality": 95} if name.endswith(".jpg") else {}))


def make_folder(root: Path, train: int, val: int, masks: bool) -> None:
    """The "folder" layout; without masks it has no list but the two, and no masks folder."""
    ids = [f"mini {i:03d} ü" if i % 7 == 3 else f"mini_{i:03d}" for i in range(train + val)]
    rows = ["image,labels"]
    for i, image_id in enumerate(ids):
        image, mask, objects = draw(i)
        _save(root / "images", f"{image_id}{'.png' if i % 5 == 4 else '.jpg'}", image)
        if masks:
            _save(root / "masks", f"{image_id}.png", mask, palette=True)
        rows.append(f"{image_id},{';'.join(SHAPES[shape] for shape, _ in objects)}")
    (root / "classes.txt").write_text("\n".join(SHAPES) + "\n", encoding="utf8")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf8")
    (root / "train.txt").write_text("\n".join(ids[:train]) + "\n", encoding="utf8")
    (root / "val.txt").write_text("\n".join(ids[train:]) + "\n", encoding="utf8")


def make_voc12(root: Path, train: int, val: int, masks: bool) -> None:
    """``root/VOCdevkit/VOC2012``; train.txt is the first half of the training pictures."""
    root = root / "VOCdevkit" / "VOC2012"
    ids = [f"2007_{i + 1:06d}" for i in range(train + val)]
    values = np.arange(256, dtype=np.uint8)
    values[1:4] = (1, 12, 20)
    for i, image_id in enumerate(ids):
        image, mask, objects = draw(i)
        _save(root / "JPEGImages", f"{image_id}.jpg", image)
        if masks:
            _save(root / "SegmentationClassAug", f"{image_id}.png", values[mask])
        things = ""
        for shape, (x, y, w, h) in objects:
            box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            part = f"<part><name>head</name><bndbox>{box}</bndbox></part>"
            things += (
                f"<object><name>{VOC_NAMES[SHAPES[shape]]}</name><difficult>{int(shape == 1)}</difficult>"
            )
            things += f"<bndbox>{box}</bndbox>{part}</object>\n"
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>\n{things}</annotation>\n")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids[: (train + 1) // 2]) + "\n")
    (lists / "val.txt").write_text("\n".join(ids[train:]) + "\n")


def make_coco14(root: Path, train: int, val: int, masks: bool) -> None:
    """The official picture folders and instances files; masks hold category ids."""
    values = np.arange(256, dtype=np.uint8)
    values[1:4] = list(COCO_IDS.values())
    for part, indices in (("train", range(train)), ("val", range(train, train + val))):
        content = {"images": [], "annotations": []}
        for i in indices:
            image, mask, objects = draw(i)
            number, name = 100 + 7 * i, f"{100 + 7 * i:012d}"
            _save(root / f"{part}2014", f"COCO_{part}2014_{name}.jpg", image)
            if masks:
                _save(root / "masks", f"{name}.png", values[mask])
            content["images"].append({"id": number, "height": mask.shape[0], "width": mask.shape[1]})
            for k, (shape, (x, y, w, h)) in enumerate(objects):
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                content["annotations"].append(
                    {"id": 10 * i + k, "image_id": number, "category_id": COCO_IDS[SHAPES[shape]],
                     "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h, "segmentation": [outline]}
                )  # fmt: skip
        content["images"].append({"id": 99 if part == "train" else 98, "height": 100, "width": 100})
        content["categories"] = [{"id": n, "name": shape} for shape, n in COCO_IDS.items()]
        content["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": [0, 1], "size": [1, 1]}}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{part}2014.json").write_text(json.dumps(content))


LAYOUTS = {"folder": make_folder, "voc12": make_voc12, "coco14": make_coco14}


def make(root: Path, layout: str = "folder", *, train: int = 24, val: int = 8, masks: bool = True) -> Path:
    """Write the data set; returns ``root``."""
    Path(root).mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout](Path(root), train, val, masks)
    return Path(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--layout", choices=LAYOUTS, default="folder")
    parser.add_argument("--masks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--train", type=int, default=24, help="training pictures (default: 24)")
    parser.add_argument("--val", type=int, default=8, help="validation pictures (default: 8)")
    options = parser.parse_args()
    make(options.root, options.layout, train=options.train, val=options.val, masks=options.masks)
