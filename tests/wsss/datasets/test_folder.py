"""The folder layout, and every bad input with its line."""

import json
import os
import pickle
import unicodedata

import numpy as np
import pytest

from tests.wsss.datasets.trees import mask, picture, refusal, text, voc_xml
from wsss.datasets import base, load_dataset, split_name
from wsss.errors import UserError
from wsss.labels import check_id


def test_folder(folder):
    data = load_dataset("folder", folder)
    assert (data.name, data.root, data.class_names, data.num_fg_classes) == (
        "folder",
        folder,
        ("cat", "cow", "dog"),
        3,
    )
    assert data.splits == ("train", "val", "all")
    assert (data.train_split, data.cam_split, data.val_split) == ("train", "train", "val")
    assert data.image_ids("train") == ["a", "b", "c"]
    assert data.image_ids("all") == ["a", "b", "c", "d"]
    assert data.image_path("c") == folder / "images" / "c.JPEG"
    assert data.mask_path("c") == folder / "masks" / "c.png"
    labels = data.labels("b")
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [0, 1, 1])
    np.testing.assert_array_equal(data.labels("c"), [0, 0, 0])
    assert data.check_image_labels("train") == 1  # c has no class
    assert data.check_image_labels("val") == 0


def test_results_are_the_callers_own(folder):
    data = load_dataset("folder", folder)
    data.image_ids("train").clear()
    data.labels("a")[:] = 7
    assert data.image_ids("train") == ["a", "b", "c"]
    assert data.labels("a").tolist() == [1, 0, 0]


def test_folder_has_masks_only_when_every_id_has_one(folder):
    assert not load_dataset("folder", folder).has_masks("train")
    for name in "ab":
        mask(folder / "masks" / f"{name}.png")
    assert not load_dataset("folder", folder).has_masks("train")
    mask(folder / "masks" / "c.png")
    assert load_dataset("folder", folder).has_masks("train")
    assert not load_dataset("folder", folder).has_masks("val")


def test_folder_without_lists_or_labels_still_lists_its_pictures(folder):
    for name in ("train.txt", "val.txt", "labels.csv"):
        (folder / name).unlink()
    data = load_dataset("folder", folder)
    assert data.splits == ("all",)
    assert data.image_ids("all") == ["a", "b", "c", "d"]
    assert refusal(data.labels, "a").startswith(f"{folder / 'labels.csv'}: no such file, nor labels.json")


def test_every_kind_of_picture_in_any_case_and_nothing_else(folder):
    for name in ("e.webp", "f.TIF", "g.tiff", "h.PNG", "i.jpeg"):
        picture(folder / "images" / name)
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", "._a.jpg"):
        text(folder / "images" / name, "x")
    assert load_dataset("folder", folder).image_ids("all") == list("abcdefghi")


def test_other_lists_are_splits(folder):
    text(folder / "half.txt", "b\n")
    data = load_dataset("folder", folder)
    assert data.splits == ("train", "val", "half", "all")
    assert data.image_ids("half") == ["b"]


def test_survives_pickling_before_and_after_reading(folder):
    data = load_dataset("folder", folder)
    assert pickle.loads(pickle.dumps(data)).image_ids("train") == ["a", "b", "c"]
    data.labels("a"), data.image_ids("val")
    copy = pickle.loads(pickle.dumps(data))
    assert copy == data
    assert copy.labels("b").tolist() == [0, 1, 1]


def test_pictures_are_found_by_one_listing(folder, monkeypatch):
    data = load_dataset("folder", folder)
    listed = []
    real = os.listdir
    monkeypatch.setattr(base.os, "listdir", lambda path: listed.append(path) or real(path))
    data.image_ids("train"), data.image_ids("val"), data.image_ids("all")
    assert listed == [folder, folder / "images"]


