"""The command against the folder it must reproduce, through an official tree made back from that folder."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss import voc_animals
from wsss.config import parse
from wsss.datasets import VOC_CLASSES, load_dataset
from wsss.errors import UserError
from wsss.io import read_lines, read_mask
from wsss.voc_animals import CLASSES, LISTS_DIR, compare_folders, label_table, main, make_folder, renumber

VOC_INDEX = {"cat": 8, "cow": 10, "dog": 12, "horse": 13, "person": 15, "sheep": 17}  # as VOC documents them


def annotation(names):
    """VOC's form, objects in an order that is not the classes', some difficult, each with a part."""
    objects = "".join(
        f"<object>\n<name>{name}</name><difficult>{n % 2}</difficult>"
        "<part><name>head</name></part><part><name>aeroplane</name></part></object>"
        for n, name in enumerate([*names[::-1], names[0]])
    )
    return f"<annotation>\n\t<filename>x.jpg</filename>\n{objects}</annotation>\n"


def make_official(root, reference, ids, *, grey_masks=()):
    """``VOCdevkit/VOC2012`` with pictures, labels and VOC's mask numbers of ``ids``, and a picture beside."""
    labels = {
        row["image"]: row["labels"].split(";") for row in csv.DictReader((reference / "labels.csv").open())
    }
    tree = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tree / name).mkdir(parents=True)
    for image_id in ids:
        shutil.copyfile(reference / f"images/{image_id}.jpg", tree / f"JPEGImages/{image_id}.jpg")
        (tree / f"Annotations/{image_id}.xml").write_text(annotation(labels[image_id]))
        with Image.open(reference / f"masks/{image_id}.png") as image:
            ours, palette = np.array(image), image.getpalette()
        official = ours.copy()
        for number, name in enumerate((reference / "classes.txt").read_text().split(), 1):
            official[ours == number] = VOC_INDEX[name]
        image = Image.fromarray(official)
        if image_id not in grey_masks:  # the circulating copies of SegmentationClassAug hold both kinds
            image.putpalette(palette)
        image.save(tree / f"SegmentationClassAug/{image_id}.png")
    Image.new("RGB", (5, 5)).save(tree / "JPEGImages/2007_999999.jpg")
    return tree


@pytest.fixture(scope="module")
def reference():
    if "VOC_ANIMALS" not in os.environ:
        pytest.skip("VOC_ANIMALS is not set")
    return Path(os.environ["VOC_ANIMALS"])


@pytest.fixture
def small(reference, tmp_path, monkeypatch):
    """(official tree, the reference cut down to two dozen ids); the command's lists cut down likewise."""
    lists = {
        "train": read_lines(LISTS_DIR / "train.txt")[::60],
        "val": read_lines(LISTS_DIR / "val.txt")[::50],
    }
    ids = sorted(lists["train"] + lists["val"])
    assert len(ids) == 25
    tree = make_official(tmp_path / "official", reference, ids, grey_masks=ids[:5])
    cut = tmp_path / "reference"
    for name in ("images", "masks"):
        (cut / name).mkdir(parents=True)
    for image_id in ids:
        shutil.copyfile(reference / f"images/{image_id}.jpg", cut / f"images/{image_id}.jpg")
        shutil.copyfile(reference / f"masks/{image_id}.png", cut / f"masks/{image_id}.png")
    rows = (reference / "labels.csv").read_text().splitlines(keepends=True)
    (cut / "labels.csv").write_text("".join(r for r in rows if r.split(",")[0] in {"image", *ids}))
    shutil.copyfile(reference / "classes.txt", cut / "classes.txt")
    (tmp_path / "lists").mkdir()
    for split, split_ids in lists.items():
        for folder in (cut, tmp_path / "lists"):
            (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in split_ids))
    monkeypatch.setattr(voc_animals, "LISTS_DIR", tmp_path / "lists")
    return tree, cut


