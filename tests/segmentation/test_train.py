"""segmentation.train: schedule, groups, processes, clipping's statistics, selection, runs without masks."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.train as command
from segmentation.engine import Tally, train_steps
from segmentation.segmenter import build_segmenter, load_segmenter
from tests.commands import argv, error_line, finish, run_here
from tests.conftest import SEGMENTER_OPTIONS
from wsss.checkpoint import load_checkpoint
from wsss.datasets import load_dataset
from wsss.optim import polynomial_rate


def _records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_published_rates():
    """264,600 steps of VOC: first, middle, last."""
    rates = [polynomial_rate(i, peak=1e-4, floor=1e-5, steps=264_600) for i in (0, 132_300, 264_599)]
    np.testing.assert_allclose(rates, [1e-4, 1e-5 + 9e-5 * 0.5**0.9, 1e-5 + 9e-5 * (1 / 264_600) ** 0.9])


def test_defaults_are_the_published_recipe(miniature, tmp_path):
    config = command.Config(data_path=miniature, output_dir=tmp_path)
    plan = command.make_plan(config, load_dataset("folder", miniature), torch.device("cpu"))
    assert plan.steps == 100 * 4 and plan.eval_every == 4  # 16 pictures in batches of 4
    assert (plan.protocol.short_side, plan.protocol.window, plan.protocol.stride) == (520, 480, 320)
    assert plan.protocol.scales == (1.0,) and not plan.protocol.flip
    assert (plan.clipping.start, plan.clipping.patch, plan.clipping.scope) == (1.2, 120, "global")
    assert (config.lr, config.min_lr, config.encoder_lr_scale, config.momentum) == (1e-4, 1e-5, 0.1, 0.9)
    assert (config.batch_size, config.weight_decay, config.drop_path, config.dropout) == (4, 0, 0.1, 0.1)


def test_groups_hold_every_parameter_that_is_trained_once():
    model = build_segmenter("vit_micro_patch8_96", num_classes=4, image_size=96)
    encoder, decoder = command.parameter_groups(model, 0.1)
    assert (encoder["lr_scale"], decoder["lr_scale"]) == (0.1, 1.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)] for p in decoder["params"]} == {
        n for n in names.values() if n.startswith("decoder.")
    }
    trained = {names[id(p)] for p in encoder["params"] + decoder["params"]}
    assert set(names.values()) - trained == {"encoder.head.weight", "encoder.head.bias"}


@pytest.mark.parametrize(
    ("first", "steps", "eval_every", "save_every", "ends"),
    [
        (0, 10, 4, 3, [3, 4, 6, 8, 9, 10]),
        (6, 10, 4, 3, [8, 9, 10]),
        (0, 5, 100, 100, [5]),
        (10, 10, 4, 3, []),
    ],
)
def test_sections_end_where_something_is_saved(first, steps, eval_every, save_every, ends):
    class Plan:
        pass

    plan = Plan()
    plan.steps, plan.eval_every = steps, eval_every
    found = command.sections(first, plan, save_every)
    assert [r.stop for r in found] == ends
    assert [i for r in found for i in r] == list(range(first, steps))


def test_tally_counts_clipping():
    """Two processes' parts of one step, added up, give the step's true means."""
    plain = torch.tensor([[[4.0, 1.0], [0.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]])
    used = plain.clamp(max=2.0)
    masks = torch.tensor([[[0, 1], [255, 1]], [[0, 0], [0, 0]]])
    parts = [Tally(torch.device("cpu")) for _ in range(2)]
    for i, part in enumerate(parts):
        part.add(plain[i : i + 1], used[i : i + 1], masks[i : i + 1], pixels=8)
    parts[0].sums += parts[1].sums
    means = parts[0].means(processes=2)
    assert means == {
        "loss": pytest.approx(14 / 8), "clipped_loss": pytest.approx(12 / 8),
        "clipped_pixels": pytest.approx(1 / 7), "clipping_steps": 0.5,
    }  # fmt: skip


def test_what_a_training_leaves(segmenter, miniature):
    records = _records(segmenter)
    assert [r["step"] for r in records] == [3, 4, 6, 8]
    assert [("val_miou" in r) for r in records] == [False, True, False, True]
    rate = [polynomial_rate(r["step"] - 1, peak=0.05, floor=1e-5, steps=8) for r in records]
    assert [r["lr"] for r in records] == pytest.approx(rate)
    assert records[-1]["loss"] < records[0]["loss"]
    last, best = (load_checkpoint(segmenter / f"{name}.pth") for name in ("last", "best"))
    scores = {r["step"]: r["val_miou"] for r in records if "val_miou" in r}
    step = max(scores, key=scores.get)
    expected = {
        "step": step,
        "epoch": step / 4,
        "score": scores[step],
        "measure": "val_miou",
        "split": "val",
        "every": 1,
    }
    assert last["best"] == best["best"] == expected and best["step"] == step
    assert last["step"] == 8 and "optimizer" in last and "optimizer" not in best
    assert last["class_names"] == ["disc", "square", "triangle"]
    model, entries = load_segmenter(segmenter / "best.pth")
    assert (model.backbone, model.num_classes, model.image_size) == ("vit_micro_patch8_96", 4, 64)
    assert entries["preprocessing"]["short_side"] == 72 and entries["preprocessing"]["window"] == 64
    assert any((segmenter / "tensorboard").iterdir())


def test_the_score_of_training_is_that_of_predict(segmenter, miniature, tmp_path):
    options = ("--data-path", miniature, "--checkpoint", segmenter / "last.pth", "--workers", 0)
    run_here("segmentation.predict", *options, "--output-dir", tmp_path / "val")
    score = json.loads((tmp_path / "val" / "score.json").read_text())
    assert score["mean_iou"] == pytest.approx(_records(segmenter)[-1]["val_miou"], abs=1e-12)


@pytest.mark.parametrize("scope", ["global", "process"])
def test_processes_agree(scope, miniature, tmp_path):
    """With an incomplete last batch: 16 pictures in batches of 6. Statistics of each process differ from the
    global ones, so that scope is tried where nothing is clipped."""
    losses = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        clipping = (
            ("--clip-start", 100) if scope == "global" else ("--clip-scope", "process", "--clip-start", 1e-6)
        )
        finish(*argv(
            "segmentation.train", "--data-path", miniature, "--output-dir", folder, *SEGMENTER_OPTIONS,
            *clipping, "--dropout", 0, "--drop-path", 0, "--batch-size", 6, "--iterations", 6,
            "--save-every", 1, "--eval-every", 6, "--overlays", 0, processes=processes,
        ))  # fmt: skip
        losses[processes] = [(r["loss"], r["clipped_loss"], r["clipped_pixels"]) for r in _records(folder)]
    assert len(losses[1]) == 6
    if scope == "global":
        assert all(r[2] > 0.1 for r in losses[1])  # clipping acts
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)


def test_a_process_without_a_sample_adds_nothing(miniature, tmp_path):
    train_list = tmp_path / "five.txt"
    train_list.write_text(
        "".join(f"{line}\n" for line in (miniature / "train.txt").read_text().splitlines()[:5])
    )
    losses = {}
    for processes in (1, 2):
        finish(*argv(
            "segmentation.train", "--data-path", miniature, "--output-dir", tmp_path / str(processes),
            *SEGMENTER_OPTIONS, "--train-split", train_list, "--dropout", 0, "--drop-path", 0,
            "--batch-size", 4, "--iterations", 4, "--save-every", 1, "--clip-start", 100, "--overlays", 0,
            processes=processes,
        ))  # fmt: skip
        losses[processes] = [
            (r["loss"], r["clipped_loss"], r["clipped_pixels"]) for r in _records(tmp_path / str(processes))
        ]
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)


def test_without_true_masks_the_last_is_the_result(miniature, miniature_without_masks, tmp_path, capsys):
    options = ("--data-path", miniature_without_masks, "--mask-dir", miniature / "masks")
    run_here("segmentation.train", *options, "--output-dir", tmp_path / "out", *SEGMENTER_OPTIONS)
    assert (tmp_path / "out" / "last.pth").is_file() and not (tmp_path / "out" / "best.pth").exists()
    assert load_checkpoint(tmp_path / "out" / "last.pth")["best"] is None
    printed = capsys.readouterr().out
    assert "no masks to evaluate on" in printed and "last.pth --split val" in printed


def test_no_clipping_is_plain_cross_entropy(miniature, tmp_path):
    options = ("--data-path", miniature, *SEGMENTER_OPTIONS, "--iterations", 3, "--overlays", 0)
    run_here("segmentation.train", *options, "--output-dir", tmp_path / "none", "--no-gradient-clipping")
    run_here("segmentation.train", *options, "--output-dir", tmp_path / "never", "--clip-start", 1e-9)
    run_here("segmentation.train", *options, "--output-dir", tmp_path / "always", "--clip-start", 100)
    none, never, always = (_records(tmp_path / name)[-1] for name in ("none", "never", "always"))
    assert none["loss"] == none["clipped_loss"] == never["loss"] and none["clipping_steps"] == 0
    assert always["clipping_steps"] == 1 and always["clipped_loss"] < always["loss"]
    assert always["loss"] != none["loss"]


def test_nothing_labelled_in_a_picture_is_no_nan(miniature, tmp_path):
    data = shutil.copytree(miniature, tmp_path / "data")
    for name in ("mini_000", "mini_001"):
        path = data / "masks" / f"{name}.png"
        Image.new("L", Image.open(path).size, 255).save(path)
    (data / "two.txt").write_text("mini_000\nmini_001\nmini_002\n")
    run_here(
        "segmentation.train", "--data-path", data, "--output-dir", tmp_path / "out", *SEGMENTER_OPTIONS,
        "--train-split", "two", "--batch-size", 1, "--iterations", 6, "--save-every", 1,
    )  # fmt: skip
    losses = [r["loss"] for r in _records(tmp_path / "out")]
    assert np.isfinite(losses).all() and losses.count(0.0) == 4


def test_a_loss_that_is_not_finite_names_the_pictures(miniature, tmp_path, capsys):
    line = error_line(
        capsys, "segmentation.train", "--data-path", miniature, "--output-dir", tmp_path / "out",
        *SEGMENTER_OPTIONS, "--lr", 1e30, "--save-every", 1,
    )  # fmt: skip
    assert "not finite" in line or "loss is nan" in line
    assert "mini" in line and "--lr" in line
    assert train_steps.__doc__
