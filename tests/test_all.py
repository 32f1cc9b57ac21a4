"""scripts/all.sh: which steps are run, on how many processes and nodes; from end to end on two nodes."""

import importlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import ROOT, argv, finish, run_here, run_process
from wsss.config import parse

STAND_IN = """#!/bin/sh
# In place of the commands: {folder}/command.py. The project's own small scripts are real.
case "$1" in
-c) exit 0 ;;
-) echo "lists $*" >>"{folder}/lists"; echo "train_aug train val train_aug train val"; exit ;;
*/summary.py) echo "the table of $2"; exit ;;
*.py) exec {python} -S "$@" ;;
esac
exec {python} -S "{folder}/command.py" "$@"
"""
# Writes the records of a command that takes a second of the clock: the number of commands so far.
COMMAND = """
import json, shlex, sys
from pathlib import Path
here, words = Path(__file__).parent, sys.argv[1:]
log = here / f"log"
with log.open("a") as file:
    file.write(json.dumps(words) + "\\n")
own = words[len(words) - words[::-1].index("-m") - 1 :]
folder, data = (Path(own[own.index(name) + 1]) for name in ("--output-dir", "--data-path"))
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(json.dumps({"command": own[1], "data_path": str(data.resolve())}))
count = 2 * len(log.read_text().splitlines())
time = [f"2026-01-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}+00:00" for n in (count, count + 1)]
record = {"started": time[0], "command_line": shlex.join(["python", "-u", *own])}
fails = here / "fails"
if fails.exists() and fails.read_text() == own[1]:
    (folder / "environment.json").write_text(json.dumps(record))
    sys.exit("error: it broke")
(folder / "environment.json").write_text(json.dumps(record | {"ended": time[1]}))
if own[1] == "weaktr.make_masks":
    (folder / "score.json").write_text('{"mean_iou": 0.4321, "split": "train"}')
"""
# the caller's settings of the scripts, which would change what is tested
SETTING = re.compile(
    r"PRETRAINED|BACKBONE|EPOCHS|SPLITS|PANELS|GPUS|NODES?$|MASTER$|WORKERS|OVERWRITE|VOC_MASKS|STAGE|.*_OPTIONS$"
)
STEPS = [
    "stage1/train", "stage1/cams/train_aug", "stage1/cams/val", "stage1/threshold", "stage1/masks/train_aug",
    "stage1/masks/val", "stage1/score/train", "stage2/train", "stage2/single/val", "stage2/multi_crf/val",
]  # fmt: skip


