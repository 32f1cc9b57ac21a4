"""Every step of the augmentation against plain arithmetic; the crop rule; how often and how far."""

import colorsys
import itertools
from collections import Counter

import cv2
import numpy as np
import pytest

from segmentation import augment as A

COLOURS = np.array([[230, 30, 30], [30, 220, 40], [40, 50, 210], [230, 220, 40], [128, 128, 128]], np.uint8)


def noise(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clipped(value):
    return int(min(max(value, 0), 255))


def per_value(image, function):
    return np.array([function(int(v)) for v in image.ravel()], np.uint8).reshape(image.shape)


# -------------------------------------------------------------------------------------------- distortion


@pytest.mark.parametrize("delta", [-32, -31.7, -0.4, 0, 0.6, 17.25, 32])
def test_brightness_adds_clips_and_truncates(delta):
    image = noise()
    assert np.array_equal(A.adjust_brightness(image, delta), per_value(image, lambda v: clipped(v + delta)))


@pytest.mark.parametrize("factor", [0.5, 0.77, 1, 1.003, 1.5])
def test_contrast_multiplies_clips_and_truncates(factor):
    image = noise()
    assert np.array_equal(A.adjust_contrast(image, factor), per_value(image, lambda v: clipped(v * factor)))


def in_hsv_pixel_by_pixel(image, function):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    changed = [function(*map(int, pixel)) for pixel in hsv.reshape(-1, 3)]
    return cv2.cvtColor(np.array(changed, np.uint8).reshape(image.shape), cv2.COLOR_HSV2RGB)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.31, 1.5])
def test_saturation_multiplies_s_of_8_bit_hsv(factor):
    image = noise()
    expected = in_hsv_pixel_by_pixel(image, lambda h, s, v: (h, clipped(s * factor), v))
    assert np.array_equal(A.adjust_saturation(image, factor), expected)


@pytest.mark.parametrize("steps", [-18, -1, 0, 5, 17])
def test_hue_turns_h_of_8_bit_hsv(steps):
    image = noise()
    expected = in_hsv_pixel_by_pixel(image, lambda h, s, v: ((h + steps) % 180, s, v))
    assert np.array_equal(A.shift_hue(image, steps), expected)


def test_hue_and_saturation_agree_with_another_hsv():
    """Python's colorsys on fractions; a step of 8-bit hue is 2 degrees, 8 levels of a pure colour."""
    image = noise(8, 8)
    for function, change in (
        (lambda x: A.shift_hue(x, 11), lambda h, s, v: ((h + 11 / 180) % 1, s, v)),
        (lambda x: A.adjust_saturation(x, 0.6), lambda h, s, v: (h, s * 0.6, v)),
    ):
        expected = [
            colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel / 255))) for pixel in image.reshape(-1, 3)
        ]
        found = function(image).reshape(-1, 3).astype(float)
        assert np.abs(found - 255 * np.array(expected)).max() < 7


def test_hue_and_saturation_of_known_colours():
    red, grey = np.uint8([[[255, 0, 0]]]), np.uint8([[[90, 90, 90]]])
    assert A.shift_hue(red, 60).tolist() == [[[0, 255, 0]]]
    assert A.shift_hue(red, -60).tolist() == [[[0, 0, 255]]]  # around the end of the circle
    assert A.adjust_saturation(red, 0.5).tolist() == [[[255, 128, 128]]]
    assert A.adjust_saturation(red, 1.5).tolist() == [[[255, 0, 0]]]
    for step in (lambda x: A.shift_hue(x, 13), lambda x: A.adjust_saturation(x, 1.4)):
        assert step(grey).tolist() == grey.tolist()


STEPS = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "shift_hue")


def recorded_steps(monkeypatch, draws):
    """For each draw the list of (step, value) that ``distort`` took."""
    taken = []

    def record(name):
        return lambda image, value: taken.append((name, value)) or image

    for name in STEPS:
        monkeypatch.setattr(A, name, record(name))
    runs = []
    for k in range(draws):
        taken.clear()
        A.distort(noise(2, 2), np.random.default_rng(k))
        runs.append(list(taken))
    return runs


