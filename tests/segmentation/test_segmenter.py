"""The segmenter against its plain form, the published outputs and names, and its contract, per backbone."""

import argparse
import ast
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segmentation.decoders.mask_transformer import MaskTransformer
from segmentation.segmenter import Encoder, Segmenter, build_segmenter, load_segmenter
from tests.segmentation.oracle import (
    assert_close,
    assert_summary,
    pictures,
    plain_logits,
    published_shapes,
    random_tensor,
    recorded_rule,
    released_state,
    rotary_tables,
)
from wsss.backbones import BACKBONES, CLIP, HALF, IMAGENET, Backbone
from wsss.checkpoint import save_checkpoint
from wsss.errors import UserError

STATISTICS = {"deit": IMAGENET, "vit": HALF, "dinov2": IMAGENET, "eva02": CLIP}
FAMILIES = tuple(STATISTICS)
WIDTH, DEPTH, HEADS, CLASSES, SIDE = 128, 3, 4, 5, 6  # the decoder has 2 heads: 128 // 64
SIZES = [(96, 96), (64, 144), (70, 83), (5, 9), (352, 417)]  # 64 x 144: as many patches as 96 x 96
PUBLISHED = (
    "deit_small_patch16_224", "vit_small_patch16_384", "dinov2_small_patch16_224", "eva02_small_patch16_224",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    """One more backbone per family in the table: micro_deit, micro_vit, ..."""
    for family, statistics in STATISTICS.items():
        sizes = Backbone(family, WIDTH, DEPTH, HEADS, 16, 96, statistics, None)
        monkeypatch.setitem(BACKBONES, f"micro_{family}", sizes)


def micro(family, **options):
    """A small network with weights large enough that every part of it matters."""
    model = build_segmenter(f"micro_{family}", num_classes=CLASSES, image_size=16 * SIDE, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_tensor(name, tuple(parameter.shape)))
    return model.eval()


def micro_shapes(family, **changes):
    sizes = {"width": WIDTH, "depth": DEPTH, "num_classes": CLASSES, "side": SIDE, "heads": HEADS} | changes
    return published_shapes(family, **sizes)


def published_sizes(name, num_classes=21):
    family = BACKBONES[name].family
    return family, {"width": 384, "depth": 12, "num_classes": num_classes, "side": 30, "heads": 6}


# ------------------------------------------------------------------------------------- recorded outputs


@pytest.mark.parametrize("name", PUBLISHED)
def test_recorded_names_and_shapes(recorded, name):
    """They are the network's, and the plain lists' that tests without the records rely on."""
    manifest = {str(key) for key in np.load(recorded / "cases.npz")[f"stage2/keys/{name}"]}
    with torch.device("meta"):
        state = build_segmenter(name, num_classes=21).state_dict()
    assert {f"{k} {tuple(v.shape)}" for k, v in state.items()} == manifest
    family, sizes = published_sizes(name)
    assert {f"{k} {v}" for k, v in published_shapes(family, **sizes).items()} == manifest


@pytest.mark.parametrize("name", PUBLISHED)
def test_recorded_logits_of_a_published_checkpoint(recorded, tmp_path, name):
    """A file of the recorded names and shapes, filled by their rule; DeiT and ViT cannot be told apart."""
    rule, cases = recorded_rule(recorded), np.load(recorded / "cases.npz")
    shapes = dict(str(key).split(" ", 1) for key in cases[f"stage2/keys/{name}"])
    state = released_state({k: ast.literal_eval(v) for k, v in shapes.items()}, rule.tensor_for)
    path = release(tmp_path / "checkpoint.pth", state, "module.", n_cls=21)
    ambiguous = BACKBONES[name].family in ("deit", "vit")
    if ambiguous:
        with pytest.raises(UserError, match=r"--backbone, one of deit_small_patch16_224, vit_small"):
            load_segmenter(path)
    model, entries = load_segmenter(path, backbone=name if ambiguous else None)
    assert (model.backbone, model.num_classes, model.image_size) == (name, 21, 480)
    assert entries["n_cls"] == 21
    with torch.no_grad():
        if f"stage2/out480/{name}" in cases:
            logits = model(rule.images(11, 1, 3, 480, 480))
            assert logits.shape == (1, 21, 480, 480)
            assert_summary(logits, cases[f"stage2/out480/{name}"])
        else:
            images = pictures(1, 3, 40, 51)
            assert_close(model(images), plain_logits(state, images, heads=6)[-1])


@pytest.mark.parametrize(("name", "tensors"), list(zip(PUBLISHED, (185, 185, 209, 223), strict=True)))
def test_published_names_and_shapes(name, tensors):
    with torch.device("meta"):
        state = build_segmenter(name, num_classes=21).state_dict()
    family, sizes = published_sizes(name)
    assert {k: tuple(v.shape) for k, v in state.items()} == published_shapes(family, **sizes)
    assert len(state) == tensors


# -------------------------------------------------------------------------------------- the plain form


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_form(family, size):
    """After either block of the decoder; 96 is the size that the network is built for."""
    model = micro(family)
    images = pictures(2, 3, *size)
    expected = plain_logits(model.state_dict(), images, heads=HEADS)
    with torch.no_grad():
        first, last = model(images, decoder_block=1), model(images)
    assert_close(first, expected[0], 2e-5)
    assert_close(last, expected[1], 2e-5)
    assert (first - last).abs().max() > 0.1 * last.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_equals_the_plain_form(family):
    model = micro(family)
    images, weights = pictures(2, 3, 70, 101), pictures(2, CLASSES, 70, 101, seed=2)
    (model(images) * weights).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    (plain_logits(dict(model.named_parameters()), images, heads=HEADS)[-1] * weights).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.head."):
            assert found[name] is None
        else:
            assert_close(found[name], parameter.grad, 1e-4)


def test_other_sizes_than_the_tables():
    """A network of no name: patch 8, one head of 12 features, two classes, and a crop that is no multiple."""
    sizes = {"embed_dim": 12, "depth": 1, "num_heads": 1, "patch_size": 8, "image_size": 60}
    for options in ({}, {"layer_scale": True}, {"eva": True}, {"eva": True, "layer_scale": True}):
        torch.manual_seed(0)
        model = Segmenter(Encoder(**sizes, **options), MaskTransformer(12, 2)).eval()
        assert model.encoder.pos_embed.shape == (1, 1 + 7 * 7, 12)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(random_tensor(name, tuple(parameter.shape)))
            for size in ((56, 56), (60, 60), (31, 94)):
                images = pictures(1, 3, *size)
                expected = plain_logits(model.state_dict(), images, heads=1)
                for found, plain in zip(model.block_logits(images), expected, strict=True):
                    assert_close(found, plain)  # the norm over two classes amplifies rounding


# --------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("family", FAMILIES)
class TestContract:
    @pytest.fixture
    def model(self, family):
        return micro(family)

    @pytest.mark.parametrize("size", SIZES)
    def test_logits_have_the_pictures_size(self, model, size):
        with torch.no_grad():
            logits = model(pictures(1, 3, *size))
        assert logits.shape == (1, CLASSES, *size)
        assert logits.dtype == torch.float32 and logits.isfinite().all()

    @pytest.mark.parametrize("size", [(96, 96), (70, 83)])
    def test_batch_of_two_equals_two_singles(self, model, size):
        images = pictures(2, 3, *size)
        with torch.no_grad():
            both = model(images)
            for i in range(2):
                assert_close(both[i : i + 1], model(images[i : i + 1]), 1e-5)
        assert (both[0] - both[1]).abs().max() > 0.1

    @pytest.mark.parametrize("training", [True, False])
    def test_gradients_reach_everything_but_the_unused_head(self, model, training):
        model.train(training)
        (model(pictures(2, 3, 70, 83)) * pictures(2, CLASSES, 70, 83, seed=2)).sum().backward()
        without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert without == {"encoder.head.weight", "encoder.head.bias"}
        assert {n for n, p in model.named_parameters() if not p.requires_grad} == without

    def test_reading_block_1_leaves_out_block_2_only(self, model):
        logits = model(pictures(1, 3, 96, 96), decoder_block=1)
        (logits * pictures(1, CLASSES, 96, 96, seed=2)).sum().backward()
        without = {n for n, p in model.named_parameters() if p.grad is None}
        assert {n for n in without if not n.startswith("decoder.blocks.1.")} == {
            "encoder.head.weight", "encoder.head.bias"
        }  # fmt: skip
        assert len(without) == 2 + 12

    def test_block_logits_are_those_of_each_block(self, model):
        images = pictures(2, 3, 70, 83)
        with torch.no_grad():
            blocks = model.block_logits(images)
            assert len(blocks) == 2
            for number, logits in enumerate(blocks, 1):
                assert torch.equal(logits, model(images, decoder_block=number))
            assert torch.equal(blocks[1], model(images))

    @pytest.mark.parametrize("number", [0, 3, -1])
    def test_other_blocks_are_refused(self, model, number):
        with pytest.raises(ValueError, match=rf"decoder_block {number}: .* 1\.\.2"):
            model(pictures(1, 3, 16, 16), decoder_block=number)

    def test_checkpoint_rebuilds_the_network(self, model, family, tmp_path):
        arguments = {"backbone": f"micro_{family}", "num_classes": CLASSES, "image_size": 16 * SIDE}
        content = {
            "model": model.state_dict(),
            "model_args": arguments,
            "class_names": ["a", "b"],
            "epoch": 3,
        }
        save_checkpoint(tmp_path / "a.pth", content | {"optimizer": {"state": {}}})
        loaded, entries = load_segmenter(tmp_path / "a.pth")
        assert entries == {"model_args": arguments, "class_names": ["a", "b"], "epoch": 3}
        assert not any(module.training for module in loaded.modules())
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        for name in ("pixel_mean", "pixel_std", "backbone", "image_size", "num_classes", "patch_size"):
            assert getattr(loaded, name) == getattr(model, name)
        with torch.no_grad():
            for size in ((96, 96), (70, 83)):
                assert torch.equal(loaded(pictures(1, 3, *size)), model(pictures(1, 3, *size)))

    def test_trained_steps_survive_the_checkpoint(self, model, family, tmp_path):
        """Nothing that training moves is outside the state."""
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(pictures(2, 3, 70, 83)).square().mean().backward()
            optimizer.step()
        arguments = {"backbone": f"micro_{family}", "num_classes": CLASSES, "image_size": 16 * SIDE}
        save_checkpoint(tmp_path / "a.pth", {"model": model.state_dict(), "model_args": arguments})
        loaded, _ = load_segmenter(tmp_path / "a.pth")
        with torch.no_grad():
            assert torch.equal(loaded(pictures(1, 3, 70, 83)), model.eval()(pictures(1, 3, 70, 83)))

    def test_bfloat16_autocast_gives_float32_logits(self, model):
        images = pictures(2, 3, 70, 83)
        with torch.no_grad():
            exact = model(images)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = model.block_logits(images)
        assert [logits.dtype for logits in rough] == [torch.float32] * 2
        error = (rough[1] - exact).abs()
        assert 0 < error.mean() < 0.05 * exact.abs().mean()
        assert error.max() < 0.3 * exact.abs().max()

    def test_every_layer_norm_has_the_published_epsilon(self, model):
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        assert [norm.eps for norm in norms] == [1e-5] * (2 * DEPTH + 1 + 2 * 2 + 2)


# ---------------------------------------------------------------- dropout, stochastic depth, rotary tables


def calls_of_dropout(model, monkeypatch):
    """(what, probability, last side) of every dropout that acts in one pass."""
    calls = []
    attention, dropout = F.scaled_dot_product_attention, F.dropout

    def seen_attention(query, key, value, **options):
        calls.append(("attention", options.get("dropout_p", 0), query.shape[2]))
        return attention(query, key, value, **options)

    def seen_dropout(x, p=0.5, training=True, inplace=False):
        calls.append(("dropout", p if training else 0, x.shape[2]))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen_attention)
    monkeypatch.setattr(F, "dropout", seen_dropout)
    model(pictures(1, 3, 96, 96))
    return [call for call in calls if call[1] > 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_in_the_decoder_and_in_training_only(family, monkeypatch):
    tokens = SIDE * SIDE + CLASSES
    expected = [("attention", 0.1, tokens), *(("dropout", 0.1, n) for n in (WIDTH, 4 * WIDTH, WIDTH))]
    assert calls_of_dropout(micro(family).train(), monkeypatch) == 2 * expected
    assert calls_of_dropout(micro(family), monkeypatch) == []
    assert calls_of_dropout(micro(family, dropout=0).train(), monkeypatch) == []


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"dropout": 0, "drop_path": 0.5}])
def test_noise_acts_in_training_mode_only(options):
    model = micro("eva02", **options)
    images = pictures(4, 3, 70, 83)
    with torch.no_grad():
        exact = model(images)
        assert torch.equal(model(images), exact)
        model.train()
        torch.manual_seed(0)
        noisy = model(images)
        assert not torch.equal(model(images), noisy) and not torch.equal(noisy, exact)
        torch.manual_seed(0)
        assert torch.equal(model(images), noisy)  # a function of the seed, so that training repeats
        silent = micro("eva02", dropout=0).train()
        assert torch.equal(silent(images), exact)


