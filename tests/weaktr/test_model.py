"""The network against its plain form, the published outputs, and its contract."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.weaktr.oracle import plain_forward
from weaktr.aaf import AdaptiveAttentionFusion, apply_patch_attention, mean_patch_attention
from weaktr.model import _infer_arguments, build_weaktr, load_weaktr, start_from_pretrained, weaktr_loss
from wsss.checkpoint import save_checkpoint
from wsss.errors import UserError

LIMIT = 2e-4  # of the largest absolute value: what the recorded cases are compared with


def micro(seed=0, num_classes=3, **options):
    """A small network with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    model = build_weaktr(
        "vit_micro_patch8_96", num_classes=num_classes, reduction=3, image_size=96, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.2 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def pictures(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def assert_close(found, expected, limit=LIMIT):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("pool", ["max", "avg", "random"])
@pytest.mark.parametrize("size", [(96, 96), (100, 75), (72, 128), (43, 130)])
def test_equals_the_plain_form(pool, size):
    model = micro(pool=pool)
    images = pictures(2, 3, *size)
    with torch.no_grad():
        expected = plain_forward(model, images, pool=pool)
        for name, value in model(images)._asdict().items():
            assert_close(value, expected[name])
    found = model.cams(images)
    assert_close(found.cams, expected["cams"])
    assert_close(found.fine_cams, expected["fine_cams"])
    assert_close(found.class_logits, expected["class_logits"])
    assert_close(found.head_weights.flatten(1), expected["head_weights"])


@pytest.mark.parametrize("attention", ["fused", "coarse", "cross"])
def test_variants_and_chosen_classes(attention):
    model = micro()
    images = pictures(1, 3, 90, 110)
    with torch.no_grad():
        expected = plain_forward(model, images, attention=attention)
    found = model.cams(images, attention)
    assert_close(found.cams, expected["cams"])
    assert_close(found.fine_cams, expected["fine_cams"])
    some = model.cams(images, attention, class_ids=[2, 0])
    assert_close(some.cams, expected["cams"][:, [2, 0]])
    assert_close(some.fine_cams, expected["fine_cams"][:, [2, 0]])


def test_more_classes_than_head_channels():
    """90 classes, heads 32 wide: queries and keys are padded, not the values cut."""
    model = micro(num_classes=90, pool="avg")
    images = pictures(1, 3, 96, 80)
    with torch.no_grad():
        expected = plain_forward(model, images, pool="avg")
        assert_close(model(images).fine_logits, expected["fine_logits"])
    assert_close(model.cams(images).fine_cams, expected["fine_cams"])


def test_losses_and_every_gradient_equal_the_plain_form():
    model = micro()
    images, targets = pictures(3, 3, 96, 96), torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    losses = weaktr_loss(model(images), targets)
    losses["loss"].backward()
    found = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    plain = plain_forward(model, images)
    expected = sum(
        -(targets * F.logsigmoid(z) + (1 - targets) * F.logsigmoid(-z)).mean()
        for z in (plain["class_logits"], plain["coarse_logits"], plain["fine_logits"])
    )
    expected.backward()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["class"] + losses["coarse"] + losses["fine"] == losses["loss"]
    for name, parameter in model.named_parameters():
        if name.startswith("norm."):
            assert found[name] is None and parameter.grad is None
        else:
            assert parameter.grad.abs().max() > 0, name
            assert_close(found[name], parameter.grad)


def test_mean_patch_attention_is_the_average_of_applying_it():
    model = micro()
    _, _, records = model.encode(pictures(2, 3, 96, 104))
    weights = torch.rand(2, 3, 5)
    maps = torch.rand(2, 3, 12 * 13)
    refined = apply_patch_attention(records, weights, maps, 3)
    for rows in (7, 64, 1000):
        mean = torch.einsum("bhl,bhlp->bp", weights, mean_patch_attention(records, 3, rows)) / 15
        assert_close(torch.einsum("bp,bcp->bc", mean, maps), refined.mean(2), 1e-5)


class LargestSquare(TorchDispatchMode):
    """Records the largest min(last two sides) of any tensor an operator returns."""

    def __init__(self):
        super().__init__()
        self.side = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim >= 3:
                self.side = max(self.side, min(tensor.shape[-2:]))
        return result


def test_no_attention_matrix_is_formed():
    """Neither in generation nor in training, backward included, does an operator return N x N values."""
    model = micro()
    images = pictures(1, 3, 160, 168)  # N = 20 * 21 + 3 = 423
    with LargestSquare() as generation:
        model.cams(images, class_ids=[1])
    model.train()
    with LargestSquare() as training:
        weaktr_loss(model(images), torch.ones(1, 3))["loss"].backward()
    # widest legitimate tensors: tokens x MLP width, and pictures
    widest = 4 * 96
    assert 0 < generation.side <= widest < 420
    assert 0 < training.side <= widest
    with LargestSquare() as plain, torch.no_grad():
        plain_forward(model, images)
    assert plain.side >= 420  # the detector sees what it is looking for


def test_positions_unchanged_only_for_the_square_training_grid():
    model = micro()
    assert model.positions((96, 96), (12, 12)) is model.pos_embed
    assert model.positions((103, 103), (12, 12)) is model.pos_embed  # floor-cropped to the same grid
    assert not torch.equal(model.positions((96, 100), (12, 12)), model.pos_embed)
    assert not torch.equal(model.positions((72, 128), (9, 16)), model.pos_embed)


def test_batch_of_two_equals_two_singles():
    model = micro()
    images = pictures(2, 3, 96, 88)
    both = model.cams(images).fine_cams
    for i in range(2):
        assert_close(both[i : i + 1], model.cams(images[i : i + 1]).fine_cams, 1e-5)


def test_bfloat16_training_pass_is_close_and_its_losses_are_float32():
    model = micro()
    images, targets = pictures(2, 3, 96, 96), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    exact = weaktr_loss(model(images), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = weaktr_loss(model(images), targets)
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)


def test_unknown_options_are_refused():
    model = micro()
    with pytest.raises(ValueError, match="coars"):
        model.cams(pictures(1, 3, 96, 96), "coars")
    with pytest.raises(ValueError, match="median"):
        build_weaktr("vit_micro_patch8_96", num_classes=3, pool="median")
    with pytest.raises(UserError, match="vit_micro_patch8_96"):  # the known names are listed
        build_weaktr("resnet50", num_classes=3)


def imagenet_state(model):
    """A state dict under timm's names: one class token, 1000-class head, a 14 x 14 grid."""
    state = {
        k: v.clone()
        for k, v in model.state_dict().items()
        if not k.startswith(("head.", "adaptive_attention_fusion."))
    }
    width = model.embed_dim
    state |= {"cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 1 + 14 * 14, width)}
    return state | {"head.weight": torch.zeros(1000, width), "head.bias": torch.zeros(1000)}


def test_start_from_pretrained():
    model = micro(seed=1)
    state = imagenet_state(micro(seed=2))
    fresh = model.head.weight.clone()
    start_from_pretrained(model, state, "weights.pth")
    for c in range(3):
        assert torch.equal(model.cls_token[:, c], state["cls_token"][:, 0])
        assert torch.equal(model.pos_embed[:, c], state["pos_embed"][:, 0])
    grid = state["pos_embed"][:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(12, 12), mode="bicubic", align_corners=False)
    assert torch.equal(model.pos_embed[:, 3:], grid.flatten(2).transpose(1, 2))
    assert torch.equal(model.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    assert torch.equal(model.head.weight, fresh)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_start_from_pretrained_accounts_for_every_tensor(change):
    model = micro()
    state = imagenet_state(model)
    if change == "missing":
        del state["blocks.4.norm1.bias"]
    elif change == "unexpected":
        state["blocks.4.ls1.gamma"] = torch.ones(96)
    else:
        state["blocks.4.norm1.bias"] = torch.ones(95)
    with pytest.raises(UserError, match=r"weights.pth.*blocks\.4\.(norm1\.bias|ls1)"):
        start_from_pretrained(model, state, "weights.pth")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_checkpoint_rebuilds_its_network_alone(tmp_path, wrapped):
    """With its settings inside, and a bare published one, whose settings follow from its shapes."""
    model = micro(num_classes=5)
    arguments = {"backbone": "vit_micro_patch8_96", "num_classes": 5, "reduction": 3, "image_size": 96}
    content = {"model": model.state_dict(), "model_args": arguments} if wrapped else model.state_dict()
    save_checkpoint(tmp_path / "a.pth", content)
    loaded, _ = load_weaktr(tmp_path / "a.pth")
    images = pictures(1, 3, 96, 96)
    assert torch.equal(loaded.cams(images).fine_cams, model.cams(images).fine_cams)
    assert loaded.pixel_mean == model.pixel_mean


def bare_state(total, hidden, feat_hidden=4):
    """What of a released checkpoint tells its settings, for 12 blocks as wide as DeiT-Ti, -S or -B."""
    width = total // 12 * 64
    state = {f"blocks.{i}.norm1.weight": torch.empty(width) for i in range(12)}
    state |= {"cls_token": torch.empty(1, 3, width), "pos_embed": torch.empty(1, 3 + 14 * 14, width)}
    fusion = "adaptive_attention_fusion."
    return state | {
        "patch_embed.proj.weight": torch.empty(width, 3, 16, 16),
        fusion + "attn_head_ffn.0.weight": torch.empty(hidden, total),
        fusion + "attn_feat_ffn.0.weight": torch.empty(feat_hidden, 64),
    }


@pytest.mark.parametrize("total", [36, 72, 144])
def test_every_bottleneck_is_inferred_exactly(total):
    with torch.device("meta"):
        for hidden in range(1, total + 1):
            reduction = _infer_arguments(bare_state(total, hidden), "a.pth", None, "max")["reduction"]
            sizes = {"depth": 12, "num_heads": total // 12, "head_dim": 64, "feat_reduction": 8}
            fusion = AdaptiveAttentionFusion(**sizes, reduction=reduction, pool="max")
            assert fusion.attn_head_ffn[0].weight.shape == (hidden, total)
        for feat_reduction in range(1, 65):
            state = bare_state(total, 9, 64 // feat_reduction)
            found = _infer_arguments(state, "a.pth", None, "max")["feat_reduction"]
            assert 64 // found == 64 // feat_reduction


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": 0}, "--reduction: give above 0 and at most 15 .*, got 0"),
        ({"reduction": -1}, "--reduction: .* got -1"),
        ({"reduction": 16}, "--reduction: .* got 16"),
        ({"feat_reduction": 33}, "--feat-reduction: give above 0 and at most 32 .*, got 33"),
        ({"feat_reduction": 0}, "--feat-reduction: .* got 0"),
    ],
)
def test_reductions_that_leave_no_unit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build_weaktr("vit_micro_patch8_96", num_classes=3, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3, "depth": 4}, "unexpected keyword argument 'depth'"),
        ({"reduction": 8}, "missing a required argument: 'num_classes'"),
        ([3], "mapping"),
    ],
)
def test_foreign_settings_in_a_checkpoint_name_the_file(tmp_path, arguments, message):
    content = {"model": {"cls_token": torch.zeros(1, 3, 96)}, "model_args": arguments}
    save_checkpoint(tmp_path / "a.pth", content)
    with pytest.raises(UserError, match=rf"a\.pth: its model_args .*{message}"):
        load_weaktr(tmp_path / "a.pth")


def test_published_names_and_shapes():
    """158 tensors for DeiT-S; a hand-kept selection, so that nobody renames a parameter by accident."""
    with torch.device("meta"):
        state = build_weaktr("deit_small_patch16_224", num_classes=20).state_dict()
    assert len(state) == 158
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    fusion = "adaptive_attention_fusion."
    expected = {
        "cls_token": (1, 20, 384), "pos_embed": (1, 216, 384), "patch_embed.proj.weight": (384, 3, 16, 16),
        "blocks.11.attn.qkv.bias": (1152,), "blocks.0.mlp.fc1.weight": (1536, 384), "norm.weight": (384,),
        "head.weight": (20, 384, 3, 3), fusion + "attn_head_ffn.0.weight": (9, 72),
        fusion + "attn_head_ffn.2.weight": (72, 9), fusion + "attn_feat_ffn.0.weight": (8, 64),
        fusion + "attn_feat_ffn.0.bias": (8,), fusion + "attn_feat_ffn.1.weight": (1, 8),
    }  # fmt: skip
    assert {k: shapes[k] for k in expected} == expected
    assert fusion + "attn_head_ffn.0.bias" not in shapes


def test_recorded_outputs_of_the_published_code(recorded):
    sys.path.insert(0, str(recorded))
    try:
        from rule import fill, images
    finally:
        sys.path.pop(0)
    cases = np.load(recorded / "cases.npz")
    model = build_weaktr("deit_small_patch16_224", num_classes=20, reduction=8, pool="max")
    names = [f"{k} {tuple(v.shape)}" for k, v in model.state_dict().items()]
    assert len(names) == len(cases["stage1/state_keys"])
    fill(model).eval()
    pictures_ = images(1, 2, 3, 224, 224)
    with torch.no_grad():
        logits = model(pictures_)
    for name, value in zip(("cls", "coarse", "fine_pred"), logits, strict=True):
        assert_close(value, torch.from_numpy(cases[f"stage1/voc224_{name}"]))
    found = model.cams(pictures_)
    for name, value in (("cams", found.cams), ("fine", found.fine_cams)):
        expected = cases[f"stage1/voc224_{name}"]
        flat = value.flatten().numpy()
        samples = flat[np.linspace(0, flat.size - 1, len(expected) - 4).astype(int)]
        assert flat.size == expected[0]
        found_summary = np.concatenate([[flat.mean(), flat.std(), np.abs(flat).max()], samples])
        assert np.abs(found_summary - expected[1:]).max() <= LIMIT * expected[3]