def test_distortion_takes_each_step_half_of_the_time_and_contrast_in_either_place(monkeypatch):
    runs = recorded_steps(monkeypatch, 4000)
    names = [[name for name, _ in run] for run in runs]
    for name in STEPS:
        assert abs(sum(name in run for run in names) / 4000 - 0.5) < 0.03
    assert all(len(set(run)) == len(run) for run in names)
    orders = Counter(tuple(run) for run in names if len(run) == 4)
    b, c, s, h = STEPS
    assert set(orders) == {(b, c, s, h), (b, s, h, c)}
    assert 0.35 < orders[b, c, s, h] / orders.total() < 0.65
    assert abs(orders.total() / 4000 - 1 / 16) < 0.015  # independent of each other


def test_distortion_draws_from_the_published_ranges(monkeypatch):
    values = {name: [] for name in STEPS}
    for name, value in itertools.chain(*recorded_steps(monkeypatch, 4000)):
        values[name].append(value)
    for name, low, high in (
        ("adjust_brightness", -32, 32),
        ("adjust_contrast", 0.5, 1.5),
        ("adjust_saturation", 0.5, 1.5),
    ):
        drawn = (np.array(values[name]) - low) / (high - low)
        assert 0 <= drawn.min() < 0.01 and 0.99 < drawn.max() < 1
        assert np.abs(np.histogram(drawn, 4, (0, 1))[0] / len(drawn) - 0.25).max() < 0.04
    hues = Counter(values["shift_hue"])
    assert sorted(hues) == list(range(-18, 18))
    assert max(hues.values()) < 3 * min(hues.values())


def test_distort_chains_the_steps():
    """The same draws, made here, and the steps applied by hand."""
    image = noise()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        expected = image
        if rng.integers(2):
            expected = A.adjust_brightness(expected, rng.uniform(-32, 32))
        last = rng.integers(2)
        if not last and rng.integers(2):
            expected = A.adjust_contrast(expected, rng.uniform(0.5, 1.5))
        if rng.integers(2):
            expected = A.adjust_saturation(expected, rng.uniform(0.5, 1.5))
        if rng.integers(2):
            expected = A.shift_hue(expected, rng.integers(-18, 18))
        if last and rng.integers(2):
            expected = A.adjust_contrast(expected, rng.uniform(0.5, 1.5))
        found = A.distort(image, np.random.default_rng(seed))
        assert found.dtype == np.uint8 and np.array_equal(found, expected)


# -------------------------------------------------------------------------------------------------- crop


def shares(*counts):
    """A mask of one row with counts[0] pixels of class 0, counts[1] of class 1, ..."""
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)[None]


@pytest.mark.parametrize(
    ("mask", "varied"),
    [
        (shares(1, 1), True),
        (shares(3, 1), False),  # exactly 75%
        (shares(299, 101), True),  # 74.75%
        (shares(301, 99), False),
        (shares(0, 74, 26), True),
        (shares(80, 10, 10), False),
        (shares(100), False),
        (np.full((4, 4), 255, np.uint8), False),
        (np.uint8([[7] * 100 + [254] * 60 + [255] * 1000]), True),  # 255 is not counted
        (np.uint8([[7] * 100 + [255] * 60]), False),
        (shares(0, 0, 1), False),
    ],
)
def test_is_varied(mask, varied):
    assert A.is_varied(mask) is varied


