"""Starting weights: every published naming gives the same encoder, and every tensor is accounted for."""

import logging
import os
import re
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from segmentation.segmenter import build_segmenter
from wsss.backbones import BACKBONES, HALF, IMAGENET, Backbone
from wsss.errors import UserError
from wsss.pretrained import EncoderState, encoder_state, log_starting_weights, read_weights, shorten

LIMIT = 2e-4  # of the largest absolute value: what the recorded cases are compared with
OWN = re.compile(r"head\.|(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)$")  # never from a file


@pytest.fixture(autouse=True)
def micro_backbones(monkeypatch):
    """A small member of each family, run at patch 8."""
    for family, statistics in (("deit", IMAGENET), ("vit", HALF), ("dinov2", IMAGENET), ("eva02", HALF)):
        monkeypatch.setitem(BACKBONES, f"{family}_micro", Backbone(family, 96, 5, 3, 8, 96, statistics, None))
    monkeypatch.delitem(BACKBONES, "vit_micro_patch8_96")  # same sizes as vit_micro


def encoder_shapes(backbone, grid, patch):
    with torch.device("meta"):
        encoder = build_segmenter(backbone, num_classes=2, image_size=64).encoder
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items() if not OWN.match(k)}
    D = BACKBONES[backbone].embed_dim
    return shapes | {"pos_embed": (1, 1 + grid**2, D), "patch_embed.proj.weight": (D, 3, patch, patch)}


def random_state(backbone, *, grid=12, patch=8, seed=0):
    """Weights under the encoder's names, as a file has them: without the tables that follow from the grid."""
    rng = np.random.default_rng(seed)
    shapes = encoder_shapes(backbone, grid, patch)
    return {k: torch.from_numpy(rng.standard_normal(s, dtype=np.float32)) for k, s in shapes.items()}


def load(raw, backbone, grid=(12, 12)):
    return encoder_state(raw, backbone, grid=grid, source="weights.pth")


def assert_equal(found, expected):
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def refused(*words):
    """The error of the block: one line that holds the words."""
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


def resized(maps, size, how):
    """OpenCV's resizing of maps (N, h, w): its linear and cubic (a = -0.75) are torch's bilinear, bicubic."""
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[how]
    return torch.from_numpy(np.stack([cv2.resize(m, size[::-1], interpolation=flag) for m in maps.numpy()]))


def resized_positions(positions, size, how):
    side = int((positions.shape[1] - 1) ** 0.5)
    maps = resized(positions[0, 1:].T.reshape(-1, side, side), size, how)
    return torch.cat((positions[0, :1], maps.flatten(1).T))[None]


def assert_close(found, expected, limit=1e-5):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= limit * expected.abs().max()


# ------------------------------------------------------------------------------------- published files


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("deit_tiny_patch16_224.pth", "deit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors", "vit_tiny_patch16_224"),
    ],
)
def test_real_files(name, backbone, pretrained):
    raw = read_weights(str(pretrained / name), backbone)
    result = load(raw, backbone, (14, 14))
    expected = {k: v.float() for k, v in raw.items() if not k.startswith("head.")}
    assert_equal(result.state, expected)
    assert len(result.loaded) == 150 and sorted(result.skipped) == ["head.bias", "head.weight"]
    assert all(v.dtype == torch.float32 for v in result.state.values()) and result.resized == []

    how = "bicubic" if backbone.startswith("vit") else "bilinear"
    result = load(raw, backbone, (30, 22))
    assert result.resized == [f"pos_embed 14x14 to 30x22 ({how})"] and len(result.loaded) == 149
    positions = expected.pop("pos_embed")
    assert_close(result.state.pop("pos_embed"), resized_positions(positions, (30, 22), how))
    assert_equal(result.state, expected)