def test_windows_text_files(folder):
    bom = b"\xef\xbb\xbf"
    text(folder / "classes.txt", bom + b"cat\r\ncow\r\ndog\r\n")
    text(folder / "labels.csv", bom + b"image,labels\r\na,cat\r\nb,dog;cow\r\nc,\r\nd,dog\r\n\r\n")
    text(folder / "train.txt", bom + b"a\r\nb \r\n\r\nc\r\n")
    data = load_dataset("folder", folder)
    assert data.class_names == ("cat", "cow", "dog")
    assert data.image_ids("train") == ["a", "b", "c"]
    assert data.labels("b").tolist() == [0, 1, 1]


def test_spaces_commas_and_other_alphabets(folder):
    names = ["my cat (1)", "Kühe, zwei", "\u5c71 羊", "v1.2 final"]
    for name in names:
        picture(folder / "images" / f"{name}.jpg")
        mask(folder / "masks" / f"{name}.png")
    text(folder / "classes.txt", "cat\nbig dog\n\u5c71羊\nsheep, white\n")
    rows = [
        "my cat (1), cat ; big dog",
        '"Kühe, zwei","sheep, white"',
        "\u5c71 羊,\u5c71羊",
        "v1.2 final,cat;",
    ]
    text(folder / "labels.csv", "image,labels\n" + "\n".join(rows))
    text(folder / "train.txt", "\n".join(names))
    data = load_dataset("folder", folder)
    assert data.image_ids("train") == names
    assert [data.labels(i).tolist() for i in names] == [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
        [1, 0, 0, 0],
    ]
    assert all(data.image_path(i).is_file() for i in names)
    assert data.has_masks("train")


def test_composed_and_decomposed_letters_are_the_same_name(folder):
    """macOS hands out file names in decomposed form, editors write composed text."""
    decomposed, composed = unicodedata.normalize("NFD", "Kühe"), unicodedata.normalize("NFC", "Kühe")
    assert decomposed != composed
    picture(folder / "images" / f"{decomposed}.jpg")
    mask(folder / "masks" / f"{decomposed}.png")
    text(folder / "train.txt", composed)
    text(folder / "labels.csv", f"image,labels\n{decomposed},cat\n")
    data = load_dataset("folder", folder)
    assert data.image_ids("train") == [composed]
    assert data.image_path(composed).is_file()
    assert data.mask_path(composed).is_file()
    assert data.labels(composed).tolist() == [1, 0, 0]


# ---------------------------------------------------------------------------------- where labels come from


