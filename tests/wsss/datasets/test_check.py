"""The check of a data set: every kind of problem, all at once, in a fixed order; what the command says."""

import json
import sys

import numpy as np
import pytest

from tests.commands import error_line, finish, run_here, run_process
from tests.miniature import make
from tests.spoil import cut
from tests.wsss.datasets.trees import coco_json, mask, picture, text, voc_xml
from wsss.datasets import load_dataset
from wsss.datasets.check import check_dataset
from wsss.errors import UserError
from wsss.io import read_mask, write_mask

MODULE = "wsss.datasets.check"


def problems(kind, root, **how):
    """Problems with the root's path taken off, counts of the official files left out."""
    return [line.removeprefix(f"{root}/") for line in check_dataset(kind, root, partial=True, **how).problems]


def starts(found, *expected):
    """Each line begins as expected, no line is left over."""
    assert len(found) == len(expected), "\n".join(found)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)
        assert "\n" not in line


@pytest.fixture
def complete(folder):
    """The folder layout with masks: a 1, b 2 and 3, c none, d 3 (and 255 everywhere)."""
    for image_id, classes in {"a": [1], "b": [2, 3], "c": [], "d": [3]}.items():
        values = np.zeros((4, 6), np.uint8)
        values[0] = 255
        for k in classes:
            values[k] = k
        write_mask(folder / "masks" / f"{image_id}.png", values)
    return folder


# ------------------------------------------------------------------------------------ nothing is wrong


def test_a_good_folder(complete):
    found = check_dataset("folder", complete)
    assert found.problems == []
    assert found.notes == ["train: pictures without a class: 1 (c)"]
    assert (found.pictures, found.masks, found.class_names) == (4, 4, ("cat", "cow", "dog"))
    facts = found.lists["train"]
    assert (facts.pictures, facts.expected, facts.labelled, facts.masked) == (3, None, 3, {"masks": 3})
    assert dict(facts.classes) == {0: 1, 1: 1, 2: 1}
    assert found.table() == [
        "| list  | pictures | expected | with labels | with masks |",
        "|-------|---------:|---------:|------------:|-----------:|",
        "| train |        3 |        - |           3 |          3 |",
        "| val   |        1 |        - |           1 |          1 |",
        "| all   |        4 |        - |           4 |          4 |",
    ]
    assert found.histogram() == [
        "| pictures per class | train | val | all |",
        "|--------------------|------:|----:|----:|",
        "| cat                |     1 |   0 |   1 |",
        "| cow                |     1 |   0 |   1 |",
        "| dog                |     1 |   1 |   2 |",
    ]


@pytest.mark.parametrize("layout", ["folder", "voc12", "coco14"])
@pytest.mark.parametrize("masks", [True, False])
def test_miniatures_have_no_problem(layout, masks, tmp_path):
    root = make(tmp_path, layout, train=3, val=2, masks=masks)
    found = check_dataset(layout, root, partial=True, decode=True)
    if layout == "voc12" and not masks:
        line = f"{root}/VOCdevkit/VOC2012: no list 'train_aug' of 10,582 pictures; it is every mask of"
        assert [n for n in found.notes if n.startswith(line)]
    assert found.problems == []
    assert found.masks == (5 if masks else 0)
    # of VOC without masks, the second half of the training pictures is in no list
    assert found.pictures == (4 if layout == "voc12" and not masks else 5)


def test_workers_change_nothing(complete):
    (complete / "masks" / "a.png").unlink()
    cut(complete / "images" / "b.png")
    assert check_dataset("folder", complete, decode=True) == check_dataset(
        "folder", complete, decode=True, workers=2
    )


# ------------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\nzebra\nc\n", ["train.txt, line 3: id 'zebra' has no picture in"]),
        (
            "a\nb\na\nc\nb\n",
            ["train.txt, line 3: id 'a' is there twice (first: ", "train.txt, line 5: id 'b' is"],
        ),
        ("../a\na\nb\nc\n", ["train.txt, line 1: id '../a' is not a plain file name"]),
        (b"a\n\xe9\n", ["train.txt, line 2: not UTF-8"]),
    ],
)
def test_lists(complete, content, lines):
    text(complete / "train.txt", content)
    starts(problems("folder", complete), *lines)  # and no line about labels or mask of a picture that is not


def test_an_empty_list_and_one_named_all(complete):
    text(complete / "train.txt", "\n")
    text(complete / "all.txt", "a\n")
    found = check_dataset("folder", complete).problems
    starts(found, f"{complete}/all.txt: 'all' means every picture", f"{complete}: list 'train' is empty")