class Scripted:
    """A generator whose ``integers`` hands out given numbers and checks their bound."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, high):
        number = self.numbers.pop(0)
        assert 0 <= number < high
        return number


def test_the_first_varied_crop_is_taken():
    mask = np.zeros((20, 30), np.uint8)
    mask[10:, 20:] = 1
    rng = Scripted(0, 0, 5, 6, 8, 15, 0, 0)  # the third crop, rows 8..15, columns 15..22: 6 x 3 of class 1
    assert A.draw_crop(mask, 8, rng) == (slice(8, 16), slice(15, 23))
    assert rng.numbers == [0, 0]


@pytest.mark.parametrize("value", [0, 3, 255])
def test_ten_draws_at_most_and_the_last_is_taken(value):
    rng = Scripted(*range(18), 9, 12, 99)  # ten pairs, of which (9, 12) is the last
    window = A.draw_crop(np.full((100, 100), value, np.uint8), 8, rng)
    assert window == (slice(9, 17), slice(12, 20))
    assert rng.numbers == [99]


def test_crops_are_uniform_up_to_the_edges():
    mask = np.zeros((11, 9), np.uint8)
    rng = np.random.default_rng(0)
    windows = [A.draw_crop(mask, 8, rng) for _ in range(2000)]
    tops, lefts = Counter(w[0].start for w in windows), Counter(w[1].start for w in windows)
    assert sorted(tops) == [0, 1, 2, 3] and sorted(lefts) == [0, 1]
    assert all(abs(n - 500) < 100 for n in tops.values())
    assert all(abs(n - 1000) < 120 for n in lefts.values())


# --------------------------------------------------------------------------------------------- all steps


def painted(height, width, seed):
    """Coarse blocks of classes 0..3 and 255, and the picture that has each class in its colour."""
    blocks = np.random.default_rng(seed).integers(0, 5, (-(-height // 40), -(-width // 40)))
    classes = np.kron(blocks, np.ones((40, 40), int))[:height, :width]
    return COLOURS[classes], np.where(classes == 4, 255, classes).astype(np.uint8)


def test_picture_and_mask_move_together(monkeypatch):
    monkeypatch.setattr(A, "distort", lambda image, rng: image)
    for seed in range(30):
        image, mask = painted(150 + seed, 200 - seed, seed)
        image, mask = A.augment(image, mask, short_side=160, crop_size=120, rng=np.random.default_rng(seed))
        assert image.shape == (*mask.shape, 3) and max(mask.shape) <= 120
        distance = np.abs(image[:, :, None].astype(int) - COLOURS).sum(axis=-1)
        colour = np.where(distance.argmin(axis=-1) == 4, 255, distance.argmin(axis=-1))
        # colours mix, and the two resizes may differ by a pixel, where two classes meet
        box = np.ones((5, 5), np.uint8)
        inside = cv2.erode(mask, box) == cv2.dilate(mask, box)
        inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False
        assert inside.mean() > 0.6
        assert np.array_equal(colour[inside], mask[inside])


def test_mask_keeps_its_values():
    image, mask = painted(150, 200, 0)
    for seed in range(20):
        _, found = A.augment(image, mask, short_side=97, crop_size=90, rng=np.random.default_rng(seed))
        assert set(np.unique(found)) <= {0, 1, 2, 3, 255} and found.dtype == np.uint8


def test_ratio_is_uniform_and_half_are_mirrored(monkeypatch):
    """A wide ramp: the whole picture stays in the crop, and its first column says whether it is mirrored."""
    monkeypatch.setattr(A, "distort", lambda image, rng: image)
    mask = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    image = np.repeat(mask[..., None], 3, axis=2)
    widths, mirrored = [], 0
    for seed in range(1000):
        _, found = A.augment(image, mask, short_side=40, crop_size=500, rng=np.random.default_rng(seed))
        widths.append(found.shape[0])
        mirrored += int(found[0, 0] > found[0, -1])
    assert abs(mirrored - 500) < 60
    ratios = np.array(widths) / 40
    assert 0.5 <= ratios.min() < 0.55 and 1.95 < ratios.max() <= 2
    assert np.abs(np.histogram(ratios, 3, (0.5, 2.0001))[0] / 1000 - 1 / 3).max() < 0.06


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (2, 5000), (7, 7), (60, 50)])
@pytest.mark.parametrize("value", [0, 2, 255])
def test_every_size_gives_a_crop(size, value):
    image, mask = noise(*size), np.full(size, value, np.uint8)
    for seed in range(5):
        picture, label = A.augment(image, mask, short_side=60, crop_size=48, rng=np.random.default_rng(seed))
        assert picture.shape == (*label.shape, 3) and picture.dtype == np.uint8
        assert min(label.shape) >= 1 and max(label.shape) <= 48
        assert (label == value).all()


def test_without_photometric_the_geometry_is_the_same_and_colours_stay():
    """Colours are drawn last: what is left of the generator distorts the one into the other."""
    image, mask = painted(150, 200, 0)
    options, distorted = {"short_side": 120, "crop_size": 90}, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found, label = A.augment(image, mask, **options, rng=rng, photometric=False)
        expected, expected_label = A.augment(image, mask, **options, rng=np.random.default_rng(seed))
        assert np.array_equal(label, expected_label)
        assert np.array_equal(A.distort(found, rng), expected)
        distorted += int(not np.array_equal(found, expected))
    assert distorted > 10
    colour = np.array([201, 33, 77], np.uint8)
    flat = np.broadcast_to(colour, (60, 70, 3)).copy()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found, _ = A.augment(flat, mask[:60, :70], **options, rng=rng, photometric=False)
        assert (found == colour).all()
