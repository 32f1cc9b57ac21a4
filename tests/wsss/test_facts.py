"""dataset.json: counts by hand, lists without labels."""

import json

import pytest
from PIL import Image

from wsss.datasets import load_dataset
from wsss.facts import write_dataset_facts


@pytest.fixture
def folder(tmp_path):
    """Pictures a..e of up to three classes, no cow; train = a b c d, val = e, which has the only mask."""
    for image_id in "abcde":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{image_id}.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (6, 4)).save(tmp_path / "masks" / "e.png")
    (tmp_path / "classes.txt").write_text("cat\ncow\nhen\ndog\n")
    (tmp_path / "labels.csv").write_text("image,labels\na,cat\nb,dog;cat;hen\nc,\nd,cat\ne,dog;hen\n")
    (tmp_path / "train.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "val.txt").write_text("e\n")
    return tmp_path


def facts(folder, splits):
    write_dataset_facts(folder / "out", load_dataset("folder", folder), splits)
    return json.loads((folder / "out" / "dataset.json").read_text())


def test_counts(folder):
    found = facts(folder, ("train", "val", None, "train"))
    lists = found.pop("lists")
    names = ["cat", "cow", "hen", "dog"]
    assert found == {"dataset": "folder", "root": str(folder), "class_names": names}
    assert list(lists) == ["train", "val"]
    assert lists["train"] == {
        "images": 4, "with_masks": False,
        "pictures_per_class": {"cat": 3, "cow": 0, "hen": 1, "dog": 1},
        "classes_per_picture": {"0": 1, "1": 2, "2": 0, "3": 1},
    }  # fmt: skip
    assert lists["val"] == {
        "images": 1, "with_masks": True,
        "pictures_per_class": {"cat": 0, "cow": 0, "hen": 1, "dog": 1},
        "classes_per_picture": {"0": 0, "1": 0, "2": 1},
    }  # fmt: skip
    assert list(lists["val"]["pictures_per_class"]) == names


def test_a_list_without_labels(folder):
    (folder / "labels.csv").write_text("image,labels\ne,dog\n")
    lists = facts(folder, ("train", "val"))["lists"]
    nothing = {"pictures_per_class": None, "classes_per_picture": None}
    assert lists["train"] == {"images": 4, "with_masks": False} | nothing
    assert lists["val"]["classes_per_picture"] == {"0": 0, "1": 1}


def test_only_the_first_process_writes(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    write_dataset_facts(folder / "out", load_dataset("folder", folder), ("train",))
    assert not (folder / "out").exists()


def test_a_continued_training_keeps_its_facts(folder):
    first = facts(folder, ("train",))
    (folder / "out" / "last.pth").touch()
    assert facts(folder, ("val",)) == first
    (folder / "out" / "last.pth").unlink()  # started afresh
    assert list(facts(folder, ("val",))["lists"]) == ["val"]