def test_labels_csv(complete):
    rows = ["image,labels", "a,bird;cat;elk", "b,dog;cow", "b,dog", "c", "x.jpg,cat", '"d,dog']
    text(complete / "labels.csv", "\n".join(rows) + "\n")
    found = check_dataset("folder", complete)
    starts(
        [line.removeprefix(f"{complete}/") for line in found.problems],
        "labels.csv, line 2: unknown class 'bird'",
        "labels.csv, line 2: unknown class 'elk'",
        "labels.csv, line 4: id 'b' is there twice (first: line 3)",
        "labels.csv, line 5: 1 columns instead of 2",
        "labels.csv, line 7: not valid CSV",
        f"{complete}: list 'val' of 1 pictures has no labels",
    )
    assert "labels without a picture: 1 (x.jpg)" in found.notes


def test_rows_after_a_bad_line_are_read(complete):
    text(complete / "labels.csv", 'image,labels\na,"cat"x\nb,bird\nc,\nd,dog\n')
    starts(
        problems("folder", complete),
        "labels.csv, line 2: not valid CSV",
        "labels.csv, line 3: unknown class 'bird'",
        "labels.csv: no labels for id 'a'",
        "masks/b.png: holds cow, dog, which the labels of 'b' lack",
    )


def test_labels_json(complete):
    (complete / "labels.csv").unlink()
    text(
        complete / "labels.json",
        '{"a": ["bird", "cat"], "a": [], "b": "dog", "../c": [], "c": [], "d": ["elk"]}',
    )
    starts(
        problems("folder", complete),
        "labels.json: id 'a' is there twice",
        "labels.json, id 'a': unknown class 'bird'",
        "labels.json: labels of id 'b' are not a list",
        "labels.json: id '../c' is not a plain file name",
        "labels.json, id 'd': unknown class 'elk'",
        "masks/b.png: holds cow, dog",
        "masks/d.png: holds dog",
    )


def test_labels_xml(complete):
    (complete / "labels.csv").unlink()
    text(complete / "annotations" / "a.xml", voc_xml(["cat", "bird", "bird", "elk"]))
    text(complete / "annotations" / "b.xml", "<annotation>")
    text(complete / "annotations" / "c.xml", "<html/>")
    text(complete / "annotations" / "d.xml", voc_xml(["dog"]))
    picture(complete / "images" / "e.jpg")
    text(complete / "val.txt", "d\ne\n")
    starts(
        problems("folder", complete),
        "annotations/a.xml: unknown class 'bird'",
        "annotations/a.xml: unknown class 'elk'",
        "annotations/b.xml: not valid XML",
        "annotations/c.xml: root element <html>",
        "annotations/e.xml: no such file",
        "masks/e.png: no such mask, but 1 of the 2 pictures of val have one",
    )


def test_a_list_without_any_labels_is_one_line(complete):
    text(complete / "labels.csv", "image,labels\nd,dog\n")
    text(complete / "more.txt", "a\nb\n")
    found = check_dataset("folder", complete)
    assert found.problems == [
        f"{complete}: list 'train' of 3 pictures has no labels; it can be predicted only"
    ]
    assert f"{complete}: list 'more' of 2 pictures has no labels; it can be predicted only" in found.notes
    assert "train" not in found.histogram()[0] and found.lists["train"].labelled == 0


def test_pictures(complete):
    text(complete / "images" / "a.jpg", "no picture")
    text(complete / "images" / "d.bmp", "")
    picture(complete / "images" / "b.png", (600, 400))
    cut(complete / "images" / "b.png")
    for name in "abc":
        (complete / "masks" / f"{name}.png").unlink()
    by_header = ["images/a.jpg: not a picture of a known kind", "images/d.bmp: not a picture of a known kind"]
    starts(problems("folder", complete), *by_header)
    found = problems("folder", complete, decode=True)
    starts(found, by_header[0], "images/b.png: damaged or truncated picture", by_header[1])
    picture(complete / "images" / "a.png")
    assert problems("folder", complete)[0].startswith("images/a.png: has the same id as a.jpg")


def test_masks(complete):
    (complete / "masks" / "c.png").unlink()
    values = read_mask(complete / "masks" / "a.png")
    values[2:] = [[4, 4, 4, 250, 0, 3], [0] * 6]
    write_mask(complete / "masks" / "a.png", values)
    write_mask(complete / "masks" / "b.png", np.zeros((6, 4), np.uint8))
    cut(complete / "masks" / "d.png")
    starts(
        problems("folder", complete),
        "masks/c.png: no such mask, but 2 of the 3 pictures of train have one; put it there",
        "masks/a.png: holds the values 4, 250; masks hold 0..3 and 255",
        "masks/a.png: holds dog, which the labels of 'a' lack; correct the labels or the mask",
        f"masks/b.png: is 4x6, its picture {complete}/images/b.png is 6x4",
        "masks/d.png: damaged or truncated picture",
    )


