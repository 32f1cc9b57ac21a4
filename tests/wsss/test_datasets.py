"""The three layouts on miniature trees, and every bad input with its line."""

import json
import os
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from wsss import datasets
from wsss.datasets import COCO_CLASSES, VOC_CLASSES, load_dataset, split_name
from wsss.errors import UserError
from wsss.io import write_mask
from wsss.labels import COCO_UNUSED, check_id, read_coco_json, read_voc_xml


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


# ------------------------------------------------------------------------------------------------ folder


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
    monkeypatch.setattr(datasets.os, "listdir", lambda path: listed.append(path) or real(path))
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
    assert refusal(data.image_ids, "train") == f"{folder}: list 'train' is empty; write one id per line"
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


# ------------------------------------------------------------------------------------------------- VOC12


def voc_xml(names, extra=""):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{n % 2}</difficult>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for n, name in enumerate(names)
    )
    return f"<annotation><folder>VOC2012</folder><source><name>x</name></source>{objects}{extra}</annotation>"


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


def test_voc(voc):
    ids = [f"2007_00000{i}" for i in range(1, 8)]
    for root in (voc, voc / "VOCdevkit", voc / "VOCdevkit" / "VOC2012"):
        data = load_dataset("voc12", root)
        assert data.root == voc / "VOCdevkit" / "VOC2012"
        assert data.splits == ("train", "val", "train_aug")
        assert data.image_ids("train") == ids[:2]
        assert data.image_ids("val") == ids[2:4]
        assert data.image_ids("train_aug") == ids[:2] + ids[4:6]
    assert (data.name, data.class_names, data.num_fg_classes) == ("voc12", VOC_CLASSES, 20)
    assert (data.train_split, data.cam_split, data.val_split) == ("train_aug", "train", "val")
    assert data.image_path(ids[0]) == data.root / "JPEGImages" / f"{ids[0]}.jpg"
    assert data.mask_path(ids[0]) == data.root / "SegmentationClassAug" / f"{ids[0]}.png"
    assert data.has_masks("train_aug")
    np.testing.assert_array_equal(data.labels(ids[0]), multi_hot(20, [0, 14]))
    assert data.check_image_labels("train_aug") == 0


def test_voc_class_order():
    assert len(VOC_CLASSES) == 20
    assert [VOC_CLASSES[i] for i in (0, 7, 11, 14, 19)] == ["aeroplane", "cat", "dog", "person", "tvmonitor"]


def test_voc_parts_do_not_count_and_difficult_objects_do(tmp_path):
    """A part's name may itself be a class name: only direct children of the annotation's objects count."""
    part = "<object><part><name>cat</name></part><name>dog</name><difficult>1</difficult></object>"
    text(tmp_path / "a.xml", voc_xml(["cow"], part))
    assert [VOC_CLASSES[i] for i in read_voc_xml(tmp_path / "a.xml", VOC_CLASSES)] == ["cow", "dog"]


def test_xml_declares_its_own_encoding(tmp_path):
    text(
        tmp_path / "a.xml",
        ('<?xml version="1.0" encoding="ISO-8859-1"?>' + voc_xml(["Kühe"])).encode("latin-1"),
    )
    text(tmp_path / "b.xml", b"\xef\xbb\xbf" + voc_xml(["Kühe"]).encode())
    assert read_voc_xml(tmp_path / "a.xml", ("Kühe",)) == read_voc_xml(tmp_path / "b.xml", ("Kühe",)) == (0,)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("<annotation><object>", ": not valid XML"),
        ("", ": not valid XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', ": not valid XML"),
        ("<html></html>", ": root element <html>"),
        (voc_xml(["zebra"]), ": unknown class 'zebra'"),
        ("<annotation><object></object></annotation>", ": unknown class ''"),
    ],
)
def test_bad_xml(voc, content, line):
    path = voc / "VOCdevkit/VOC2012/Annotations/2007_000002.xml"
    text(path, content)
    message = refusal(load_dataset("voc12", voc).check_image_labels, "train")
    assert message.startswith(f"{path}{line}")


def test_voc_incomplete_trees(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    assert "put" in refusal(load_dataset("voc12", voc).image_ids, "test")
    (root / "JPEGImages" / "2007_000005.jpg").unlink()
    message = refusal(load_dataset("voc12", voc).image_ids, "train_aug")
    assert message.startswith(
        f"{root / 'SegmentationClassAug/2007_000005.png'}: id '2007_000005' has no picture"
    )
    (root / "SegmentationClassAug").rename(root / "elsewhere")
    data = load_dataset("voc12", voc)
    assert data.splits == ("train", "val")
    assert "SegmentationClassAug" in refusal(data.image_ids, "train_aug")
    assert not data.has_masks("val")
    (root / "Annotations" / "2007_000001.xml").unlink()
    assert refusal(data.labels, "2007_000001").startswith(
        f"{root / 'Annotations/2007_000001.xml'}: no such file"
    )


# ------------------------------------------------------------------------------------------------ COCO14


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
        (coco_json([1], [(2, 1, 0)]), ": not a COCO instances file (KeyError: 2)"),
        (coco_json([1], [(1, 12, 0)]), ": annotation 0 has category 12, which COCO does not have"),
        (coco_json([1], [(1, 91, 0)]), ": annotation 0 has category 91, which COCO does not have"),
        ('{"images": [{"id": 1}], "annotations": [{"category_id": [], "image_id": 1}]}', ": not a COCO"),
    ],
)
def test_bad_coco_json(tmp_path, content, line):
    text(tmp_path / "a.json", content)
    assert refusal(read_coco_json, tmp_path / "a.json").startswith(f"{tmp_path / 'a.json'}{line}")


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