class Project:
    """all.sh with a stand-in for Python, in an empty folder."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, folder / "with space"
        (folder / "data").mkdir()
        (folder / "command.py").write_text(COMMAND)
        (folder / "python").write_text(STAND_IN.format(python=sys.executable, folder=folder))
        (folder / "python").chmod(0o755)

    def command(self, *arguments) -> list[str]:
        return ["bash", str(ROOT / "scripts" / "all.sh"), *map(str, arguments or ("voc12", "data", self.out))]

    def environment(self, **variables) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not SETTING.match(k)}
        own = {"WEAKTR_PYTHON": str(self.folder / "python"), "PRETRAINED_WEIGHTS": "none"}
        return kept | own | variables

    def run(self, cwd: Path | None = None, **variables) -> tuple[subprocess.CompletedProcess, list[str]]:
        """The finished script, and the folders of the steps that it started."""
        before = len(self.started())
        done = subprocess.run(
            self.command(), env=self.environment(**variables), cwd=cwd or self.folder, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        return done, [self.folder_of(words) for words in self.started()[before:]]

    def started(self) -> list[list[str]]:
        log = self.folder / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def folder_of(self, words: list[str]) -> str:
        return str(Path(words[words.index("--output-dir") + 1]).relative_to(self.out))


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def finished(project) -> Project:
    done, started = project.run()
    assert done.returncode == 0 and started == STEPS, done.stdout + done.stderr
    return project


def test_steps_in_order_with_options_that_the_commands_take(finished):
    commands = finished.started()
    for words in commands:
        assert words[0] == "-m" and words[2:6] == ["--dataset", "voc12", "--data-path", "data"]
        parse(importlib.import_module(words[1]).Config, words[2:], prog=words[1])
    by_folder = {finished.folder_of(words): words for words in commands}
    assert by_folder["stage2/train"][by_folder["stage2/train"].index("--mask-dir") + 1] == str(
        finished.out / "stage1/masks/train_aug"
    )
    assert by_folder["stage1/score/train"][1] == "wsss.score"
    assert [by_folder[f"stage{k}/train"].count("deit_small_patch16_224") for k in (1, 2)] == [1, 1]
    assert (finished.folder / "lists").read_text().count("\n") == 1


def test_done_steps_are_left_out_with_their_result(finished):
    done, started = finished.run(WORKERS="3")
    assert done.returncode == 0 and started == []
    lines = [line for line in done.stdout.splitlines() if line.startswith("done before: ")]
    assert [line.split("; ")[0].removeprefix(f"done before: {finished.out}/") for line in lines] == STEPS
    assert "; mIoU 43.21% on train; " in lines[4] and lines[0].endswith("; ended 2026-01-01T00:00:03+00:00")
    assert f"the table of {finished.out}" in done.stdout


@pytest.mark.parametrize("where", [0, 4, 8])
def test_a_failed_step_is_not_done_and_the_same_line_continues(project, where):
    module = ["weaktr.train", "weaktr.make_masks", "segmentation.predict"][where // 4]
    (project.folder / "fails").write_text(module)
    done, started = project.run()
    assert done.returncode == 1 and started == STEPS[: where + 1]
    stage = STEPS[where].split("/")[0].replace("stage", "stage ")
    remedy = "mend what it says (OVERWRITE=1 gives --overwrite) and run the same line again"
    assert done.stderr == f"error: it broke\nstopped in {stage}; {remedy}\n"
    (project.folder / "fails").unlink()
    done, started = project.run()
    assert done.returncode == 0 and started == STEPS[where:]
    assert f"to be done: {project.out / STEPS[where]}: it has not ended" in done.stdout


def test_a_changed_option_runs_that_step_and_all_after_it(finished):
    done, started = finished.run(STAGE2_TRAIN_OPTIONS="--iterations 5")
    assert started == STEPS[7:] and "--overwrite" not in finished.started()[-1]
    assert "stage2/train: --iterations was left out, is 5\n" in done.stdout
    assert "stage2/single/val: " + f"{finished.out}/stage2/train is newer\n" in done.stdout
    assert finished.run(STAGE2_TRAIN_OPTIONS="--iterations=5")[1] == []
    assert finished.run(STAGE2_TRAIN_OPTIONS="--iterations 5", EPOCHS="3", OVERWRITE="1")[1] == STEPS
    assert "--overwrite" in finished.started()[-1]
    assert finished.run(STAGE2_TRAIN_OPTIONS="--iterations 5", EPOCHS="3", OVERWRITE="1")[1] == []


@pytest.mark.parametrize("where", [1, 4, 9])
def test_a_deleted_folder_is_made_anew_and_all_after_it_also_when_stopped_in_between(finished, where):
    shutil.rmtree(finished.out / STEPS[where])
    assert finished.run()[1] == STEPS[where:]
    shutil.rmtree(finished.out / STEPS[where])
    if where == 4:
        (finished.folder / "fails").write_text("wsss.score")
        assert finished.run()[1] == STEPS[4:7]
        (finished.folder / "fails").unlink()
        assert finished.run()[1] == STEPS[6:]  # the masks that stage 2 learns from are new
    assert finished.run()[1] == STEPS[where:] if where != 4 else True
    assert finished.run()[1] == []


@pytest.mark.parametrize("content", ["", "[1]", '{"started": 1, "ended": true}', '{"ended": "x"}', "\x00"])
def test_a_damaged_record_is_not_done(finished, content):
    (finished.out / STEPS[6] / "environment.json").write_text(content)
    done, started = finished.run()
    assert done.returncode == 0 and not done.stderr and started[0] == STEPS[6]


def test_other_data_under_the_same_relative_name_is_noticed(finished):
    other = finished.folder / "other"
    (other / "data").mkdir(parents=True)
    assert finished.run(cwd=other)[1] == STEPS
    assert finished.run(cwd=other)[1] == []


def test_processes_of_each_step(project):
    def processes(words):
        text = shlex.join(words)
        found = re.match(r"-m torch\.distributed\.run --standalone --nproc_per_node=(\d+) -m ", text)
        return int(found[1]) if found else 1

    done, _ = project.run(GPUS="8")
    assert done.returncode == 0
    assert [processes(words) for words in project.started()] == [8, 8, 8, 1, 1, 1, 1, 4, 8, 8]
    assert "== training on train_aug, on 4 of 8 processes\n" in done.stdout
    assert "a batch of 4 feeds at most 4 processes" in done.stdout and "--batch-size N" in done.stdout
    assert project.run(GPUS="2")[1] == []  # not an option of the result
    before = len(project.started())
    project.run(GPUS="8", STAGE2_TRAIN_OPTIONS="--batch-size=16 --lr 4e-4")
    assert processes(project.started()[before]) == 8


def test_own_masks_of_voc_and_weights_in_checkpoints(project):
    done, _ = project.run(VOC_MASKS="SegmentationClass")
    assert done.returncode == 0
    assert (project.folder / "lists").read_text() == "lists - voc12 data SegmentationClass\n"
    for words in project.started():
        assert words[words.index("--voc-masks") + 1] == "SegmentationClass"
        parse(importlib.import_module(words[1]).Config, words[2:], prog=words[1])

    root = project.folder / "project"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "checkpoints" / "imagenet").mkdir(parents=True)
    weights = root / "checkpoints" / "imagenet" / "vit_small_patch16_384.safetensors"
    weights.write_text("")
    command = ["bash", root / "scripts" / "stage1.sh", "voc12", "data", project.folder / "stage1"]
    for backbone, expected in (("vit_small_patch16_384", str(weights)), ("deit_tiny_patch16_224", "hub")):
        environment = project.environment(BACKBONE=backbone, PRETRAINED_WEIGHTS="")
        subprocess.run(command, env=environment, cwd=project.folder, capture_output=True, check=True)
        words = next(w for w in project.started() if backbone in w)
        assert words[words.index("--pretrained") + 1] == expected


# ------------------------------------------------------------------------------------- several nodes


def _free_port() -> int:
    """A port that is free, and the next one too."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            try:
                second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            except OSError:
                continue
            return first.getsockname()[1]
    raise AssertionError("no two free ports")


