"""Pseudo-labels and label completion against the plain form, and on cases drawn by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmentation.getam.pamr import PAMR
from segmentation.getam.pseudo_labels import (
    COMPLETION_QUANTILES,
    LabelRules,
    batch_labels,
    complete_labels,
    make_labels,
    refine_maps,
)
from tests.segmentation.getam import oracle


def smooth(seed: int, n: int, side: int) -> np.ndarray:
    """Smooth random scores (n, side, side) of 0..1, with exact zeros."""
    rng = np.random.RandomState(seed)
    coarse = torch.from_numpy(rng.rand(1, n, 4, 4))
    maps = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0].numpy()
    maps = np.clip(maps - 0.3, 0, None)
    return maps / maps.max((1, 2), keepdims=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95])
def test_completion_equals_the_plain_form(seed, quantile):
    rng = np.random.RandomState(seed)
    scores, classes = smooth(seed, 2, 26), np.array([1, 4])
    labels = np.zeros((26, 26), np.uint8)
    labels[3:17, 2:16] = 2
    labels[15:20, 10:22] = 255
    labels[rng.rand(26, 26) < 0.02] = 5  # specks, which the opening removes
    found, claimed = complete_labels(labels.copy(), scores, classes, quantile=quantile)
    expected, expected_claimed = oracle.complete(labels, scores, classes, quantile)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(claimed, expected_claimed)
    assert set(np.unique(found)) <= {0, 2, 5, 255}


def test_completion_claims_something_and_the_first_class_keeps_it():
    """Two classes bright at one place: class 3 has the larger value, class 0 comes first."""
    scores = np.zeros((2, 40, 40))
    scores[:] = np.linspace(0.01, 0.1, 1600).reshape(40, 40)
    scores[0, 10:24, 10:24], scores[1, 10:24, 10:24] = 0.5, 0.9
    # a constant patch: its own value is not above itself, so a gradient lies on it
    scores[:, 10:24, 10:24] += np.linspace(0, 0.01, 196).reshape(14, 14)
    found, claimed = complete_labels(np.zeros((40, 40), np.uint8), scores, np.array([0, 3]), quantile=0.85)
    assert claimed[12:22, 12:22].all() and set(np.unique(found)) == {0, 1}


def test_completion_is_skipped_where_the_element_is_the_first():
    """One positive value: int(0.9 * 1) is 0."""
    scores = np.zeros((1, 12, 12))
    scores[0, 5, 5] = 1
    labels = np.zeros((12, 12), np.uint8)
    labels[:11, :11] = 7
    labels[5, 5] = 0
    _, claimed = complete_labels(labels, scores, np.array([2]), quantile=0.9)
    assert not claimed.any()


def test_a_quantile_of_one_claims_nothing():
    scores = np.linspace(0.01, 1, 900).reshape(1, 30, 30)
    found, claimed = complete_labels(np.zeros((30, 30), np.uint8), scores, np.array([2]), quantile=1.0)
    assert not found.any() and not claimed.any()


def test_the_opening_lies_one_pixel_down_and_right():
    labels = np.zeros((30, 30), np.uint8)
    labels[8:19, 8:19] = 3  # 11 pixels a side: an opening by 10 keeps it, shifted
    found, _ = complete_labels(labels, np.zeros((1, 30, 30)), np.array([2]), quantile=0.9)
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 18, 9, 18)


def test_unknown_pixels_hold_up_the_opening():
    labels = np.zeros((30, 30), np.uint8)
    labels[5:25, 5:12], labels[5:25, 12:25] = 255, 4
    found, _ = complete_labels(labels, np.zeros((1, 30, 30)), np.array([3]), quantile=0.9)
    assert (found == 255).sum() > 100
    narrow = labels.copy()
    narrow[labels == 4] = 0  # 7 pixels wide: gone, 255 included
    assert not complete_labels(narrow, np.zeros((1, 30, 30)), np.array([3]), quantile=0.9)[0].any()


def scores_in_steps() -> np.ndarray:
    """(2, 20, 60): columns where no class, class 0 weakly, class 0 strongly, class 1 strongly shine."""
    scores = np.zeros((2, 20, 60))
    scores[0, :, 15:30], scores[0, :, 30:45], scores[1, :, 45:] = 0.05, 0.8, 0.9
    return scores


def test_labels_with_saliency_as_published():
    salient = np.ones((20, 60), bool)
    salient[:, :10] = False
    salient[:10, 45:] = False  # not salient wins over a strong class
    found, claimed = make_labels(scores_in_steps(), np.array([2, 5]), salient, LabelRules(completion=False))
    assert (found[:, :10] == 0).all() and (found[:10, 45:] == 0).all()
    assert (found[:, 10:30] == 255).all()  # the background wins: unknown
    assert (found[:, 30:45] == 3).all() and (found[10:, 45:] == 6).all()
    assert not claimed.any()


def test_labels_without_saliency_have_a_band_of_unknown_pixels():
    rules = LabelRules(completion=False, band=0.85)
    found, _ = make_labels(scores_in_steps(), np.array([2, 5]), None, rules)
    assert (found[:, :30] == 0).all()  # the background wins
    assert (found[:, 30:45] == 255).all()  # a class wins, below the band
    assert (found[:, 45:] == 6).all()
    found, _ = make_labels(scores_in_steps(), np.array([2, 5]), None, LabelRules(completion=False, band=0.3))
    assert (found[:, 30:45] == 3).all() and (found[:, 45:] == 6).all()


@pytest.mark.parametrize(("value", "label"), [(0.076, 255), (0.077, 8)])
def test_the_background_s_power(value, label):
    """(1 - m)^32 = m at m = 0.0766."""
    found, _ = make_labels(
        np.full((1, 12, 12), value), np.array([7]), np.ones((12, 12), bool), LabelRules(completion=False)
    )
    assert (found == label).all()


def test_maps_are_refined_and_divided_by_their_maximum():
    maps = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    levels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 255
    found = refine_maps(maps, levels, PAMR())
    larger = F.interpolate(maps, (32, 32), mode="bilinear", align_corners=True)
    refined = PAMR()(levels, larger)
    torch.testing.assert_close(found, refined / (refined.amax((2, 3), keepdim=True) + 1e-5))
    assert 0.9 < found.max() < 1


def test_a_batch_equals_its_pictures_and_a_picture_without_a_class_is_background():
    generator = torch.Generator().manual_seed(2)
    maps = torch.rand(3, 2, 4, 4, generator=generator)
    classes = torch.tensor([[1, 3], [0, -1], [-1, -1]])
    levels = torch.rand(3, 3, 32, 32, generator=generator) * 255
    how = {"pamr": PAMR(), "rules": LabelRules()}
    labels, claimed = batch_labels(maps, classes, levels, None, **how)
    assert labels.shape == claimed.shape == (3, 32, 32) and labels.dtype == torch.int64
    assert set(labels[0].unique().tolist()) <= {0, 2, 4, 255} and set(labels[1].unique().tolist()) <= {
        0,
        1,
        255,
    }
    assert (labels[2] == 0).all() and not claimed[2].any()
    for b in range(2):
        n = int((classes[b] >= 0).sum())
        own, _ = batch_labels(maps[b : b + 1, :n], classes[b : b + 1, :n], levels[b : b + 1], None, **how)
        assert torch.equal(own[0], labels[b])
    none, _ = batch_labels(maps[:1, :0], classes[:1, :0], levels[:1], None, **how)
    assert (none == 0).all()


def test_published_quantiles():
    assert COMPLETION_QUANTILES["voc12"] == 0.9 and COMPLETION_QUANTILES["coco14"] == 0.95
