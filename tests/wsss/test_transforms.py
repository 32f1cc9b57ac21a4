"""Sizes and resizing of stage 2 against exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from wsss.transforms import resize_bilinear, resize_nearest, resized_size


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
