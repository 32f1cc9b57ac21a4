"""Multi-scale CAMs against the published order of operations, and what generation refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.weaktr.test_model import assert_close, micro
from weaktr import cams
from weaktr.cams import cam_grids, predicted_labels
from weaktr.generate_cam import multi_scale_cams
from wsss.errors import UserError


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def published_order(model, image, class_ids, scales, attention="fused", flip=True):
    """Resize every map, mirror back, sum, normalise: as published, picture by picture."""
    height, width = image.shape[:2]
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (model.pixel_mean, model.pixel_std))
    total = torch.zeros(len(class_ids), height, width)
    for scale in scales:
        size = (int(np.round(width * scale)), int(np.round(height * scale)))
        resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        pixels = (torch.from_numpy(resized).permute(2, 0, 1) / 255 - mean) / std
        for mirrored in (False, True) if flip else (False,):
            batch = (pixels.flip(-1) if mirrored else pixels)[None]
            maps = model.cams(batch, attention).fine_cams
            maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[0, class_ids]
            total += maps.flip(-1) if mirrored else maps
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return (total - low) / (high - low + 1e-8)


@pytest.mark.parametrize("size", [(75, 100), (101, 64), (96, 96)])
@pytest.mark.parametrize("attention", ["fused", "coarse", "cross"])
def test_equals_the_published_order(size, attention):
    model = micro()
    image = picture(*size)
    found = multi_scale_cams(model, image, np.array([1, 0, 1.0]), scales=(1.0, 0.8, 1.2), attention=attention)
    expected = published_order(model, image, [0, 2], (1.0, 0.8, 1.2), attention)
    assert found.dtype == np.float32 and found.shape == (2, *size)
    assert_close(torch.from_numpy(found), expected)
    assert found.min() >= 0 and found.max() <= 1


def test_without_mirror_and_without_refinement():
    model = micro()
    image = picture(80, 96)
    found = multi_scale_cams(model, image, np.array([0, 1, 0]), scales=(1.0,), flip=False)
    assert_close(torch.from_numpy(found), published_order(model, image, [1], (1.0,), flip=False))
    unrefined = multi_scale_cams(model, image, np.array([0, 1, 0]), scales=(1.0,), refine=False)
    assert np.abs(unrefined - found).max() > 0.1


def test_tensors_are_taken_and_wrong_labels_refused():
    model, image = micro(), picture(40, 50)
    found = multi_scale_cams(model, torch.from_numpy(image.copy()), torch.tensor([0, 1, 1]))
    assert np.array_equal(found, multi_scale_cams(model, image, [False, True, True]))
    with pytest.raises(ValueError, match=r"shape \(2,\), the network has 3"):
        multi_scale_cams(model, image, np.ones(2))


def test_no_class_gives_no_map():
    assert multi_scale_cams(micro(), picture(40, 50), np.zeros(3)).shape == (0, 40, 50)


def test_max_side_shrinks_what_the_network_sees_and_not_the_result(monkeypatch):
    model = micro()
    image = picture(200, 300)
    seen = []
    monkeypatch.setattr(
        cams, "resize_bicubic", lambda i, size: seen.append(size) or np.zeros((*size, 3), np.uint8)
    )
    found = multi_scale_cams(model, image, np.array([1, 0, 0]), max_side=150)
    assert seen == [(100, 150), (120, 180)]
    assert found.shape == (1, 200, 300)


@pytest.mark.parametrize("size", [(1, 300), (300, 7), (5, 5)])
def test_smaller_than_a_patch_is_refused(size):
    with pytest.raises(UserError, match="less than one 8-pixel patch"):
        cam_grids(micro(), picture(*size), [0])
    with pytest.raises(UserError, match="less than one 8-pixel patch"):
        predicted_labels(micro(), picture(*size), 0.5)


def test_what_memory_cannot_hold_is_refused_with_a_side_that_fits(monkeypatch):
    model = micro()
    monkeypatch.setattr(cams, "free_memory", lambda device: 40 * 2**20)
    with pytest.raises(UserError, match="--max-side") as caught:
        cam_grids(model, picture(900, 1200), [0])
    side = int(str(caught.value).rsplit(" ", 1)[1])
    assert 100 <= side < 1200
    assert len(cam_grids(model, picture(900, 1200), [0], max_side=side, scales=(1.0,))) == 1


def test_predicted_labels_follow_the_class_tokens():
    model = micro()
    image = picture(90, 96)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 * 2 - 1  # mean and std are 0.5
    both = torch.cat([pixels, pixels.flip(-1)])
    with torch.no_grad():
        probabilities = model(both).class_logits.sigmoid().mean(0).numpy()
    threshold = float(np.sort(probabilities)[:2].mean())  # between the lowest two
    found = predicted_labels(model, image, threshold)
    assert found.sum() == 2 and (found == (probabilities > threshold)).all()
