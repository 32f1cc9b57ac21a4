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
from tests.conftest import GETAM_OPTIONS, SEGMENTER_OPTIONS, TRAIN_OPTIONS

# stochastic depth, worker processes and an evaluation only now and then: what a restart could get wrong
STAGE1 = (*TRAIN_OPTIONS, "--epochs", 5, "--drop-path", "0.2", "--eval-every", "2", "--overlays", "0")
# saves at 3, 4, 6, 8, 9, 12 of 12 steps, in the middle of epochs of 4 steps too; the decoder has dropout
STAGE2 = (*SEGMENTER_OPTIONS, "--iterations", 12, "--drop-path", "0.2", "--overlays", "0")
# saves at 3, 4, 6, 8, 9, 12 of 12 steps; joint from step 6 on; the decoder has dropout and batch norm
GETAM = (*GETAM_OPTIONS, "--epochs", 3, "--overlays", "0")
TRAININGS = {
    "weaktr.train": (STAGE1, 5),  # options, records
    "segmentation.train": (STAGE2, 6),
    "segmentation.getam.train": (GETAM, 6),
}


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


@pytest.fixture(scope="module", params=TRAININGS)
def uninterrupted(request, miniature, tmp_path_factory):
    """Command, its options and the folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "train"
    options, records = TRAININGS[request.param]
    options = ("--data-path", miniature, *options)
    run_here(request.param, *options, "--output-dir", folder)
    assert len(_records(folder)) == records
    return request.param, options, folder


def _assert_same_training(folder, expected):
    assert _records(folder) == _records(expected)
    for name in ("last.pth", "best.pth"):
        ours, theirs = (torch.load(f / name, weights_only=True) for f in (folder, expected))
        progress = {"epoch", "step"} & ours.keys()
        for key in ("model", "best", *progress, *(["optimizer"] if name == "last.pth" else [])):
            assert _equal(ours[key], theirs[key]), (name, key)
    assert not list(folder.glob(".*tmp"))


@pytest.mark.parametrize("seed", [1, 2])
def test_training_killed_at_seeded_moments(seed, uninterrupted, tmp_path):
    module, options, expected = uninterrupted
    rng = random.Random(seed)
    folder = tmp_path / "train"
    command = argv(module, *options, "--output-dir", folder, "--workers", 1)
    for saves in sorted(rng.sample(range(len(_records(expected)) - 1), 2)):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.time() + 120
        while not (folder / "config.json").is_file() or (
            saves and (not (folder / "log.jsonl").is_file() or len(_records(folder)) < saves)
        ):
            assert process.poll() is None and time.time() < deadline, process.communicate()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))  # an epoch takes about half a second
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    printed = finish(*command)
    if saves:
        assert "continuing" in printed
    _assert_same_training(folder, expected)


@pytest.mark.parametrize(("count", "name"), [(2, "last.pth"), (1, "best.pth")])
def test_training_killed_inside_a_save(count, name, uninterrupted, tmp_path):
    module, options, expected = uninterrupted
    folder = tmp_path / "train"
    options = (*options, "--output-dir", folder)
    _die_in_write(count, name, module, *options)
    assert (folder / f".{name}.tmp").stat().st_size > 10_000  # the half-written one
    content = torch.load(folder / "last.pth", weights_only=True)  # the good one
    # GETAM has no best before its first evaluation, after step 8
    step = 6 if (module, name) == ("segmentation.getam.train", "best.pth") else 3
    assert content.get("epoch", 1) == 1 and content.get("step", step) == step
    run_here(module, *options)
    _assert_same_training(folder, expected)


def test_a_finished_training_is_left_as_it_is(uninterrupted):
    module, options, folder = uninterrupted
    before = {p.name: p.read_bytes() for p in folder.glob("*.pth")}
    run_here(module, *options, "--output-dir", folder)
    assert {p.name: p.read_bytes() for p in folder.glob("*.pth")} == before


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
