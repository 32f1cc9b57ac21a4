"""GETAM's losses against plain formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmentation.getam.dense_energy import dense_energy
from segmentation.getam.losses import (
    LossOptions,
    background_target,
    balanced_cross_entropy,
    half_resolution,
    joint_losses,
)


def batch(seed: int = 0, B: int = 2, C: int = 3, side: int = 8) -> dict:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C + 1, (B, side, side), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    crop_mask = torch.ones(B, side, side)
    crop_mask[:, -2:] = 0
    return {
        "class_logits": torch.randn(B, C, generator=generator),
        "logits": torch.randn(B, C + 1, side, side, generator=generator, requires_grad=True),
        "targets": torch.randint(0, 2, (B, C), generator=generator).float(),
        "labels": labels,
        "claimed": torch.rand(labels.shape, generator=generator) < 0.2,
        "levels": 120 + 10 * torch.randn(B, 3, side, side, generator=generator),
        "crop_mask": crop_mask,
        "salient": torch.rand(labels.shape, generator=generator) < 0.5,
    }


def plain_cross_entropy(case: dict, foreground: bool) -> float:
    logits, labels = case["logits"].detach().double().numpy(), case["labels"].numpy()
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = [
        -logs[b, label, y, x]
        for (b, y, x), label in np.ndenumerate(labels)
        if label != 255 and (label > 0) == foreground
    ]
    return float(np.mean(found)) if found else 0.0


def test_cross_entropy_has_a_mean_of_its_own_for_background_and_foreground():
    case = batch()
    background, foreground = balanced_cross_entropy(case["logits"], case["labels"])
    assert background.item() == pytest.approx(plain_cross_entropy(case, False), rel=1e-5)
    assert foreground.item() == pytest.approx(plain_cross_entropy(case, True), rel=1e-5)
    assert abs((background - foreground).item()) > 1e-3


def test_cross_entropy_is_zero_where_there_is_nothing():
    case = batch()
    case["labels"][case["labels"] > 0] = 255
    background, foreground = balanced_cross_entropy(case["logits"], case["labels"])
    assert float(foreground) == 0 and float(background) == pytest.approx(
        plain_cross_entropy(case, False), rel=1e-5
    )
    background, foreground = balanced_cross_entropy(case["logits"], torch.full_like(case["labels"], 255))
    (background + foreground).backward()
    assert float(background) == float(foreground) == 0 and not case["logits"].grad.any()


def test_background_targets():
    case = batch()
    published = background_target(case["salient"], case["claimed"], "published")
    intended = background_target(case["salient"], case["claimed"], "intended")
    assert torch.equal(published, 1 - case["claimed"].float())
    assert torch.equal(intended, 1 - case["salient"].float())
    with pytest.raises(ValueError, match="published, intended"):
        background_target(case["salient"], case["claimed"], "other")


@pytest.mark.parametrize("target", ["published", "intended"])
@pytest.mark.parametrize("gradient", ["published", "true"])
def test_parts_and_their_sum(target, gradient):
    case = batch(1)
    options = LossOptions(energy_weight=1e-3, energy_gradient=gradient, saliency_target=target)
    found = joint_losses(**case, options=options)
    assert set(found) == {"loss", "class", "background", "foreground", "energy", "saliency"}
    parts = {k: float(v.detach()) for k, v in found.items()}
    assert parts["loss"] == pytest.approx(sum(v for k, v in parts.items() if k != "loss"), rel=1e-5)
    x, t = case["class_logits"], case["targets"]
    margin = -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x)).mean()
    assert parts["class"] == pytest.approx(float(margin), rel=1e-5)
    probs = case["logits"].detach().softmax(1)
    expected = background_target(case["salient"], case["claimed"], target)
    bce = -(expected * probs[:, 0].log() + (1 - expected) * (1 - probs[:, 0]).log()).mean()
    assert parts["saliency"] == pytest.approx(float(bce), rel=1e-5)
    halves = half_resolution(probs, case["levels"], case["crop_mask"], case["labels"])
    assert (
        parts["energy"] == pytest.approx(1e-3 * float(dense_energy(*halves)), rel=1e-4)
        and parts["energy"] < 0
    )


def test_saliency_and_energy_can_be_left_out():
    case = batch(2) | {"salient": None}
    assert set(joint_losses(**case, options=LossOptions(energy_weight=0))) == {
        "loss", "class", "background", "foreground",
    }  # fmt: skip


def test_half_resolution():
    case = batch(3)
    probs = case["logits"].detach().softmax(1)
    small, levels, crop_mask, labels = half_resolution(
        probs, case["levels"], case["crop_mask"], case["labels"]
    )
    torch.testing.assert_close(small, F.avg_pool2d(probs, 2))  # bilinear at half the size
    assert torch.equal(levels, case["levels"][:, :, ::2, ::2]) and torch.equal(
        labels, case["labels"][:, ::2, ::2]
    )
    assert torch.equal(crop_mask, case["crop_mask"][:, ::2, ::2]) and labels.dtype == torch.int64


def test_published_weight_and_forms_by_default():
    assert LossOptions() == LossOptions(1e-7, "published", "published")
