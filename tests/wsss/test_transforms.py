"""Sizes and resizing of stage 2 against exact arithmetic; what the geometric transform of stage 1 leaves."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.transforms import (
    classification_train_transform,
    geometric_train_transform,
    normalise,
    resize_bilinear,
    resize_nearest,
    resized_size,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transformed(transform, image, count):
    """``count`` samples of a picture, one seed each."""
    samples = []
    for seed in range(count):
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(seed)
        samples.append(transform(Image.fromarray(image)))
    return samples


def test_geometric_transform_keeps_colours():
    transform = geometric_train_transform(32, MEAN, STD)
    for colour in ((7, 200, 90), (255, 0, 254), (128, 127, 126)):
        image = np.full((50, 70, 3), colour, np.uint8)
        expected = normalise(np.full((32, 32, 3), colour, np.uint8), MEAN, STD)
        for sample in transformed(transform, image, 10):
            assert sample.shape == (3, 32, 32) and torch.allclose(sample, expected, atol=1e-6)
    published = transformed(classification_train_transform(32, MEAN, STD), image, 10)
    assert not all(torch.allclose(sample, expected, atol=1e-6) for sample in published)


def test_geometric_transform_takes_half_the_area_or_more_and_mirrors_half():
    """A picture that tells rows by its red and columns by its green: how much of each a crop spans."""
    rows, columns = np.mgrid[:200, :200].astype(np.uint8)
    image = np.stack([rows, columns, 0 * rows], 2)
    transform = geometric_train_transform(40, (0, 0, 0), (1, 1, 1))
    areas, mirrored = [], 0
    for sample in transformed(transform, image, 300):
        row, column = sample[0, :, 20] * 255, sample[1, 20] * 255  # medians of pixels, edges are left out
        steps = (row[-3] - row[2]) / 35, (column[-3] - column[2]) / 35
        assert steps[0] > 0  # never upside down
        mirrored += int(steps[1] < 0)
        areas.append(float(steps[0] * abs(steps[1])) / 25)  # of the picture's 5 x 5 per pixel
    assert 0.48 < min(areas) < 0.56 and 0.9 < max(areas) < 1.02
    assert abs(np.mean(areas) - 0.72) < 0.05  # the largest crops of an uneven aspect do not fit
    assert abs(mirrored - 150) < 35


def size_by_fractions(size, short_side, ratio, max_ratio=8):
    target = Fraction(short_side) * Fraction(ratio)
    factor = min(target / min(size), max_ratio * target / max(size))
    return tuple(max(1, int(side * factor + Fraction(1, 2))) for side in size)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])
def test_resized_size_equals_exact_arithmetic(ratio):
    rng = np.random.default_rng(0)
    for size in rng.integers(1, 3000, (500, 2)).tolist():
        assert resized_size(tuple(size), 520, ratio) == size_by_fractions(size, 520, ratio)


def test_resized_size_rounds_half_up_and_caps_the_long_side():
    assert resized_size((375, 500), 520) == (520, 693)  # 693.33
    assert resized_size((500, 375), 520) == (693, 520)
    assert resized_size((4, 9), 2) == (2, 5)  # 4.5
    assert resized_size((4, 5), 2) == (2, 3)  # 2.5, which Python rounds to 2
    assert resized_size((480, 480), 520, 0.5) == (260, 260)
    assert resized_size((100, 800), 520) == (520, 4160)
    assert resized_size((100, 1600), 520) == (260, 4160)
    assert resized_size((1, 5000), 240) == (1, 1920)  # 0.38 is still a pixel
    assert resized_size((1, 1), 240, 0.5) == (120, 120)


def test_resize_nearest_takes_the_row_and_column_below():
    mask = np.random.default_rng(0).integers(0, 256, (13, 7), dtype=np.uint8)
    for size in ((26, 21), (6, 3), (13, 9), (1, 1), (13, 7)):
        rows, columns = (np.arange(new) * old // new for new, old in zip(size, mask.shape, strict=True))
        assert np.array_equal(resize_nearest(mask, size), mask[rows][:, columns])


def test_resize_bilinear_interpolates_between_pixel_centres():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    size = (14, 31)
    weights = []
    for new, old in zip(size, image.shape, strict=False):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old))))
    expected = np.einsum("yh,xw,hwc->yxc", *weights, image.astype(float))
    found = resize_bilinear(image, size)
    assert found.dtype == np.uint8 and found.shape == (*size, 3)
    assert np.abs(found - expected).max() <= 1
    assert resize_bilinear(image, (9, 12)) is image
