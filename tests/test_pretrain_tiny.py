"""The quick start's starting weights: the training on few pictures, and the file that is committed."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from segmentation.segmenter import build_segmenter
from segmentation.segmenter import start_from_pretrained as start_segmenter
from tests.commands import ROOT
from weaktr.model import build_weaktr
from weaktr.model import start_from_pretrained as start_weaktr
from wsss.config import run_command
from wsss.pretrained import encoder_state, read_weights
from wsss.run import sha256
from wsss.shapes import CLASSES, HUE_BAND, OUTLINES, TEXTURES, Picture

BACKBONE = "vit_micro_patch8_96"
COMMITTED = ROOT / "checkpoints" / f"{BACKBONE}.safetensors"
OPTIONS = ("--pictures", 8, "--steps", 5, "--batch-size", 3, "--workers", 0)


@pytest.fixture(scope="module")
def module():
    """scripts/pretrain_tiny.py, with few pictures to evaluate on and short distances between saves."""
    spec = importlib.util.spec_from_file_location("pretrain_tiny", ROOT / "scripts" / "pretrain_tiny.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_tiny"] = found
    spec.loader.exec_module(found)
    found.HELD_OUT, found.SAVE_EVERY, found.WARMUP_STEPS = 5, 2, 2
    yield found
    del sys.modules["pretrain_tiny"]


def pretrain(module, output: Path, *options) -> dict[str, torch.Tensor]:
    arguments = ["--output", output, *OPTIONS, *options]
    run_command(module.main, module.Config, list(map(str, arguments)), prog="pretrain_tiny.py")
    return read_weights(str(output), BACKBONE)


@pytest.fixture(scope="module")
def weights(module, tmp_path_factory) -> Path:
    """A file of five steps. Read only."""
    path = tmp_path_factory.mktemp("weights") / "new" / "weights.safetensors"
    pretrain(module, path)
    return path


# ------------------------------------------------------------------------------------------------ samples


def test_shares_are_counted_pixels(module, monkeypatch):
    """A drawing of known places: the window, and each patch's pixels one by one."""
    rng = np.random.default_rng(0)
    drawn = []

    def known(kinds, generator, *, radius):
        size = (101, 118)
        places = np.kron(rng.integers(0, len(kinds) + 1, (11, 12)), np.ones((10, 10), int))[
            : size[0], : size[1]
        ]
        image = np.stack([*np.mgrid[: size[0], : size[1]], places], 2).astype(np.uint8)
        drawn.append(([module.HUES.index(kind.hue) for kind in kinds], radius))
        return Picture(image, places.astype(np.uint8))

    monkeypatch.setattr(module, "draw", known)
    corners = set()
    for number in range(12):
        image, shares = module.draw_sample(number, seed=3)
        bands, radius = drawn[-1]
        assert image.shape == (96, 96, 3) and shares.shape == (7, 12, 12) and shares.dtype == np.float32
        assert radius == module.RADIUS and len(set(bands)) == len(bands)
        corners.add(tuple(image[0, 0, :2].tolist()))
        assert image[95, 95, :2].tolist() == (image[0, 0, :2] + 95).tolist()
        for row in range(12):
            for column in range(12):
                counts = [0] * 7
                for place in image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8, 2].ravel():
                    counts[bands[place - 1] + 1 if place else 0] += 1
                assert shares[:, row, column].tolist() == [count / 64 for count in counts]
    assert len(corners) > 6 and max(c[0] for c in corners) <= 5 and max(c[1] for c in corners) <= 22


def test_objects_have_any_outline_and_texture_and_hues_between_the_classes(module, monkeypatch):
    kinds = []

    def record(found, rng, *, radius):
        kinds.append(found)
        return Picture(np.zeros((96, 96, 3), np.uint8), np.zeros((96, 96), np.uint8))

    monkeypatch.setattr(module, "draw", record)
    for number in range(600):
        module.draw_sample(number, seed=0)
    counts = np.bincount([len(found) for found in kinds], minlength=4)[1:] / 600
    assert np.abs(counts - (0.6, 0.3, 0.1)).max() < 0.06
    combinations = {(kind.outline, kind.texture) for found in kinds for kind in found}
    assert combinations == {(a, b) for a in OUTLINES for b in TEXTURES}
    hues = {kind.hue for found in kinds for kind in found}
    assert hues == set(module.HUES) and len(hues) == 6
    for hue in hues:  # bands do not touch those of the data set
        assert all(abs((hue - kind.hue + 0.5) % 1 - 0.5) > 1.5 * HUE_BAND for kind in CLASSES.values())