@pytest.mark.parametrize("name", PUBLISHED)
def test_drop_path_is_linear_in_the_encoder_and_absent_in_the_decoder(name):
    with torch.device("meta"):
        model = build_segmenter(name, num_classes=21, drop_path=0.1)
        plain = build_segmenter(name, num_classes=21)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in model.decoder.blocks] == [0, 0]
    assert all(getattr(block.drop_path, "drop_prob", 0.0) == 0 for block in plain.encoder.blocks)


def test_drop_path_leaves_out_whole_branches_per_sample():
    """At a rate near 1 the last block does nothing, in training mode."""
    model = micro("deit", dropout=0, drop_path=1 - 1e-9)
    model.encoder.blocks[1].drop_path = nn.Identity()
    model.train()
    images = pictures(3, 3, 70, 83)
    state = model.state_dict()
    last = f"encoder.blocks.{DEPTH - 1}."
    without = {k: v for k, v in state.items() if not k.startswith(last)}
    with torch.no_grad():
        assert_close(model(images), plain_logits(without, images, heads=HEADS)[-1], 2e-5)


def test_rotary_tables_of_the_published_size():
    model = build_segmenter("eva02_tiny_patch16_224", num_classes=2)
    state = model.state_dict()
    names = ["encoder.rope.", *(f"encoder.blocks.{i}.attn.rope." for i in range(12))]
    tables = rotary_tables(30, 30, 64)
    for name in names:
        for kind, expected in zip(("cos", "sin"), tables, strict=True):
            assert state[f"{name}freqs_{kind}"].dtype == torch.float32
            assert_close(state[f"{name}freqs_{kind}"], expected, 5e-6)
    assert len([k for k in state if "freqs_" in k]) == 2 * len(names)
    assert all(block.attn.rope is model.encoder.rope for block in model.encoder.blocks)
    assert not any("rope" in name for name, _ in model.named_parameters())
    assert not any("rope" in name for name in model.decoder.state_dict())
    # row 7, column 11, frequency 3: angle 7/30 * 16 / 10000^(6/32), and the column's in the second half
    for feature, side in ((6, 7), (7, 7), (32 + 6, 11), (32 + 7, 11)):
        angle = side / 30 * 16 / 10000 ** (6 / 32)
        assert state["encoder.rope.freqs_cos"][7 * 30 + 11, feature].item() == pytest.approx(
            math.cos(angle), abs=5e-6
        )


