"""COCO's layout: both places of pictures, both files of labels."""

import json

import numpy as np
import pytest

from tests.wsss.datasets.trees import coco_json, multi_hot, picture, refusal, text
from wsss.datasets import COCO_CLASSES, load_dataset
from wsss.labels import COCO_UNUSED, read_coco_json, read_coco_labels


def test_coco(coco):
    data = load_dataset("coco14", coco)
    assert (data.name, data.num_fg_classes, data.class_names) == ("coco14", 90, COCO_CLASSES)
    assert (data.train_split, data.cam_split, data.val_split) == ("train", "train_1250", "val")
    assert data.splits == ("train", "val", "train_1250", "val_5000")
    assert data.image_ids("train") == ["000000000007", "000000000009"]  # 25 has no annotation
    assert data.image_ids("val") == data.image_ids("val_5000") == ["000000000042"]
    assert data.image_ids("train_1250") == data.image_ids("train")  # fewer than 1,250: all of them
    assert data.image_path("000000000009").is_file()
    assert data.mask_path("000000000009") == coco / "masks" / "000000000009.png"
    assert not data.has_masks("train")
    np.testing.assert_array_equal(data.labels("000000000009"), multi_hot(90, [0, 17]))
    np.testing.assert_array_equal(data.labels("000000000007"), multi_hot(90, [89]))
    np.testing.assert_array_equal(data.labels("000000000025"), multi_hot(90, []))
    np.testing.assert_array_equal(data.labels("000000000042"), multi_hot(90, [0]))
    assert data.check_image_labels("train") == 0


def test_coco_reads_only_the_part_it_needs(coco):
    text(coco / "annotations/instances_val2014.json", "damaged")
    data = load_dataset("coco14", coco)
    assert data.check_image_labels("train") == 0
    assert str(coco / "annotations/instances_val2014.json") in refusal(data.image_ids, "val")


def test_renamed_and_official_pictures_may_be_mixed(coco):
    """Also of one picture: the renamed one is taken."""
    picture(coco / "images" / "000000000009.jpg")
    picture(coco / "train2014" / "COCO_train2014_000000000007.jpg")
    picture(coco / "train2014" / "COCO_val2014_000000000001.jpg")  # in the wrong folder: no picture of COCO's
    data = load_dataset("coco14", coco)
    assert data.image_path("000000000009") == coco / "images" / "000000000009.jpg"
    assert data.image_path("000000000007").is_file() and data.image_path("000000000042").is_file()
    assert "000000000001" not in data.pictures


def shorten(coco) -> None:
    """Write label files beside the instances files, as the preparation does."""
    for part in ("train", "val"):
        source = coco / "annotations" / f"instances_{part}2014.json"
        content = {
            "source": {"file": source.name, "size": source.stat().st_size, "sha256": "0" * 64},
            "labels": read_coco_json(source),
        }
        text(coco / "annotations" / f"image_labels_{part}2014.json", json.dumps(content))


@pytest.fixture
def shortened(coco):
    shorten(coco)
    return coco


def test_label_file_equals_the_large_one(coco):
    lists = ("train", "val", "train_1250", "val_5000")
    images = [f"{n:012d}" for n in (7, 9, 25, 42)]
    large = load_dataset("coco14", coco)
    ids, labels = [large.image_ids(s) for s in lists], [large.label_indices(i) for i in images]
    shorten(coco)
    for part in ("train", "val"):
        (coco / "annotations" / f"instances_{part}2014.json").unlink()
    short = load_dataset("coco14", coco)
    assert short.splits == lists
    assert [short.image_ids(s) for s in lists] == ids
    assert [short.label_indices(i) for i in images] == labels == [(89,), (0, 17), (), (0,)]
    assert short.has_labels("000000000025") and not short.has_labels("000000000001")


def test_label_file_is_read_in_place_of_the_large_one(shortened):
    """Of equal size, but not JSON: it was not read."""
    path = shortened / "annotations" / "instances_train2014.json"
    path.write_bytes(b"x" * path.stat().st_size)
    assert load_dataset("coco14", shortened).label_indices("000000000009") == (0, 17)


