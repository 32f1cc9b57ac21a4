"""PAMR against the plain form."""

import numpy as np
import pytest
import torch

from segmentation.getam.pamr import PAMR
from tests.segmentation.getam import oracle


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """(3, H, W) of levels, with a flat corner, where sigma is 0."""
    rng = np.random.RandomState(seed)
    image = rng.randint(0, 256, (3, height, width)).astype(np.float64)
    image[:, :4, :5] = 90
    return image


@pytest.mark.parametrize(
    ("height", "width", "iterations", "dilations"), [(9, 12, 3, (1, 2, 4)), (7, 6, 1, (1, 2, 4, 8, 12, 24))]
)
def test_equals_the_plain_form(height, width, iterations, dilations):
    image = picture(0, height, width)
    masks = np.random.RandomState(1).rand(2, height, width)
    expected = oracle.pamr(image, masks, iterations, dilations)
    refine = PAMR(iterations, dilations)
    found = refine(torch.from_numpy(image)[None], torch.from_numpy(masks)[None])[0].numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)


def test_published_settings_by_default():
    assert PAMR().iterations == 10 and PAMR().dilations == (1, 2, 4, 8, 12, 24)


def test_weights_add_up_to_one_and_pictures_do_not_meet():
    images = torch.from_numpy(np.stack([picture(2, 20, 30), picture(3, 20, 30)])).float()
    affinity = PAMR().affinity(images)
    assert affinity.shape == (2, 48, 20, 30)
    torch.testing.assert_close(affinity.sum(1), torch.ones(2, 20, 30))
    masks = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    both = PAMR()(images, masks)
    for b in range(2):
        torch.testing.assert_close(both[b], PAMR()(images[b : b + 1], masks[b : b + 1])[0])
    torch.testing.assert_close(PAMR()(images, torch.full_like(masks, 0.3)), torch.full_like(masks, 0.3))


def test_a_mask_follows_the_edge_of_the_picture():
    image = torch.full((1, 3, 24, 24), 30.0)
    image[..., 12:] = 220.0
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 8:] = 1.0  # four pixels beyond the edge
    refined = PAMR()(image, mask)[0, 0]
    assert refined[:, :8].max() < 0.6 and refined[:, 14:].min() > 0.9
    assert refined[12, 13] - refined[12, 10] > 0.3


def test_the_picture_is_resized_to_the_masks():
    image = torch.from_numpy(picture(4, 8, 8))[None].float()
    larger = torch.nn.functional.interpolate(image, (12, 15), mode="bilinear", align_corners=True)
    masks = torch.rand(1, 1, 12, 15, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(PAMR()(image, masks), PAMR()(larger, masks))