def test_rotary_tables_of_other_grids():
    """Recomputed, kept, and none of it is in the state; half precision does not reach them."""
    model = micro("eva02")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for height in range(1, 25):  # more than are kept
            for found, expected in zip(
                model.encoder.rope((height, 4)), rotary_tables(height, 4, 32), strict=True
            ):
                assert found.dtype == torch.float32
                assert_close(found, expected, 5e-6)
    assert model.encoder.rope((20, 4))[0] is model.encoder.rope((20, 4))[0]
    assert model.encoder.rope((SIDE, SIDE))[0] is model.encoder.rope.freqs_cos
    state = model.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(state[k], before[k]) for k in before)


# ----------------------------------------------------------------------------------------- bare releases


def release(path, state, prefix="", **changes):
    """A file as the published training wrote it: no backbone's name in it."""
    content = {
        "model": {prefix + k: v for k, v in state.items()},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "n_cls": CLASSES,
        "lr_scheduler": {"step_size": 1, "_step_count": 7},
        "epoch": 99,
        "args": argparse.Namespace(lr=1e-4, dataset="pascal_context", resume=True, seeds=[1, 2]),
        "best": np.float64(0.78),
    }
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("family", FAMILIES)
def test_bare_release_is_rebuilt(tmp_path, family, prefix):
    state = released_state(micro_shapes(family))
    path = release(tmp_path / "checkpoint.pth", state, prefix)
    ambiguous = family in ("deit", "vit")
    model, entries = load_segmenter(path, backbone=f"micro_{family}" if ambiguous else None)
    assert (model.backbone, model.num_classes, model.image_size) == (f"micro_{family}", CLASSES, 16 * SIDE)
    levels = STATISTICS[family]
    assert model.pixel_mean == tuple(v / 255 for v in levels.level_mean)
    assert model.pixel_std == tuple(v / 255 for v in levels.level_std)
    assert not model.training
    assert entries.keys() == {"n_cls", "lr_scheduler", "epoch", "args", "best"}
    assert entries["args"].seeds == [1, 2] and entries["epoch"] == 99 and entries["best"] == 0.78
    for size in ((96, 96), (70, 83)):
        images = pictures(1, 3, *size)
        with torch.no_grad():
            assert_close(model(images), plain_logits(state, images, heads=HEADS)[-1], 2e-5)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_bare_state_without_a_wrapper(tmp_path, suffix):
    """Nothing but tensors; none of them is among the other entries."""
    state = released_state(micro_shapes("dinov2"))
    path = tmp_path / f"bare.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    model, entries = load_segmenter(path)
    assert torch.equal(model.decoder.proj_patch, state["decoder.proj_patch"])
    assert entries == {}