def _two_nodes(command: list, environment: dict, cwd: Path) -> list[tuple[int, str, str]]:
    """Run a script line on two nodes at the same time; of each exit status, stdout and stderr."""
    nodes = {"NODES": "2", "MASTER": f"127.0.0.1:{_free_port()}"}
    started = [
        subprocess.Popen(
            command, env=environment | nodes | {"NODE": str(k)}, cwd=cwd, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for k in (1, 0)
    ][::-1]  # fmt: skip
    try:
        results = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(started, results, strict=True)]


def test_two_nodes_run_and_skip_the_same_steps(project):
    project.run(STAGE2_TRAIN_OPTIONS="--iterations 7")
    before = len(project.started())
    (first, _, errors), (second, printed, _) = _two_nodes(
        project.command(), project.environment(GPUS="3"), project.folder
    )
    assert first == second == 0 and not errors
    assert printed.count("done before, says node 0") == 3  # parallel, and done
    assert (
        printed.count("not on node 1") == 5
    )  # four of stage 1 on one process; three are enough for a batch of 4
    commands = [words for words in project.started()[before:] if "--node_rank=1" not in words]
    assert [project.folder_of(words) for words in commands] == STEPS[7:]
    assert "--nproc_per_node=3" in commands[0] and "--standalone" in commands[0]
    others = [words for words in project.started()[before:] if "--node_rank=1" in words]
    assert [project.folder_of(words) for words in others] == STEPS[8:]
    assert all("--nnodes=2" in words and "--nproc_per_node=3" in words for words in others)


def test_the_other_node_ends_when_node_0_has_failed(project):
    (project.folder / "fails").write_text("weaktr.search_threshold")
    (first, _, errors), (second, _, other_errors) = _two_nodes(
        project.command(), project.environment(), project.folder
    )
    assert first == second == 1
    assert errors.startswith("error: it broke\n")
    assert other_errors.startswith("error: node 0 has failed") and other_errors.count("\n") == 2