def test_masks_of_one_list_only_are_no_problem(complete):
    for name in "abc":
        (complete / "masks" / f"{name}.png").unlink()
    found = check_dataset("folder", complete)
    assert found.problems == []
    assert {name: facts.masked["masks"] for name, facts in found.lists.items()} == {
        "train": 0,
        "val": 1,
        "all": 1,
    }


def test_notes_about_what_is_in_no_list_or_in_two(complete):
    for name in ("x1", "x2", "x3", "x4"):
        picture(complete / "images" / f"{name}.jpg")
    mask(complete / "masks" / "x2.png")
    text(complete / "val.txt", "d\na\n")
    found = check_dataset("folder", complete)
    assert found.problems == []
    assert "pictures in no list: 4 (x1, x2, x3, ...)" in found.notes
    assert "masks: masks of pictures in no list: 1 (x2)" in found.notes
    assert any(n.startswith("ids in both train and val: 1 (a); ") for n in found.notes)
    (complete / "val.txt").unlink()
    line = f"{complete}: no list 'val'; write {complete}/val.txt, one id"
    assert any(n.startswith(line) for n in check_dataset("folder", complete).notes)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("cat\ncow\ncow\ndog\n", "classes.txt, line 3: class 'cow' is there twice"),
        ("cat\nbackground\ncow;calf\n", "classes.txt, line 2: background is class 0"),
        ("", "classes.txt: holds 0 classes"),
        ("cat\n".encode("utf-16"), "classes.txt: is UTF-16 text"),
        (None, "classes.txt: no such file"),
    ],
)
def test_a_broken_class_list_hides_nothing(complete, content, line):
    if content is None:
        (complete / "classes.txt").unlink()
    else:
        text(complete / "classes.txt", content)
    text(complete / "train.txt", "a\nb\nzebra\nx\n")
    picture(complete / "images" / "x.jpg")
    text(complete / "images" / "a.jpg", "no picture")
    write_mask(complete / "masks" / "b.png", np.zeros((6, 4), np.uint8))
    found = problems("folder", complete)
    beginnings = (
        line, "train.txt, line 3: id 'zebra' has no picture", "labels.csv: no labels for id 'x'",
        "images/a.jpg: not a picture", "masks/b.png: is 4x6",
    )  # fmt: skip
    for beginning in beginnings:
        assert len([p for p in found if p.startswith(beginning)]) == 1, (beginning, found)
    assert found[0].startswith(line)
    if not content or isinstance(content, bytes):  # no class is known: none is unknown
        assert not any("unknown class" in p or "holds the values" in p for p in found)


def test_folders_that_are_missing_are_one_line_each(complete):
    for path in (complete / "images").iterdir():
        path.unlink()
    (complete / "images").rmdir()
    starts(
        problems("folder", complete)[:3],
        "images: no such folder",
        f"{complete}: no picture at all, of 3 in list 'train': id 'a' has no picture in",
        f"{complete}: no picture at all, of 1 in list 'val': id 'd' has no picture in",
    )
    (complete / "labels.csv").unlink()
    (complete / "images").mkdir()
    found = problems("folder", complete)
    assert len([p for p in found if p.startswith("labels.csv: no such file, nor labels.json")]) == 1


# --------------------------------------------------------------------------------------------- VOC, COCO