def test_backbones_of_one_shape_and_several_statistics_must_be_named(tmp_path):
    path = release(tmp_path / "c.pth", released_state(micro_shapes("deit")))
    with pytest.raises(
        UserError, match=r"c\.pth: .*pixel statistics; give --backbone, .*micro_deit, micro_vit"
    ):
        load_segmenter(path)
    for family in ("deit", "vit"):
        model, _ = load_segmenter(path, backbone=f"micro_{family}")
        assert model.backbone == f"micro_{family}"
        assert model.pixel_std[0] == (58.4 / 255 if family == "deit" else 0.5)


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("deit", "micro_dinov2"), ("deit", "micro_eva02"), ("deit", "deit_small_patch16_224"),
        ("dinov2", "micro_deit"), ("eva02", "micro_vit"), ("eva02", "no_such_backbone"),
    ],
)  # fmt: skip
def test_wrong_backbone_is_refused(tmp_path, family, backbone):
    path = release(tmp_path / "c.pth", released_state(micro_shapes(family)))
    with pytest.raises(UserError, match=rf"c\.pth: .* not {backbone}; .*micro_{family}") as caught:
        load_segmenter(path, backbone=backbone)
    assert "\n" not in str(caught.value)


def test_unknown_size_is_refused(tmp_path):
    path = release(tmp_path / "c.pth", released_state(micro_shapes("dinov2", depth=2)))
    with pytest.raises(
        UserError, match=r"c\.pth: its encoder \(width 128, depth 2, patch 16\) is not a known backbone"
    ):
        load_segmenter(path)


