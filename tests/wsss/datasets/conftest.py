"""One small tree per layout."""

import pytest

from tests.wsss.datasets.trees import coco_json, mask, picture, text, voc_xml


@pytest.fixture
def folder(tmp_path):
    """Three classes, pictures a..d, lists train = a b c, val = d."""
    text(tmp_path / "classes.txt", "cat\ncow\ndog\n")
    for name in ("a.jpg", "b.png", "c.JPEG", "d.bmp"):
        picture(tmp_path / "images" / name)
    text(tmp_path / "labels.csv", "image,labels\na,cat\nb,dog;cow\nc,\nd,dog\n")
    text(tmp_path / "train.txt", "a\nb\nc\n")
    text(tmp_path / "val.txt", "d\n")
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    ids = [f"2007_00000{i}" for i in range(1, 8)]
    for image_id in ids:
        picture(root / "JPEGImages" / f"{image_id}.jpg")
        text(root / "Annotations" / f"{image_id}.xml", voc_xml(["person", "aeroplane", "person"]))
    for image_id in ids[:6][::-1]:  # 1..6 have a mask, 7 has none
        mask(root / "SegmentationClassAug" / f"{image_id}.png")
    text(root / "ImageSets/Segmentation/train.txt", f"{ids[0]}\n{ids[1]}\n")
    text(root / "ImageSets/Segmentation/val.txt", f"{ids[2]}\n{ids[3]}\n")
    return tmp_path


@pytest.fixture(params=["renamed", "official"])
def coco(tmp_path, request):
    """Train: image 9 (dog, person; the person a crowd only), 25 (none), 7 (toothbrush). Val: 42 (person)."""
    for part, numbers in (("train", (9, 25, 7)), ("val", (42,))):
        for number in numbers:
            name = f"{number:012d}.jpg"
            official = tmp_path / f"{part}2014" / f"COCO_{part}2014_{name}"
            picture(official if request.param == "official" else tmp_path / "images" / name)
    train = coco_json([9, 25, 7], [(9, 18, 0), (9, 18, 0), (9, 1, 1), (7, 90, 0)])
    text(tmp_path / "annotations/instances_train2014.json", train)
    text(tmp_path / "annotations/instances_val2014.json", coco_json([42], [(42, 1, 0)]))
    return tmp_path