def test_labels_from_json(folder):
    (folder / "labels.csv").unlink()
    text(folder / "labels.json", json.dumps({"a": ["cat"], "b": ["dog", "cow", "dog"], "c": []}))
    data = load_dataset("folder", folder)
    assert [data.labels(i).tolist() for i in "abc"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert refusal(data.check_image_labels, "val").startswith(
        f"{folder / 'labels.json'}: no labels for id 'd'"
    )


def test_csv_is_taken_before_json_and_json_before_xml(folder):
    text(folder / "labels.json", '{"a": ["cow"]}')
    text(folder / "annotations" / "a.xml", voc_xml(["dog"]))
    assert load_dataset("folder", folder).labels("a").tolist() == [1, 0, 0]
    (folder / "labels.csv").unlink()
    assert load_dataset("folder", folder).labels("a").tolist() == [0, 1, 0]
    (folder / "labels.json").unlink()
    assert load_dataset("folder", folder).labels("a").tolist() == [0, 0, 1]


def test_labels_from_xml(folder):
    (folder / "labels.csv").unlink()
    text(folder / "annotations" / "a.xml", voc_xml(["cat", "dog", "cat"]))
    text(folder / "annotations" / "b.xml", voc_xml([]))
    data = load_dataset("folder", folder)
    assert [data.labels(i).tolist() for i in "ab"] == [[1, 0, 1], [0, 0, 0]]
    assert refusal(data.check_image_labels, "train").startswith(
        f"{folder / 'annotations/c.xml'}: no such file"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("image,labels\na,cat\nb,bird\n", ", line 3: unknown class 'bird' (known: cat, cow, dog)"),
        ("image,labels\na,cat\nb,dog\n\na,cow\n", ", line 5: id 'a' is there twice (first: line 2)"),
        ("a,cat\nb,dog\n", ", line 1: header 'a,cat'; the first line must be 'image,labels'"),
        ("image;labels\na;cat\n", ", line 1: header"),
        ("", ": is empty"),
        ("image,labels\na,cat,dog\n", ", line 2: 3 columns instead of 2"),
        ("image,labels\na\n", ", line 2: 1 columns instead of 2"),
        ('image,labels\n"a,cat\nb,dog\n', ", line 3: not valid CSV"),
        ("image,labels\n../a,cat\n", ", line 2: id '../a' is not a plain file name"),
        ("image,labels\n,cat\n", ", line 2: id '' is not a plain file name"),
        (b"image,labels\na,cat\nb,\xff\n", ", line 3: not UTF-8"),
        ("image,labels\na.jpg,cat\n", ": names 'a.jpg'; write the id without the suffix, 'a'"),
        ("image,labels\nb,cat\n", ": no labels for id 'a'"),
    ],
)
def test_bad_csv(folder, content, line):
    text(folder / "labels.csv", content)
    data = load_dataset("folder", folder)
    assert refusal(data.check_image_labels, "train").startswith(f"{folder / 'labels.csv'}{line}")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"a": ["cat"],\n', ", line 2: not valid JSON"),
        ('["a"]', ": is not a JSON object"),
        ('{"a": "cat"}', ": labels of id 'a' are not a list of names"),
        ('{"a": [1]}', ": labels of id 'a' are not a list of names"),
        ('{"a": ["bird"]}', ", id 'a': unknown class 'bird'"),
        ('{"a": ["cat"], "a": ["dog"]}', ": id 'a' is there twice"),
        ('{"/a": ["cat"]}', ": id '/a' is not a plain file name"),
    ],
)
def test_bad_json(folder, content, line):
    (folder / "labels.csv").unlink()
    text(folder / "labels.json", content)
    data = load_dataset("folder", folder)
    assert refusal(data.check_image_labels, "train").startswith(f"{folder / 'labels.json'}{line}")


# ---------------------------------------------------------------------------------------------- bad lists


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\nb\nzebra\n", ", line 3: id 'zebra' has no picture in"),
        ("a\n\nb\na\n", "line 4: id 'a' is there twice (first: "),
        ("a\nb.png\n", ", line 2: id 'b.png' ends in a picture's suffix; write 'b'"),
        ("../a\n", ", line 1: id '../a' is not a plain file name"),
        ("images/a\n", ", line 1: id 'images/a' is not a plain file name"),
        ("images\\a\n", ", line 1: id 'images\\\\a' is not a plain file name"),
        ("/etc/passwd\n", ", line 1: id '/etc/passwd' is not a plain file name"),
        ("C:a\n", ", line 1: id 'C:a' is not a plain file name"),
        ("..\n", ", line 1: id '..' is not a plain file name"),
        (".\n", ", line 1: id '.' is not a plain file name"),
        ("a\0\n", ", line 1: id 'a\\x00' is not a plain file name"),
        (b"a\n\xe9\n", ", line 2: not UTF-8"),
    ],
)
def test_bad_lists(folder, content, line):
    text(folder / "train.txt", content)
    message = refusal(load_dataset("folder", folder).image_ids, "train")
    assert message.startswith(f"{folder / 'train.txt'}")
    assert line in message


def test_empty_and_unknown_lists(folder):
    text(folder / "train.txt", "\n \r\n")
    data = load_dataset("folder", folder)
    message = f"{folder}: list 'train' is empty; write {folder}/train.txt, one id (picture name without its "
    assert refusal(data.image_ids, "train").startswith(message)
    text(folder / "sub" / "none.txt", "\n")
    message = refusal(data.image_ids, str(folder / "sub" / "none.txt"))
    assert message.endswith("none.txt' is empty; write one id per line")
    message = refusal(data.image_ids, "test")
    assert message.startswith(
        f"{folder}: has no list 'test' (there are: train, val, all); write {folder}/test.txt"
    )
    assert "has no list '../train'" in refusal(data.image_ids, "../train")


