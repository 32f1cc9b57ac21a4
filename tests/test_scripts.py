"""The shell scripts: they parse, say what they are, refuse nonsense; each stage runs from end to end."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT
from wsss.datasets import load_dataset

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
SOURCED = ("common.sh", "env.sh")  # by the others, never run


def _bash(*words, **variables):
    known = {k: v for k, v in os.environ.items() if k not in ("PRETRAINED", "PRETRAINED_WEIGHTS", "BACKBONE")}
    return subprocess.run(
        ["bash", *map(str, words)], env={**known, **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_script_parses_and_says_what_it_is(script):
    assert _bash("-n", script).returncode == 0
    header = re.match(r"(?:#.*\n)+", script.read_text(encoding="utf8"))[0]
    assert len(header.split("\n")) > 2
    if script.name in SOURCED:
        assert header.startswith("# Sourced by the ")
    elif script.name != "run":
        assert f"bash scripts/{script.name}" in header
        for word in ("Needs", "Expect", "Time"):
            assert word in header, word


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("stage1.sh", (), "3 arguments"),
        ("stage1.sh", ("folder", "a"), "3 arguments"),
        ("stage1.sh", ("cityscapes", "a", "b"), "unknown data set cityscapes"),
        ("stage2.sh", (), "4 or 5 arguments"),
        ("stage2.sh", ("folder", "a", "b"), "4 or 5 arguments"),
        ("stage2.sh", ("folder", "a", "b", "c", "d", "e"), "4 or 5 arguments"),
        ("stage2.sh", ("cityscapes", "a", "b", "c"), "unknown data set cityscapes"),
        ("all.sh", (), "3 arguments"),
        ("all.sh", ("folder", "a", "b", "c"), "3 arguments"),
        ("all.sh", ("cityscapes", "a", "b"), "unknown data set cityscapes"),
        ("getam.sh", ("folder", "a"), "3 arguments"),
        ("getam.sh", ("cityscapes", "a", "b"), "unknown data set cityscapes"),
        ("compare_maps.sh", ("folder", "a"), "5 arguments"),
        ("label_completion.sh", ("a",), "3 to 5 arguments"),
        ("quickstart.sh", ("--shrot",), "unknown option '--shrot'"),
        ("quickstart.sh", ("a", "b"), "'a' and 'b' were given"),
    ],
)
def test_scripts_refuse_nonsense(script, arguments, words):
    done = _bash(ROOT / "scripts" / script, *arguments, WEAKTR_PYTHON=sys.executable)
    assert done.returncode == 2 and words in done.stderr and "usage" in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"GPUS": "eight"}, "GPUS=eight: give a whole number, 1 to"),
        ({"GPUS": "0"}, "GPUS=0: "),
        ({"GPUS": "-1"}, "GPUS=-1: "),
        ({"GPUS": "1e3"}, "GPUS=1e3: "),
        ({"GPUS": "99999999999999999999"}, "GPUS=9999"),
        ({"WORKERS": "two"}, "WORKERS=two: give a whole number, 0 to"),
        ({"NODES": "0"}, "NODES=0: "),
        ({"NODE": "1"}, "NODE=1: give a whole number, 0 to 0"),
        ({"NODES": "08", "NODE": "8", "MASTER": "a:29500"}, "NODE=8: give a whole number, 0 to 7"),
        ({"NODES": "2", "NODE": "1"}, "MASTER=: with NODES, give the address of node 0 and a port"),
        ({"NODES": "2", "MASTER": "node0"}, "MASTER=node0: "),
        ({"NODES": "2", "MASTER": "node0:99999"}, "MASTER=node0:99999: the port must be 1 to 65534"),
    ],
)
@pytest.mark.parametrize("script", ["stage1.sh", "stage2.sh", "all.sh"])
def test_scripts_refuse_nonsense_in_variables(script, variables, words):
    arguments = ("folder", "a", "b", "c")[: 4 if script == "stage2.sh" else 3]
    done = _bash(ROOT / "scripts" / script, *arguments, WEAKTR_PYTHON=sys.executable, **variables)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {words}")
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(("script", "masks"), [("stage1.sh", ()), ("stage2.sh", ("true",)), ("all.sh", ())])
def test_stages_name_a_missing_data_set(script, masks, tmp_path):
    folders = (tmp_path / "nothing", *masks, tmp_path / "out")
    done = _bash(ROOT / "scripts" / script, "folder", *folders, WEAKTR_PYTHON=sys.executable)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"^error: .*nothing: no such folder", done.stderr, re.M)
    assert not (tmp_path / "out").exists()


def test_environment_names_what_is_missing(tmp_path):
    """An interpreter of another version, and no interpreter at all."""
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _bash("-c", f"source {ROOT}/scripts/env.sh", WEAKTR_PYTHON=str(old))
    assert done.returncode == 1 and "3.11 or 3.12" in done.stderr and str(old) in done.stderr


def test_environment_is_installed_once_and_not_taken_for_finished_early(tmp_path):
    """A stand-in for pip: installs are counted, and one that fails leaves no stamp."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "env.sh").write_text((ROOT / "scripts" / "env.sh").read_text())
    (tmp_path / "requirements.txt").write_text("numpy\n")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"pip install"*) echo pip >>{tmp_path}/log; test ! -e {tmp_path}/broken;;\n'
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    python.chmod(0o755)
    (tmp_path / "broken").write_text("")

    def source():
        return _bash(
            "-c", f"source {tmp_path}/scripts/env.sh && echo $PYTHON", VIRTUAL_ENV=str(venv), WEAKTR_PYTHON=""
        )

    def installs():
        return len((tmp_path / "log").read_text().split())

    assert source().returncode == 1 and installs() == 1
    assert source().returncode == 1 and installs() == 2  # unfinished: tried again
    (tmp_path / "broken").unlink()
    assert source().stdout.split("\n")[-2] == str(python) and installs() == 3
    assert source().returncode == 0 and installs() == 3  # finished: nothing to do
    (tmp_path / "requirements.txt").write_text("numpy\npillow\n")
    assert source().returncode == 0 and installs() == 4


