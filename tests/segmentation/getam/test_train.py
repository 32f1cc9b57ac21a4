"""segmentation.getam.train: recipe, parts, processes, saliency maps, what it leaves and what it refuses."""

import json

import numpy as np
import pytest
import torch

import segmentation.getam.train as command
from segmentation.getam.engine import pixel_levels, rate_of_step
from segmentation.getam.model import build_getam, load_getam
from segmentation.getam.plan import Config, make_plan
from tests.commands import argv, error_line, finish, run_here
from tests.conftest import GETAM_OPTIONS
from tests.miniature import make
from wsss.backbones import IMAGENET
from wsss.checkpoint import load_checkpoint
from wsss.datasets import load_dataset
from wsss.io import read_mask, write_mask
from wsss.transforms import normalise

JOINT = ("class", "background", "foreground", "energy")


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def plan_of(root, tmp_path, dataset="folder", **options):
    config = Config(dataset=dataset, data_path=root, output_dir=tmp_path, **options)
    return config, make_plan(config, load_dataset(dataset, root), torch.device("cpu"))


def test_defaults_are_the_published_recipe(miniature, tmp_path):
    config, plan = plan_of(miniature, tmp_path)
    assert (config.backbone, config.epochs, config.batch_size, config.crop_size) == (
        "vitb_hybrid",
        20,
        4,
        256,
    )
    assert (plan.steps, plan.first_joint_step) == (16 // 4 * 20, 40)
    assert (config.lr, config.joint_lr_scale, config.start_layer) == (0.04, 0.1, 6)
    assert (plan.rules.completion, plan.rules.quantile) == (True, 0.9)
    assert (plan.losses.energy_weight, plan.losses.energy_gradient) == (1e-7, "published")


def test_coco_has_its_own_quantile_and_80_classes(tmp_path):
    root = make(tmp_path / "coco", "coco14", train=6, val=2)
    plan = plan_of(root, tmp_path / "out", "coco14")[1]
    assert plan.rules.quantile == 0.95 and plan.table.num_fg_classes == 80


def test_published_rates():
    """10,582 pictures: 2,645 steps an epoch, 52,900 in all; the second half at a tenth."""
    how = {"peak": 0.04, "steps": 52_900, "first_joint_step": 26_450, "joint_scale": 0.1}
    rates = [rate_of_step(step, **how) for step in (0, 26_449, 26_450, 52_899)]
    left = [1, 26_451 / 52_900, 0.5, 1 / 52_900]
    expected = [0.04 * share**0.9 * scale for share, scale in zip(left, (1, 1, 0.1, 0.1), strict=True)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "momentum", "decay"),
    [("published", "SGD", 5e-4, 0), ("intended", "SGD", 0, 5e-4), ("adamw", "AdamW", None, 0.01)],
)
def test_optimisers(name, kind, momentum, decay, miniature, tmp_path):
    config, plan = plan_of(miniature, tmp_path, backbone="vit_micro", optimizer=name, encoder_lr_scale=0.5)
    model = build_getam(**command.model_args(config, plan))
    optimizer = command.new_optimizer(config, model)
    assert type(optimizer).__name__ == kind
    encoder, rest = optimizer.param_groups
    assert (encoder["lr_scale"], rest["lr_scale"], rest["weight_decay"]) == (0.5, 1.0, decay)
    if momentum is not None:
        assert (rest["momentum"], rest["nesterov"]) == (momentum, False)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("first", "save_every", "ends"),
    [(0, 3, [3, 4, 6, 8, 9, 12]), (6, 3, [8, 9, 12]), (0, 100, [4, 6, 8, 12]), (12, 3, [])],
)
def test_sections_end_at_epochs_saves_and_the_joint_part(first, save_every, ends):
    class Plan:
        steps, steps_per_epoch, first_joint_step = 12, 4, 6

    found = command.sections(first, Plan, save_every)
    assert [r.stop for r in found] == ends
    assert [i for r in found for i in r] == list(range(first, 12))


