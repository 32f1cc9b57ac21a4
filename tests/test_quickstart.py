"""scripts/quickstart.sh with a stand-in for Python: order, settings, table, failures, signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

SCRIPT = ROOT / "scripts" / "quickstart.sh"
STAND_IN = """#!/bin/sh
# Notes each command and its settings; fails or hangs at the one a file names; scripts on stdin are real.
case "$1" in
-c) exit 0 ;;
-) if [ $# -eq 3 ]; then echo "train train val train val"; else exec {python} "$@"; fi; exit ;;
*/steps.py) exec {python} "$@" ;;
esac
echo "$*|${{EPOCHS:-}}|${{CAM_OPTIONS:-}}" >>"{folder}/log"
if [ "$2" = "$(cat "{folder}/fails" 2>/dev/null)" ]; then echo "error: it broke" >&2; exit 2; fi
if [ "$2" = "$(cat "{folder}/hangs" 2>/dev/null)" ]; then
    sleep 300 & echo $! >"{folder}/worker.tmp" && mv "{folder}/worker.tmp" "{folder}/worker"; wait
fi
"""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, folder=tmp_path))
    path.chmod(0o755)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    """An output folder with the scores that the table reads."""
    folder = tmp_path / "quick start"
    for name, content in {
        "stage1/masks/train": {"mean_iou": 0.612, "before_crf": {"mean_iou": 0.543}},
        "stage2/single/val": {"mean_iou": 0.701},
        "stage2/multi_crf/val": {"mean_iou": 0.756},
        "baseline/train": {"mean_iou": 0.321},
        "baseline/train_crf": {"mean_iou": 0.345},
        "baseline/val": {"mean_iou": 0.2},
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "score.json").write_text(json.dumps(content))
    return folder


def _environment(stand_in: Path, **variables) -> dict[str, str]:
    own = {"WEAKTR_PYTHON": str(stand_in), "PRETRAINED_WEIGHTS": "none", **variables}
    return {k: v for k, v in os.environ.items() if k not in ("BACKBONE", "GPUS", "WORKERS")} | own


def _quick_start(stand_in: Path, *arguments, **variables) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    environment = _environment(stand_in, **variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def _commands(stand_in: Path) -> list[list[str]]:
    """Of each command that was started: its words, EPOCHS, CAM_OPTIONS."""
    return [line.split("|") for line in (stand_in.parent / "log").read_text().splitlines()]


def test_steps_in_order_with_their_settings(stand_in, out):
    done = _quick_start(stand_in, "--short", out, CAM_OPTIONS="--scales 9", EPOCHS="77", WORKERS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    commands = _commands(stand_in)
    assert [words.split()[1] for words, *_ in commands] == [
        "wsss.shapes",
        "weaktr.train", "weaktr.generate_cam", "weaktr.generate_cam", "weaktr.search_threshold",
        "weaktr.make_masks", "weaktr.make_masks",
        "segmentation.train", "segmentation.predict", "segmentation.predict",
        "wsss.shapes_baseline", "wsss.shapes_baseline", "wsss.shapes_baseline",
        "wsss.report",
    ]  # fmt: skip
    text = [words for words, *_ in commands]
    assert text[0] == f"-m wsss.shapes --output-dir {out}/data --train 48 --val 12"
    assert "--backbone vit_micro_patch8_96 --pretrained none --epochs 2 " in text[1]
    assert f"--mask-dir {out}/stage1/masks/train " in text[7] and text[7].count("vit_micro_patch8_96") == 1
    assert "--workers 3" in text[7]
    ends = (
        "--workers 3",
        "--split train --image-labels",
        "--split train --image-labels --crf",
        "--split val",
    )
    assert text[10].endswith(f"{ends[1]} --output-dir {out}/baseline/train {ends[0]}")
    assert text[11].endswith(f"{ends[2]} --output-dir {out}/baseline/train_crf {ends[0]}")
    assert text[12].endswith(f"{ends[3]} --output-dir {out}/baseline/val {ends[0]}")
    panels = {k: re.search(r"--panels (\d+)", text[k])[1] for k in (2, 3, 5, 6, 8, 9)}
    assert panels == {2: "0", 3: "12", 5: "0", 6: "12", 8: "12", 9: "12"}  # of the validation list only
    assert text[13] == f"-m wsss.report --run {out}"
    # what the caller's environment holds for the stages is not the quick start's
    assert {epochs for _, epochs, _ in commands[1:10]} == {"2"}
    assert {options for _, _, options in commands[1:10]} == {""}


def test_table_puts_the_baseline_with_the_same_help_beside_each_row(stand_in, out):
    done = _quick_start(stand_in, out)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.split("== mIoU, %\n")[1].splitlines()
    assert [line.rsplit(maxsplit=2) for line in lines[1:5]] == [
        ["CAMs, masks before CRF (train)", "54.3", "32.1"],
        ["pseudo-masks after CRF (train)", "61.2", "34.5"],
        ["segmenter, one scale (val)", "70.1", "20.0"],
        ["segmenter, published test (val)", "75.6", "20.0"],
    ]
    assert lines[6].startswith("done in ") and f"{out}/report.html" in lines[7]
    assert "--train 400 --val 100" in _commands(stand_in)[0][0]


def test_a_failing_step_ends_it_with_that_steps_line(stand_in, out):
    (stand_in.parent / "fails").write_text("weaktr.generate_cam")
    done = _quick_start(stand_in, out)
    assert done.returncode == 2 and done.stderr == "error: it broke\n"
    assert f"delete {out} to start afresh" in done.stdout
    started = [words.split()[1] for words, *_ in _commands(stand_in)]
    assert started == ["wsss.shapes", "weaktr.train", "weaktr.generate_cam"]
    (stand_in.parent / "fails").unlink()
    assert _quick_start(stand_in, out).returncode == 0


def _wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


def _start_until_it_hangs(stand_in: Path, out: Path) -> tuple[subprocess.Popen, int]:
    """The running script and its command's own child, which sleeps."""
    process = subprocess.Popen(
        ["bash", str(SCRIPT), str(out)],
        env=_environment(stand_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # as a shell starts it: under nohup or with & the tests' own process may ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    worker = stand_in.parent / "worker"
    _wait_for(lambda: worker.exists() or process.poll() is not None, "no command was started")
    assert process.poll() is None, process.stderr.read()
    return process, int(worker.read_text())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(
    ("module", "number"),
    [("weaktr.train", signal.SIGINT), ("weaktr.train", signal.SIGTERM), ("wsss.shapes", signal.SIGHUP)],
)
def test_a_signal_to_the_script_ends_every_process_and_it_continues(module, number, stand_in, out):
    """``wsss.shapes`` is the script's child, ``weaktr.train`` one of scripts/stage1.sh."""
    hangs = stand_in.parent / "hangs"
    hangs.write_text(module)
    process, worker = _start_until_it_hangs(stand_in, out)
    assert not _ended(worker)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert _ended(worker)
    assert errors.splitlines()[-1] == "stopped; the same line continues"
    hangs.unlink()
    assert _quick_start(stand_in, out).returncode == 0


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_quick_starts_do_not_share_a_folder(stand_in, out):
    (stand_in.parent / "hangs").write_text("weaktr.train")
    process, _ = _start_until_it_hangs(stand_in, out)
    second = _quick_start(stand_in, out)
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"{out}: a quick start is running there" in second.stderr
    process.terminate()
    process.communicate(timeout=30)


def test_help_is_one_line(stand_in):
    done = _quick_start(stand_in, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == "usage: bash scripts/quickstart.sh [--short] [OUT]\n"


def test_an_output_path_that_is_a_file_and_missing_weights_are_one_line(stand_in, tmp_path):
    (tmp_path / "file").write_text("")
    done = _quick_start(stand_in, tmp_path / "file")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"{tmp_path}/file" in done.stderr
    project = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", project / "scripts")
    done = subprocess.run(
        ["bash", project / "scripts" / "quickstart.sh"],
        env=_environment(stand_in, PRETRAINED_WEIGHTS=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{project}/checkpoints/vit_micro_patch8_96.safetensors: no such file" in done.stderr
    assert not (project / "data").exists()
