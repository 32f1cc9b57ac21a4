"""Small trees of the three layouts, made file by file, and the one line that a refusal is."""

import json

import numpy as np
import pytest
from PIL import Image

from wsss.errors import UserError
from wsss.io import write_mask


def picture(path, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}.get(path.suffix.lower())
    Image.new("RGB", size).save(path, format=kind or path.suffix[1:].upper())


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf8"))


def mask(path):
    write_mask(path, np.zeros((4, 6), np.uint8))


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def multi_hot(classes, indices):
    vector = np.zeros(classes, np.float32)
    vector[indices] = 1
    return vector


def voc_xml(names, extra=""):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{n % 2}</difficult>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for n, name in enumerate(names)
    )
    return f"<annotation><folder>VOC2012</folder><source><name>x</name></source>{objects}{extra}</annotation>"


def coco_json(images, annotations):
    return json.dumps(
        {
            "images": [{"id": i, "file_name": f"COCO_x_{i:012d}.jpg"} for i in images],
            "annotations": [
                {"id": n, "image_id": i, "category_id": c, "iscrowd": crowd, "segmentation": [[0.0, 1.0]]}
                for n, (i, c, crowd) in enumerate(annotations)
            ],
            "categories": [{"id": 1, "name": "person"}],
        }
    )
