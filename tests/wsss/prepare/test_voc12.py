"""VOC 2012 from the official archives and folders: the tree, its masks, restarts, and bad sources."""

import dataclasses
import hashlib
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.commands import error_line, run_here
from tests.miniature import VOC_VALUES, draw, make_official, pack, sbd_mask, voc_id
from tests.wsss.prepare.helpers import contents, die_in_write, finished, script, snapshot
from wsss.datasets import load_dataset
from wsss.errors import UserError
from wsss.io import VOC_PALETTE, read_image, read_mask, write_mask
from wsss.prepare import aug_masks, sbd, voc12

MODULE = "wsss.prepare.voc12"
TRAIN, VAL = 8, 4
OWN = (*range(4), *range(8, 12))  # pictures with a mask of VOC's own: half of train, and val
PARTIAL = ("--partial", "--workers", "0")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return make_official(tmp_path_factory.mktemp("archives"), "voc12", train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_official(tmp_path_factory.mktemp("folders"), "voc12", train=TRAIN, val=VAL, archives=False)


@pytest.fixture
def without_aug(archives, tmp_path):
    """The archives but SegmentationClassAug.zip."""
    source = tmp_path / "without_aug"
    shutil.copytree(archives, source, ignore=shutil.ignore_patterns("SegmentationClassAug*"))
    return source


def check_tree(root, *, palette: bool):
    """Lists, labels, pictures and masks by the loader, against what was drawn."""
    data = load_dataset("voc12", root)
    assert data.splits == ("train", "val", "train_aug", "test")
    lists = {s: data.image_ids(s) for s in data.splits}
    assert lists["train"] == [voc_id(i) for i in range(4)]
    assert lists["val"] == [voc_id(i) for i in range(8, 12)]
    assert lists["train_aug"] == [voc_id(i) for i in range(8)]
    assert lists["test"] == [voc_id(i) for i in (13, 14)]
    for i in range(TRAIN + VAL + 1):
        mask, expected = draw(i)[1], VOC_VALUES[draw(i)[1]] if i in OWN else sbd_mask(i)
        if i == TRAIN + VAL:
            assert not data.mask_path(voc_id(i)).exists()
            continue
        np.testing.assert_array_equal(read_mask(data.mask_path(voc_id(i))), expected)
        assert (255 in expected) == (i in OWN)
        with Image.open(data.mask_path(voc_id(i))) as image:
            assert image.mode == ("P" if palette else "L")
            assert not palette or bytes(image.getpalette()) == VOC_PALETTE
        assert set(np.unique(mask)) - {0, 255} == {shape + 1 for shape, _ in draw(i)[2]}
        assert {c + 1 for c in data.label_indices(voc_id(i))} == set(np.unique(expected)) - {0, 255}
    grey = read_image(data.image_path(voc_id(1)))
    assert (grey[..., 0] == grey[..., 2]).all() and grey.shape == draw(1)[0].shape
    assert {p.name for p in data.root.iterdir()} == {
        "JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug", "ImageSets"
    }  # fmt: skip
    assert not list(root.rglob("*.tmp")) and {p.name for p in root.iterdir()} == {
        "VOCdevkit",
        "prepared.json",
    }


def test_from_archives_by_the_script_and_again(archives, tmp_path):
    before, out = snapshot(archives), tmp_path / "with space"
    words = (out, "--from", archives, "--partial", "--workers", "1")
    text = finished(script("prepare_voc12", *words))
    check_tree(out, palette=False)
    assert snapshot(archives) == before
    for line in (
        f"VOC2012: from {archives / 'VOCtrainval_11-May-2012.tar'}",
        "VOC2012: 13 JPEGImages, 13 Annotations, 8 SegmentationClass",
        f"test: 2 pictures from {archives / 'VOC2012test.tar'}",
        f"SegmentationClassAug: taken from {archives / 'SegmentationClassAug.zip'}",
        "SegmentationClassAug: 12 masks",
        f"no problem in {out}",
        f"  bash scripts/evaluate.sh weaktr_voc12_deit_s voc12 '{out}'",
    ):
        assert line in text.split("\n"), line
    made = snapshot(out)
    for again in (words, (out, "--partial", "--workers", "0")):  # also without the sources
        text = finished(script("prepare_voc12", *again))
        assert snapshot(out) == made
        assert text.count("there already") == 3, text


def test_from_folders_by_the_script_linked_and_derived(folders, tmp_path):
    before, out = snapshot(folders), tmp_path / "out"
    words = (out, "--from", folders, "--derive-masks", "--partial", "--workers", "1")
    finished(script("prepare_voc12", *words))
    check_tree(out, palette=True)
    assert snapshot(folders) == before
    for name in (f"JPEGImages/{voc_id(5)}.jpg", f"SegmentationClass/{voc_id(0)}.png"):
        part = f"VOCdevkit/VOC2012/{name}"
        assert (out / part).samefile(folders / part)
    made = snapshot(out)
    assert "there already, 12 masks" in finished(script("prepare_voc12", *words))
    assert snapshot(out) == made


def test_masks_in_a_folder_are_taken_before_sbd(folders, tmp_path):
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", folders, *PARTIAL)
    check_tree(tmp_path / "out", palette=False)


def test_derived_from_the_archive_of_sbd_in_two_processes(without_aug, tmp_path):
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", without_aug, "--partial", "--workers", "2")
    check_tree(tmp_path / "out", palette=True)


@pytest.mark.parametrize(
    ("count", "suffix"),
    [(6, ".jpg"), (12, ".png"), (19, ".png")],
)
def test_killed_and_run_again_gives_the_same_tree(without_aug, tmp_path, count, suffix):
    """In the pictures; and among the masks, of which 8 are unpacked, 8 taken over, and 4 derived."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ("--from", without_aug, *PARTIAL)
    run_here(MODULE, "--output-dir", whole, *options)
    die_in_write(count, suffix, MODULE, "--output-dir", out, *options)
    voc = out / "VOCdevkit" / "VOC2012"
    assert not (voc / "SegmentationClassAug").exists()  # it appears when it is whole
    begun = {p.name: p.stat().st_mtime_ns for p in voc.glob(".SegmentationClassAug.unfinished/2*.png")}
    assert len(begun) == (count - 9 if suffix == ".png" else 0)
    run_here(MODULE, "--output-dir", out, *options)
    assert contents(out) == contents(whole)
    for name, time in begun.items():  # kept, not made again
        assert (voc / "SegmentationClassAug" / name).stat().st_mtime_ns == time


def test_masks_begun_with_another_sbd_are_not_mixed_in(without_aug, folders, tmp_path):
    out, options = tmp_path / "out", ("--from", without_aug, *PARTIAL)
    die_in_write(19, ".png", MODULE, "--output-dir", out, *options)
    stale = out / "VOCdevkit/VOC2012/.SegmentationClassAug.unfinished" / f"{voc_id(6)}.png"
    write_mask(stale, np.full(sbd_mask(6).shape, 3))  # as if the other archive held this
    run_here(MODULE, "--output-dir", out, "--from", folders, "--derive-masks", *PARTIAL)
    check_tree(out, palette=True)


def test_damaged_archive(archives, tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(archives, source)
    path = source / voc12.TRAINVAL.name
    path.write_bytes(path.read_bytes()[:100_000])
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", source, *PARTIAL)
    assert str(path) in line and "damaged or incomplete archive" in line and "fetch it again" in line
    shutil.copy(archives / path.name, path)
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", source, *PARTIAL)
    check_tree(tmp_path / "out", palette=False)


def test_archive_with_a_member_that_leads_outside(archives, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    with tarfile.open(source / voc12.TRAINVAL.name, "w") as archive:
        archive.add(archives / "benchmark.tgz", "../../VOCdevkit/VOC2012/JPEGImages/evil.jpg")
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "a" / "b", "--from", source, *PARTIAL)
    assert "evil.jpg' leads outside its folder" in line
    assert not list(tmp_path.rglob("evil.jpg"))


def test_wrong_size_and_hash_are_refused_unless_partial(archives, tmp_path, capsys):
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", archives, "--workers", "0")
    assert "VOCtrainval_11-May-2012.tar: has" in line and "bytes, expected 1999639040" in line
    assert not (tmp_path / "out").exists()


def test_nothing_to_start_from(tmp_path, capsys):
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *PARTIAL)
    assert "nor does --from" in line and "VOCtrainval_11-May-2012.tar" in line
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", tmp_path / "no", *PARTIAL)
    assert f"{tmp_path / 'no'}: no such file or folder" in line
    assert not (tmp_path / "out").exists()


def test_missing_sbd(without_aug, tmp_path, capsys):
    (without_aug / "benchmark.tgz").unlink()
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", without_aug, *PARTIAL)
    assert "SegmentationClassAug: no masks for it; give finished ones with --aug-masks" in line
    assert "benchmark.tgz" in line


# ------------------------------------------------------------------------------------ the user's masks


@pytest.fixture
def own_masks(folders, tmp_path):
    shutil.copytree(folders / "SegmentationClassAug", tmp_path / "own")
    return tmp_path / "own"


def _spoil(own, what):
    first, second = (own / f"{voc_id(i)}.png" for i in (0, 1))
    if what == "size":
        write_mask(first, np.zeros((7, 9), int))
        return f"{first.name} is 9x7, its picture"
    if what == "value":
        write_mask(second, np.full(draw(1)[1].shape, 21))
        return f"{second.name} holds the value 21; VOC's are 0..20 and 255"
    if what == "picture":
        first.rename(own / "2031_000001.png")
        return "2031_000001.png has no picture 2031_000001.jpg"
    if what == "colour":
        Image.open(first).convert("RGB").save(first)
        return "is a RGB picture, not a map of class indices"
    first.write_bytes(first.read_bytes()[:60])
    return f"{first}: damaged or truncated"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", ["size", "value", "picture", "colour", "damage"])
def test_masks_that_do_not_suit_are_refused(archives, own_masks, tmp_path, capsys, what, packed):
    words = _spoil(own_masks, what)
    given = own_masks
    if packed:
        given = tmp_path / "own.tgz"
        pack(own_masks, given)
    options = ("--from", archives, "--aug-masks", given, *PARTIAL)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *options)
    assert line.startswith(f"error: {given}: 1 problem with masks: ")
    assert words.replace(str(own_masks), "") in line and "--derive-masks" in line
    voc = tmp_path / "out" / "VOCdevkit" / "VOC2012"
    assert not [p for p in voc.iterdir() if "Aug" in p.name]


def test_every_problem_is_counted_and_the_first_named(archives, own_masks, tmp_path, capsys):
    for i in range(5):
        write_mask(own_masks / f"{voc_id(i)}.png", np.zeros((7, 9), int))
    options = ("--from", archives, "--aug-masks", own_masks, *PARTIAL)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *options)
    assert "5 problems with masks" in line and f"{voc_id(2)}.png is 9x7" in line and voc_id(3) not in line


def test_official_number_of_masks(archives, own_masks, tmp_path):
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", archives, *PARTIAL)
    pictures = tmp_path / "out/VOCdevkit/VOC2012/JPEGImages"
    with pytest.raises(UserError, match=r"own: 1 problem with masks: 12 masks instead of 12,031; remedy"):
        aug_masks.verify(own_masks, pictures, count=aug_masks.COUNT, workers=0, remedy="remedy")
    aug_masks.verify(own_masks, pictures, count=12, workers=0, remedy="remedy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="0 masks instead of at least one"):
        aug_masks.verify(tmp_path / "empty", pictures, count=None, workers=0, remedy="remedy")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "folder"])
def test_masks_in_any_nesting_beside_their_visualization(archives, own_masks, tmp_path, kind):
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    own_masks.rename(top / "a" / "b" / "SegmentationClassAug")
    for path in (top / "a" / "b" / "SegmentationClassAug").iterdir():  # other masks of the same names
        write_mask(top / "a" / "c" / "Visualization" / path.name, read_mask(path) // 2)
    given = top
    if kind != "folder":
        given = tmp_path / f"masks.{kind}"
        pack(top, given)
    options = ("--from", archives, "--aug-masks", given, *PARTIAL)
    run_here(MODULE, "--output-dir", tmp_path / "out", *options)
    check_tree(tmp_path / "out", palette=False)


def test_masks_in_several_folders_without_the_name(archives, own_masks, tmp_path, capsys):
    shutil.copytree(own_masks, tmp_path / "top" / "one")
    shutil.copytree(own_masks, tmp_path / "top" / "two")
    options = ("--from", archives, "--aug-masks", tmp_path / "top", *PARTIAL)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *options)
    assert "which folder holds the masks is not clear" in line and "two" in line
    options = ("--from", archives, "--aug-masks", tmp_path / "no", *PARTIAL)
    assert "no: no such" in error_line(capsys, MODULE, "--output-dir", tmp_path / "out", *options)


def test_a_tree_of_the_users_own_gets_its_masks(folders, tmp_path):
    """DIR itself is the tree, in another nesting; nothing but SegmentationClassAug is missing."""
    out = tmp_path / "out"
    shutil.copytree(folders / "VOCdevkit" / "VOC2012", out / "VOC2012")
    before = snapshot(out)
    options = ("--from", folders / "benchmark_RELEASE", *PARTIAL)
    run_here(MODULE, "--output-dir", out, *options)
    after = snapshot(out)
    assert {name: after[name] for name in before} == before
    assert not (out / "VOCdevkit").exists()
    np.testing.assert_array_equal(
        read_mask(out / "VOC2012" / "SegmentationClassAug" / f"{voc_id(6)}.png"), sbd_mask(6)
    )


def test_masks_in_place_are_verified_once(folders, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(folders / "VOCdevkit" / "VOC2012", out)
    shutil.copytree(folders / "SegmentationClassAug", out / "SegmentationClassAug")
    path = out / "SegmentationClassAug" / f"{voc_id(0)}.png"
    good = path.read_bytes()
    write_mask(path, np.zeros((7, 9), int))
    line = error_line(capsys, MODULE, "--output-dir", out, *PARTIAL)
    assert f"{voc_id(0)}.png is 9x7" in line and "remove the folder and run the same command again" in line
    path.write_bytes(good)
    run_here(MODULE, "--output-dir", out, *PARTIAL)
    assert "12 masks, verified" in capsys.readouterr().out
    run_here(MODULE, "--output-dir", out, *PARTIAL)
    text = capsys.readouterr().out
    assert "there already, 12 masks\n" in text


# -------------------------------------------------------------------------------------------- SBD


def test_sbd_masks_of_another_size_or_value_are_refused(folders, tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(folders, source, ignore=shutil.ignore_patterns("SegmentationClassAug"))
    cls = source / "benchmark_RELEASE" / "dataset" / "cls"
    savemat(cls / f"{voc_id(5)}.mat", {"GTcls": {"Segmentation": np.zeros((7, 9), np.uint8)}})
    savemat(cls / f"{voc_id(6)}.mat", {"GTcls": {"Segmentation": np.full_like(sbd_mask(6), 21)}})
    (cls / f"{voc_id(7)}.mat").write_bytes(b"no mat file")
    savemat(cls / "2031_000001.mat", {"GTcls": {"Segmentation": sbd_mask(6)}})
    out = tmp_path / "out"
    line = error_line(capsys, MODULE, "--output-dir", out, "--from", source, *PARTIAL)
    assert line.startswith(f"error: {cls}: 4 problems with masks: ")
    assert f"{voc_id(5)}.mat is 9x7" in line and f"{voc_id(6)}.mat holds the value 21" in line
    assert f"{voc_id(7)}.mat: holds no GTcls.Segmentation" in line and "; ...; fetch SBD again" in line
    assert not (out / "VOCdevkit/VOC2012/SegmentationClassAug").exists()


def test_sbd_files_of_other_forms_are_named(tmp_path):
    path = tmp_path / "x.mat"
    for content, words in (
        ({"GTinst": {"Segmentation": sbd_mask(0)}}, r"holds no GTcls\.Segmentation \(KeyError"),
        ({"GTcls": {"Segmentation": np.zeros((3, 3))}}, r"Segmentation is float64 \(3, 3\), not uint8"),
    ):
        savemat(path, content)
        with pytest.raises(UserError, match=rf"^x\.mat: {words}.*fetch SBD again"):
            sbd.read_sbd(path, "x.mat")
    savemat(path, {"GTcls": {"Segmentation": sbd_mask(0), "CategoriesPresent": np.array([1, 2])}})
    np.testing.assert_array_equal(sbd.read_sbd(path.read_bytes(), "x.mat"), sbd_mask(0))


# -------------------------------------------------------------------- the official sets, in the small


@pytest.fixture
def official(without_aug, tmp_path, monkeypatch):
    """The module as if the miniature were the official set, served from files; the check is left out."""

    def served(archive):
        data = (without_aug / archive.name).read_bytes()
        urls = ((tmp_path / "gone").as_uri(), (without_aug / archive.name).as_uri())
        known = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "md5": None}
        return dataclasses.replace(archive, urls=urls, **known)

    monkeypatch.setattr(voc12, "TRAINVAL", served(voc12.TRAINVAL))
    monkeypatch.setattr(voc12, "TEST", served(voc12.TEST))
    monkeypatch.setattr(sbd, "SBD", served(sbd.SBD))
    monkeypatch.setattr(aug_masks, "COUNT", 12)
    monkeypatch.setattr(voc12, "COUNTS", {"JPEGImages": 13, "Annotations": 13, "SegmentationClass": 8})
    monkeypatch.setattr(voc12, "check_and_tell", lambda kind, config: None)
    return without_aug


def test_downloaded_unpacked_and_removed(official, tmp_path, capsys):
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--workers", "0")
    text = capsys.readouterr().out
    assert "test: left out" in text and f"removed {out / 'downloads' / 'benchmark.tgz'}" in text
    assert {p.name for p in out.iterdir()} == {"VOCdevkit", "prepared.json"}
    run_here(MODULE, "--output-dir", out, "--from", official / "VOC2012test.tar", "--workers", "0")
    check_tree(out, palette=True)
    made = snapshot(out)
    run_here(MODULE, "--output-dir", out, "--workers", "0")
    assert snapshot(out) == made


def test_downloads_are_kept_when_asked(official, tmp_path):
    out = tmp_path / "out"
    run_here(MODULE, "--output-dir", out, "--workers", "0", "--keep-archives")
    assert sorted(p.name for p in (out / "downloads").iterdir()) == [
        "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
    ]  # fmt: skip


def test_incomplete_folders_are_not_used(official, folders, tmp_path, capsys):
    """The test set's tree, and one without an annotation: the archive is taken."""
    source = tmp_path / "in"
    shutil.copytree(folders, source, ignore=shutil.ignore_patterns("SegmentationClassAug"))
    (source / "VOCdevkit/VOC2012/Annotations" / f"{voc_id(3)}.xml").unlink()
    shutil.copy(official / voc12.TRAINVAL.name, source)
    run_here(MODULE, "--output-dir", tmp_path / "out", "--from", source, "--workers", "0")
    text = capsys.readouterr().out
    assert "not used, it holds 13 JPEGImages, 12 Annotations, 8 SegmentationClass; official are 13" in text
    check_tree(tmp_path / "out", palette=True)


def test_a_lost_file_is_brought_back(official, tmp_path):
    out = tmp_path / "out"
    options = ("--output-dir", out, "--from", official, "--workers", "0")
    run_here(MODULE, *options)
    whole = contents(out)
    (out / "VOCdevkit/VOC2012/JPEGImages" / f"{voc_id(2)}.jpg").unlink()
    run_here(MODULE, *options)
    assert contents(out) == whole


def test_too_few_masks_from_sbd(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aug_masks, "COUNT", 13)
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", official, "--workers", "0")
    assert "benchmark.tgz: gives 12 masks with VOC's own, not 13" in line
    assert not (tmp_path / "out/VOCdevkit/VOC2012/SegmentationClassAug").exists()


def test_test_archive_without_a_picture_of_its_list(archives, tmp_path, capsys):
    source = tmp_path / "in"
    shutil.copytree(archives, source)
    with tarfile.open(archives / "VOC2012test.tar") as archive:
        archive.extractall(tmp_path / "test", filter="data")
    (tmp_path / "test/VOCdevkit/VOC2012/JPEGImages" / f"{voc_id(14)}.jpg").unlink()
    pack(tmp_path / "test" / "VOCdevkit", source / "VOC2012test.tar")
    line = error_line(capsys, MODULE, "--output-dir", tmp_path / "out", "--from", source, *PARTIAL)
    assert f"VOC2012test.tar: lacks 1 pictures of its list, such as {voc_id(14)}.jpg" in line
    assert not (tmp_path / "out/VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt").exists()