def command(*arguments):
    return parse(voc_animals.Config, [str(a) for a in arguments])


def content(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_nlink)
        for p in folder.rglob("*")
        if p.is_file()
    }


# ----------------------------------------------------------------------- everything, without the pictures


def test_lists_are_the_folders(reference):
    for name in ("train.txt", "val.txt"):
        assert (LISTS_DIR / name).read_bytes() == (reference / name).read_bytes()


def test_lists_are_whole_and_apart():
    train, val = read_lines(LISTS_DIR / "train.txt"), read_lines(LISTS_DIR / "val.txt")
    assert (len(train), len(val), len({*train, *val})) == (1100, 260, 1360)
    assert train == sorted(train)
    assert val == sorted(val)


def test_label_table_of_all_pictures_is_the_folders(reference, tmp_path):
    tree = tmp_path / "VOC2012"
    (tree / "JPEGImages").mkdir(parents=True)
    (tree / "Annotations").mkdir()
    with (reference / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (tree / f"Annotations/{row['image']}.xml").write_text(annotation(row["labels"].split(";")))
    ids = sorted(read_lines(LISTS_DIR / "train.txt") + read_lines(LISTS_DIR / "val.txt"))
    table = label_table(load_dataset("voc12", tree), ids)
    assert table.encode() == (reference / "labels.csv").read_bytes()


def test_classes_and_renumbering():
    assert [VOC_CLASSES.index(c) + 1 for c in CLASSES] == list(VOC_INDEX.values())
    mask = np.array([[0, 8, 10, 12], [13, 15, 17, 255]], np.uint8)
    assert renumber(mask, Path("a.png")).tolist() == [[0, 1, 2, 3], [4, 5, 6, 255]]
    with pytest.raises(UserError, match=r"^a.png: holds class 3, none of the six"):
        renumber(np.array([[3]], np.uint8), Path("a.png"))


# ------------------------------------------------------------------------------- two dozen, file by file


def test_made_folder_equals_the_reference(small, tmp_path):
    tree, cut = small
    out = tmp_path / "out"
    main(command("--voc-root", tree.parent.parent, "--output-dir", out, "--verify", cut))
    names = {str(p.relative_to(cut)) for p in cut.rglob("*") if p.is_file()}
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == names
    assert len(names) == 25 + 25 + 4
    for name in names:
        if name.endswith(".png"):
            with Image.open(out / name) as made, Image.open(cut / name) as expected:
                assert (made.mode, made.getpalette()) == (expected.mode, expected.getpalette())
                np.testing.assert_array_equal(np.array(made), np.array(expected))
        else:
            assert (out / name).read_bytes() == (cut / name).read_bytes()
    data = load_dataset("folder", out)
    assert data.check_image_labels("train") == 0
    assert data.has_masks("all")


def test_again_changes_nothing_and_mends_what_is_broken(small, tmp_path):
    tree, _ = small
    out = tmp_path / "out"
    main(command("--voc-root", tree, "--output-dir", out))
    before = content(out)
    main(command("--voc-root", tree, "--output-dir", out))
    assert content(out) == before
    picture = next((out / "images").iterdir())
    picture.write_bytes(b"half")
    (out / "labels.csv").unlink()
    main(command("--voc-root", tree, "--output-dir", out))
    assert content(out) == before


def test_links_to_the_official_pictures_and_back_to_copies(small, tmp_path):
    tree, cut = small
    out = tmp_path / "out"
    for _ in range(2):
        main(command("--voc-root", tree, "--output-dir", out, "--link", "--verify", cut))
        for picture in (out / "images").iterdir():
            assert picture.samefile(tree / "JPEGImages" / picture.name)
    before = content(tree / "JPEGImages")
    main(command("--voc-root", tree, "--output-dir", out, "--verify", cut))
    assert all(p.stat().st_nlink == 1 for p in (out / "images").iterdir())
    after = content(tree / "JPEGImages")
    assert {n: data for n, (data, _) in after.items()} == {n: data for n, (data, _) in before.items()}


def test_verify_names_every_difference(small, tmp_path):
    tree, cut = small
    out = tmp_path / "out"
    ids = read_lines(cut / "train.txt")
    main(command("--voc-root", tree, "--output-dir", out))
    assert compare_folders(out, cut) == []
    (cut / "labels.csv").write_text((cut / "labels.csv").read_text() + "x,cat\n")
    (cut / "images" / f"{ids[0]}.jpg").unlink()
    (cut / "images" / "extra.jpg").touch()
    with (cut / "images" / f"{ids[1]}.jpg").open("ab") as file:
        file.write(b"\0")
    changed = read_mask(cut / "masks" / f"{ids[2]}.png")
    changed[0, 0] += 1
    image = Image.fromarray(changed)
    image.putpalette(voc_animals.Image.open(out / "masks" / f"{ids[2]}.png").getpalette())
    image.save(cut / "masks" / f"{ids[2]}.png")
    Image.fromarray(read_mask(cut / "masks" / f"{ids[3]}.png")).save(cut / "masks" / f"{ids[3]}.png")
    (cut / "masks" / f"{ids[4]}.png").write_bytes(b"")
    assert compare_folders(out, cut) == [
        "labels.csv: differs",
        f"images/{ids[0]}.jpg: not in {cut}",
        f"images/extra.jpg: only in {cut}",
        f"images/{ids[1]}.jpg: differs",
        f"masks/{ids[2]}.png: differs",
        f"masks/{ids[3]}.png: differs",
        f"masks/{ids[4]}.png: differs",
    ]
    with pytest.raises(UserError, match=f"^{out}: 7 differences from {cut}"):
        main(command("--voc-root", tree, "--output-dir", out, "--verify", cut))


@pytest.mark.parametrize("what", ["JPEGImages/{}.jpg", "Annotations/{}.xml", "SegmentationClassAug/{}.png"])
def test_missing_file_stops_before_anything_is_written(small, tmp_path, what):
    tree, cut = small
    path = tree / what.format(read_lines(cut / "val.txt")[-1])
    path.unlink()
    with pytest.raises(UserError, match=f"{path}(: no such file|; put it there)"):
        main(command("--voc-root", tree, "--output-dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bad_files_are_named(small, tmp_path):
    tree, cut = small
    image_id = read_lines(cut / "val.txt")[0]
    lists = {"val": [image_id]}
    voc = load_dataset("voc12", tree)
    picture, mask = voc.image_path(image_id), voc.mask_path(image_id)
    Image.new("L", (3, 2)).save(mask)
    with pytest.raises(UserError, match=rf"^{mask}: is \(2, 3\), its picture"):
        make_folder(voc, tmp_path / "out", lists)
    picture.write_bytes(picture.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"^{picture}: damaged or truncated"):
        make_folder(voc, tmp_path / "out", lists)
    xml = tree / "Annotations" / f"{image_id}.xml"
    xml.write_text(annotation(["bird"]))
    with pytest.raises(UserError, match=f"^{xml}: unknown class 'bird'"):
        make_folder(voc, tmp_path / "out", lists)
    assert not (tmp_path / "out" / "classes.txt").exists()


def test_folder_of_another_data_set_is_left_alone(small, tmp_path):
    tree, _ = small
    out = tmp_path / "out"
    out.mkdir()
    (out / "classes.txt").write_text("tree\n")
    with pytest.raises(UserError, match=f"^{out}: holds another data set"):
        main(command("--voc-root", tree, "--output-dir", out))
    assert list(out.iterdir()) == [out / "classes.txt"]


def test_command_line_ends_with_one_line_and_status_2(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "wsss.voc_animals", "--voc-root", tmp_path, "--output-dir", tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {tmp_path}: no JPEGImages in it")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