def test_backbone_that_contradicts_the_settings_is_refused(tmp_path):
    arguments = {"backbone": "micro_deit", "num_classes": CLASSES, "image_size": 16 * SIDE}
    content = {"model": released_state(micro_shapes("deit")), "model_args": arguments}
    save_checkpoint(tmp_path / "c.pth", content)
    assert load_segmenter(tmp_path / "c.pth")[0].backbone == "micro_deit"
    assert load_segmenter(tmp_path / "c.pth", backbone="micro_deit")[0].backbone == "micro_deit"
    with pytest.raises(UserError, match=r"c\.pth: is a micro_deit, not micro_vit; leave --backbone out"):
        load_segmenter(tmp_path / "c.pth", backbone="micro_vit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "micro_vit", "num_classes": 5, "depth": 4}, "unexpected keyword argument 'depth'"),
        ({"image_size": 96}, "missing a required argument"),
        ([3], "mapping"),
    ],
)
def test_foreign_settings_in_a_checkpoint_name_the_file(tmp_path, arguments, message):
    save_checkpoint(tmp_path / "a.pth", {"model": {"x": torch.ones(1)}, "model_args": arguments})
    with pytest.raises(UserError, match=rf"a\.pth: its model_args .*{message}"):
        load_segmenter(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "name",
    [
        "encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj.weight", "decoder.cls_emb",
        "encoder.blocks.2.attn.q_bias", "encoder.rope.freqs_cos", "encoder.head.bias",
        "decoder.mask_norm.weight",
    ],
)  # fmt: skip
def test_missing_tensor_is_named(tmp_path, name):
    state = released_state(micro_shapes("eva02"))
    del state[name]
    path = release(tmp_path / "c.pth", state)
    with pytest.raises(UserError, match=rf"c\.pth: .*{name} missing"):
        load_segmenter(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.blocks.0.norm1.bias", (127,)),
        ("encoder.pos_embed", (1, 1 + SIDE * SIDE + 2, WIDTH)),
        ("decoder.mask_norm.bias", (CLASSES + 1,)),
        ("encoder.blocks.1.extra", (3,)),
    ],
)
def test_tensor_of_another_shape_is_named(tmp_path, name, shape):
    path = release(tmp_path / "c.pth", released_state(micro_shapes("dinov2")) | {name: torch.ones(shape)})
    with pytest.raises(UserError, match=rf"c\.pth: .*{name} (is|unexpected)"):
        load_segmenter(path)