REAL = {
    "BACKBONE": "vit_micro_patch8_96", "PRETRAINED_WEIGHTS": "none", "WORKERS": "0", "EPOCHS": "1",
    "STAGE1_SPLITS": "train",
    "STAGE1_TRAIN_OPTIONS": "--batch-size 8 --reduction 8 --schedule step --warmup-epochs 0 --lr 0.03",
    "STAGE2_TRAIN_OPTIONS": "--short-side 72 --crop-size 64 --iterations 2 --lr 0.05 --overlays 0",
}  # fmt: skip


def test_both_stages_on_two_nodes_equal_those_of_one_node_with_two_processes(miniature, tmp_path):
    out = tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if not SETTING.match(k)}
    environment |= REAL | {"WEAKTR_PYTHON": sys.executable}
    command = ["bash", ROOT / "scripts" / "all.sh", "folder", miniature, out]
    nodes = _two_nodes(command, environment, tmp_path)
    assert [status for status, *_ in nodes] == [0, 0], nodes
    table = nodes[0][1].split("== result\n")[1].splitlines()
    score = json.loads((out / "stage2/multi_crf/val/score.json").read_text())["mean_iou"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("|")]
    assert rows[-1] == ["segmenter, published test", "val", f"{100 * score:.1f}", "-"]
    assert table[-1] == f"next: python -m wsss.report --run {out}"
    assert "== result" not in nodes[1][1]

    finish(
        *argv(
            "weaktr.train", "--data-path", miniature, "--output-dir", tmp_path / "train", "--epochs", 1,
            "--backbone", REAL["BACKBONE"], "--pretrained", "none", "--workers", 0,
            *REAL["STAGE1_TRAIN_OPTIONS"].split(), processes=2,
        )
    )  # fmt: skip
    one, two = (
        torch.load(folder / "last.pth", weights_only=True)["model"]
        for folder in (tmp_path / "train", out / "stage1/train")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    run_here(
        "weaktr.generate_cam", "--data-path", miniature, "--output-dir", tmp_path / "cams",
        "--checkpoint", out / "stage1/train/best.pth",
    )  # fmt: skip
    files = {path.name: path.read_bytes() for path in (tmp_path / "cams").glob("*.npz")}
    found = {path.name: path.read_bytes() for path in (out / "stage1/cams/train").glob("*.npz")}
    assert len(files) == 16 and files == found


# --------------------------------------------------------------------------------------------- table


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_table_has_the_published_number_beside_what_it_belongs_to(tmp_path):
    for stage, backbone in ((1, "deit_small_patch16_224"), (2, "vit_small_patch16_384")):
        config = {"dataset": "voc12", "backbone": backbone}
        _write(tmp_path / f"stage{stage}" / "train" / "config.json", config)
    curve = {"threshold": [0.42, 0.43, 0.44], "mean_iou": [0.1, 0.6712, 0.2]}
    threshold = {"threshold": 0.43, "split": "train", "curve": curve}
    _write(tmp_path / "stage1/threshold/threshold.json", threshold)
    for folder, split, value in (
        ("stage1/score/train", "train", 0.6931), ("stage1/masks/train_aug", "train_aug", 0.7),
        ("stage2/single/val", "val", 0.77), ("stage2/multi_crf/val", "val", 0.7838),
        ("stage2/multi_crf/train", "train", 0.8012), ("stage2/multi_crf/test", "test", None),
    ):  # fmt: skip
        _write(tmp_path / folder / "score.json", {"split": split, "mean_iou": value})
    done = run_process(sys.executable, ROOT / "scripts" / "summary.py", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:9]] == [
        ["CAMs, threshold 0.43", "train", "67.1", "-"],
        ["pseudo-masks, CAM + CRF", "train_aug", "70.0", "-"],
        ["pseudo-masks, CAM + CRF", "train", "69.3", "69.4"],
        ["segmenter, one scale", "val", "77.0", "-"],
        ["segmenter, published test", "test", "-", "79.0"],
        ["segmenter, published test", "train", "80.1", "80.3"],
        ["segmenter, published test", "val", "78.4", "78.4"],
    ]
    assert lines[-1] == f"next: python -m wsss.report --run {tmp_path}"
    empty = run_process(sys.executable, ROOT / "scripts" / "summary.py", tmp_path / "nothing")
    assert empty.returncode == 0 and empty.stdout.startswith("no score: ")