def test_what_a_training_leaves(getam):
    found = records(getam)
    assert [(r["step"], r["part"]) for r in found] == [(3, "class"), (4, "class"), (6, "joint"), (8, "joint")]
    assert ["val_miou" in r for r in found] == [False, False, False, True]
    for record in found:
        parts = JOINT if record["part"] == "joint" else ("class",)
        assert record["loss"] == pytest.approx(sum(record[name] for name in parts), rel=1e-5)
    for record in found[2:]:
        assert record["energy"] < 0 and record["foreground"] > 0 and "saliency" not in record
        assert 0 < record["labelled_background"] < 1 and record["claimed"] <= record["labelled_foreground"]
        shares = [record[name] for name in ("labelled_background", "labelled_foreground", "unknown")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    last = load_checkpoint(getam / "last.pth")
    assert last["model_args"] == {"backbone": "vit_micro", "num_classes": 3} and last["saliency"] is False
    assert last["class_names"] == ["disc", "square", "triangle"] and last["step"] == 8
    assert last["best"]["score"] == found[-1]["val_miou"] and last["best"]["split"] == "val"
    model, entries = load_getam(getam / "last.pth")
    assert model.backbone == "vit_micro" and entries["options"]["band"] == 0.3
    assert any((getam / "tensorboard").iterdir())


def test_the_decoder_is_trained_in_the_joint_part_only(getam, miniature, tmp_path):
    options = ("--data-path", miniature, *GETAM_OPTIONS, "--class-share", 1, "--epochs", 1)
    run_here("segmentation.getam.train", *options, "--output-dir", tmp_path / "class")
    fresh = torch.manual_seed(504) and build_getam("vit_micro", num_classes=3)
    start, alone = fresh.state_dict(), load_checkpoint(tmp_path / "class" / "last.pth")["model"]
    both = load_checkpoint(getam / "last.pth")["model"]
    name = "scratch.output_conv.0.weight"
    assert torch.equal(start[name], alone[name]) and not torch.equal(start[name], both[name])
    name = "pretrained.model.blocks.3.attn.qkv.weight"
    assert not torch.equal(start[name], alone[name])
    assert "val_miou" not in records(tmp_path / "class")[-1]


def test_the_score_of_training_is_that_of_predict_on_one_square(getam, miniature, tmp_path):
    options = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", 64, "--workers", 0)
    run_here("segmentation.getam.predict", *options, "--output-dir", tmp_path / "val")
    score = json.loads((tmp_path / "val" / "score.json").read_text())
    assert score["mean_iou"] == pytest.approx(records(getam)[-1]["val_miou"], abs=1e-12)


def test_processes_agree_on_classification_and_both_parts_run(miniature, tmp_path):
    """The joint part has batch norm, whose statistics are each process's own: there they need not agree."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ("--data-path", miniature, *GETAM_OPTIONS, "--output-dir", folder, "--save-every", 1)
        finish(*argv("segmentation.getam.train", *options, processes=processes))
        found[processes] = records(folder)
    for one, two in zip(found[1], found[2], strict=True):
        if one["part"] == "class":
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        elif one["step"] == 5:  # before batch norm has acted on the weights; labels turn on single digits
            assert one["class"] == pytest.approx(two["class"], rel=1e-4)
            for name in ("labelled_background", "labelled_foreground", "unknown"):
                assert one[name] == pytest.approx(two[name], abs=0.02), name
    assert found[2][-1]["loss"] != found[2][0]["loss"]


def saliency_maps(root, folder):
    spec = load_dataset("folder", root)
    for image_id in spec.image_ids("train"):
        mask = read_mask(spec.mask_path(image_id))
        write_mask(folder / f"{image_id}.png", np.where(mask > 0, 255, 0).astype(np.uint8))


def test_with_saliency_maps(miniature, tmp_path, capsys):
    saliency_maps(miniature, tmp_path / "saliency")
    options = (
        "--data-path",
        miniature,
        *GETAM_OPTIONS,
        "--saliency-dir",
        tmp_path / "saliency",
        "--epochs",
        2,
    )
    run_here("segmentation.getam.train", *options, "--output-dir", tmp_path / "out")
    assert "saliency: maps of" in capsys.readouterr().out
    last = records(tmp_path / "out")[-1]
    assert last["loss"] == pytest.approx(sum(last[name] for name in (*JOINT, "saliency")), rel=1e-5)
    assert last["saliency"] > 0 and load_checkpoint(tmp_path / "out" / "last.pth")["saliency"] is True
    first = next((tmp_path / "saliency").iterdir())
    first.unlink()
    line = error_line(capsys, "segmentation.getam.train", *options, "--output-dir", tmp_path / "other")
    assert f"{first}: no such saliency map" in line and not (tmp_path / "other").exists()


def test_without_saliency_maps_it_is_said(miniature, tmp_path, capsys):
    options = ("--data-path", miniature, *GETAM_OPTIONS, "--output-dir", tmp_path / "out", "--epochs", 1)
    run_here("segmentation.getam.train", *options, "--band", 0.4)
    text = capsys.readouterr().out
    assert "saliency: none; background where its score wins, unknown from there up to 0.4" in text
    assert "not the published system" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--crop-size", 72), "--crop-size 72: not a multiple of 32"),
        (("--start-layer", 12), "--start-layer 12: vit_micro has blocks 0..11"),
        (("--backbone", "eva02"), "--backbone eva02: unknown"),
        (("--batch-size", 40), "has only 16 pictures"),
        (("--pretrained", "hub"), "vit_micro has no published weights"),
        (("--val-split", "none"), "has no list 'none'"),
    ],
)
def test_bad_options(options, words, miniature, tmp_path, capsys):
    given = ("--data-path", miniature, "--output-dir", tmp_path / "out", *GETAM_OPTIONS, *options)
    assert words in error_line(capsys, "segmentation.getam.train", *given)


def test_levels_of_normalised_pictures():
    image = np.random.RandomState(0).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    pixels = normalise(image, IMAGENET.mean, IMAGENET.std)[None]
    found = pixel_levels(pixels, IMAGENET.mean, IMAGENET.std)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), image, atol=1e-3)


def test_a_loss_that_is_not_finite_names_its_own_step(miniature, tmp_path, capsys):
    """Noticed at the section's end, after step 3; it was the second step's."""
    given = ("--data-path", miniature, "--output-dir", tmp_path / "out", *GETAM_OPTIONS, "--lr", 1e30)
    assert "loss is not finite at step 1, pictures" in error_line(capsys, "segmentation.getam.train", *given)