def test_samples_are_functions_of_seed_and_number(module):
    first, again = module.draw_sample(4, seed=1), module.draw_sample(4, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for number, seed in ((5, 1), (4, 2)):
        assert not np.array_equal(first[0], module.draw_sample(number, seed=seed)[0])
    config = module.Config(output=Path("x"), workers=2, seed=1)
    images, shares = module.draw_samples(5, config)
    assert np.array_equal(images[4].numpy(), first[0]) and np.array_equal(shares[4].numpy(), first[1])


@pytest.mark.parametrize("turns", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_pictures_and_shares_turn_together(module, turns):
    """Bands are painted in a colour each: after any turn each patch still has its band's."""
    bands = np.random.default_rng(1).integers(0, 7, (2, 12, 12))
    images = np.kron((bands * 30).astype(np.uint8), np.ones((1, 8, 8), np.uint8))[..., None].repeat(3, 3)
    shares = (np.arange(7)[:, None, None] == bands[:, None]).astype(np.float32)
    indices = torch.tensor([1, 0])
    x, y = module.make_batch(torch.from_numpy(images), torch.from_numpy(shares), indices, torch.tensor(turns))
    assert x.shape == (2, 3, 96, 96) and y.shape == (2, 7, 144)
    painted = torch.round((x[:, 0, 4::8, 4::8] * 0.5 + 0.5) * 255 / 30).long()
    assert torch.equal(painted.flatten(1), y.argmax(1))
    plain = torch.from_numpy(bands)[indices]
    assert torch.equal(painted, plain) == (not any(turns))


def test_loss_of_perfect_and_of_blind_answers(module):
    """Two patches of band 0 and 2, one half background: binary and soft cross-entropy, by hand."""
    shares = torch.zeros(1, 7, 4)
    shares[0, 0] = torch.tensor([1, 0, 0, 0.5])
    shares[0, 1, 1], shares[0, 3, 2], shares[0, 3, 3] = 1, 1, 0.5
    blind = lambda x: (torch.zeros(1, 6), torch.zeros(1, 7, 4))  # noqa: E731
    assert module.loss_of(blind, None, shares).item() == pytest.approx(np.log(2) + np.log(7), rel=1e-5)
    picture = torch.tensor([[50.0, -50, 50, -50, -50, -50]])
    perfect = lambda x: (picture, torch.log(shares + 1e-12))  # noqa: E731
    assert module.loss_of(perfect, None, shares).item() == pytest.approx(np.log(2) / 4, rel=1e-4)


def test_loss_from_image_labels_alone(module):
    """The mean over patches of each band's logit, background's left out, answers for the picture."""
    shares = torch.zeros(1, 7, 4)
    shares[0, 0, :2], shares[0, 3, 2:] = 1, 1  # band 2 on half of the patches
    patches = torch.zeros(1, 7, 4)
    patches[0, 0], patches[0, 3], patches[0, 5] = 9, torch.tensor([0.0, 2, 4, 6]), 1
    model = lambda x: (torch.zeros(1, 6), patches)  # noqa: E731
    right, wrong = np.log1p(np.exp(-3)), np.log1p(np.exp(1))  # means of 3 and 1
    expected = np.log(2) + (4 * np.log(2) + right + wrong) / 6
    assert module.loss_of(model, None, shares, False).item() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------- training


def test_the_file_starts_both_stages(weights):
    raw = read_weights(str(weights), BACKBONE)
    assert not any("_head." in name for name in raw) and all(torch.isfinite(v).all() for v in raw.values())
    found = encoder_state(raw, BACKBONE, grid=(12, 12), source=weights)
    assert sorted(found.loaded) == sorted(raw) and not found.resized and not found.skipped
    stage1 = build_weaktr(BACKBONE, num_classes=6, image_size=96)
    start_weaktr(stage1, raw, weights)
    stage2 = build_segmenter(BACKBONE, num_classes=7, image_size=96)
    start_segmenter(stage2, str(weights))
    for name, value in raw.items():
        assert torch.equal(stage2.encoder.state_dict()[name], value)
        if name not in ("cls_token", "pos_embed"):
            assert torch.equal(stage1.state_dict()[name], value)
    assert stage1.cls_token.shape[1] == 6 and torch.equal(stage1.cls_token[:, 5:], raw["cls_token"])
    assert torch.equal(stage1.pos_embed[:, 6:], raw["pos_embed"][:, 1:])


def test_training_moves_every_tensor(module, weights):
    torch.manual_seed(504)
    start = module.PretrainedViT().state_dict()
    trained = read_weights(str(weights), BACKBONE)
    assert all(not torch.equal(trained[name], start[name]) for name in trained)


def test_training_without_patch_labels_is_another(module, weights, tmp_path):
    found = pretrain(module, tmp_path / "weights.safetensors", "--no-patch-labels")
    expected = read_weights(str(weights), BACKBONE)
    assert not torch.equal(found["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"])


def test_stopped_and_continued_equals_uninterrupted(module, weights, tmp_path, monkeypatch):
    path, steps, loss_of = tmp_path / "weights.safetensors", [], module.loss_of

    def counted(*arguments):
        steps.append(1)
        if len(steps) == 4:  # the fourth step, two after the save
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(module, "loss_of", counted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(module, path)
    assert len(steps) == 4 and not path.exists()
    assert torch.load(tmp_path / ".weights.safetensors.unfinished.pth", weights_only=True)["step"] == 2
    found = pretrain(module, path)
    assert len(steps) == 4 + 3  # steps 2, 3 and 4
    expected = read_weights(str(weights), BACKBONE)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_unfinished_training_of_other_options_is_named(module, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.safetensors"
    unfinished = module.unfinished_path(module.Config(output=path))
    module.save_checkpoint(unfinished, {"options": {"seed": 1}, "step": 2})
    with pytest.raises(SystemExit) as stop:
        pretrain(module, path)
    line = capsys.readouterr().err.strip().split("\n")[-1]
    assert (
        stop.value.code == 2 and line.startswith("error: ") and unfinished.name in line and "delete" in line
    )


def test_evaluation_counts_right_answers(module):
    """Answers that are right on all patches of background and wrong on all others, and on one band of six."""
    images = torch.zeros(5, 96, 96, 3, dtype=torch.uint8)
    shares = torch.zeros(5, 7, 12, 12)
    shares[:, 0], shares[:, 0, :6], shares[:, 3, :6] = 1, 0, 1

    class Answers(torch.nn.Module):
        def forward(self, x):
            bands = torch.tensor([[-1.0, -1, -1, -1, -1, -1]]).expand(len(x), -1)
            patches = torch.zeros(len(x), 7, 144)
            patches[:, 0] = 1
            return bands, patches

    found = module.evaluate(Answers(), images, shares)
    assert found["bands"] == pytest.approx(5 / 6)
    assert found["object patches"] == 0 and found["background patches"] == 1


# ------------------------------------------------------------------------------------ the committed file


def test_the_committed_file_is_the_one_described():
    if not COMMITTED.is_file():
        pytest.skip(f"{COMMITTED} is not there")
    written = re.findall(r"\b[0-9a-f]{64}\b", (ROOT / "checkpoints" / "README.md").read_text(encoding="utf8"))
    assert sha256(COMMITTED) in written
    assert COMMITTED.stat().st_size < 4_000_000
    raw = read_weights(str(COMMITTED), BACKBONE)
    assert len(encoder_state(raw, BACKBONE, grid=(12, 12), source=COMMITTED).loaded) == len(raw)