@pytest.mark.parametrize("keep", [0, 4, 0.3, 0.9999])
def test_truncated_file_is_refused(tmp_path, keep):
    path = release(tmp_path / "c.pth", released_state(micro_shapes("dinov2")))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"c\.pth: truncated or not a checkpoint"):
        load_segmenter(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_pickle_that_would_execute_code_is_refused_and_not_executed(tmp_path, place):
    state = released_state(micro_shapes("dinov2"))
    bomb = Malicious(tmp_path / "executed")
    if place == "inside":
        path = release(tmp_path / "c.pth", state, model=state | {"bomb": bomb})
    else:
        path = release(tmp_path / "c.pth", state, lr_scheduler=bomb)
    with pytest.raises(UserError, match=r"c\.pth: refused.*mkdir"):
        load_segmenter(path)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # it would have been
    assert (tmp_path / "executed").exists()


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: no such checkpoint"):
        load_segmenter(tmp_path / "none.pth")
    torch.save({"model": {"cls_token": torch.ones(1, 1, 4)}}, tmp_path / "vit.pth")
    with pytest.raises(
        UserError, match=r"vit\.pth: not a segmenter's checkpoint \(encoder\.cls_token missing\)"
    ):
        load_segmenter(tmp_path / "vit.pth")


# ------------------------------------------------------------------------- initialisation and statistics


def test_initialisation_of_the_decoder():
    torch.manual_seed(0)
    decoder = build_segmenter("deit_small_patch16_224", num_classes=91).decoder
    deviations = {"proj_patch": 384**-0.5, "proj_classes": 384**-0.5, "cls_emb": 0.02}
    for name, parameter in decoder.named_parameters():
        values = parameter.detach()
        if values.ndim > 1:  # 35 k to 590 k values
            expected = deviations.get(name, 0.02)
            assert values.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(values.mean().item()) < 0.02 * expected, name
        else:
            norm = "norm" in name and name.endswith("weight")
            assert torch.equal(values, torch.full_like(values, float(norm))), name
    # the projections are normal: kurtosis 3
    centred = decoder.proj_patch.detach().flatten().double()
    assert (centred**4).mean() / (centred**2).mean() ** 2 == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_initialisation_is_a_function_of_the_seed(family):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_segmenter(f"micro_{family}", num_classes=2, image_size=96).state_dict())
    first, again, other = states
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["decoder.proj_classes"], other["decoder.proj_classes"])


LEVELS = {
    "deit": ((123.68, 116.28, 103.53), (58.4, 57.12, 57.38)),
    "vit": ((127.5,) * 3, (127.5,) * 3),
    "dinov2": ((123.68, 116.28, 103.53), (58.4, 57.12, 57.38)),
    "eva02": ((122.77, 116.75, 104.09), (68.5, 66.63, 70.32)),
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_pixel_statistics_are_the_published_ones(name):
    """Rounded, of levels 0..255: the network carries them over 255, as plain numbers."""
    family = BACKBONES[name].family
    assert name.startswith(family)
    with torch.device("meta"):
        model = build_segmenter(name, num_classes=2)
    for found, levels in zip((model.pixel_mean, model.pixel_std), LEVELS[family], strict=True):
        assert type(found) is tuple and all(type(value) is float for value in found)
        assert [255 * value for value in found] == pytest.approx(levels, rel=1e-12)
    assert model.backbone == name and model.image_size == 480


def test_unknown_backbone_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="eva02_small_patch16_224"):
        build_segmenter("resnet50", num_classes=2)
