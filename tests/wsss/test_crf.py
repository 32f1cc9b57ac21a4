"""CRF presets and set-up against direct calls of pydensecrf, and the degenerate cases."""

import sys

import numpy as np
import pytest
import torch

from wsss.crf import PRESETS, crf_from_labels, crf_from_probs
from wsss.errors import UserError

densecrf = pytest.importorskip("pydensecrf.densecrf")


def picture(height=36, width=48):
    """Two flat halves with noise, uint8, and the noisy label map of them."""
    rng = np.random.default_rng(1)
    right = np.arange(width)[None].repeat(height, 0) >= width // 2
    image = np.where(right[..., None], (200, 60, 50), (40, 90, 160)) + rng.normal(0, 6, (height, width, 3))
    labels = np.where(rng.random((height, width)) < 0.15, 1 - right, right).astype(np.int64)
    return image.clip(0, 255).astype(np.uint8), labels, right


def plain_crf(image, energy, smooth_sxy, smooth, sxy, srgb, appearance, iterations):
    height, width = image.shape[:2]
    field = densecrf.DenseCRF2D(width, height, len(energy))
    field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(len(energy), -1), np.float32))
    field.addPairwiseGaussian(
        (smooth_sxy, smooth_sxy), smooth, densecrf.DIAG_KERNEL, densecrf.NORMALIZE_SYMMETRIC
    )
    field.addPairwiseBilateral(
        (sxy, sxy), (srgb, srgb, srgb), image, appearance, densecrf.DIAG_KERNEL, densecrf.NORMALIZE_SYMMETRIC
    )
    q = np.array(field.inference(iterations))
    return q.reshape(-1, height, width).argmax(0)


