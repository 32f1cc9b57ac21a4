"""VOC's layout: labels, lists, and which folder the masks come from."""

import numpy as np
import pytest

from tests.wsss.datasets.trees import mask, multi_hot, picture, refusal, text, voc_xml
from wsss.datasets import VOC_CLASSES, load_dataset
from wsss.errors import UserError
from wsss.labels import read_voc_xml


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


def test_masks_of_either_folder_and_one_train_aug(voc):
    """train_aug is everybody's list, whichever masks are scored on."""
    root, ids = voc / "VOCdevkit" / "VOC2012", [f"2007_00000{i}" for i in range(1, 8)]
    for image_id in ids[:4]:
        mask(root / "SegmentationClass" / f"{image_id}.png")
    usual, own = load_dataset("voc12", voc), load_dataset("voc12", voc, voc_masks="SegmentationClass")
    assert load_dataset("voc12", voc, voc_masks="SegmentationClassAug") == usual != own
    assert usual.mask_path(ids[0]) == root / "SegmentationClassAug" / f"{ids[0]}.png"
    assert own.mask_path(ids[0]) == root / "SegmentationClass" / f"{ids[0]}.png"
    assert own.image_ids("train_aug") == usual.image_ids("train_aug") == ids[:2] + ids[4:6]
    assert [own.has_masks(s) for s in ("train", "val", "train_aug")] == [True, True, False]
    assert usual.has_masks("train_aug")


def test_official_masks_without_the_augmented_ones(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClassAug").rename(root / "SegmentationClass")
    data = load_dataset("voc12", voc, voc_masks="SegmentationClass")
    assert data.splits == ("train", "val")
    assert data.has_masks("train") and data.has_masks("val")
    assert "SegmentationClassAug" in refusal(data.image_ids, "train_aug")
    assert not load_dataset("voc12", voc).has_masks("train")


def test_choice_of_masks_is_for_voc_only(voc, folder, coco):
    for kind, root in (("folder", folder), ("coco14", coco)):
        load_dataset(kind, root, voc_masks="SegmentationClassAug")
        with pytest.raises(UserError, match=r"^--voc-masks SegmentationClass: is for --dataset voc12 only"):
            load_dataset(kind, root, voc_masks="SegmentationClass")
    with pytest.raises(UserError, match=r"^--voc-masks masks: unknown folder .* SegmentationClassAug or "):
        load_dataset("voc12", voc, voc_masks="masks")


def test_test_list_without_masks_and_annotations(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    for image_id in ("2008_000001", "2008_000002"):
        picture(root / "JPEGImages" / f"{image_id}.jpg")
    text(root / "ImageSets" / "Segmentation" / "test.txt", "2008_000002\n2008_000001\n")
    data = load_dataset("voc12", voc)
    assert data.splits == ("train", "val", "train_aug", "test")
    assert data.image_ids("test") == ["2008_000002", "2008_000001"]
    assert not data.has_masks("test") and not data.has_labels("2008_000001")
    assert data.image_path("2008_000001").is_file()
    assert "2008_000001.xml: no such file" in refusal(data.labels, "2008_000001")


def test_lists_do_not_depend_on_the_working_directory(voc, tmp_path, monkeypatch):
    """A list of the same name where the command is started, and a path with another layout's name in it."""
    elsewhere = tmp_path / "coco14_val" / "ImageSets" / "Segmentation"
    text(elsewhere / "train.txt", "nobody\n")
    text(elsewhere.parents[1] / "train.txt", "nobody\n")
    monkeypatch.chdir(elsewhere.parents[1])
    assert load_dataset("voc12", voc).image_ids("train") == ["2007_000001", "2007_000002"]
    moved = (voc / "VOCdevkit").rename(tmp_path / "coco train2014 test")
    data = load_dataset("voc12", moved)
    assert (data.name, data.image_ids("val")) == ("voc12", ["2007_000003", "2007_000004"])
