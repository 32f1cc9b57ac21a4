"""The dense energy loss (arXiv 1803.09569) with GETAM's gate, by an exact kernel in chunks."""

import torch
from torch import Tensor

from wsss.io import IGNORED

SIGMA_XY = 50.0  # pixels
SIGMA_RGB = 15.0  # levels of 0..255
# kernel entries that exist at a time: 4 MB, within a core's cache, and 256 MB on a GPU
CHUNKS = {"cpu": 2**20, "cuda": 2**26}
FAR = 60.0  # exponents end here: exp(-60) adds nothing, and denormal numbers are slow on a CPU
GRADIENTS = ("published", "true")


def kernel_features(levels: Tensor, *, sigma_xy: float = SIGMA_XY, sigma_rgb: float = SIGMA_RGB) -> Tensor:
    """Position and colour of every pixel over their sigmas: (B, 3, H, W), 0..255, to (B, H*W, 5)."""
    B, _, H, W = levels.shape
    y, x = torch.meshgrid(
        torch.arange(H, device=levels.device), torch.arange(W, device=levels.device), indexing="ij"
    )
    positions = torch.stack((x, y)).float().flatten(1).T / sigma_xy
    return torch.cat((positions.expand(B, -1, -1), levels.float().flatten(2).transpose(1, 2) / sigma_rgb), 2)


def filter_values(features: Tensor, values: Tensor) -> Tensor:
    """W values, with the unnormalised kernel W_ij = exp(-|f_i - f_j|^2 / 2), W_ii = 1, never held whole.

    Args:
        features: (N, 5).
        values: (N, K).

    Returns:
        (N, K).
    """
    features = features - features.mean(0)  # smaller numbers, better differences
    halves = features.square().sum(1, keepdim=True) / 2
    rows = max(1, CHUNKS[features.device.type] // len(features))
    filtered = torch.zeros_like(values)
    for start in range(0, len(features), rows):  # W is symmetric: each chunk of rows from the diagonal on
        own, rest = slice(start, start + rows), slice(start, None)
        W = torch.addmm(-halves[rest].T, features[own], features[rest].T).sub_(halves[own])
        W = W.clamp_(-FAR, 0).exp_()
        filtered[own] += W @ values[rest]
        filtered[start + rows :] += W[:, rows:].T @ values[own]
    return filtered


def energy_gate(probs: Tensor, crop_mask: Tensor, labels: Tensor) -> Tensor:
    """How uncertain a pixel is: max(crop mask - largest probability, 0), and 1 where its label is unknown.

    Args:
        probs: (B, K, H, W).
        crop_mask: (B, H, W), 1 on the picture, 0 on padding.
        labels: (B, H, W); 255 is unknown.

    Returns:
        (B, H, W).
    """
    gate = (crop_mask - probs.amax(1)).clamp(min=0)
    return torch.where(labels == IGNORED, torch.ones_like(gate), gate)


def dense_energy(
    probs: Tensor, levels: Tensor, crop_mask: Tensor, labels: Tensor, *, gradient: str = "published"
) -> Tensor:
    """-(1/B) sum S gate (W S), S = probs times the crop mask; a scalar.

    Args:
        probs: (B, K, H, W), softmaxed.
        levels: (B, 3, H, W), 0..255.
        crop_mask: (B, H, W), 1 on the picture, 0 on padding.
        labels: (B, H, W), integers; 255 is unknown.
        gradient: ``"published"``, -2 gate (W S) mask / B: the derivative only where every gate is equal;
            or ``"true"``, the value's own, the gate's dependence on the probabilities included.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient {gradient!r}: one of {', '.join(GRADIENTS)}")
    crop_mask = crop_mask.float()
    S = probs.float() * crop_mask[:, None]
    gate = energy_gate(probs.float(), crop_mask, labels)
    if gradient == "published":
        gate = gate.detach()
    features = kernel_features(levels)
    return _Energy.apply(S, gate, features, gradient == "true") / len(probs)


class _Energy(torch.autograd.Function):
    """-sum S gate (W S), and its gradients with respect to S and the gate."""

    @staticmethod
    def forward(ctx, S: Tensor, gate: Tensor, features: Tensor, true_gradient: bool) -> Tensor:
        ctx.true_gradient = true_gradient
        filtered = _filter(features, S)
        ctx.save_for_backward(S, gate, features, filtered)
        return -(S * gate[:, None] * filtered).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        S, gate, features, filtered = ctx.saved_tensors
        own = gate[:, None] * filtered
        if not ctx.true_gradient:
            return -2 * own * grad, None, None, None
        return -(own + _filter(features, S * gate[:, None])) * grad, -(S * filtered).sum(1) * grad, None, None


def _filter(features: Tensor, maps: Tensor) -> Tensor:
    """``filter_values`` of each picture's maps (B, K, H, W)."""
    filtered = [filter_values(f, m.flatten(1).T).T for f, m in zip(features, maps, strict=True)]
    return torch.stack(filtered).view_as(maps)
