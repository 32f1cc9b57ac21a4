"""The dense energy against the plain form, its gradients against differences and the published rule."""

import numpy as np
import pytest
import torch

from segmentation.getam.dense_energy import CHUNKS, dense_energy, energy_gate, filter_values, kernel_features
from tests.segmentation.getam import oracle


def case(seed: int = 0, B: int = 2, K: int = 3, H: int = 5, W: int = 6):
    """Probabilities, levels close enough to interact, crop mask with a padded edge, labels with unknowns."""
    rng = np.random.RandomState(seed)
    logits = rng.standard_normal((B, K, H, W))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    levels = 120 + 12 * rng.standard_normal((B, 3, H, W))
    crop_mask = np.ones((B, H, W))
    crop_mask[0, :, -1] = 0
    labels = rng.randint(0, K, (B, H, W))
    labels[rng.rand(B, H, W) < 0.3] = 255
    return probs, levels, crop_mask, labels


def tensors(values):
    return [torch.from_numpy(v) if v.dtype.kind == "i" else torch.from_numpy(v).float() for v in values]


def test_kernel_equals_the_plain_form_whatever_the_chunks(monkeypatch):
    levels = case()[1][0]
    expected = oracle.kernel(levels, 50.0, 15.0)
    features = kernel_features(torch.from_numpy(levels)[None].float())[0]
    values = np.random.RandomState(1).rand(30, 4)
    for chunk in (2**20, 64, 1):
        monkeypatch.setitem(CHUNKS, "cpu", chunk)
        found = filter_values(features, torch.from_numpy(values).float()).numpy()
        np.testing.assert_allclose(found, expected @ values, rtol=1e-5)


@pytest.mark.parametrize("gradient", ["published", "true"])
def test_value_equals_the_plain_form(gradient):
    values = case()
    found = float(dense_energy(*tensors(values), gradient=gradient))
    assert found == pytest.approx(oracle.dense_energy(*values), rel=1e-5)
    assert found < -1  # the pixels do interact


def test_gate():
    probs, _, crop_mask, labels = case(3)
    found = energy_gate(*tensors((probs, crop_mask, labels))).numpy()
    np.testing.assert_allclose(found, oracle.gate(probs, crop_mask, labels), rtol=1e-6)
    assert (found[labels == 255] == 1).all() and (found[0, :, -1][labels[0, :, -1] != 255] == 0).all()


def finite_differences(values, step: float = 1e-5) -> np.ndarray:
    probs, *rest = values
    found = np.zeros_like(probs)
    for index in np.ndindex(probs.shape):
        up, down = probs.copy(), probs.copy()
        up[index] += step
        down[index] -= step
        found[index] = (oracle.dense_energy(up, *rest) - oracle.dense_energy(down, *rest)) / (2 * step)
    return found


def gradient_of(values, gradient: str) -> np.ndarray:
    probs, *rest = tensors(values)
    probs.requires_grad_()
    dense_energy(probs, *rest, gradient=gradient).backward()
    return probs.grad.numpy()


def test_true_gradient_is_the_derivative_gate_included():
    values = case(4, B=1)
    np.testing.assert_allclose(gradient_of(values, "true"), finite_differences(values), rtol=1e-3, atol=1e-4)


def test_published_gradient_is_the_derivative_where_nothing_is_gated():
    values = case(5, B=2)
    values[3][:] = 255  # every gate is 1
    expected = finite_differences(values)
    np.testing.assert_allclose(gradient_of(values, "published"), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient_of(values, "true"), expected, rtol=1e-3, atol=1e-4)


def test_published_gradient_by_its_rule_and_not_the_derivative_where_gated():
    values = case(6, B=2)
    probs, levels, crop_mask, labels = values
    gates = oracle.gate(probs, crop_mask, labels)
    expected = np.zeros_like(probs)
    for b in range(2):
        W = oracle.kernel(levels[b], 50.0, 15.0)
        for k in range(3):
            filtered = (W @ (probs[b, k] * crop_mask[b]).ravel()).reshape(5, 6)
            expected[b, k] = -2 * gates[b] * filtered * crop_mask[b] / 2
    found = gradient_of(values, "published")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(found - finite_differences(values)).max() > 0.1 * np.abs(found).max()


def test_far_colours_are_slow_nowhere_and_add_nothing():
    """Exponents below -60 are cut: no denormal numbers, and no change that float32 could hold."""
    levels = torch.zeros(1, 3, 4, 4)
    levels[..., 2:] = 255.0
    features = kernel_features(levels)[0]
    values = torch.zeros(16, 1)
    values[0] = 1.0  # dark
    found = filter_values(features, values)[:, 0].view(4, 4)
    assert found[0, 0] == pytest.approx(1.0, rel=1e-6) and found[:, :2].min() > 0.99
    assert found[:, 2:].max() < 1e-25
    assert not ((found != 0) & (found < torch.finfo(torch.float32).tiny)).any()


def test_an_unknown_gradient_is_refused():
    with pytest.raises(ValueError, match="published, true"):
        dense_energy(*tensors(case()), gradient="exact")
