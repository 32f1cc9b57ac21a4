"""The embedded data set: the same at every run, readable as a folder, and drawn as its description says."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import error_line, run_here
from wsss import shapes
from wsss.datasets import load_dataset
from wsss.io import read_image, read_mask
from wsss.shapes import CLASSES, HUE_BAND, OBJECTS, OUTLINES, TEXTURES, Picture, draw, outline, texture

NAMES = list(CLASSES)
COUNTS = ("--train", 9, "--val", 4)


def make(folder: Path, *options) -> Path:
    run_here("wsss.shapes", "--output-dir", folder, *options)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Nine training and four validation pictures. Read only."""
    return make(tmp_path_factory.mktemp("shapes") / "data", *COUNTS)


def content(folder: Path) -> dict[str, bytes]:
    """The data set's files, without the record of the run."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# ------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_a_data_set(made):
    data = load_dataset("folder", made)
    assert list(data.class_names) == NAMES and {"train", "val"} <= set(data.splits)
    assert data.image_ids("train") == [f"{k:04d}" for k in range(9)]
    assert data.image_ids("val") == [f"{k:04d}" for k in range(9, 13)]
    assert data.has_masks("train") and data.has_masks("val")
    wanted = {"classes.txt", "labels.csv", "train.txt", "val.txt"}
    wanted |= {f"images/{k:04d}.jpg" for k in range(13)} | {f"masks/{k:04d}.png" for k in range(13)}
    assert set(content(made)) == wanted


def test_labels_are_the_classes_in_the_mask_and_sizes_fit(made):
    data = load_dataset("folder", made)
    sizes = set()
    for image_id in data.image_ids("train") + data.image_ids("val"):
        mask = read_mask(data.mask_path(image_id))
        assert read_image(data.image_path(image_id)).shape == (*mask.shape, 3)
        values = np.unique(mask)
        assert values[0] == 0 and 1 <= len(values) - 1 <= 3 and values[-1] <= len(NAMES)
        assert data.label_indices(image_id) == tuple(values[1:].astype(int) - 1)
        sizes |= set(mask.shape)
    assert min(sizes) >= 96 and max(sizes) <= 128 and len(sizes) > 8


def test_a_covered_object_is_no_label(tmp_path, monkeypatch):
    """Of three objects the second is hidden: its class is neither in the mask nor in the labels."""
    chosen = []

    def covered(kinds, rng, **options):
        chosen.append([list(CLASSES.values()).index(kind) for kind in kinds])
        mask = np.zeros((4, 5), np.uint8)
        mask[0, 0], mask[-1] = 1, len(kinds)
        return Picture(np.zeros((4, 5, 3), np.uint8), mask)

    monkeypatch.setattr(shapes, "draw", covered)
    data = load_dataset("folder", make(tmp_path / "data", "--train", 30, "--val", 1))
    assert {len(classes) for classes in chosen} == {1, 2, 3}
    for image_id, classes in zip(data.image_ids("train"), chosen, strict=False):
        assert data.label_indices(image_id) == tuple(sorted({classes[0], classes[-1]}))
        corner, last = read_mask(data.mask_path(image_id))[[0, -1], 0]
        assert (corner, last) == (classes[0] + 1, classes[-1] + 1)


def test_same_seed_same_bytes_other_seed_other_pictures(made, tmp_path):
    first = content(made)
    assert content(make(tmp_path / "again", *COUNTS)) == first
    other = content(make(tmp_path / "other", "--train", 3, "--val", 1, "--seed", 1))
    for k in range(4):
        for path in (f"images/{k:04d}.jpg", f"masks/{k:04d}.png"):
            assert other[path] != first[path]


def test_a_longer_list_begins_with_the_same_pictures(made, tmp_path):
    """Every picture has a stream of its own: the lists may grow without changing what is there."""
    longer, first = content(make(tmp_path / "longer", "--train", 12, "--val", 2)), content(made)
    pictures = [name for name in first if name.startswith(("images", "masks"))]
    assert len(pictures) == 26 and all(longer[name] == first[name] for name in pictures)


def test_an_interrupted_folder_is_finished(made, tmp_path, monkeypatch):
    folder, written = tmp_path / "data", []

    def stop(path, mask):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "write_mask", stop)
        with pytest.raises(KeyboardInterrupt):
            make(folder, *COUNTS)
    assert not (folder / "train.txt").exists()  # no list before all pictures are there
    (folder / "images" / "0001.jpg").write_bytes(b"half")
    assert content(make(folder, *COUNTS)) == content(made)


def test_a_finished_folder_is_kept(tmp_path, monkeypatch):
    folder = make(tmp_path / "data", *COUNTS)
    monkeypatch.setattr(shapes, "draw", None)  # not called
    make(folder, *COUNTS)


def test_another_data_set_is_kept(tmp_path, capsys):
    folder = make(tmp_path / "data", "--train", 13, "--val", 1, "--seed", 1)
    before = content(folder)
    line = error_line(capsys, "wsss.shapes", "--output-dir", folder, *COUNTS)
    assert str(folder) in line and "drawn with other options" in line and "--overwrite" not in line
    assert content(folder) == before


def test_foreign_pictures_are_kept(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"mine")
    line = error_line(capsys, "wsss.shapes", "--output-dir", tmp_path, *COUNTS)
    assert str(tmp_path) in line and "new folder" in line and "--overwrite" not in line
    assert (tmp_path / "images" / "mine.jpg").read_bytes() == b"mine" and len(content(tmp_path)) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--train", 0), ("--val", 0), ("--seed", -1), ("--train", "many"), ("--val", 1.5)]
)
def test_bad_numbers_are_named(option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        make(tmp_path / "data", option, value)
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert stop.value.code == 2 and option in last and str(value) in last
    assert not (tmp_path / "data").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path, capsys):
    (tmp_path / "data").write_text("mine")
    assert "data: is a file" in error_line(capsys, "wsss.shapes", "--output-dir", tmp_path / "data", *COUNTS)


# ----------------------------------------------------------------------------------------- what is drawn


def test_shares_of_objects_and_classes(tmp_path, monkeypatch):
    """Which objects a picture gets is drawn before the picture: here nothing is drawn or written."""
    drawn = []

    def record(kinds, rng):
        drawn.append(kinds)
        return Picture(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))

    monkeypatch.setattr(shapes, "draw", record)
    monkeypatch.setattr(shapes, "write_image", lambda path, image: None)
    monkeypatch.setattr(shapes, "write_mask", lambda path, mask: None)
    make(tmp_path / "data", "--train", 2999, "--val", 1)
    counts = np.bincount([len(kinds) for kinds in drawn], minlength=4)
    assert counts[0] == 0 and OBJECTS == (0.6, 0.3, 0.1)
    assert np.abs(counts[1:] / 3000 - OBJECTS).max() < 0.03  # three standard deviations
    assert all(len(set(kinds)) == len(kinds) for kinds in drawn)
    of_class = [sum(kind in kinds for kinds in drawn) / 3000 for kind in CLASSES.values()]
    assert np.abs(np.array(of_class) - 1.5 / 6).max() < 0.025


def test_classes_differ_in_everything():
    kinds = list(CLASSES.values())
    assert [kind.outline for kind in kinds] == list(OUTLINES)
    assert [kind.texture for kind in kinds] == list(TEXTURES)
    hues = sorted(kind.hue for kind in kinds)
    gaps = np.diff([*hues, hues[0] + 1])
    assert np.allclose(gaps, 1 / 6) and 2 * HUE_BAND < 1 / 6  # bands do not touch


class Quiet(np.random.Generator):
    """Without noise."""

    def normal(self, mean, deviation, size):
        return np.full(size, mean, float)


def test_coloured_pixels_are_of_the_objects_band(monkeypatch):
    """Without noise and blur: inside of an object all that is more than dull is of its own band of hues."""
    monkeypatch.setattr(shapes.cv2, "GaussianBlur", lambda image, size, sigma: image)
    rng = Quiet(np.random.PCG64(3))
    for kind in CLASSES.values():
        middles = []
        for _ in range(4):
            image, mask = draw([kind], rng)
            hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
            hue, saturation = hsv[..., 0] / 360, hsv[..., 1]
            coloured = (mask == 1) & (saturation > 0.4)
            assert 0.25 < coloured.sum() / (mask == 1).sum() < 0.5  # the dull colour covers more
            assert saturation[(mask == 1) & ~coloured].max() < 0.38
            distance = (hue[coloured] - kind.hue + 0.5) % 1 - 0.5
            assert np.abs(distance).max() < HUE_BAND + 0.012  # rounding and clipping
            assert np.ptp(distance) < 0.03  # one hue per object
            middles.append(np.median(distance))
        assert np.ptp(middles) > 0.01  # another one for the next


def test_every_object_is_seen():
    """Later objects cover earlier ones a little, borders cut a part off: of three none is lost."""
    rng, kinds = np.random.default_rng(7), list(CLASSES.values())
    for k in range(8):
        mask = draw([kinds[(k + j) % 6] for j in range(3)], rng).mask
        assert mask.max() == 3 and np.bincount(mask.ravel())[1:].min() > 150


class Middle:
    """Draws the same share of every range: no turn, or the same one, and the same period."""

    def __init__(self, share=0.0):
        self.share = share

    def uniform(self, low, high):
        return low + self.share * (high - low)


def test_outlines_are_distinct_and_of_like_size():
    """However two of them are turned, they differ by a tenth of their union or more."""
    turned = {
        name: [outline(name, (100, 100), np.array((50, 50)), 30, Middle(k / 48)) for k in range(48)]
        for name in OUTLINES
    }
    for first, second in itertools.combinations(OUTLINES, 2):
        common = max(
            (turned[first][0] & other).sum() / (turned[first][0] | other).sum() for other in turned[second]
        )
        assert common < 0.9, (first, second)
    for insides in turned.values():
        areas = np.array([inside.sum() for inside in insides])
        assert np.ptp(areas) < 0.1 * areas.mean()  # turning does not change them
        assert 0.3 < areas.mean() / (np.pi * 30**2) < 1.1
        assert all(inside[50, 50] and not inside[0].any() for inside in insides)


def test_textures_are_distinct_and_the_coloured_part_is_the_smaller():
    patterns = {name: texture(name, (120, 120), np.array((60, 60)), Middle(0.3)) for name in TEXTURES}
    for first, second in itertools.combinations(TEXTURES, 2):
        assert (patterns[first] == patterns[second]).mean() < 0.8, (first, second)
    for pattern in patterns.values():
        assert pattern.dtype == bool and pattern.shape == (120, 120)
        assert 0.3 < pattern.mean() < 0.5
