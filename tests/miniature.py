"""A miniature data set that the tests draw for themselves, the same at every run.

    python tests/miniature.py DIR [--layout folder|voc12|coco14] [--no-masks] [--train 24] [--val 8]
    python tests/miniature.py DIR --layout voc12|coco14 --official archives|folders

One or two striped, checked or dotted shapes per picture, each class in its own hues, on greyish clutter;
sides of 96..130 pixels; masks with a border of 255. Some names in the folder layout hold spaces and non-ASCII
letters; VOC annotations hold parts and difficult objects, COCO's a crowd. With --official, what
data/prepare_{voc12,coco14}.sh start from, under the official names: archives, or the same unpacked.
"""

import argparse
import colorsys
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from scipy.io import savemat

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
        (root / "Annotations").mkdir(parents=True, exist_ok=True)
        (root / "Annotations" / f"{image_id}.xml").write_text(_voc_xml(objects))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids[: (train + 1) // 2]) + "\n")
    (lists / "val.txt").write_text("\n".join(ids[train:]) + "\n")


def _voc_xml(objects: list[tuple[int, tuple[int, int, int, int]]]) -> str:
    things = ""
    for shape, (x, y, w, h) in objects:
        box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        part = f"<part><name>head</name><bndbox>{box}</bndbox></part>"
        things += f"<object><name>{VOC_NAMES[SHAPES[shape]]}</name><difficult>{int(shape == 1)}</difficult>"
        things += f"<bndbox>{box}</bndbox>{part}</object>\n"
    return f"<annotation>\n{things}</annotation>\n"


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


# ------------------------------------------------------------------- what the preparation starts from

VOC_VALUES = np.arange(256, dtype=np.uint8)  # of the drawn masks to VOC's class numbers
VOC_VALUES[1:4] = (1, 12, 20)


def voc_id(index: int) -> str:
    return f"2007_{index + 1:06d}"


def sbd_mask(index: int) -> np.ndarray:
    """SBD's mask of picture ``index``: VOC's values, no border, and a stripe that VOC's own mask lacks."""
    _, mask, objects = draw(index)
    mask = VOC_VALUES[mask]
    mask[mask == 255] = 0
    mask[:3] = VOC_VALUES[objects[0][0] + 1]
    return mask


def official_voc12(root: Path, train: int, val: int) -> None:
    """VOCdevkit, benchmark_RELEASE and SegmentationClassAug.

    The first half of the training pictures and those of val have a mask of VOC's own. SBD has all of train
    and the first of val. Picture 1 is a grey JPEG; one more has no mask; SegmentationObject is not needed.
    """
    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    lists = {"train": range((train + 1) // 2), "val": range(train, train + val)}
    (voc / "Annotations").mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for i in range(train + val + 1):
        image, mask, objects = draw(i)
        _save(voc / "JPEGImages", f"{voc_id(i)}.jpg", image if i != 1 else image[..., 0])
        (voc / "Annotations" / f"{voc_id(i)}.xml").write_text(_voc_xml(objects))
        if own := any(i in part for part in lists.values()):
            _save(voc / "SegmentationClass", f"{voc_id(i)}.png", VOC_VALUES[mask], palette=True)
            _save(voc / "SegmentationObject", f"{voc_id(i)}.png", mask, palette=True)
        if i <= train:
            savemat(sbd / "cls" / f"{voc_id(i)}.mat", {"GTcls": {"Segmentation": sbd_mask(i)}})
        if own or i <= train:
            aug = VOC_VALUES[mask] if own else sbd_mask(i)
            _save(root / "SegmentationClassAug", f"{voc_id(i)}.png", aug)
    _write_lists(voc, lists | {"trainval": [*lists["train"], *lists["val"]]})


def official_voc12_test(root: Path, train: int, val: int) -> None:
    """VOCdevkit of the test set: three pictures, two of them on the list."""
    voc = root / "VOCdevkit" / "VOC2012"
    for i in range(train + val + 1, train + val + 4):
        _save(voc / "JPEGImages", f"{voc_id(i)}.jpg", draw(i)[0])
    _write_lists(voc, {"test": range(train + val + 1, train + val + 3)})


def _write_lists(voc: Path, lists: dict) -> None:
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, indices in lists.items():
        text = "".join(f"{voc_id(i)}\n" for i in indices)
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


class Region(NamedTuple):
    """An annotation of the official miniature: the union of boxes x y w h, in one of COCO's three forms."""

    category: int
    form: str  # "polygons", "runs" or "compressed"
    crowd: bool
    boxes: tuple[tuple[int, int, int, int], ...]


def coco_regions(index: int) -> list[Region]:
    """Annotations of picture ``index``, every kind of overlap once in four pictures; the file's order."""
    return [
        [  # small on top of large, the small one first
            Region(90, "polygons", False, ((30, 30, 20, 10),)),
            Region(1, "polygons", False, ((10, 10, 60, 70),)),
        ],
        [  # a small crowd over a large object, in two pieces
            Region(18, "polygons", False, ((5, 20, 40, 50), (60, 20, 20, 50))),
            Region(18, "runs", True, ((20, 30, 50, 12),)),
        ],
        [  # a small object over a large crowd
            Region(1, "runs", True, ((0, 0, 90, 60),)),
            Region(90, "compressed", False, ((40, 40, 12, 30), (2, 2, 5, 5))),
        ],
        [  # equal numbers of pixels: the later one is on top
            Region(18, "compressed", False, ((3, 50, 80, 20),)),
            Region(1, "polygons", False, ((50, 3, 20, 80),)),
        ],
    ][index % 4]


def boxes_mask(boxes, size: tuple[int, int]) -> np.ndarray:
    """The union of boxes x y w h, bool (H, W)."""
    inside = np.zeros(size, bool)
    for x, y, w, h in boxes:
        inside[y : y + h, x : x + w] = True
    return inside


def _segmentation(region: Region, size: tuple[int, int]):
    if region.form == "polygons":
        return [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in region.boxes]
    inside = boxes_mask(region.boxes, size)
    if region.form == "compressed":
        runs = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
        return {"counts": runs["counts"].decode(), "size": list(size)}
    column = np.concatenate([[False], inside.T.ravel()])  # run lengths begin with zeros, down the columns
    edges = np.flatnonzero(np.diff(column))
    return {"counts": np.diff(np.concatenate([[0], edges, [inside.size]])).tolist(), "size": list(size)}


def official_coco14(root: Path, train: int, val: int) -> None:
    """train2014, val2014, annotations; the last picture of a part has no annotation, picture 1 is grey."""
    (root / "annotations").mkdir(parents=True)
    for part, indices in (("train", range(train)), ("val", range(train, train + val))):
        content = {"images": [], "annotations": []}
        for i in indices:
            image, number = draw(i)[0], 100 + 7 * i
            size = image.shape[:2]
            name = f"COCO_{part}2014_{number:012d}.jpg"
            _save(root / f"{part}2014", name, image if i != 1 else image[..., 0])
            content["images"].append({"id": number, "height": size[0], "width": size[1], "file_name": name})
            for k, region in enumerate(coco_regions(i) if i != indices[-1] else ()):
                content["annotations"].append(
                    {"id": 10 * i + k, "image_id": number, "category_id": region.category,
                     "iscrowd": int(region.crowd), "segmentation": _segmentation(region, size),
                     "area": float(boxes_mask(region.boxes, size).sum())}
                )  # fmt: skip
        content["categories"] = [{"id": n, "name": shape} for shape, n in COCO_IDS.items()]
        (root / "annotations" / f"instances_{part}2014.json").write_text(json.dumps(content))


OFFICIAL = {  # layout -> archive -> (what draws its content, the folder of it that is packed)
    "voc12": {
        "VOCtrainval_11-May-2012.tar": (official_voc12, "VOCdevkit"),
        "benchmark.tgz": (official_voc12, "benchmark_RELEASE"),
        "SegmentationClassAug.zip": (official_voc12, "SegmentationClassAug"),
        "VOC2012test.tar": (official_voc12_test, "VOCdevkit"),
    },
    "coco14": {
        "train2014.zip": (official_coco14, "train2014"),
        "val2014.zip": (official_coco14, "val2014"),
        "annotations_trainval2014.zip": (official_coco14, "annotations"),
    },
}


def make_official(root: Path, layout: str, *, train: int = 12, val: int = 4, archives: bool = True) -> Path:
    """Write the official archives of "voc12" or "coco14", or folders unpacked from them; returns ``root``.

    Unpacked, the test set of VOC lies in a folder VOC2012test.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    drawn: dict = {}
    for name, (function, folder) in OFFICIAL[layout].items():
        place = root if function is not official_voc12_test else root / "VOC2012test"
        if function not in drawn:
            drawn[function] = place if not archives else root / f".{function.__name__}"
            function(drawn[function], train, val)
        if archives:
            pack(drawn[function] / folder, root / name)
    for folder in drawn.values() if archives else ():
        shutil.rmtree(folder)
    return root


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder, under its own name, into a zip or tar archive by the archive's suffix."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in files:
                file.write(path, path.relative_to(folder.parent).as_posix())
        return
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as file:
        for path in files:
            file.add(path, path.relative_to(folder.parent).as_posix())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="DIR")
    parser.add_argument("--layout", choices=LAYOUTS, default="folder")
    parser.add_argument("--masks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--train", type=int, default=24, help="training pictures (default: 24)")
    parser.add_argument("--val", type=int, default=8, help="validation pictures (default: 8)")
    parser.add_argument(
        "--official", choices=("archives", "folders"), help="what the preparation starts from"
    )
    options = parser.parse_args()
    if options.official:
        counts = {"train": options.train, "val": options.val}
        make_official(options.root, options.layout, **counts, archives=options.official == "archives")
    else:
        make(options.root, options.layout, train=options.train, val=options.val, masks=options.masks)
