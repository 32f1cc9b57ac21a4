"""segmentation.train: schedule, groups, processes, clipping's statistics, selection, runs without masks."""

import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.train as command
from segmentation.engine import Tally, count_step
from segmentation.segmenter import build_segmenter, load_segmenter
from tests.commands import ROOT, argv, error_line, finish, run_here, run_process
from tests.conftest import SEGMENTER_OPTIONS
from wsss.checkpoint import load_checkpoint
from wsss.config import parse
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
        part.sums += count_step(plain[i : i + 1], used[i : i + 1], masks[i : i + 1], pixels=8)
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


def _losses(miniature, folder, *options, processes=1):
    finish(*argv(
        "segmentation.train", "--data-path", miniature, "--output-dir", folder, *SEGMENTER_OPTIONS,
        "--dropout", 0, "--drop-path", 0, "--save-every", 1, "--eval-every", 100, "--overlays", 0, *options,
        processes=processes,
    ))  # fmt: skip
    return np.array([(r["loss"], r["clipped_loss"], r["clipped_pixels"]) for r in _records(folder)])


def test_processes_agree(miniature, tmp_path):
    """Clipping acts, and the last batch of an epoch is incomplete: 16 pictures in batches of 6."""
    options = ("--clip-start", 100, "--batch-size", 6, "--iterations", 5)
    one, two = (_losses(miniature, tmp_path / str(n), *options, processes=n) for n in (1, 2))
    assert len(one) == 5 and (one[:, 2] > 0.1).all()
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_each_process_may_have_its_own_statistics(miniature, tmp_path):
    """The published form: the first step's loss before clipping is the same, after clipping it is not."""
    options = ("--clip-start", 100, "--iterations", 1)
    own = _losses(miniature, tmp_path / "own", *options, "--clip-scope", "process", processes=2)
    whole = _losses(miniature, tmp_path / "whole", *options)
    assert own[0, 0] == pytest.approx(whole[0, 0], rel=1e-5)
    assert abs(own[0, 1] - whole[0, 1]) > 1e-4


def test_a_process_without_a_sample_adds_nothing(miniature, tmp_path):
    """Five pictures in batches of 4: the second batch has one, for two processes. And batches of 1."""
    train_list = tmp_path / "five.txt"
    train_list.write_text("\n".join((miniature / "train.txt").read_text().split("\n")[:5]))
    for batch_size in (4, 1):
        options = ("--clip-start", 100, "--train-split", train_list, "--iterations", 4)
        options += ("--batch-size", batch_size)
        one, two = (_losses(miniature, tmp_path / f"{batch_size}_{n}", *options, processes=n) for n in (1, 2))
        np.testing.assert_allclose(two, one, rtol=1e-4)