def test_stage1_from_end_to_end_without_masks_in_two_processes(miniature_without_masks, tmp_path):
    arguments = (ROOT / "scripts" / "stage1.sh", "folder", miniature_without_masks, tmp_path / "with space")
    variables = {
        "WEAKTR_PYTHON": sys.executable, "PRETRAINED_WEIGHTS": "none", "BACKBONE": "vit_micro_patch8_96",
        "EPOCHS": "1", "TRAIN_OPTIONS": "--batch-size 8", "CAM_OPTIONS": "--compact", "WORKERS": "0",
        "GPUS": "2",
    }  # fmt: skip
    done = _bash(*arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "with space"
    for split, count in (("train", 16), ("val", 6)):
        assert len(list((out / "cams" / split).glob("*.npz"))) == count
        masks = sorted((out / "masks" / split).glob("*.png"))
        assert len(masks) == count
        assert {int(v) for path in masks for v in np.unique(np.array(Image.open(path)))} <= {0, 1, 2, 3}
    assert not (out / "score").exists() and not list(out.rglob("score.json"))


def test_stage2_from_end_to_end_without_true_masks_in_two_processes(
    miniature, miniature_without_masks, tmp_path
):
    out = tmp_path / "with space"
    arguments = (miniature_without_masks, miniature / "masks", out, "vit_micro_patch8_96")
    train_options = "--short-side 72 --crop-size 64 --window 64 --stride 42 --iterations 4 --save-every 2"
    variables = {
        "WEAKTR_PYTHON": sys.executable, "PRETRAINED_WEIGHTS": "none", "TRAIN_OPTIONS": train_options,
        "PREDICT_OPTIONS": "--amp off", "WORKERS": "0", "GPUS": "2",
    }  # fmt: skip
    done = _bash(ROOT / "scripts" / "stage2.sh", "folder", *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "train" / "last.pth").is_file() and not (out / "train" / "best.pth").exists()
    spec = load_dataset("folder", miniature_without_masks)
    sizes = {i: Image.open(spec.image_path(i)).size for i in spec.image_ids("val")}
    for folder, scales, blocks, preset in (
        ("single", [1.0], "last", None),
        ("multi_crf", [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "fused", "voc12_segmentation"),
    ):
        masks = {path.stem: Image.open(path) for path in (out / folder / "val").glob("*.png")}
        assert {name: mask.size for name, mask in masks.items()} == sizes
        assert {int(v) for mask in masks.values() for v in np.unique(np.array(mask))} <= {0, 1, 2, 3}
        found = json.loads((out / folder / "val" / "config.json").read_text())
        assert (found["scales"], found["flip"]) == (scales, folder == "multi_crf")
        assert (found["decoder_blocks"], found["crf_preset"]) == (blocks, preset)
    assert len(list((out / "single" / "val" / "overlays").glob("*.png"))) == 6
    assert not list(out.rglob("score.json"))


def test_getam_from_end_to_end_in_two_processes(miniature, tmp_path):
    out = tmp_path / "with space"
    variables = {
        "WEAKTR_PYTHON": sys.executable, "PRETRAINED_WEIGHTS": "none", "BACKBONE": "vit_micro", "GPUS": "2",
        "TRAIN_OPTIONS": "--epochs 2 --class-share 0.5 --batch-size 4 --crop-size 64 --workers 0",
        "PREDICT_OPTIONS": "--squares 64 96 --workers 0", "CAM_OPTIONS": "--squares 64",
    }  # fmt: skip
    arguments = (ROOT / "scripts" / "getam.sh", "folder", miniature, out)
    done = _bash(*arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    config = json.loads((out / "train" / "config.json").read_text())
    assert (config["backbone"], config["optimizer"], config["band"]) == ("vit_micro", "adamw", 0.2)
    score = json.loads((out / "test" / "val" / "score.json").read_text())
    assert (score["crf_preset"], score["squares"], score["images"]) == ("getam", [64, 96], 6)
    assert len(list((out / "cams" / "train").glob("*.npz"))) == 16
    assert json.loads((out / "threshold" / "threshold.json").read_text())["split"] == "train"
    again = _bash(*arguments, **variables)
    assert again.returncode == 0 and again.stdout.count("done before") == 4


def test_comparisons_of_maps_and_labels(trained, getam, miniature, tmp_path):
    where = ("folder", miniature, trained / "best.pth", "val", tmp_path / "maps")
    done = _bash(ROOT / "scripts" / "compare_maps.sh", *where, WEAKTR_PYTHON=sys.executable, WORKERS="0")
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = ("fused", "coarse", "cross", "getam", "unsquared", "grad_cam")
    found = {kind: (tmp_path / "maps" / "threshold" / kind / "threshold.json").read_text() for kind in kinds}
    assert len({json.loads(text)["best_mean_iou"] for text in found.values()}) > 3
    arguments = (miniature, getam / "last.pth", "val", 64)
    done = _bash(ROOT / "scripts" / "label_completion.sh", *arguments, WEAKTR_PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (none|true foreground) +\| +(on|off) \|(.*)\|$", done.stdout, re.M)
    assert [row[:2] for row in rows] == [
        ("none", "off"), ("none", "on"), ("true foreground", "off"), ("true foreground", "on"),
    ]  # fmt: skip
    assert all(0 <= float(value) <= 100 for row in rows for value in row[2].split("|"))
