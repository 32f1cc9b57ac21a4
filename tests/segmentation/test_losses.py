"""Cross-entropy per pixel and gradient clipping: recorded values, the plain form, and what must not break."""

import math

import numpy as np
import pytest
import torch

from segmentation.losses import gradient_clipping_loss, pixel_cross_entropy
from tests.segmentation.oracle import assert_summary, plain_clipping, recorded_rule


def loss_map(*shape, seed=0, scale=1.0):
    """Skewed, as losses are: most small, some large, a tenth ignored."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(scale, shape) * (0.2 + rng.random((1, *shape[1:])))
    return torch.from_numpy(np.where(rng.random(shape) < 0.1, 0, values).astype(np.float32))


def clip(pixel_loss, **options):
    """The clipped map, and where the gradient of its sum stays."""
    pixel_loss = pixel_loss.clone().requires_grad_()
    clipped = gradient_clipping_loss(pixel_loss, **options)
    assert clipped.shape == pixel_loss.shape and clipped.dtype == pixel_loss.dtype
    clipped.sum().backward()
    assert set(pixel_loss.grad.unique().tolist()) <= {0.0, 1.0}
    return clipped.detach(), pixel_loss.grad.bool()


def test_recorded_values_and_gradient_of_the_published_code(recorded):
    cases = np.load(recorded / "cases.npz")
    logits = (recorded_rule(recorded).images(30, 2, 21, 480, 480) * 3).requires_grad_()
    rng = np.random.RandomState(31)
    target = rng.randint(0, 21, (2, 480, 480))
    target[rng.rand(2, 480, 480) < 0.1] = 255
    target = torch.from_numpy(target)
    target[:, :240, :240] = logits.detach().argmax(1)[:, :240, :240]
    clipped = gradient_clipping_loss(pixel_cross_entropy(logits, target), start=6.0, patch=120)
    clipped.mean().backward()
    assert_summary(clipped, cases["stage2/gc_clipped"])
    assert_summary(logits.grad, cases["stage2/gc_clipped_grad"])


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 4, 9)])
def test_cross_entropy_by_hand(shape):
    rng = np.random.default_rng(0)
    B, H, W = shape
    logits = rng.standard_normal((B, 4, H, W)).astype(np.float32) * 5
    masks = rng.integers(0, 4, shape)
    masks[rng.random(shape) < 0.3] = 255
    found = pixel_cross_entropy(torch.from_numpy(logits), torch.from_numpy(masks))
    assert found.shape == shape and found.dtype == torch.float32
    for b, y, x in np.ndindex(*shape):
        z = [float(v) for v in logits[b, :, y, x]]
        if masks[b, y, x] == 255:
            assert found[b, y, x] == 0
        else:
            expected = math.log(sum(math.exp(v) for v in z)) - z[masks[b, y, x]]
            assert found[b, y, x].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_cross_entropy_of_half_precision_logits_is_float32():
    logits = torch.randn(1, 3, 4, 4, dtype=torch.bfloat16)
    masks = torch.zeros(1, 4, 4, dtype=torch.long)
    found = pixel_cross_entropy(logits, masks)
    assert found.dtype == torch.float32
    assert torch.equal(found, pixel_cross_entropy(logits.float(), masks))


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 24, 24), 6),  # tiles fit, as in the published code
        ((3, 24, 24), 6),
        ((2, 25, 31), 6),  # partial tiles right and below, one of them a single row
        ((2, 25, 12), 6),
        ((4, 11, 7), 4),
        ((2, 9, 14), 9),
        ((2, 9, 14), 14),  # one tile, not square
        ((2, 9, 14), 120),  # a tile larger than the map
        ((1, 1, 1), 1),
        ((2, 5, 6), 1),  # a tile per pixel: its mean over the batch
    ],
)
def test_equals_the_plain_form(shape, patch):
    for seed in range(4):
        pixel_loss = loss_map(*shape, seed=seed)
        expected, stays = plain_clipping(pixel_loss.numpy(), 5.0, patch)
        clipped, gradient = clip(pixel_loss, start=5.0, patch=patch)
        assert np.abs(clipped.numpy() - expected).max() <= 1e-6 * max(1, expected.max())
        assert np.array_equal(gradient.numpy(), stays)
        if pixel_loss.numel() > 1:
            assert 0 < stays.mean() < 1


def test_published_defaults():
    """Start 1.2 and tiles of 120: neither is a tenth off."""
    pixel_loss = loss_map(2, 240, 250)
    pixel_loss *= 1.19 / pixel_loss.mean()
    defaults = gradient_clipping_loss(pixel_loss)
    assert torch.equal(defaults, gradient_clipping_loss(pixel_loss, start=1.2, patch=120))
    assert (defaults < pixel_loss).float().mean() > 0.1
    expected, _ = plain_clipping(pixel_loss.numpy(), 1.2, 120)
    assert np.abs(defaults.numpy() - expected).max() <= 1e-5
    above = pixel_loss * (1.21 / 1.19)
    assert torch.equal(gradient_clipping_loss(above), above)


def test_above_the_start_nothing_is_changed():
    pixel_loss = loss_map(2, 25, 31)
    mean = pixel_loss.double().mean().item()
    clipped, gradient = clip(pixel_loss, start=mean * 0.999, patch=6)
    assert torch.equal(clipped, pixel_loss) and gradient.all()
    clipped, gradient = clip(pixel_loss, start=mean * 1.001, patch=6)
    assert (clipped < pixel_loss).any() and not gradient.all()


def test_a_mean_at_the_start_clips():
    """The rule is: above the start, leave alone."""
    clipped, _ = clip(torch.tensor([[[0.0, 2.0]]]), start=1.0, patch=4)
    assert clipped.tolist() == [[[0.0, 1.0]]]


def test_pixels_at_the_threshold_keep_their_gradient():
    # two tiles; whole mean 3.5; means 2 (so 3.5 holds) and 5 (a pixel is exactly that)
    pixel_loss = torch.tensor([[[1.0, 3.5, 1.5, 2.0, 5.0, 9.0, 1.0, 5.0]]])
    pixel_loss[0, 0, 3] = 2.0
    clipped, gradient = clip(pixel_loss, start=9.0, patch=4)
    assert clipped.tolist() == [[[1.0, 3.5, 1.5, 2.0, 5.0, 5.0, 1.0, 5.0]]]
    assert gradient.tolist() == [[[True, True, True, True, True, False, True, True]]]


def test_low_tiles_are_held_to_the_whole_mean():
    """A tile of small losses does not lose its largest ones."""
    pixel_loss = torch.cat([torch.tensor([0.1, 0.5, 0.1, 0.1]), torch.tensor([4.0, 8.0, 4.0, 4.0])])[
        None, None
    ]
    clipped, gradient = clip(pixel_loss, start=9.0, patch=4)
    assert clipped[0, 0, :4].tolist() == pixel_loss[0, 0, :4].tolist() and gradient[0, 0, :4].all()
    assert clipped[0, 0, 4:].tolist() == [4.0, 5.0, 4.0, 4.0]


def test_thresholds_are_of_the_whole_batch():
    """Two pictures share a tile's threshold: alone, each would get its own."""
    pictures = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
    clipped, _ = clip(pictures, start=9.0, patch=2)
    assert clipped.tolist() == [[[1.0, 3.0]], [[4.0, 4.0]]]
    assert clip(pictures[1:], start=9.0, patch=2)[0].tolist() == [[[5.0, 6.0]]]