def _shown(folder):
    """Tag -> steps of what TensorBoard shows of a training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    shown = {tag: [e.step for e in events.Scalars(tag)] for tag in tags["scalars"]}
    return shown | {tag: [e.step for e in events.Images(tag)] for tag in tags["images"]}


def test_tensorboard_shows_every_section_also_after_a_repetition(miniature, segmenter, tmp_path):
    shown = _shown(segmenter)
    assert shown["val_miou"] == shown["predictions/mini_016"] == [4, 8]
    assert shown["section/loss"] == shown["section/clipping_steps"] == [3, 4, 6, 8]
    for tag in ("step/loss", "step/clipped_loss", "step/clipped_pixels", "lr/encoder", "lr/decoder"):
        assert shown[tag] == [3, 4, 6, 8]  # at the end of every section
    copy = shutil.copytree(segmenter, tmp_path / "train")
    run_here("segmentation.train", "--data-path", miniature, "--output-dir", copy, *SEGMENTER_OPTIONS)
    assert _shown(copy) == shown


def test_adamw_continues_as_if_nothing_had_happened(miniature, tmp_path):
    options = ("--data-path", miniature, *SEGMENTER_OPTIONS, "--optimizer", "adamw", "--lr", "1e-3")
    options += ("--overlays", 0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_here("segmentation.train", *options, "--output-dir", whole)
    script = ROOT / "tests" / "die_in_write.py"
    done = run_process(
        sys.executable, script, 2, "last.pth", "segmentation.train", *options, "--output-dir", killed
    )
    assert done.returncode == -signal.SIGKILL
    run_here("segmentation.train", *options, "--output-dir", killed)
    ours, theirs = (load_checkpoint(folder / "last.pth")["model"] for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_true_masks_the_last_is_the_result(miniature, miniature_without_masks, tmp_path, capsys):
    options = ("--data-path", miniature_without_masks, "--mask-dir", miniature / "masks")
    run_here("segmentation.train", *options, "--output-dir", tmp_path / "out", *SEGMENTER_OPTIONS)
    assert (tmp_path / "out" / "last.pth").is_file() and not (tmp_path / "out" / "best.pth").exists()
    assert load_checkpoint(tmp_path / "out" / "last.pth")["best"] is None
    printed = capsys.readouterr().out
    assert "no masks to evaluate on" in printed and "last.pth --split val" in printed


def test_grey_masks_are_as_good_as_palette_ones(miniature, tmp_path):
    """Published pseudo-masks are grey (mode L) index PNGs: the same training, and the same score."""
    folders = {"L": tmp_path / "masks" / "released", "P": tmp_path / "masks" / "ours"}
    for path in (miniature / "masks").iterdir():
        labels = np.array(Image.open(path))
        labels[labels == 255] = 0  # there is no 255 in pseudo-masks
        for mode, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(labels)
            if mode == "P":
                image.putpalette([255, 0, 0] * 256)
            image.save(folder / path.name)
            assert Image.open(folder / path.name).mode == mode
    options = ("--data-path", miniature, *SEGMENTER_OPTIONS, "--iterations", 2, "--overlays", 0)
    losses, scores = [], []
    for mode, masks in folders.items():
        out = tmp_path / mode
        run_here("segmentation.train", *options, "--mask-dir", masks, "--output-dir", out)
        losses.append([r["loss"] for r in _records(out)])
        common = ("--data-path", miniature, "--split", "train", "--workers", 0)
        run_here("wsss.score", *common, "--pred-dir", masks, "--output-dir", out / "score")
        scores.append(json.loads((out / "score" / "score.json").read_text())["mean_iou"])
    assert losses[0] == losses[1] and len(losses[0]) >= 1
    assert scores == [1.0, 1.0]


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


def test_a_network_that_gives_nan_is_not_scored(miniature, tmp_path, capsys):
    """Weights that are finite and huge: no loss has seen them when they are evaluated."""
    line = error_line(
        capsys, "segmentation.train", "--data-path", miniature, "--output-dir", tmp_path / "out",
        *SEGMENTER_OPTIONS, "--lr", 1e30, "--iterations", 1,
    )  # fmt: skip
    assert "not finite" in line and "mini" in line
    assert not (tmp_path / "out" / "best.pth").exists()


def test_dataset_facts_with_and_without_image_labels(miniature, segmenter, tmp_path):
    """Stage 2 needs no image labels; what would be counted from them is then null."""
    found = json.loads((segmenter / "dataset.json").read_text())
    assert {name: facts["images"] for name, facts in found["lists"].items()} == {"train": 16, "val": 6}
    assert sum(found["lists"]["train"]["pictures_per_class"].values()) == 24  # 8 with one class, 8 with two
    data = tmp_path / "data"
    shutil.copytree(miniature, data)
    (data / "labels.csv").unlink()
    options = ("--data-path", data, "--output-dir", tmp_path / "train", *SEGMENTER_OPTIONS)
    run_here("segmentation.train", *options, "--iterations", 1)
    lists = json.loads((tmp_path / "train" / "dataset.json").read_text())["lists"]
    nothing = {"with_masks": True, "pictures_per_class": None, "classes_per_picture": None}
    assert lists == {"train": {"images": 16} | nothing, "val": {"images": 6} | nothing}


@pytest.mark.parametrize("photometric", [True, False])
def test_photometric_distortion_may_be_left_out(photometric, miniature, tmp_path, monkeypatch):
    """Every picture of a batch is distorted, or none."""
    distorted = []
    monkeypatch.setattr("segmentation.augment.distort", lambda image, rng: distorted.append(1) or image)
    flag = "--photometric" if photometric else "--no-photometric"
    words = ("--data-path", miniature, "--output-dir", tmp_path, *SEGMENTER_OPTIONS, flag)
    config, device = parse(command.Config, list(map(str, words))), torch.device("cpu")
    spec = load_dataset("folder", miniature)
    model = build_segmenter("vit_micro_patch8_96", num_classes=4, image_size=64)
    plan = command.make_plan(config, spec, device)
    _, stream = command.training_stream(config, spec, plan, model, device, first_step=0)
    assert len(next(stream)["image"]) == 4
    assert bool(distorted) == photometric
    assert command.Config(data_path=miniature, output_dir=tmp_path).photometric  # as published