def test_recorded_resizing_of_the_published_code(recorded):
    sys.path.insert(0, str(recorded))
    try:
        from rule import images
    finally:
        sys.path.pop(0)
    raw = {
        k: torch.zeros(s) for k, s in encoder_shapes("dinov2_small_patch16_224", grid=37, patch=14).items()
    }
    raw |= {"pos_embed": images(43, 1, 1370, 384), "patch_embed.proj.weight": images(44, 384, 3, 14, 14)}
    result = load(raw, "dinov2_small_patch16_224", (30, 30))
    assert result.resized == [
        "pos_embed 37x37 to 30x30 (bilinear)",
        "patch_embed.proj.weight 14x14 to 16x16 (bicubic)",
    ]
    cases = np.load(recorded / "cases.npz")
    for case, name in (("pos", "pos_embed"), ("patch", "patch_embed.proj.weight")):
        expected = cases[f"stage2/load_dinov2_{case}"]
        flat = result.state[name].flatten().numpy()
        samples = flat[np.linspace(0, flat.size - 1, len(expected) - 4).astype(int)]
        found = np.concatenate([[flat.size, flat.mean(), flat.std(), np.abs(flat).max()], samples])
        assert np.abs(found - expected).max() <= LIMIT * expected[3]


def randomise(model, seed=0):
    """Weights large enough that every part matters; LayerNorm's epsilon is stage 2's."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.2 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return model.eval()


@pytest.mark.parametrize(
    ("timm_name", "backbone", "size", "options"),
    [
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224", 96, {}),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_384", 96, {}),
        ("vit_small_patch14_dinov2", "dinov2_small_patch16_224", 96, {"init_values": 1.0}),
        ("eva02_tiny_patch14_224", "eva02_tiny_patch16_224", 256, {}),
        ("eva02_tiny_patch14_224", "eva02_tiny_patch16_224", 96, {"global_pool": "token"}),
        ("eva02_tiny_patch14_224", "eva02_tiny_patch16_224", 96, {"qkv_fused": False, "scale_mlp": "split"}),
    ],
)
def test_tokens_equal_timms(timm_name, backbone, size, options, monkeypatch):
    """timm's network and ours with its weights give the same tokens, nothing resized; 3 blocks each."""
    import timm
    from timm.models import eva

    if options.get("scale_mlp") == "split":  # timm's layers fc1_g and fc1_x, without the norm between
        glu = eva.SwiGLU
        monkeypatch.setattr(eva, "SwiGLU", lambda **k: glu(**{**k, "norm_layer": None}))
        options = {**options, "scale_mlp": True}
    monkeypatch.setitem(BACKBONES, backbone, replace(BACKBONES[backbone], depth=3))
    options = {**options, "img_size": size, "patch_size": 16, "depth": 3, "num_classes": 7}
    other = randomise(timm.create_model(timm_name, **options))
    encoder = build_segmenter(backbone, num_classes=2, image_size=size).encoder.eval()
    own = encoder.state_dict()
    result = load(other.state_dict(), backbone, (size // 16,) * 2)
    assert result.resized == [] and {"head.weight", "head.bias"} <= set(result.skipped)
    assert {k for k in own if k not in result.state} == {k for k in own if OWN.match(k)}
    encoder.load_state_dict({**own, **result.state})
    images = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, size, size), dtype=np.float32))
    with torch.no_grad():
        expected = other.fc_norm(other.forward_features(images))  # either norm is an identity
        found = encoder(images)
    assert found.shape == (2, 1 + (size // 16) ** 2, other.embed_dim)
    assert_close(found, expected, 2e-5)


# --------------------------------------------------------------------------------------------- namings


def rename(state, *pairs):
    renamed = {}
    for name, value in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        renamed[name] = value
    return renamed


def split(state, layer, parts):
    """One layer as several of equal height."""
    found = {}
    for name, value in state.items():
        if f".{layer}." in name:
            pieces = value.chunk(len(parts))
            found |= {name.replace(layer, p): piece for p, piece in zip(parts, pieces, strict=True)}
        else:
            found[name] = value
    return found


def with_tables(state):
    """What the original EVA-02 files hold besides, here with useless values."""
    tables = {"rope.freqs_cos": torch.ones(256, 32), "rope.freqs_sin": torch.ones(256, 32)}
    tables |= {f"blocks.{i}.attn.{k}": v for i in range(5) for k, v in list(tables.items())}
    return state | tables | {"mask_token": torch.ones(1, 1, 96), "lm_head.weight": torch.ones(3, 96)}


def with_qkv_bias(state, key=0.0):
    found = {k: v for k, v in state.items() if not k.endswith(("q_bias", "v_bias"))}
    for i in range(5):
        q, v = (state[f"blocks.{i}.attn.{n}_bias"] for n in "qv")
        found[f"blocks.{i}.attn.qkv.bias"] = torch.cat((q, torch.full_like(q, key), v))
    return found


Q_K_V = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
PROJ_BIAS = (r"attn\.([qv])_bias$", r"attn.\1_proj.bias")
FC_NORM = (r"^norm\.", "fc_norm.")
EVA_NAMINGS = {  # name: (the encoder's names to it, tensors skipped)
    "original": (with_tables, 14),
    "two gate layers": (lambda s: split(s, "mlp.w12", ("mlp.w1", "mlp.w2")), 0),
    "average of patches": (lambda s: rename(s, FC_NORM), 0),
    "both norms": (lambda s: s | {"fc_norm.weight": torch.ones(96), "fc_norm.bias": torch.ones(96)}, 2),
    "separate q, k, v": (lambda s: split(s, "attn.qkv", Q_K_V), 0),
    "key bias": (lambda s: s | {f"blocks.{i}.attn.k_bias": torch.zeros(96) for i in range(5)}, 5),
    "one bias": (with_qkv_bias, 5),
    "index": (lambda s: s | {"rel_pos_bias.relative_position_index": torch.ones(4, 4).long()}, 1),
    "timm": (lambda s: rename(s, (r"mlp\.w12", "mlp.fc1"), (r"mlp\.w3", "mlp.fc2"), FC_NORM), 0),
    "timm, separate": (
        lambda s: rename(
            split(split(s, "mlp.w12", ("mlp.fc1_g", "mlp.fc1_x")), "attn.qkv", Q_K_V),
            (r"mlp\.w3", "mlp.fc2"),
            PROJ_BIAS,
        ),
        0,
    ),
}


@pytest.mark.parametrize("naming", EVA_NAMINGS)
def test_namings_of_eva02(naming):
    state = random_state("eva02_micro")
    change, skipped = EVA_NAMINGS[naming]
    raw = change(state)
    result = load(raw, "eva02_micro")
    assert_equal(result.state, state)
    assert len(result.skipped) == skipped
    assert not any(OWN.match(k) for k in result.state)


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_chunked_dinov2(chunks):
    state = random_state("dinov2_micro", grid=5, patch=14)
    raw = {
        re.sub(r"blocks\.(\d)", lambda m: f"blocks.{int(m[1]) % chunks}.{m[1]}", k): v
        for k, v in state.items()
    }
    whole = load(state | {"mask_token": torch.ones(1, 96)}, "dinov2_micro")
    assert whole.skipped == ["mask_token"] and len(whole.resized) == 2
    result = load(raw, "dinov2_micro")
    assert_equal(result.state, whole.state)
    assert torch.equal(result.state["blocks.3.ls2.gamma"], state["blocks.3.ls2.gamma"])


@pytest.mark.parametrize("family", ["deit", "vit", "dinov2", "eva02"])
def test_sizes_and_types(family):
    state = random_state(f"{family}_micro", grid=5, patch=14)
    raw = {k: v.half() for k, v in state.items()} | {"head.weight": torch.ones(2, 96)}
    result = load(raw, f"{family}_micro", (12, 9))
    names = [note.split()[0] for note in result.resized]
    assert sorted(result.loaded + names) == sorted(state) and result.skipped == ["head.weight"]
    for name, value in result.state.items():
        assert value.dtype == torch.float32
        if name not in names:
            assert torch.equal(value, raw[name].float())
    how = "bicubic" if family == "vit" else "bilinear"
    positions = resized_positions(raw["pos_embed"].float(), (12, 9), how)
    assert_close(result.state["pos_embed"], positions)
    kernels = resized(raw["patch_embed.proj.weight"].float().flatten(0, 1), (8, 8), "bicubic")
    assert_close(result.state["patch_embed.proj.weight"].flatten(0, 1), kernels)


# ------------------------------------------------------------------------------------------ AugReg .npz


def write_npz(path, state, *, prefix="", later=False, heads=3):
    """JAX's layout of a timm state; ``later`` numbers the sub-layers of each kind by themselves."""
    mlp, norm, attention = ("MlpBlock_0", "LayerNorm_1", 0) if later else ("MlpBlock_3", "LayerNorm_2", 1)
    a = {k: v.numpy() for k, v in state.items()}
    positions = "pos_embedding" if later else "Transformer/posembed_input/pos_embedding"
    found = {
        "embedding/kernel": np.einsum("oihw->hwio", a["patch_embed.proj.weight"]),
        "embedding/bias": a["patch_embed.proj.bias"],
        "cls": a["cls_token"],
        positions: a["pos_embed"],
        "Transformer/encoder_norm/scale": a["norm.weight"],
        "Transformer/encoder_norm/bias": a["norm.bias"],
        "head/kernel": np.einsum("oi->io", a["head.weight"]),
        "head/bias": a["head.bias"],
    }
    for i in range(5):
        t, j = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", norm)):
            found[f"{j}{theirs}/scale"], found[f"{j}{theirs}/bias"] = (
                a[f"{t}{ours}.weight"],
                a[f"{t}{ours}.bias"],
            )
        for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            found[f"{j}{mlp}/{theirs}/kernel"] = np.einsum("oi->io", a[f"{t}mlp.{ours}.weight"])
            found[f"{j}{mlp}/{theirs}/bias"] = a[f"{t}mlp.{ours}.bias"]
        mha = f"{j}MultiHeadDotProductAttention_{attention}"
        D = a[f"{t}attn.proj.bias"].size
        weights = a[f"{t}attn.qkv.weight"].reshape(3, heads, D // heads, D)
        biases = a[f"{t}attn.qkv.bias"].reshape(3, heads, D // heads)
        for n, name in enumerate(("query", "key", "value")):
            found[f"{mha}/{name}/kernel"] = np.einsum("hdi->ihd", weights[n])
            found[f"{mha}/{name}/bias"] = biases[n]
        out = a[f"{t}attn.proj.weight"].reshape(D, heads, D // heads)
        found[f"{mha}/out/kernel"] = np.einsum("ohd->hdo", out)
        found[f"{mha}/out/bias"] = a[f"{t}attn.proj.bias"]
    np.savez(path, **{prefix + k: v for k, v in found.items()})
    return str(path)


def npz_state():
    head = {"head.weight": torch.randn(10, 96), "head.bias": torch.randn(10)}
    return random_state("vit_micro") | head


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize("later", [False, True])
def test_npz(prefix, later, tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    state = npz_state()
    path = write_npz(tmp_path / "w.npz", state, prefix=prefix, later=later)
    raw = read_weights(path, "vit_micro")
    assert_equal(raw, state)
    result = load(raw, "vit_micro")
    assert_equal(result.state, {k: v for k, v in state.items() if not k.startswith("head.")})
    assert sorted(result.skipped) == ["head.bias", "head.weight"]
    if later or prefix != "params/":  # timm knows that prefix with the later numbers only
        model = VisionTransformer(
            img_size=96, patch_size=8, embed_dim=96, depth=5, num_heads=3, num_classes=10
        )
        model.load_pretrained(path)
        assert_equal(model.state_dict(), state)


def test_npz_with_pre_logits(tmp_path):
    state = npz_state()
    path = tmp_path / "w.npz"
    write_npz(path, state)
    extra = {"pre_logits/kernel": np.ones((96, 96), "f4"), "pre_logits/bias": np.ones(96, "f4")}
    np.savez(path, **np.load(path), **extra)
    skipped = load(read_weights(str(path), "vit_micro"), "vit_micro").skipped
    assert sorted(skipped) == ["head.bias", "head.weight", "pre_logits.fc.bias", "pre_logits.fc.weight"]


BLOCK = "Transformer/encoderblock_0/"
BAD_NPZ = {
    "unknown name": (lambda a: a | {"conv_root/kernel": np.ones((7, 7, 3, 64), "f4")}, "conv_root/kernel"),
    "missing": (lambda a: {k: v for k, v in a.items() if k != "cls"}, "cls_token missing"),
    "no value": (
        lambda a: {k: v for k, v in a.items() if "encoderblock_0/Mul" not in k or "value" not in k},
        "blocks.0.attn.qkv.weight missing",
    ),
    "twice": (lambda a: a | {BLOCK + "LayerNorm_1/scale": np.ones(96, "f4")}, "are both blocks.0.norm2."),
    "weight twice": (
        lambda a: a | {"head/scale": np.ones(10, "f4")}, "head.kernel and head.scale are both head.weight",
    ),
    "with and without prefix": (
        lambda a: {f"params/{k}": v for k, v in a.items()} | {"cls": a["cls"]}, "are both cls",
    ),
    "other heads' sizes": (
        lambda a: a | {BLOCK + "MultiHeadDotProductAttention_1/key/kernel": np.ones((96, 3, 31), "f4")},
        "blocks.0.attn.qkv.weight missing",
    ),
    "odd rank": (lambda a: a | {"embedding/kernel": np.ones(5, "f4")}, "patch_embed.proj.weight is (5,)"),
    "integers": (lambda a: a | {"cls": np.ones((1, 1, 96), "i4")}, "cls_token holds torch.int32"),
    "bfloat16": (lambda a: a | {"cls": np.zeros((1, 1, 96), "V2")}, "not a file of weights"),
    "text": (lambda a: a | {"cls": np.array(["a"])}, "not a file of weights"),
    "objects": (lambda a: a | {"cls": np.array([print, {}], object)}, "not a file of weights"),
    "nan": (lambda a: a | {"head/bias": a["head/bias"], "cls": a["cls"] * np.nan}, "cls_token holds nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(case, tmp_path):
    path = tmp_path / "w.npz"
    write_npz(path, npz_state())
    change, words = BAD_NPZ[case]
    np.savez(path, **change(dict(np.load(path))))
    with refused("w.npz: ", words):
        encoder_state(read_weights(str(path), "vit_micro"), "vit_micro", grid=(12, 12), source=path)


# ------------------------------------------------------------------------------------------- bad states


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


def changed(name, value):
    return lambda s: s | {name: value}


W1_W2 = ("mlp.w1", "mlp.w2")
POSITIONS, KERNEL = "pos_embed", "patch_embed.proj.weight"
BAD_STATES = {  # case: (family of the file and, after "as", the one it is given for, change, words)
    "distilled": ("deit", changed("dist_token", torch.ones(96)), ("has a second token; give the plain",)),
    "fewer blocks": (
        "vit", lambda s: {k: v for k, v in s.items() if "blocks.4." not in k},
        ("(blocks.4.norm1.weight missing", "and 9 more", "give plain weights of vit_micro"),
    ),
    "more blocks": (
        "vit", changed("blocks.5.norm1.bias", torch.ones(96)), ("(blocks.5.norm1.bias unexpected)",)
    ),
    "DINOv2 as DeiT": (
        "dinov2 as deit", dict,
        ("(blocks.0.ls1.gamma unexpected", "and 7 more", "give --backbone dinov2_micro"),
    ),
    "EVA-02 as ViT": ("eva02 as vit", dict, ("attn.qkv.bias missing", "give --backbone eva02_micro")),
    "DeiT as EVA-02": (
        "deit as eva02", dict,
        ("mlp.w12.weight is (384, 96), expected (512, 96)", "give --backbone deit_micro or vit_micro"),
    ),
    "registers": (
        "dinov2", changed("register_tokens", torch.ones(1, 4, 96)),
        ("(register_tokens unexpected)", "give plain weights of dinov2_micro"),
    ),
    "norm behind the gate": (
        "eva02", changed("blocks.0.mlp.ffn_ln.bias", torch.ones(256)), ("mlp.ffn_ln.bias unexpected)",)
    ),
    "learned rotation": ("eva02", changed("rope.freqs", torch.ones(16)), ("(rope.freqs unexpected)",)),
    "rotation in a DeiT": ("deit", changed("rope.freqs_cos", torch.ones(9)), ("(rope.freqs_cos unexpected",)),
    "key bias": ("eva02", changed("blocks.1.attn.k_bias", torch.ones(96)), ("1.attn.k_bias not zero)",)),
    "key bias in one": ("eva02", lambda s: with_qkv_bias(s, 1e-3), ("(blocks.0.attn.k_bias not zero",)),
    "biases twice": ("eva02", lambda s: with_qkv_bias(s) | s, ("(blocks.0.attn.qkv.bias unexpected;",)),
    "half a gate": (
        "eva02", lambda s: without(split(s, "mlp.w12", W1_W2), "blocks.0.mlp.w2.bias"),
        ("(blocks.0.mlp.w12.bias missing; blocks.0.mlp.w1.bias unexpected)",),
    ),
    "gate twice": (
        "eva02", lambda s: s | {f"blocks.0.{k}.bias": torch.ones(256) for k in W1_W2},
        ("(blocks.0.mlp.w1.bias unexpected; blocks.0.mlp.w2.bias unexpected)",),
    ),
    "two names": (
        "eva02", changed("blocks.0.mlp.fc2.bias", torch.ones(96)),
        ("blocks.0.mlp.w3.bias and blocks.0.mlp.fc2.bias are both blocks.0.mlp.w3.bias",),
    ),
    "chunks that count apart": (
        "dinov2", lambda s: rename(s, (r"blocks\.(\d)", r"blocks.\1.0")),
        ("blocks.0.0.norm1.weight and blocks.1.0.norm1.weight are both blocks.0.norm1.weight",),
    ),
    "no class position": (
        "vit", lambda s: s | {POSITIONS: s[POSITIONS][:, 1:]},
        ("(pos_embed is (1, 144, 96), expected (1, 1 + n*n, 96))",),
    ),
    "class position alone": (
        "vit", lambda s: s | {POSITIONS: s[POSITIONS][:, :1]}, ("(pos_embed is (1, 1, 96)",)
    ),
    "four sides": ("vit", changed(POSITIONS, torch.ones(1, 10, 96, 2)), ("(pos_embed is (1, 10, 96, 2)",)),
    "grey kernel": (
        "vit", changed(KERNEL, torch.ones(96, 1, 16, 16)),
        ("(patch_embed.proj.weight is (96, 1, 16, 16), expected (96, 3, n, n))",),
    ),
    "oblong kernel": ("vit", changed(KERNEL, torch.ones(96, 3, 16, 8)), ("weight is (96, 3, 16, 8)",)),
    "average of patches": (
        "vit", lambda s: rename(s, (r"^norm\.", "fc_norm.")), ("(norm.weight missing; norm.bias missing)",)
    ),
    "nan": ("deit", changed("norm.bias", torch.full((96,), torch.nan)), ("norm.bias holds nan",)),
    "overflow": (
        "deit", changed("norm.bias", torch.full((96,), 1e300, dtype=torch.float64)), ("holds nan or inf",)
    ),
    "integers": ("deit", changed("norm.bias", torch.ones(96).char()), ("norm.bias holds torch.int8",)),
    "nothing of it": (
        "deit", lambda s: {"conv.weight": torch.ones(3)}, ("(cls_token missing", "64 more", "of deit_micro")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states(case):
    families, change, words = BAD_STATES[case]
    raw = change(random_state(f"{families.split()[0]}_micro"))
    with refused("weights.pth: ", *words):
        load(raw, f"{families.split()[-1]}_micro")


def test_other_sizes_are_answered_with_the_backbones_that_fit():
    with refused("(cls_token is (1, 1, 96), expected (1, 1, 384);", "--backbone deit_micro or vit_micro"):
        load(random_state("deit_micro"), "vit_small_patch16_384")
    raw = {k: torch.zeros(s) for k, s in encoder_shapes("eva02_tiny_patch16_224", 14, 14).items()}
    with refused("(cls_token is (1, 1, 192), expected (1, 1, 96);", "give --backbone eva02_tiny_patch16_224"):
        load(raw, "eva02_micro")


# -------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"module": s, "dp_world_size": 8},
    ],
)
def test_wrappers(wrap, tmp_path):
    state = random_state("deit_micro")
    for name in ("w.pth", "w.pt"):
        torch.save(wrap(state), tmp_path / name)
        assert_equal(read_weights(str(tmp_path / name), "deit_micro"), state)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_truncated_files(kind, tmp_path):
    from safetensors.torch import save_file

    state = npz_state()
    path = tmp_path / f"w.{kind}"
    writers = {"pth": lambda: torch.save(state, path), "safetensors": lambda: save_file(state, path)}
    writers.get(kind, lambda: write_npz(path, state))()
    data = path.read_bytes()
    assert_equal(read_weights(str(path), "vit_micro"), state)
    for keep in (0, 1, 4, 40, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:keep])
        with refused(f"w.{kind}: ", "not a "):
            read_weights(str(path), "vit_micro")
    if kind == "npz":  # its arrays carry checksums
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
        with refused("w.npz: truncated or not"):
            read_weights(str(path), "vit_micro")


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_foreign_npz_is_never_executed(tmp_path):
    path, canary = tmp_path / "w.npz", tmp_path / "executed"
    for writer in (
        lambda: np.savez(path, cls=np.array([Exploit(canary)], object)),
        lambda: path.write_bytes(np.array([Exploit(canary)], object).dumps()),
        lambda: np.save(path.open("wb"), np.ones(3)),
        lambda: path.write_text("no weights here"),
    ):
        writer()
        with refused("w.npz: truncated or not a file of weights"):
            read_weights(str(path), "vit_micro")
    assert not canary.exists()
    np.savez(path)
    with refused("w.npz: ", "cls_token missing"):
        encoder_state(read_weights(str(path), "vit_micro"), "vit_micro", grid=(12, 12), source=path)


def test_hub(monkeypatch):
    import timm

    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        if name == "unreachable":
            raise RuntimeError("no\nnetwork")
        return nn.Linear(2, 3)

    monkeypatch.setattr(timm, "create_model", create_model)
    assert set(read_weights("hub", "eva02_small_patch16_224")) == {"weight", "bias"}
    read_weights("hub", "dinov2_small_patch16_224")
    read_weights("some_name", "deit_micro")
    names = ("eva02_small_patch14_224.mim_in22k", "vit_small_patch14_dinov2.lvd142m", "some_name")
    assert asked == [(name, True) for name in names]
    with refused("--pretrained unreachable: no such file", "(RuntimeError: no network)", "downloaded"):
        read_weights("unreachable", "deit_micro")
    with refused("--pretrained hub: deit_micro has no published weights; give a file"):
        read_weights("hub", "deit_micro")
    for missing in ("missing.npz", "missing.pth", "folder/missing"):
        with refused(f"{missing}: no such file; give --pretrained an existing file"):
            read_weights(missing, "deit_micro")


@pytest.mark.parametrize("backbone", [n for n, b in BACKBONES.items() if b.hub_name])
def test_hub_names_fit_their_backbones(backbone, monkeypatch):
    """timm's network of that name, without its weights, has the tensors that the backbone takes."""
    import timm

    shallow = replace(BACKBONES[backbone], depth=1)
    monkeypatch.setitem(BACKBONES, backbone, shallow)
    raw = timm.create_model(shallow.hub_name.split(".")[0], depth=1).state_dict()
    result = encoder_state(raw, backbone, grid=(14, 14), source="hub")
    assert len(result.loaded) + len(result.resized) == len(encoder_shapes(backbone, 14, 16))
    resized = shallow.image_size != 224 or shallow.family in ("dinov2", "eva02")
    assert bool(result.resized) == resized


# ---------------------------------------------------------------------------------------------- logging


def test_one_line_for_each_group(caplog):
    raw = random_state("dinov2_micro", grid=5, patch=14) | {"mask_token": torch.ones(1, 96)}
    result = load(raw, "dinov2_micro")
    fresh = ["head.weight", "head.bias", *(f"decoder.blocks.{i}.norm1.weight" for i in range(2))]
    with caplog.at_level(logging.INFO):
        log_starting_weights(logging.getLogger("x"), "w.pth", result, fresh)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("starting weights w.pth, loaded: 74 (cls_token, ")
    assert "blocks.*.attn.qkv.weight x5, " in lines[0]
    assert lines[1:] == [
        "starting weights w.pth, resized: 2 (pos_embed 5x5 to 12x12 (bilinear), "
        "patch_embed.proj.weight 14x14 to 8x8 (bicubic))",
        "starting weights w.pth, skipped: 1 (mask_token)",
        "starting weights w.pth, fresh: 4 (head.weight, head.bias, decoder.blocks.*.norm1.weight x2)",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log_starting_weights(logging.getLogger("x"), "w.pth", EncoderState({}, [], [], []), [])
    assert [r.getMessage().split(", ")[1] for r in caplog.records] == [
        "loaded: 0 (none)", "resized: 0 (none)", "skipped: 0 (none)", "fresh: 0 (none)",
    ]  # fmt: skip


def test_shorten():
    assert shorten(["a.0.b", "a.10.b", "c.1", "a.2.d.3.e"]) == "a.*.b x2, c.1, a.*.d.*.e"