def test_voc_counts(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    expected = [
        f"{root}: pictures in list 'train': 2, officially 1,464; complete the data set, or give --partial",
        f"{root}: pictures in list 'val': 2, officially 1,449; ",
        f"{root}: pictures in list 'train_aug': 4, officially 10,582; ",
        f"{root / 'SegmentationClassAug'}: masks in it: 6, officially 12,031; ",
    ]
    full = check_dataset("voc12", voc)
    starts(full.problems, *expected)
    part = check_dataset("voc12", voc, partial=True)
    assert part.problems == []
    for line in full.problems:
        assert line.split("; complete")[0] in part.notes and line not in full.notes
    test = f"{root}: no list 'test' of 1,456 pictures; put {root}/ImageSets/Segmentation/test.txt there"
    assert any(n.startswith(test) for n in full.notes)
    assert "pictures in no list: 1 (2007_000007)" in full.notes


def test_the_official_numbers_are_no_problem(voc, monkeypatch):
    """Both folders of masks have a column; the small tree stands for the official one."""
    data = load_dataset("voc12", voc)
    monkeypatch.setattr(type(data), "sizes", {"train": 2, "val": 2, "train_aug": 4, "test": 1456})
    monkeypatch.setattr(type(data), "mask_counts", {"SegmentationClassAug": 6, "SegmentationClass": 4})
    for image_id in data.image_ids("train") + data.image_ids("val"):
        mask(data.root / "SegmentationClass" / f"{image_id}.png")
    found = check_dataset("voc12", voc)
    assert found.problems == []
    assert found.masks == 10 and found.pictures == 6
    assert found.table() == [
        "| list      | pictures | expected | with labels | in SegmentationClassAug | in SegmentationClass |",
        "|-----------|---------:|---------:|------------:|------------------------:|---------------------:|",
        "| train     |        2 |        2 |           2 |                       2 |                    2 |",
        "| val       |        2 |        2 |           2 |                       2 |                    2 |",
        "| train_aug |        4 |        4 |           4 |                       4 |                    2 |",
    ]
    rows = found.histogram()
    assert len(rows) == 22 and rows[2].split() == ["|", "aeroplane", "|", "2", "|", "2", "|", "4", "|"]
    (data.root / "SegmentationClass" / "2007_000003.png").unlink()
    starts(
        check_dataset("voc12", voc).problems,
        f"{data.root}/SegmentationClass: masks in it: 3, officially 4",
        f"{data.root}/SegmentationClass/2007_000003.png: no such mask, but 1 of the 2 pictures",
    )


def test_voc_without_augmented_masks_and_with_a_test_list(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClassAug").rename(root / "SegmentationClass")
    picture(root / "JPEGImages" / "2008_000001.jpg")
    text(root / "ImageSets" / "Segmentation" / "test.txt", "2008_000001\n")
    found = check_dataset("voc12", voc)
    lines = [
        f"{root}: pictures in list 'train': 2, officially", f"{root}: pictures in list 'val': 2, officially",
        f"{root}: no list 'train_aug' of 10,582 pictures; it is every mask of SegmentationClassAug",
        f"{root}: pictures in list 'test': 1, officially",
        f"{root}/SegmentationClass: masks in it: 6, officially 2,913",
    ]  # fmt: skip
    starts(found.problems, *lines)
    assert (found.lists["test"].labelled, found.lists["test"].masked) == (0, {"SegmentationClass": 0})
    assert found.lists["test"].pictures == 1


def test_voc_labels_and_masks(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    text(root / "Annotations" / "2007_000001.xml", voc_xml(["zebra", "cat", "gnu"]))
    (root / "Annotations" / "2007_000003.xml").unlink()
    (root / "JPEGImages" / "2007_000005.jpg").unlink()
    values = np.zeros((4, 6), np.uint8)
    values[0, :3] = (15, 8, 21)
    write_mask(root / "SegmentationClassAug" / "2007_000002.png", values)
    found = [p.removeprefix(f"{root}/") for p in check_dataset("voc12", voc, partial=True).problems]
    starts(
        found,
        "SegmentationClassAug/2007_000005.png: id '2007_000005' has no picture",
        "Annotations/2007_000001.xml: unknown class 'zebra'",
        "Annotations/2007_000001.xml: unknown class 'gnu'",
        "Annotations/2007_000003.xml: no such file",
        "SegmentationClassAug/2007_000002.png: holds the values 21; masks hold 0..20 and 255",
        "SegmentationClassAug/2007_000002.png: holds cat, which the labels of '2007_000002' lack",
    )


def test_no_folder_of_pictures(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "JPEGImages").rename(root / "Pictures")
    found = check_dataset("voc12", voc, partial=True).problems
    starts(
        found,
        f"{voc}: no JPEGImages in it",
        f"{root}: no picture at all, of 2 in list 'train'",
        f"{root}: no picture at all, of 2 in list 'val'",
        f"{root}: no picture at all, of 4 in list 'train_aug'",
    )


def test_coco(coco):
    found = check_dataset("coco14", coco)
    starts(
        found.problems,
        f"{coco}: pictures in list 'train': 2, officially 82,081",
        f"{coco}: pictures in list 'val': 1, officially 40,137",
    )
    assert [f.pictures for f in found.lists.values()] == [2, 1, 2, 1]
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in found.histogram()}
    assert len(rows) == 82 and "unused_12" not in rows  # heading, rule, 80 categories
    assert [n.strip(" |") for n in rows["person"]] == ["1", "1", "1", "1"]
    assert [n.strip(" |") for n in rows["toothbrush"]] == ["1", "0", "1", "0"]
    assert "pictures in no list: 1 (000000000025)" in found.notes


def test_coco_problems(coco):
    load_dataset("coco14", coco).image_path("000000000009").unlink()
    train = coco_json([9, 25, 7], [(9, 18, 0), (9, 12, 0), (8, 1, 0), (9, 91, 0), (7, 90, 0)])
    text(coco / "annotations" / "instances_train2014.json", train)
    text(coco / "annotations" / "instances_val2014.json", "{")
    values = np.zeros((4, 6), np.uint8)
    values[1:3] = [[90], [12]]
    write_mask(coco / "masks" / "000000000007.png", values)
    found = problems("coco14", coco)
    starts(
        found,
        "annotations/instances_train2014.json: annotation 1 has category 12",
        "annotations/instances_train2014.json: annotation 2 is of image 8",
        "annotations/instances_train2014.json: annotation 3 has category 91",
        "annotations/instances_train2014.json: image 000000000009 has no picture",
        "annotations/instances_val2014.json, line 1: not valid JSON",
        f"{coco}: list 'val' is empty",
        f"{coco}: list 'val_5000' is empty",
        "masks/000000000007.png: holds unused_12, which the labels",
    )


def test_coco_stale_labels_and_missing_parts(coco):
    content = {"source": {"file": "instances_train2014.json", "size": 1, "sha256": ""}, "labels": {}}
    content["labels"] = {"000000000009": [17], "7": [1], "000000000007": [200]}
    text(coco / "annotations" / "image_labels_train2014.json", json.dumps(content))
    (coco / "annotations" / "instances_val2014.json").unlink()
    found = check_dataset("coco14", coco)
    short = f"{coco}/annotations/image_labels_train2014.json"
    starts(
        found.problems,
        f"{short}: was made from a file of 1 bytes, {coco}/annotations/instances_train2014.json has",
        f"{short}: image '7' is not a number of 12 digits",
        f"{short}: classes of image 000000000007 are [200]",
        f"{coco}: pictures in list 'train': 1, officially",
        f"{coco}: no list 'val' of 40,137 pictures; put {coco}/annotations/instances_val2014.json there",
    )


# ------------------------------------------------------------------------------------------- the command


def test_command_line(complete, capsys):
    run_here(MODULE, "--data-path", complete, "--workers", 0)
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "note: train: pictures without a class: 1 (c)"
    assert lines[2].startswith("| list ") and lines[8].startswith("| pictures per class ")
    assert lines[-4:] == [
        "checked 4 pictures (by their headers; --decode reads all pixels) and 4 masks",
        f"no problem in {complete}",
        f"next: bash scripts/all.sh folder {complete} runs/folder",
        "",
    ]
    run_here(MODULE, "--data-path", complete, "--decode")
    assert "checked 4 pictures (read in full) and 4 masks" in capsys.readouterr().out


def test_command_line_with_problems(complete, capsys):
    before = sorted(complete.rglob("*"))
    text(complete / "train.txt", "a\na\nb\n")
    assert error_line(capsys, MODULE, "--data-path", complete) == (
        f"error: 1 problem in {complete}, listed above; mend them and check again"
    )
    text(complete / "images" / "a.jpg", "no picture")
    line = error_line(capsys, MODULE, "--data-path", complete)
    assert line == f"error: 2 problems in {complete}, listed above; mend them and check again"
    assert sorted(complete.rglob("*")) == before


def test_as_a_process(complete):
    """Through the package; problems to stdout, one line to stderr."""
    start = [sys.executable, "-m", "wsss.datasets"]
    check = [*start, "check", "--dataset", "folder", "--data-path", complete, "--workers", 2]
    assert f"no problem in {complete}" in finish(*check)
    text(complete / "val.txt", "d\nd\nnobody\n")
    done = run_process(*check)
    assert done.returncode == 2
    assert done.stdout.startswith(
        f"{complete}/val.txt, line 2: id 'd' is there twice (first: {complete}/val.txt, line 1); remove one\n"
        f"{complete}/val.txt, line 3: id 'nobody' has no picture"
    )
    assert "error: 2 problems in" in done.stderr and "error" not in done.stdout
    assert run_process(*start).returncode == 2
    assert "check: list everything that is wrong" in finish(*start, "--help")


def test_nothing_to_check(tmp_path, capsys):
    with pytest.raises(UserError, match="no such folder; give --data-path"):
        check_dataset("folder", tmp_path / "no")
    assert "no such folder" in error_line(capsys, MODULE, "--data-path", tmp_path / "no")


def test_a_wrong_folder_has_no_empty_tables(tmp_path):
    found = check_dataset("coco14", tmp_path)
    assert found.problems and found.lists == {}
    assert (found.table(), found.histogram()) == ([], [])
