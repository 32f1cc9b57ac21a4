"""GETAM's network: published names and numbers, the contract of every encoder, starting weights, loading."""

import ast
import logging

import numpy as np
import pytest
import timm
import torch
from torch import nn

from segmentation.getam.attention_maps import getam_maps
from segmentation.getam.encoders import BACKBONES, GetamBackbone
from segmentation.getam.model import build_getam, load_getam, start_from_pretrained
from tests.segmentation.oracle import assert_close, assert_summary, random_tensor, recorded_rule
from wsss.checkpoint import save_checkpoint
from wsss.errors import UserError
from wsss.vit import resize_positions

PUBLISHED = {"vitb": 298, "deit": 298, "deit_distilled": 301, "vitb_hybrid": 442}


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    monkeypatch.setitem(BACKBONES, "micro_distilled", GetamBackbone(48, 12, 3, 64, None, distilled=True))
    monkeypatch.setitem(BACKBONES, "micro_hybrid", GetamBackbone(48, 12, 3, 64, None, hybrid=True))


def filled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(random_tensor(key, tuple(tensor.shape)).abs() if "var" in key
                             else random_tensor(key, tuple(tensor.shape)))  # fmt: skip
    return model.eval()


def pictures(B: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(B, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name, recorded):
    cases = np.load(recorded / "cases.npz")
    with torch.device("meta"):
        model = build_getam(name, num_classes=20)
    found = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert len(found) == PUBLISHED[name]
    lines = cases[f"getam/keys/{'vitb' if name == 'deit' else name}"]  # deit's are vitb's
    expected = {line.split(" ", 1)[0]: ast.literal_eval(line.split(" ", 1)[1]) for line in map(str, lines)}
    assert found == expected


def test_recorded_logits_and_maps(recorded):
    rule, cases = recorded_rule(recorded), np.load(recorded / "cases.npz")
    model = rule.fill(build_getam("vitb", num_classes=20)).eval()
    images = rule.images(50, 2, 3, 256, 256)
    with torch.no_grad():
        class_logits, logits = model(images)
    expected = cases["getam/cls/vitb"]
    assert np.abs(class_logits.numpy() - expected).max() < 2e-4 * np.abs(expected).max()
    assert_summary(logits, cases["getam/seg/vitb"])
    labels = torch.zeros(2, 20)
    labels[0, 3] = labels[0, 9] = labels[1, 3] = 1
    found = getam_maps(model, images, labels)[0, 3].flatten().numpy()
    expected = cases["getam/cam/vitb/0/3"]
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["vit_micro", "micro_distilled", "micro_hybrid"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_contract(name, height, width):
    """Shapes, finite values, a batch equal to its pictures, and other inputs refused."""
    model, images = filled(build_getam(name, num_classes=3)), pictures(2, height, width)
    with torch.no_grad():
        class_logits, logits = model(images)
        assert class_logits.shape == (2, 3) and logits.shape == (2, 4, height, width)
        assert logits.isfinite().all() and class_logits.std() > 0
        for b in range(2):
            alone = model(images[b : b + 1])
            assert_close(alone[0][0], class_logits[b])
            assert_close(alone[1][0], logits[b])
        with pytest.raises(ValueError, match="multiples of 32"):
            model(images[..., :-8])


@pytest.mark.parametrize("name", ["vit_micro", "micro_distilled", "micro_hybrid"])
def test_what_has_no_gradient(name):
    """The final norm, the ImageNet heads, and the lateral unit of the deepest level; all else is trained."""
    model = build_getam(name, num_classes=3).train()
    class_logits, logits = model(pictures(2, 64, 64))
    (class_logits.square().sum() + logits.square().mean()).backward()
    without = {k for k, p in model.named_parameters() if p.grad is None}
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert without == frozen
    encoder = "pretrained.model."
    parts = (f"{encoder}norm.", f"{encoder}head.", f"{encoder}head_dist.", "scratch.refinenet4.resConfUnit1.")
    assert frozen and all(k.startswith(parts) for k in frozen)
    assert all(any(k.startswith(part) for k in frozen) for part in parts if "dist" not in part)


def test_hybrid_s_patches_are_timm_s_but_for_the_standardisation(monkeypatch):
    """With timm's own rule in place of the published one, stem, stages and tokens are those of timm."""
    from timm.layers import StdConv2dSame

    from segmentation.getam import encoders

    model = filled(build_getam("vitb_hybrid", num_classes=2))
    other = timm.create_model("vit_base_r50_s16_384", num_classes=1000, img_size=64).eval()
    encoder = model.pretrained.model
    state = dict(encoder.state_dict())
    positions = resize_positions(state["pos_embed"][:, 1:], (4, 4), mode="bilinear")
    state["pos_embed"] = torch.cat((state["pos_embed"][:, :1], positions), 1)
    other.load_state_dict(state)
    images = pictures(1, 64, 64)
    with torch.no_grad():
        published = encoder.embed(images)[0]
        monkeypatch.setattr(encoders.StandardisedConv2d, "forward", StdConv2dSame.forward)
        for module in encoder.modules():
            if isinstance(module, StdConv2dSame):
                module.eps = 1e-8
        ours, theirs = encoder.embed(images)[0], other._pos_embed(other.patch_embed(images))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert not torch.allclose(published, theirs, rtol=1e-6, atol=1e-6)


def test_standardised_weights():
    from segmentation.getam.encoders import StandardisedConv2d

    layer = StandardisedConv2d(2, 3, 3)
    x = torch.zeros(1, 2, 3, 3)
    x[0, :, 1, 1] = 1  # the response is the weights, mirrored
    with torch.no_grad():
        found = layer(x)[0]
    w = layer.weight.detach().numpy()
    expected = (w - w.mean((1, 2, 3), keepdims=True)) / (w.std((1, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected.sum(1)[:, ::-1, ::-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["deit_tiny", "vit_tiny"])
def test_starts_from_real_weights(name, pretrained, caplog):
    file = {"deit_tiny": "deit_tiny_patch16_224.pth",
            "vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"}[name]  # fmt: skip
    model = build_getam(name, num_classes=6)
    with caplog.at_level(logging.INFO):
        start_from_pretrained(model, str(pretrained / file))
    theirs = timm.create_model(f"{name}_patch16_224", num_classes=1000).eval()
    from wsss.pretrained import read_weights

    theirs.load_state_dict(read_weights(str(pretrained / file), f"{name}_patch16_224"))
    images = pictures(1, 224, 224)
    with torch.no_grad():
        tokens, _, _ = model.pretrained.model.embed(images)
        for block in model.pretrained.model.blocks:
            tokens, _ = block(tokens)
        found, expected = model.pretrained.model.norm(tokens), theirs.forward_features(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
    assert "fresh: 0 (none)" in caplog.text and "loaded: 152" in caplog.text


def test_positions_of_another_grid_are_resized(tmp_path):
    model = build_getam("vit_micro", num_classes=2)
    state = {k.removeprefix("pretrained.model."): v for k, v in model.state_dict().items()
             if k.startswith("pretrained.model.")}  # fmt: skip
    state["pos_embed"] = torch.randn(1, 1 + 36, 48)
    save_checkpoint(tmp_path / "six.pth", {"model": state})
    start_from_pretrained(model, str(tmp_path / "six.pth"))
    expected = resize_positions(state["pos_embed"][:, 1:], (4, 4), mode="bilinear")
    found = model.pretrained.model.pos_embed.detach()
    assert torch.equal(found[:, 1:], expected) and torch.equal(found[:, :1], state["pos_embed"][:, :1])
    del state["blocks.3.norm1.weight"]
    save_checkpoint(tmp_path / "less.pth", {"model": state})
    with pytest.raises(UserError, match=r"blocks\.3\.norm1\.weight missing"):
        start_from_pretrained(model, str(tmp_path / "less.pth"))


def test_encoders_without_published_weights_say_so():
    with pytest.raises(UserError, match="vit_micro has no published weights"):
        start_from_pretrained(build_getam("vit_micro", num_classes=2), "hub")


def test_loading_refuses_other_networks(tmp_path, segmenter):
    with pytest.raises(UserError, match=r"give a checkpoint of segmentation\.getam\.train"):
        load_getam(segmenter / "last.pth")
    save_checkpoint(tmp_path / "bare.pth", {"encoder.cls_token": torch.zeros(1, 1, 8)})
    with pytest.raises(UserError, match=r"not a checkpoint of GETAM \(pretrained.model.cls_token missing"):
        load_getam(tmp_path / "bare.pth")


def test_own_checkpoints_rebuild_the_network_alone(tmp_path):
    model = filled(build_getam("micro_hybrid", num_classes=4))
    content = {
        "model": model.state_dict(),
        "model_args": {"backbone": "micro_hybrid", "num_classes": 4},
        "step": 3,
    }
    save_checkpoint(tmp_path / "own.pth", content)
    again, entries = load_getam(tmp_path / "own.pth")
    assert entries["step"] == 3
    images = pictures(1, 64, 64)
    with torch.no_grad():
        for a, b in zip(model(images), again(images), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(UserError, match="is a micro_hybrid, not vitb"):
        load_getam(tmp_path / "own.pth", backbone="vitb")
