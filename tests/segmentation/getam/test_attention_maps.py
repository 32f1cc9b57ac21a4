"""Attention maps against whole attention matrices and their gradients; what they must not leave behind."""

import numpy as np
import pytest
import torch

from segmentation.getam.attention_maps import getam_maps, maps_of_rows, present_classes
from segmentation.getam.encoders import BACKBONES, GetamBackbone
from segmentation.getam.model import build_getam
from tests.segmentation.oracle import random_tensor

CLASSES = 5


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    monkeypatch.setitem(BACKBONES, "micro_distilled", GetamBackbone(48, 12, 3, 64, None, distilled=True))
    monkeypatch.setitem(BACKBONES, "micro_hybrid", GetamBackbone(48, 12, 3, 64, None, hybrid=True))


def micro(name: str = "vit_micro"):
    """A small network with weights large enough that every part of it matters."""
    model = build_getam(name, num_classes=CLASSES)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(random_tensor(key, tuple(parameter.shape)))
    return model.eval()


def pictures(B: int = 3, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(B, 3, height, width, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


def plain_maps(model, image: torch.Tensor, label: int, start_layer: int, form: str) -> torch.Tensor:
    """One picture, one class: every block's whole attention matrix, its gradient by autograd."""
    encoder = model.pretrained.model
    tokens, grid, _ = encoder.embed(image[None])
    matrices = []
    taps = {}
    for number, block in enumerate(encoder.blocks):
        attention = block.attn
        B, N, D = tokens.shape
        q, k, v = attention.qkv(block.norm1(tokens)).view(B, N, 3, 3, D // 3).permute(2, 0, 3, 1, 4)
        A = ((q @ k.transpose(-2, -1)) / (D // 3) ** 0.5).softmax(-1)
        matrices.append(A)
        tokens = tokens + attention.proj((A @ v).transpose(1, 2).reshape(B, N, D))
        tokens = tokens + block.mlp(block.norm2(tokens))
        taps[number] = tokens
    prefix = encoder.num_prefix_tokens
    deepest = model.pretrained.act_postprocess4(taps[11][:, :1], taps[11][:, prefix:], grid)
    logit = model.cls_head(deepest.mean((2, 3)))[0, label]
    used = matrices[start_layer:]
    total = torch.zeros(N, N)
    for A, G in zip(used, torch.autograd.grad(logit, used), strict=True):
        A, G = A[0], G[0]
        if form == "getam":
            total += (G * A).relu().mean(0) * G.relu().mean(0)
        elif form == "unsquared":
            total += (G * A).relu().mean(0)
        else:
            row = (G[:, :1].mean(2, keepdim=True) * A).mean(0).relu()
            total += row
    return total[0, prefix:].relu().view(grid).detach()


@pytest.mark.parametrize("name", ["vit_micro", "micro_distilled"])
@pytest.mark.parametrize("form", ["getam", "unsquared", "grad_cam"])
@pytest.mark.parametrize("start_layer", [0, 6, 11])
def test_equal_the_plain_form(name, form, start_layer):
    model, images = micro(name), pictures()
    found = getam_maps(model, images, LABELS, start_layer=start_layer, form=form)
    assert found.shape == (3, CLASSES, 4, 6) and not found.requires_grad
    assert found[LABELS > 0].amax((1, 2)).gt(0).sum() > (0 if start_layer == 11 else 3)
    for b, c in LABELS.nonzero().tolist():
        expected = plain_maps(model, images[b], c, start_layer, form)
        np.testing.assert_allclose(found[b, c], expected, rtol=1e-3, atol=1e-4 * float(found.max()))
    assert not found[LABELS == 0].any()


def test_the_hybrid_s_equal_the_plain_form():
    model, images = micro("micro_hybrid"), pictures()
    found = getam_maps(model, images, LABELS, start_layer=0)
    assert found[LABELS > 0].amax((1, 2)).gt(0).all()
    for b, c in LABELS.nonzero().tolist():
        expected = plain_maps(model, images[b], c, 0, "getam")
        np.testing.assert_allclose(found[b, c], expected, rtol=1e-3, atol=1e-4 * float(found.max()))


def test_first_six_blocks_are_left_out_by_default():
    model, images = micro(), pictures()
    assert torch.equal(getam_maps(model, images, LABELS), getam_maps(model, images, LABELS, start_layer=6))


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_equals_its_pictures_and_leaves_nothing_behind(training):
    """Also in training mode; and under no_grad and inference_mode, with a frozen network."""
    model, images = micro().train(training), pictures()
    buffers = {k: v.clone() for k, v in model.state_dict().items()}
    batch = getam_maps(model, images, LABELS)
    for b in range(3):
        torch.testing.assert_close(
            getam_maps(model, images[b : b + 1], LABELS[b : b + 1])[0], batch[b], rtol=1e-4, atol=1e-7
        )
    assert all(p.grad is None for p in model.parameters())
    assert model.training == training and not images.requires_grad
    assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items())  # batch norm's too
    for module in model.modules():
        assert not (module._forward_hooks or module._backward_hooks or module._forward_pre_hooks)
    with torch.no_grad():
        assert torch.equal(getam_maps(model, images, LABELS), batch)
    with torch.inference_mode():
        assert torch.equal(getam_maps(model, images, LABELS), batch)
    assert torch.equal(getam_maps(model.requires_grad_(False), images, LABELS), batch)


def test_one_backward_per_rank_of_class(monkeypatch):
    """Three classes in one picture, one in another: three backward passes of the batch, not four."""
    calls = []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or plain(*a, **k))
    forwards = []
    model = micro()
    model.pretrained.model.patch_embed.register_forward_hook(lambda *a: forwards.append(1))
    getam_maps(model, pictures(), LABELS)
    assert len(calls) == 3 and len(forwards) == 1


def test_without_any_class():
    assert not getam_maps(micro(), pictures(), torch.zeros(3, CLASSES)).any()


def test_present_classes():
    assert present_classes(LABELS).tolist() == [[0, 2, 4], [1, -1, -1], [-1, -1, -1]]
    assert present_classes(torch.zeros(2, 4)).shape == (2, 0)


def test_gradients_of_the_network_are_the_same_with_and_without_rows():
    """The row that is formed by itself does not change what is trained."""
    images = pictures()
    found = []
    for rows_from in (None, 0):
        model = micro()
        model.classify(model.encode(images, rows_from=rows_from)).square().sum().backward()
        found.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 100
    for name, gradient in found[0].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4 * scale)


def test_unknown_form():
    with pytest.raises(ValueError, match="getam, unsquared, grad_cam"):
        maps_of_rows([], [], "squared")