def test_stale_label_file_is_refused(shortened):
    path = shortened / "annotations" / "instances_train2014.json"
    path.write_text(path.read_text() + " ")
    message = refusal(load_dataset("coco14", shortened).image_ids, "train")
    short = shortened / "annotations" / "image_labels_train2014.json"
    size = path.stat().st_size
    assert message.startswith(
        f"{short}: was made from a file of {size - 1} bytes, {path} has {size}; delete it"
    )
    assert load_dataset("coco14", shortened).image_ids("val") == ["000000000042"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", ", line 1: not valid JSON"),
        ("[]", ": not a file of image labels (TypeError"),
        ('{"labels": {}}', ": not a file of image labels (KeyError: 'source')"),
        ('{"source": {"file": "a.json", "size": 1}, "labels": 3}', ": not a file of image labels (TypeError"),
        (
            '{"source": {"file": "b.json", "size": 1}, "labels": {}}',
            ": was made from 'b.json', not from a.json",
        ),
        (
            '{"source": {"file": "a.json", "size": 1}, "labels": {"9": []}}',
            ": image '9' is not a number of 12",
        ),
    ],
)
def test_bad_label_files(tmp_path, content, line):
    text(tmp_path / "short.json", content)
    message = refusal(read_coco_labels, tmp_path / "short.json", tmp_path / "a.json")
    assert message.startswith(f"{tmp_path / 'short.json'}{line}")


@pytest.mark.parametrize("classes", ["[90]", "[-1]", "[11]", '["dog"]', "[true]", "[1.0]", "3"])
def test_label_files_with_classes_that_coco_lacks(tmp_path, classes):
    content = '{"source": {"file": "a.json", "size": 1}, "labels": {"000000000009": CLASSES}}'
    text(tmp_path / "short.json", content.replace("CLASSES", classes))
    message = refusal(read_coco_labels, tmp_path / "short.json", tmp_path / "a.json")
    assert "classes of image 000000000009 are" in message


def test_coco_classes():
    """Names at the ids that COCO documents, and placeholders at the ten it never uses."""
    known = {1: "person", 13: "stop sign", 18: "dog", 27: "backpack", 44: "bottle", 67: "dining table"}
    known |= {70: "toilet", 72: "tv", 84: "book", 90: "toothbrush", 12: "unused_12", 83: "unused_83"}
    assert {i: COCO_CLASSES[i - 1] for i in known} == known
    assert [i for i in range(1, 91) if COCO_CLASSES[i - 1] == f"unused_{i}"] == list(COCO_UNUSED)
    assert len(set(COCO_CLASSES)) == 90


def test_coco_subset_is_a_fixed_draw(tmp_path):
    numbers = range(1, 2001)
    text(tmp_path / "annotations/instances_train2014.json", coco_json(numbers, [(i, 1, 0) for i in numbers]))
    (tmp_path / "images").mkdir()
    for number in numbers:
        (tmp_path / "images" / f"{number:012d}.jpg").touch()
    data = load_dataset("coco14", tmp_path)
    subset = data.image_ids("train_1250")
    expected = np.random.RandomState(504).permutation([f"{i:012d}" for i in numbers])[:1250]
    assert subset == sorted(expected)
    assert len(set(subset)) == 1250
    # As first drawn: a NumPy release must not change it.
    assert [int(i) for i in subset[:8]] == [1, 3, 4, 5, 8, 9, 11, 13]
    assert data.splits == ("train", "train_1250")
    assert "put" in refusal(data.image_ids, "val")


def test_coco_missing_picture(coco):
    (path := load_dataset("coco14", coco).image_path("000000000009")).unlink()
    data = load_dataset("coco14", coco)
    message = refusal(data.image_ids, "train")
    assert message.startswith(
        f"{coco / 'annotations/instances_train2014.json'}: image 000000000009 has no picture"
    )
    assert "000000000009" in refusal(data.image_path, path.stem[-12:])
    assert "no image 'x'" in refusal(data.labels, "x")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", ", line 1: not valid JSON"),
        ("[]", ": not a COCO instances file"),
        ('{"images": []}', ": not a COCO instances file (KeyError: 'annotations')"),
        (coco_json([1], [(2, 1, 0)]), ": annotation 0 is of image 2, which is not among the file's images"),
        (coco_json([1], [(1, 12, 0)]), ": annotation 0 has category 12, which COCO does not have"),
        (coco_json([1], [(1, 91, 0)]), ": annotation 0 has category 91, which COCO does not have"),
        ('{"images": [{"id": 1}], "annotations": [{"category_id": [], "image_id": 1}]}', ": not a COCO"),
    ],
)
def test_bad_coco_json(tmp_path, content, line):
    text(tmp_path / "a.json", content)
    assert refusal(read_coco_json, tmp_path / "a.json").startswith(f"{tmp_path / 'a.json'}{line}")