def test_ignored_pixels_count_in_every_mean():
    """Half of the tile is ignored: the threshold is 2, not the labelled pixels' mean of 4."""
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0, :2] = torch.tensor([math.log(math.expm1(1.0)), math.log(math.expm1(7.0))])
    masks = torch.tensor([[[0, 0, 255, 255]]])
    pixel_loss = pixel_cross_entropy(logits, masks)
    assert pixel_loss[0, 0].tolist() == pytest.approx([1, 7, 0, 0], abs=1e-5)
    clipped, gradient = clip(pixel_loss, start=3.9, patch=4)
    assert clipped[0, 0].tolist() == pytest.approx([1, 2, 0, 0], abs=1e-5)
    assert gradient[0, 0].tolist() == [True, False, True, True]
    # 3.9 lies below the labelled pixels' mean, and the loss is still clipped: the whole mean is 2
    assert clip(pixel_loss, start=1.9, patch=4)[1].all()


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 7, 5)])
def test_nothing_labelled_gives_zero_and_no_nan(shape):
    B, H, W = shape
    logits = torch.randn(B, 3, H, W, requires_grad=True)
    pixel_loss = pixel_cross_entropy(logits, torch.full(shape, 255))
    clipped = gradient_clipping_loss(pixel_loss, start=1.2, patch=4)
    assert torch.equal(clipped, torch.zeros(shape))
    clipped.mean().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("value", [0.0, 0.1, 1.2, 1 / 3, 7.0])
def test_constant_maps_are_unchanged(value):
    """Rounding of the mean clips nothing: every pixel is at its threshold."""
    for shape in ((2, 24, 24), (3, 25, 31)):
        pixel_loss = torch.full(shape, value)
        clipped, gradient = clip(pixel_loss, start=10.0, patch=7)
        assert torch.equal(clipped, pixel_loss) and gradient.all()


def in_parts(parts, batch_size, **options):
    """Every part's result, with sums over all of them, as several processes would."""
    sums = []
    for part in parts:
        gradient_clipping_loss(part, batch_size=batch_size, all_sum=lambda s: sums.append(s) or s, **options)
    total = sum(sums)
    return [clip(part, batch_size=batch_size, all_sum=lambda s: total, **options) for part in parts]


@pytest.mark.parametrize("cuts", [(2,), (1, 3), (3,)])
@pytest.mark.parametrize("start", [5.0, 0.01])
def test_parts_of_a_batch_give_what_the_whole_gives(cuts, start):
    pixel_loss = loss_map(4, 25, 31)
    whole, stays = clip(pixel_loss, start=start, patch=6)
    parts = pixel_loss.tensor_split(cuts)
    found = in_parts(parts, 4, start=start, patch=6)
    assert torch.allclose(torch.cat([clipped for clipped, _ in found]), whole, rtol=1e-6)
    assert torch.equal(torch.cat([gradient for _, gradient in found]), stays)
    assert stays.all() == (start < 1)
    alone = torch.cat([gradient_clipping_loss(part, start=start, patch=6) for part in parts])
    assert torch.equal(alone, whole) == (start < 1)  # the published form, per process, is another


def test_a_process_without_a_picture_changes_nothing():
    """Its filler is all ignored; the batch's size is that of the others."""
    pixel_loss = loss_map(3, 25, 31)
    whole, _ = clip(pixel_loss, start=5.0, patch=6)
    found = in_parts([pixel_loss, torch.zeros(1, 25, 31)], 3, start=5.0, patch=6)
    assert torch.allclose(found[0][0], whole, rtol=1e-6)
    assert torch.equal(found[1][0], torch.zeros(1, 25, 31))


def test_statistics_carry_no_gradient():
    """A threshold is a constant: what stays has gradient 1 over N, what is clipped none."""
    pixel_loss = loss_map(2, 12, 12).requires_grad_()
    gradient_clipping_loss(pixel_loss, start=5.0, patch=6).mean().backward()
    assert set(pixel_loss.grad.unique().tolist()) == {0.0, np.float32(1 / 288).item()}