PUBLISHED = {
    "voc12_cam": (4, 3, 83, 5, 3, 10),
    "coco14_cam": (3, 3, 50, 5, 10, 10),
    "voc12_segmentation": (3, 3, 83, 5, 3, 10),
    "coco14_segmentation": (1, 3, 67, 3, 4, 10),
    "getam": (3, 3, 83, 5, 4, 20),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_labels_equal_plain_pydensecrf(preset):
    image, labels, right = picture()
    num_labels = 3  # label 2 may win and never occurs
    energy = np.full((num_labels, labels.size), -np.log(0.3 / 2))
    energy[labels.ravel(), np.arange(labels.size)] = -np.log(0.7)
    result = crf_from_labels(image, labels, num_labels=num_labels, preset=preset)
    np.testing.assert_array_equal(result, plain_crf(image, energy, *PUBLISHED[preset]))
    assert result.dtype == np.uint8
    assert (result == right).mean() > (labels == right).mean() + 0.05  # it does sharpen
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_probs_take_only_winning_classes_not_renormalised(preset):
    image, labels, _ = picture()
    rng = np.random.default_rng(2)
    probs = rng.random((6, *labels.shape)) * 0.2
    probs[1] += 0.7 * (labels == 0)
    probs[4] += 0.7 * (labels == 1)
    probs[0] = 0  # below the clip
    assert set(np.unique(probs.argmax(0))) == {1, 4}
    energy = -np.log(np.clip(probs[[1, 4]], 1e-5, 1.0))
    expected = np.array([1, 4])[plain_crf(image, energy, *PUBLISHED[preset])]
    result = crf_from_probs(image, probs, preset=preset)
    np.testing.assert_array_equal(result, expected)
    assert set(np.unique(result)) == {1, 4}


def test_a_class_that_wins_nowhere_cannot_win_after_crf():
    image = np.full((12, 14, 3), 90, np.uint8)
    rows, columns = np.mgrid[:12, :14]
    even = (rows + columns) % 2 == 0
    probs = np.stack([np.where(even, 0.5, 0.05), np.where(even, 0.05, 0.5), np.full(even.shape, 0.45)])
    everything = plain_crf(image, -np.log(probs), *PUBLISHED["voc12_segmentation"])
    assert (everything == 2).all()  # what a CRF over all classes would say
    assert 2 not in crf_from_probs(image, probs)


def test_scores_above_one_are_clipped():
    image, labels, _ = picture()
    probs = np.stack([1.8 * (labels == 0), 1.8 * (labels == 1)]) + 0.01
    expected = plain_crf(image, -np.log(np.clip(probs, 1e-5, 1.0)), *PUBLISHED["voc12_segmentation"])
    np.testing.assert_array_equal(crf_from_probs(image, probs), expected)


def test_memory_layout_and_precision_do_not_matter():
    image, labels, _ = picture()
    reference = crf_from_labels(image, labels, num_labels=2)
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    assert not mirrored.flags.c_contiguous
    read_only = image.copy()
    read_only.flags.writeable = False
    for other in (mirrored, np.asfortranarray(image), read_only):
        np.testing.assert_array_equal(
            crf_from_labels(other, np.asfortranarray(labels.astype(np.uint8)), num_labels=2), reference
        )
    probs = np.stack([0.8 - 0.6 * labels, 0.2 + 0.6 * labels])
    reference = crf_from_probs(image, probs)
    np.testing.assert_array_equal(
        crf_from_probs(image, np.asfortranarray(probs).astype(np.float32)), reference
    )


@pytest.mark.parametrize("kind", [torch.from_numpy, np.ndarray.tolist])
def test_tensors_and_lists_count_as_arrays(kind):
    image, labels, _ = picture()
    expected = crf_from_labels(image, labels, num_labels=2)
    np.testing.assert_array_equal(crf_from_labels(kind(image), kind(labels), num_labels=2), expected)
    probs = np.stack([0.8 - 0.6 * labels, 0.2 + 0.6 * labels])
    np.testing.assert_array_equal(crf_from_probs(kind(image), kind(probs)), crf_from_probs(image, probs))


def test_one_label_is_what_the_crf_would_return():
    image, labels, _ = picture()
    for label in (0, 2):
        constant = np.full_like(labels, label)
        energy = np.full((3, labels.size), -np.log(0.3 / 2))
        energy[label] = -np.log(0.7)
        np.testing.assert_array_equal(plain_crf(image, energy, *PUBLISHED["voc12_cam"]), constant)
        np.testing.assert_array_equal(crf_from_labels(image, constant, num_labels=3), constant)
    np.testing.assert_array_equal(
        crf_from_labels(image, np.zeros_like(labels), num_labels=1), np.zeros_like(labels)
    )
    probs = np.zeros((4, *labels.shape))
    probs[3] = 0.9
    np.testing.assert_array_equal(crf_from_probs(image, probs), np.full_like(labels, 3))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_extreme_sizes(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 2, size)
    result = crf_from_labels(image, labels, num_labels=2)
    assert result.shape == size
    assert result.max() <= 1


def test_bad_input():
    image, labels, _ = picture()
    with pytest.raises(ValueError, match="unknown CRF preset 'voc'"):
        crf_from_labels(image, labels, num_labels=2, preset="voc")
    with pytest.raises(ValueError, match="num_labels 1"):
        crf_from_labels(image, labels, num_labels=1)
    with pytest.raises(ValueError, match="of the labels' size"):
        crf_from_labels(image[:-1], labels, num_labels=2)
    for wrong in (image / 255, image.astype(int) - 256, image.astype(int) + 200):
        with pytest.raises(ValueError, match=r"image must be 0\.\.255"):
            crf_from_labels(wrong, labels, num_labels=2)
    with pytest.raises(ValueError, match="finite"):
        crf_from_probs(image, np.full((2, *labels.shape), np.nan))


def test_missing_pydensecrf_names_the_remedy(monkeypatch):
    image, labels, _ = picture()
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(UserError, match=r"pip install pydensecrf2.*--no-crf"):
        crf_from_labels(image, labels, num_labels=2)
