"""Overlays: exact colours, sizes, untouched pixels."""

import numpy as np
import pytest

from wsss.visualize import heat_overlay, overlay, side_by_side


def test_overlay_mixes_the_voc_palette_and_leaves_background_and_ignored():
    image = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    result = overlay(image, labels, alpha=0.5)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(result[0, 1], [114, 50, 50])  # VOC's class 1 is (128, 0, 0)
    np.testing.assert_array_equal(result[1, 0], [50, 114, 50])  # class 2 is (0, 128, 0)
    np.testing.assert_array_equal(result[1, 1], [100, 100, 100])
    np.testing.assert_array_equal(overlay(image, labels.astype(np.int64), alpha=1.0)[0, 1], [128, 0, 0])


def test_heat_runs_from_blue_to_red():
    image = np.zeros((1, 3, 3), np.uint8)
    cam = np.array([[0.0, 0.5, 7.0]], np.float16)  # above 1 is clipped
    heat = heat_overlay(image, cam, alpha=1.0)
    np.testing.assert_array_equal(heat[0, 0], [0, 0, 128])
    assert heat[0, 1].argmax() == 1
    np.testing.assert_array_equal(heat[0, 2], [128, 0, 0])
    np.testing.assert_array_equal(heat_overlay(image, cam, alpha=0.5)[0, 0], [0, 0, 64])


def test_side_by_side_pads_below_with_white():
    left, right = np.zeros((2, 3, 3), np.uint8), np.full((4, 1, 3), 7, np.uint8)
    row = side_by_side(left, right)
    assert row.shape == (4, 4, 3)
    assert (row[2:, :3] == 255).all()
    assert (row[:2, :3] == 0).all()
    assert (row[:, 3] == 7).all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in size"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8))
