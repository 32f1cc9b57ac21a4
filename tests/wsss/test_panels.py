"""Panels: which pictures, sizes, exact colours, and masks that do not fit."""

import numpy as np
import pytest
from PIL import Image

from wsss.errors import UserError
from wsss.io import write_image, write_mask
from wsss.panels import cam_overlay, panel_ids, panel_path, write_label_panels, write_panel
from wsss.visualize import overlay


def load(folder, image_id, name):
    return np.array(Image.open(panel_path(folder, image_id, name)))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_are_spread_over_the_list():
    ids = [f"p{i}" for i in range(10)]
    assert panel_ids(ids, 4) == ["p0", "p2", "p5", "p7"]
    assert panel_ids(ids, 1) == ["p0"] and panel_ids(ids, 0) == []
    assert panel_ids(ids, 10) == panel_ids(ids, 99) == ids
    for count in range(1, 11):  # no stretch of the list is left out, none shown twice
        gaps = np.diff([*(int(i[1:]) for i in panel_ids(ids, count)), 10])
        assert len(gaps) == count and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 512), (150, 256)), ((1000, 10), (256, 3)), ((600, 1), (256, 1)), ((256, 9), (256, 9))],
)
def test_longer_side_is_at_most_256(size, expected, tmp_path):
    write_panel(tmp_path, "a b", "picture", noise(*size))
    assert load(tmp_path, "a b", "picture").shape == (*expected, 3)
    assert panel_path(tmp_path, "a b", "picture") == tmp_path / "panels" / "a b" / "picture.png"


def test_small_pictures_stay_and_large_ones_are_averaged(tmp_path):
    small = noise(20, 30)
    write_panel(tmp_path, "small", "x", small)
    np.testing.assert_array_equal(load(tmp_path, "small", "x"), small)
    large = noise(512, 400)
    write_panel(tmp_path, "large", "x", large)
    means = large.reshape(256, 2, 200, 2, 3).mean((1, 3))
    assert np.abs(load(tmp_path, "large", "x") - means).max() <= 0.5


def test_cams_are_shown_in_the_colour_of_the_strongest_class():
    image = np.full((1, 5, 3), 100, np.uint8)
    cams = np.array([[[0.0, 0.5, 0.25, 1.0, 7.0]], [[0.0, 0.5, 0.75, 0.5, 0.0]]], np.float16)
    shown = cam_overlay(image, cams, [1, 0], alpha=0.8)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[0, 0], [100, 100, 100])  # where no map is, the picture
    np.testing.assert_array_equal(shown[0, 1], [60, 111, 60])  # a tie: the first, class 1, is (0, 128, 0)
    np.testing.assert_array_equal(shown[0, 2], [117, 40, 40])  # class 0 is (128, 0, 0), at 0.8 * 0.75
    np.testing.assert_array_equal(shown[0, 3], [20, 122, 20])
    np.testing.assert_array_equal(shown[0, 4], shown[0, 3])  # above 1 is clipped
    # the colours are those of masks, whose values are class + 1
    full = cam_overlay(image, np.ones((1, 1, 5)), np.array([4]), alpha=0.5)
    np.testing.assert_array_equal(full, overlay(image, np.full((1, 5), 5), alpha=0.5))
    np.testing.assert_array_equal(cam_overlay(image, np.zeros((0, 1, 5)), []), image)
    with pytest.raises(ValueError, match="differ in size"):
        cam_overlay(image, np.zeros((1, 5, 1)), [0])


def test_label_panels_from_files(tmp_path):
    image, labels, truth = noise(20, 30), np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    labels[:10], truth[5:], truth[:2] = 2, 1, 255
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "b.png", image)
    write_mask(tmp_path / "masks" / "a.png", truth)
    for image_id in "ab":
        write_mask(tmp_path / "out" / f"{image_id}.png", labels)
    masks = {"a": tmp_path / "masks" / "a.png", "b": tmp_path / "masks" / "b.png"}
    pictures = [(i, tmp_path / f"{i}.png", masks[i]) for i in "ab"]
    write_label_panels(tmp_path / "out", "prediction", pictures, exif=False)
    found = sorted(str(p.relative_to(tmp_path / "out/panels")) for p in (tmp_path / "out").rglob("*/*.png"))
    names = ["a/picture.png", "a/prediction.png", "a/truth.png", "b/picture.png", "b/prediction.png"]
    assert found == names  # b has no mask
    np.testing.assert_array_equal(load(tmp_path / "out", "a", "picture"), image)
    np.testing.assert_array_equal(load(tmp_path / "out", "a", "prediction"), overlay(image, labels))
    np.testing.assert_array_equal(load(tmp_path / "out", "a", "truth"), overlay(image, truth))


@pytest.mark.parametrize("wrong", ["masks/a.png", "out/a.png"])
def test_a_mask_of_another_size_is_named(wrong, tmp_path):
    write_image(tmp_path / "a.png", noise(20, 30))
    for name in ("masks/a.png", "out/a.png"):
        write_mask(tmp_path / name, np.zeros((30, 20) if name == wrong else (20, 30), np.uint8))
    pictures = [("a", tmp_path / "a.png", tmp_path / "masks/a.png")]
    with pytest.raises(UserError, match=rf"{wrong}: is 20x30, its picture 30x20"):
        write_label_panels(tmp_path / "out", "prediction", pictures, exif=False)