def test_a_list_named_all_is_refused(folder):
    text(folder / "all.txt", "a\n")
    assert refusal(load_dataset("folder", folder).image_ids, "all").startswith(f"{folder / 'all.txt'}: ")


def test_two_pictures_with_one_id(folder):
    picture(folder / "images" / "a.png")
    message = refusal(load_dataset("folder", folder).image_ids, "train")
    assert message == f"{folder / 'images/a.png'}: has the same id as a.jpg; rename or remove one of them"


def test_unsafe_picture_name_in_all(folder):
    picture(folder / "images" / "a..b.jpg")
    message = refusal(load_dataset("folder", folder).image_ids, "all")
    assert message.startswith(f"{folder / 'images/a..b.jpg'}: id 'a..b' is not a plain file name")


def test_ids_given_directly_are_checked_too(folder):
    data = load_dataset("folder", folder)
    for method in (data.image_path, data.mask_path):
        assert "not a plain file name" in refusal(method, "../a")
    assert "has no picture" in refusal(data.image_path, "zebra")


@pytest.mark.parametrize("image_id", ["a", "2007_000033", "000000000009", "Ü b", "a.b", "~x", "-x", "ab:c"])
def test_good_ids(image_id):
    assert check_id(image_id) == image_id


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("cat\ndog\n\ncat\n", ", line 4: class 'cat' is there twice (first: line 1)"),
        ("cat;dog\n", ", line 1: class 'cat;dog' holds ';'"),
        ("Background\ncat\n", ", line 1: background is class 0 by itself"),
        ("\n", ": holds 0 classes"),
        ("\n".join(map(str, range(255))), ": holds 255 classes"),
        ("cat\n".encode("utf-16"), ": is UTF-16 text"),
    ],
)
def test_bad_class_lists(folder, content, line):
    text(folder / "classes.txt", content)
    message = refusal(lambda: load_dataset("folder", folder).class_names)
    assert message.startswith(f"{folder / 'classes.txt'}{line}")


def test_missing_roots(folder, tmp_path):
    assert refusal(load_dataset, "folder", tmp_path / "no").startswith(f"{tmp_path / 'no'}: no such folder")
    assert "unknown layout" in refusal(load_dataset, "imagenet", tmp_path)
    (folder / "classes.txt").unlink()
    assert refusal(load_dataset, "folder", folder).startswith(f"{folder / 'classes.txt'}: no such file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(load_dataset, "folder", empty).startswith(f"{empty / 'images'}: no such folder")
    assert refusal(load_dataset, "voc12", empty).startswith(f"{empty}: no JPEGImages in it")
    assert refusal(load_dataset, "coco14", empty).startswith(f"{empty}: no folder images")


# --------------------------------------------------------------------------------------------- real data


def test_voc_animals_folder():
    if "VOC_ANIMALS" not in os.environ:
        pytest.skip("VOC_ANIMALS is not set")
    data = load_dataset("folder", os.environ["VOC_ANIMALS"])
    assert (len(data.image_ids("train")), len(data.image_ids("val")), len(data.image_ids("all"))) == (
        1100,
        260,
        1360,
    )
    assert data.check_image_labels("all") == 0
    assert data.has_masks("all")
    counts = sum(data.labels(i) for i in data.image_ids("all"))
    assert (counts >= 263).all()  # each class is in some 278 pictures


def test_a_list_may_be_any_text_file(folder, tmp_path):
    listed = tmp_path / "some.txt"
    spec = load_dataset("folder", folder)
    listed.write_text(spec.image_ids("train")[0] + "\r\n", encoding="utf-8-sig", newline="")
    assert spec.image_ids(str(listed)) == spec.image_ids("train")[:1]
    assert split_name(str(listed)) == "some" and split_name("train") == "train"
    listed.write_text("nobody\n")
    with pytest.raises(UserError, match=r"some\.txt, line 1: id 'nobody' has no picture"):
        load_dataset("folder", folder).image_ids(str(listed))
    with pytest.raises(UserError, match=r"none\.txt"):
        spec.image_ids(str(tmp_path / "none.txt"))
