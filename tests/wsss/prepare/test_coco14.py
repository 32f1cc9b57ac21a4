"""COCO 2014 from the official archives and folders: pictures, labels, masks, restarts, and bad sources."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.commands import error_line, run_here
from tests.miniature import boxes_mask, coco_regions, draw, make_official, pack
from tests.wsss.prepare.helpers import contents, die_in_write, finished, script, snapshot
from wsss.datasets import load_dataset
from wsss.io import read_image, read_mask, write_mask
from wsss.prepare import coco14

MODULE = "wsss.prepare.coco14"
TRAIN, VAL = 6, 3
PARTIAL = ("--partial", "--workers", "0")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_official(tmp_path_factory.mktemp("archives"), "coco14", train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_official(tmp_path_factory.mktemp("folders"), "coco14", train=TRAIN, val=VAL, archives=False)


@pytest.fixture
def own(folders, tmp_path):
    """A copy of the folders, to be changed."""
    shutil.copytree(folders, tmp_path / "own")
    return tmp_path / "own"


def coco_id(index):
    return f"{100 + 7 * index:012d}"


def true_mask(index):
    """What the rules say of the drawn boxes, by numpy alone."""
    size = draw(index)[0].shape[:2]
    mask = np.zeros(size, np.uint8)
    layers = [(boxes_mask(r.boxes, size), 255 if r.crowd else r.category) for r in coco_regions(index)]
    for inside, value in sorted(layers, key=lambda layer: -layer[0].sum()):  # stable: later on top
        mask[inside] = value
    return mask


def check_folder(root, *, pictures="{part}2014/COCO_{part}2014_{id}.jpg", masks=True):
    data = load_dataset("coco14", root)
    assert data.image_ids("train") == [coco_id(i) for i in range(TRAIN - 1)]  # the last has no annotation
    assert data.image_ids("val") == [coco_id(i) for i in range(TRAIN, TRAIN + VAL - 1)]
    for i in range(TRAIN + VAL):
        part = "train" if i < TRAIN else "val"
        assert data.image_path(coco_id(i)) == root / pictures.format(part=part, id=coco_id(i))
        assert data.image_path(coco_id(i)).is_file()
        if i in (TRAIN - 1, TRAIN + VAL - 1):
            assert data.label_indices(coco_id(i)) == () and not data.mask_path(coco_id(i)).exists()
            continue
        assert data.label_indices(coco_id(i)) == tuple(sorted({r.category - 1 for r in coco_regions(i)}))
        if masks:
            np.testing.assert_array_equal(read_mask(data.mask_path(coco_id(i))), true_mask(i))
    grey = read_image(data.image_path(coco_id(1)))
    with Image.open(data.image_path(coco_id(1))) as image:
        assert image.mode == "L" and (grey[..., 0] == grey[..., 2]).all()
    assert not [p for p in root.rglob("*") if p.name.endswith((".tmp", ".part"))]


def test_the_miniature_has_every_kind_of_overlap():
    """So that equality with ``true_mask`` says something: who hides whom, by the values at single pixels."""
    assert [true_mask(i).max() for i in range(4)] == [90, 255, 255, 18]
    assert true_mask(0)[35, 40] == 90 and true_mask(0)[60, 40] == 1  # small on large
    assert true_mask(1)[35, 25] == 255 and true_mask(1)[25, 25] == 18  # small crowd on large object
    assert true_mask(2)[45, 45] == 90 and true_mask(2)[20, 20] == 255  # small object on large crowd
    assert true_mask(3)[55, 55] == 1 and true_mask(3)[55, 30] == 18  # equal: the later
    forms = {(r.form, r.crowd, len(r.boxes)) for i in range(4) for r in coco_regions(i)}
    assert forms >= {("polygons", False, 2), ("runs", True, 1), ("compressed", False, 2)}


def test_from_archives_by_the_script_and_again(archives, tmp_path):
    before, out = snapshot(archives), tmp_path / "with space"
    words = (out, "--from", archives, "--partial", "--workers", "2")
    text = finished(script("prepare_coco14", *words))
    check_folder(out)
    assert snapshot(archives) == before
    for line in (
        f"annotations: from {archives / 'annotations_trainval2014.zip'}",
        "image_labels_train2014.json: 6 images, 5 of them with an annotation",
        f"val pictures: 3 from {archives / 'val2014.zip'}",
        "train masks: wrote 5, kept 0",
        f"no problem in {out}",
        f"  bash scripts/evaluate.sh weaktr_coco14_deit_s coco14 '{out}'",
    ):
        assert line in text.split("\n"), line
    path = out / "annotations" / "instances_train2014.json"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    content = json.loads((out / "annotations" / "image_labels_train2014.json").read_text())
    assert content["source"] == {"file": path.name, "size": path.stat().st_size, "sha256": digest}
    assert content["labels"][coco_id(1)] == [17] and content["labels"][coco_id(TRAIN - 1)] == []
    made = snapshot(out)
    text = finished(script("prepare_coco14", *words))
    assert snapshot(out) == made
    assert text.count("there already") == 7, text


def test_from_folders_linked_and_without_masks(folders, tmp_path):
    before, out = snapshot(folders), tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--from", folders, "--no-masks", *PARTIAL)
    check_folder(out, masks=False)
    assert snapshot(folders) == before and not (out / "masks").exists()
    for name in (f"train2014/COCO_train2014_{coco_id(0)}.jpg", "annotations/instances_val2014.json"):
        assert (out / name).samefile(folders / name)
    run_here(MODULE, "--output-dir", out, *PARTIAL)  # without the sources: only masks are missing
    check_folder(out)


def test_renamed_pictures_stay_renamed(own, tmp_path):
    (own / "images").mkdir()
    for part in ("train", "val"):
        for path in (own / f"{part}2014").iterdir():
            path.rename(own / "images" / path.name.split("_")[-1])
        (own / f"{part}2014").rmdir()
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--from", own, *PARTIAL)
    check_folder(out, pictures="images/{id}.jpg")
    assert (out / "images" / f"{coco_id(0)}.jpg").samefile(own / "images" / f"{coco_id(0)}.jpg")


def test_sources_beside_the_data_set_itself(archives, tmp_path):
    """Archives lie in the folder that is made."""
    out = tmp_path / "out"
    shutil.copytree(archives, out)
    run_here(MODULE, "--output-dir", out, "--from", out, *PARTIAL)
    check_folder(out)
    assert {p.name for p in archives.iterdir()} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize(("count", "suffix"), [(3, ".jpg"), (3, ".png"), (1, "train2014.json")])
def test_killed_and_run_again_gives_the_same_folder(archives, tmp_path, count, suffix):
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ("--from", archives, *PARTIAL)
    run_here(MODULE, "--output-dir", whole, *options)
    die_in_write(count, suffix, MODULE, "--output-dir", out, *options)
    begun = {p: p.stat().st_mtime_ns for p in (out / "masks").glob("0*.png")}
    assert len(begun) == (2 if suffix == ".png" else 0)
    run_here(MODULE, "--output-dir", out, *options)
    assert contents(out, but=()) == contents(whole, but=())
    assert {p: p.stat().st_mtime_ns for p in begun} == begun


def test_another_annotation_file_is_noticed(folders, own, tmp_path, capsys):
    """Labels and masks of that part are made again; those of the other part are kept."""
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--from", folders, *PARTIAL)
    kept = {p: p.stat().st_mtime_ns for p in (out / "masks").iterdir() if p.stem >= coco_id(TRAIN)}
    path = own / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != int(coco_id(0))]
    for entry in content["annotations"]:
        entry["category_id"] = 2
    path.write_text(json.dumps(content))
    capsys.readouterr()
    run_here(MODULE, "--output-dir", out, "--from", own, *PARTIAL)
    text = capsys.readouterr().out
    assert "train masks: removing 5 of another annotation file" in text
    assert "train masks: wrote 4, kept 0" in text and "val masks: there already, 2" in text
    assert not (out / "masks" / f"{coco_id(0)}.png").exists()
    assert set(np.unique(read_mask(out / "masks" / f"{coco_id(3)}.png"))) == {0, 2}
    data = load_dataset("coco14", out)
    assert data.label_indices(coco_id(0)) == () and data.label_indices(coco_id(3)) == (1,)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept and len(kept) == 2


def test_masks_of_unknown_origin_are_not_touched(folders, tmp_path, capsys):
    out = tmp_path / "out"
    path = out / "masks" / f"{coco_id(2)}.png"
    write_mask(path, np.full(draw(2)[0].shape[:2], 90))
    before = path.read_bytes()
    line = error_line(capsys, MODULE, "--output-dir", out, "--from", folders, *PARTIAL)
    assert "masks: holds masks that this command has not made" in line and "--no-masks" in line
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_a_lost_mask_and_a_lost_picture_are_made_again(archives, tmp_path):
    out, options = tmp_path / "out", ("--from", archives, *PARTIAL)
    run_here(MODULE, "--output-dir", out, *options)
    (out / "masks" / f"{coco_id(2)}.png").unlink()
    (out / "val2014" / f"COCO_val2014_{coco_id(TRAIN)}.jpg").unlink()
    run_here(MODULE, "--output-dir", out, *options)
    check_folder(out)


def test_damaged_archive(archives, tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(archives, source)
    path = source / "train2014.zip"
    data = bytearray(path.read_bytes())
    data[20_000:20_400] = bytes(400)
    path.write_bytes(data)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", source, *PARTIAL)
    assert f"{path}: damaged or incomplete archive" in line and "fetch it again" in line
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", archives, *PARTIAL)
    check_folder(tmp_path / "out")


def test_wrong_size_and_hash_are_refused_unless_partial(archives, tmp_path, capsys):
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", archives, "--workers", "0")
    assert "annotations_trainval2014.zip: has" in line and "bytes, expected 252872794" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (("annotations",), "instances_train2014.json: no such file, nor in --from"),
        (("val2014",), "val2014: no pictures, nor in --from; give --from the folder that holds val2014 or"),
    ],
)
def test_missing_sources(own, tmp_path, capsys, remove, words):
    for name in remove:
        shutil.rmtree(own / name)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", own, *PARTIAL)
    assert words in line and "--partial downloads nothing" in line


def test_one_part_alone(own, tmp_path):
    shutil.rmtree(own / "train2014")
    (own / "annotations" / "instances_train2014.json").unlink()
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", own, *PARTIAL)
    data = load_dataset("coco14", tmp_path / "out")
    assert data.splits == ("val", "val_5000") and data.has_masks("val")


def test_a_region_that_cannot_be_drawn_is_named(own, tmp_path, capsys):
    path = own / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    entry = next(a for a in content["annotations"] if a["iscrowd"])
    entry["segmentation"]["counts"][0] += 1
    path.write_text(json.dumps(content))
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", own, *PARTIAL)
    assert f"instances_train2014.json, annotation {entry['id']}: run lengths do not add up" in line


# -------------------------------------------------------------------- the official set, in the small


@pytest.fixture
def official(archives, tmp_path, monkeypatch):
    """The module as if the miniature were the official set, served from files; the check is left out."""

    def served(archive):
        data = (archives / archive.name).read_bytes()
        known = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return dataclasses.replace(archive, urls=((archives / archive.name).as_uri(),), **known)

    monkeypatch.setattr(coco14, "ANNOTATIONS", served(coco14.ANNOTATIONS))
    monkeypatch.setattr(coco14, "PICTURES", {part: served(a) for part, a in coco14.PICTURES.items()})
    monkeypatch.setattr(coco14, "check_and_tell", lambda kind, config: None)
    return archives


def test_downloaded_unpacked_and_removed(official, tmp_path):
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--workers", "0")
    check_folder(out)
    assert {p.name for p in out.iterdir()} == {
        "annotations", "train2014", "val2014", "masks", "prepared.json"
    }  # fmt: skip
    made = snapshot(out)
    run_here(MODULE, "--output-dir", out, "--workers", "0")
    assert snapshot(out) == made


def test_an_incomplete_folder_is_not_used(official, own, tmp_path, capsys):
    (own / "train2014" / f"COCO_train2014_{coco_id(3)}.jpg").unlink()
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--from", own, "--workers", "0", "--keep-archives")
    assert "train2014: not used, it holds 5 of 6 pictures" in capsys.readouterr().out
    check_folder(out)
    assert [p.name for p in (out / "downloads").iterdir()] == ["train2014.zip"]
    assert (out / "val2014" / f"COCO_val2014_{coco_id(TRAIN)}.jpg").stat().st_nlink == 2


def test_an_archive_that_lacks_pictures(official, own, tmp_path, monkeypatch, capsys):
    (own / "train2014" / f"COCO_train2014_{coco_id(3)}.jpg").unlink()
    (tmp_path / "in").mkdir()
    pack(own / "train2014", tmp_path / "in" / "train2014.zip")
    small = dataclasses.replace(coco14.PICTURES["train"], size=None, sha256=None)
    monkeypatch.setattr(coco14, "PICTURES", coco14.PICTURES | {"train": small})
    options = ("--from", tmp_path / "in", "--workers", "0")
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *options)
    assert "train2014.zip: lacks 1 pictures of instances_train2014.json" in line
