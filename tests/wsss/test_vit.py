"""Plain attention, which the CPU trains with in bfloat16: the same values, and only there."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wsss import vit
from wsss.vit import PLAIN_ATTENTION_SCORES, VisionTransformer, attend

# Of the largest value. bfloat16 has 8 bits: each of the few roundings on the way is 0.4% at most.
TOLERANCE = 0.02


def tokens(count, *, dtype=torch.bfloat16, grad=True, device="cpu"):
    """Queries, keys and values (1, 2, count, 16)."""
    torch.manual_seed(count)
    shape = (1, 2, count, 16)
    return [torch.randn(shape, device=device).to(dtype).requires_grad_(grad) for _ in range(3)]


def relative(found, expected):
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


class Largest(TorchDispatchMode):
    """Values of the largest tensor that any operation gives."""

    values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.values = max(self.values, value.numel())
        return result


def largest(inputs) -> int:
    with Largest() as mode:
        attend(*inputs, 0.0)
    return mode.values


@pytest.mark.parametrize("count", [3, 145, 197])
def test_bfloat16_training_equals_float32(count):
    inputs = tokens(count)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = F.scaled_dot_product_attention(*exact)
    found = attend(*inputs, 0.0)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert relative(found, expected) < TOLERANCE
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    (found.float() * weights).sum().backward()
    for mine, theirs in zip(inputs, exact, strict=True):
        assert relative(mine.grad, theirs.grad) < TOLERANCE


def test_the_matrix_is_formed_where_small_in_bfloat16_training_alone(monkeypatch):
    matrix = 2 * 300 * 300
    assert largest(tokens(300)) == matrix
    assert largest(tokens(300, grad=False)) < matrix / 5
    assert largest(tokens(300, dtype=torch.float32)) < matrix / 5
    with torch.no_grad():
        assert largest([2 * x for x in tokens(300)]) < matrix / 5
    assert PLAIN_ATTENTION_SCORES == 2**24
    monkeypatch.setattr(vit, "PLAIN_ATTENTION_SCORES", matrix)
    assert largest(tokens(300)) == matrix
    monkeypatch.setattr(vit, "PLAIN_ATTENTION_SCORES", matrix - 1)
    assert largest(tokens(300)) < matrix / 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_devices_keep_the_fused_kernel(dtype, monkeypatch):
    taken = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x, dropout_p: taken.append(dropout_p))
    attend(*tokens(8, dtype=dtype, device="meta"), 0.25)
    assert taken == [0.25]


def test_dropout_leaves_out_weights_and_keeps_the_mean():
    query, key, _ = tokens(400)
    ones = torch.ones(1, 2, 400, 1, dtype=torch.bfloat16)
    found = attend(query, key, ones, 0.5).float()  # sums of the weights that are left, doubled
    assert found.std() > 0.02 and abs(found.mean() - 1) < 0.02
    assert (attend(query, key, ones, 0.0).float() - 1).abs().max() < 0.02


def test_a_network_trains_alike_in_both_types():
    class Network(VisionTransformer):
        def positions(self, image_size, grid):
            return self.pos_embed

    torch.manual_seed(0)
    network = Network(embed_dim=48, depth=2, num_heads=3, patch_size=8, image_size=48)
    images, gradients = torch.randn(2, 3, 48, 48), []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = network(images)
        found.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99
