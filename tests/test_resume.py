"""Killed at any moment, the same command continues and ends with what an uninterrupted run gives."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.commands import ROOT, argv, environment, finish, run_here, run_process
from tests.conftest import TRAIN_OPTIONS

EPOCHS = 5
# stochastic depth, worker processes and an evaluation only now and then: what a restart could get wrong
OPTIONS = (*TRAIN_OPTIONS, "--epochs", EPOCHS, "--drop-path", "0.2", "--eval-every", "2", "--overlays", "0")


def _die_in_write(count, suffix, module, *options):
    done = run_process(sys.executable, ROOT / "tests" / "die_in_write.py", count, suffix, module, *options)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def _records(folder):
    """log.jsonl without its times."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("seconds")} for line in lines]


def _equal(a, b) -> bool:
    """Bit-equality of nested checkpoint values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "train"
    run_here("weaktr.train", "--data-path", miniature, "--output-dir", folder, *OPTIONS)
    assert len(_records(folder)) == EPOCHS
    return folder


def _assert_same_training(folder, uninterrupted):
    assert _records(folder) == _records(uninterrupted)
    for name in ("last.pth", "best.pth"):
        ours, theirs = (torch.load(f / name, weights_only=True) for f in (folder, uninterrupted))
        for key in ("model", "best", "epoch", *(["optimizer"] if name == "last.pth" else [])):
            assert _equal(ours[key], theirs[key]), (name, key)
    assert not list(folder.glob(".*tmp"))


@pytest.mark.parametrize("seed", [1, 2])
def test_training_killed_at_seeded_moments(seed, miniature, uninterrupted, tmp_path):
    rng = random.Random(seed)
    folder = tmp_path / "train"
    command = argv("weaktr.train", "--data-path", miniature, "--output-dir", folder, *OPTIONS, "--workers", 1)
    for finished_epochs in sorted(rng.sample(range(EPOCHS - 1), 2)):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.time() + 120
        while not (folder / "config.json").is_file() or (
            finished_epochs
            and (not (folder / "log.jsonl").is_file() or len(_records(folder)) < finished_epochs)
        ):
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))  # an epoch takes about half a second
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    printed = finish(*command)
    if finished_epochs:
        assert "continuing" in printed
    _assert_same_training(folder, uninterrupted)


@pytest.mark.parametrize(("count", "name"), [(2, "last.pth"), (1, "best.pth")])
def test_training_killed_inside_a_save(count, name, miniature, uninterrupted, tmp_path):
    folder = tmp_path / "train"
    options = ("--data-path", miniature, "--output-dir", folder, *OPTIONS)
    _die_in_write(count, name, "weaktr.train", *options)
    assert (folder / f".{name}.tmp").stat().st_size > 10_000  # the half-written one
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == 1  # the good one
    run_here("weaktr.train", *options)
    _assert_same_training(folder, uninterrupted)


def test_a_finished_training_is_left_as_it_is(miniature, uninterrupted):
    before = {p.name: p.read_bytes() for p in uninterrupted.glob("*.pth")}
    run_here("weaktr.train", "--data-path", miniature, "--output-dir", uninterrupted, *OPTIONS)
    assert {p.name: p.read_bytes() for p in uninterrupted.glob("*.pth")} == before


def test_cams_and_masks_killed_inside_a_write(miniature, trained, tmp_path, capsys):
    folders = [tmp_path / "killed", tmp_path / "uninterrupted"]
    cam_options = ("--data-path", miniature, "--checkpoint", trained / "best.pth")
    mask_options = ("--data-path", miniature, "--threshold", 0.4, "--workers", 0)
    _die_in_write(6, ".npz", "weaktr.generate_cam", *cam_options, "--output-dir", folders[0] / "cams")
    assert len(list((folders[0] / "cams").glob("*.npz"))) == 5
    assert len(list((folders[0] / "cams").glob(".*.npz.tmp"))) == 1
    for folder in folders:
        run_here("weaktr.generate_cam", *cam_options, "--output-dir", folder / "cams")
    assert "5 were there already" in capsys.readouterr().out

    cams = ("--cam-dir", folders[0] / "cams")
    _die_in_write(9, ".png", "weaktr.make_masks", *mask_options, *cams, "--output-dir", folders[0] / "masks")
    assert len(list((folders[0] / "masks").glob("*.png"))) == 8
    for folder in folders:
        cams = ("--cam-dir", folder / "cams")
        run_here("weaktr.make_masks", *mask_options, *cams, "--output-dir", folder / "masks")
    for kind, pattern in (("cams", "*.npz"), ("masks", "*.png")):
        killed, whole = (
            {p.name: p.read_bytes() for p in (folder / kind).glob(pattern)} for folder in folders
        )
        assert len(whole) == 16 and killed == whole
        assert not list((folders[0] / kind).glob(".*tmp"))
    scores = [json.loads((folder / "masks" / "score.json").read_text()) for folder in folders]
    assert scores[0]["mean_iou"] == scores[1]["mean_iou"]
    assert scores[0]["before_crf"] == scores[1]["before_crf"]
