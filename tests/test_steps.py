"""scripts/steps.py and scripts/nodes.py: when a step is done, and what node 0 answers."""

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.commands import ROOT


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


steps, nodes = _load("steps"), _load("nodes")
TRAIN = ["-m", "weaktr.train", "--output-dir", "OUT", "--epochs", "60", "--crf", "--scales", "1", "2"]


def _record(folder, words=TRAIN, started=10, ended: int | None = 20, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"command": words[1], **config}))
    record = {"started": f"2026-01-01T00:00:{started}+00:00", "command_line": " ".join(["python", *words])}
    if ended is not None:
        record["ended"] = f"2026-01-01T00:00:{ended}+00:00"
    (folder / "environment.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (TRAIN, None),
        ([*TRAIN, "--workers", "3", "--device", "cpu", "--overwrite"], None),
        (["-m", "weaktr.train", "--scales", "1", "2", "--crf", "--epochs=60"], None),
        (["-m", "weaktr.train", "--epochs", "7", *TRAIN[2:]], None),  # the last one counts
        ([*TRAIN, "--epochs", "61"], "--epochs was 60, is 61"),
        ([*TRAIN, "--no-crf"], "--crf was given, is no"),
        ([*TRAIN, "--scales", "1"], "--scales was 1 2, is 1"),
        (TRAIN[:4], "--epochs was 60, is left out"),
        ([*TRAIN, "--seed", "-1"], "--seed was left out, is -1"),
        (["-m", "weaktr.generate_cam", *TRAIN[2:]], "another command"),
    ],
)
def test_same_command(words, reason, tmp_path):
    _record(tmp_path)
    assert steps.why_not_done(tmp_path, words, []) == reason


def test_a_checkpoint_of_other_content_is_a_change(tmp_path):
    file = tmp_path / "last.pth"
    file.write_bytes(b"first")
    words = ["-m", "weaktr.generate_cam", "--checkpoint", str(file)]
    _record(tmp_path / "cams", words, checkpoint=str(file), checkpoint_sha256=steps.sha256(file))
    assert steps.why_not_done(tmp_path / "cams", words, []) is None
    file.write_bytes(b"other")
    assert steps.why_not_done(tmp_path / "cams", words, []) == f"{file} has changed"
    file.unlink()  # what is done needs it no more
    assert steps.why_not_done(tmp_path / "cams", words, []) is None


def test_launchers_are_not_looked_at(tmp_path):
    line = ["-u", "-m", "weaktr.train", "--epochs", "3"]
    assert steps.command_of(line) == ("weaktr.train", {"epochs": ("3",)})
    assert steps.command_of(["weaktr-train", "--epochs", "3"]) is None
    _record(
        tmp_path, ["weaktr-train", "weaktr.train"]
    )  # as a console command: run again, it keeps what it did
    assert steps.why_not_done(tmp_path, ["-m", "weaktr.train"], []) == "another command"


def test_paths_are_compared_as_the_record_resolved_them(tmp_path, monkeypatch):
    words = ["-m", "wsss.score", "--data-path", "data", "--pred-dir", "masks"]
    monkeypatch.chdir(tmp_path)
    _record(tmp_path / "out", words, data_path=str(tmp_path / "data"))
    assert steps.why_not_done(tmp_path / "out", words, []) is None
    absolute = [*words[:3], str(tmp_path / "x" / ".." / "data"), *words[4:]]
    assert steps.why_not_done(tmp_path / "out", absolute, []) is None
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    reason = steps.why_not_done(tmp_path / "out", words, [])
    assert reason == f"--data-path was {tmp_path}/data, is {tmp_path}/x/data"


def test_order_of_time(tmp_path):
    for name, started, ended in (("a", 10, 20), ("b", 20, 30), ("c", 29, 40)):
        _record(tmp_path / name, started=started, ended=ended)
    assert steps.why_not_done(tmp_path / "b", TRAIN, [tmp_path / "a"]) is None  # in the same second
    reason = steps.why_not_done(tmp_path / "c", TRAIN, [tmp_path / "a", tmp_path / "b"])
    assert reason == f"{tmp_path}/b is newer"
    assert steps.why_not_done(tmp_path / "c", TRAIN, [tmp_path / "nothing"]) is None  # masks from elsewhere


def test_not_ended_never_begun_and_damaged(tmp_path):
    assert steps.why_not_done(tmp_path / "nothing", TRAIN, []) == ""
    _record(tmp_path, ended=None)
    assert steps.why_not_done(tmp_path, TRAIN, []) == "it has not ended"
    _record(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert steps.why_not_done(tmp_path, TRAIN, []) == "another command"
    _record(tmp_path, ["-m", "weaktr.train", "'unbalanced"])
    assert steps.why_not_done(tmp_path, TRAIN, []) == "another command"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("score.json", '{"mean_iou": 0.5, "split": "val"}', "mIoU 50.00% on val"),
        ("score.json", '{"mean_iou": null, "split": "val"}', ""),
        ("threshold.json", '{"threshold": 0.43, "selected_by": "Otsu"}', "threshold 0.43, Otsu"),
        ("log.jsonl", '{"loss": 9}\n{"loss": 1.5, "cam_miou": 0.25}\n', "last loss 1.5000, CAM mIoU 25.00%"),
        ("log.jsonl", '{"loss": 1.5, "val_mio', ""),
        ("log.jsonl", "", ""),
    ],
)
def test_result(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    assert steps.result_of(tmp_path) == words


def test_asking_imports_nothing_heavy(tmp_path):
    _record(tmp_path)
    command = [
        sys.executable,
        "-S",
        "-X",
        "importtime",
        ROOT / "scripts" / "steps.py",
        tmp_path,
        "--",
        *TRAIN,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"done before: {tmp_path}; ended 2026-01-01T00:00:20+00:00\n"
    assert not {"torch", "numpy", "wsss"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


def test_answers_of_node_0():
    gate = nodes.Gate(step=5, needed=3, nodes=4)
    assert gate.answer(4, 1, 4, now=0) == "skip"  # behind
    assert gate.answer(5, 1, 4, now=0) == "wait" and gate.missing(0) == [2]
    assert gate.answer(6, 3, 4, now=0) == "wait"  # not needed here, ahead
    assert gate.answer(6, 2, 4, now=0) == "stop"  # needed, ahead: node 0 was started anew
    assert gate.answer(5, 1, 3, now=0) == "stop"  # other NODES
    assert gate.answer(5, 0, 4, now=0) == gate.answer(5, 4, 4, now=0) == "stop"
    assert gate.answer(5, 2, 4, now=30) == "wait" and gate.missing(30) == [1]  # node 1 has gone
    assert gate.answer(5, 1, 4, now=31) == "go" and not gate.is_open()
    assert gate.answer(5, 2, 4, now=50) == "go" and gate.is_open()


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _ask(port: int, step: int) -> subprocess.Popen:
    command = [sys.executable, "-S", ROOT / "scripts" / "nodes.py", "ask", f"127.0.0.1:{port}"]
    words = map(str, (*command, step, 1, 2))
    return subprocess.Popen(list(words), stderr=subprocess.PIPE, text=True)


def test_a_node_waits_for_a_late_node_0(port):
    waiting = _ask(port, 7)
    time.sleep(1)
    assert waiting.poll() is None
    assert nodes.open_step(port, 7, 2, 2, patience=20) == nodes.GO
    waiting.communicate(timeout=20)
    assert waiting.returncode == nodes.GO


def test_a_node_that_is_behind_is_told_to_skip(port):
    server = threading.Thread(target=nodes.open_step, args=(port, 7, 2, 2, 20))
    server.start()
    for step, status in ((6, nodes.SKIP), (7, nodes.GO)):
        asking = _ask(port, step)
        asking.communicate(timeout=20)
        assert asking.returncode == status
    server.join(20)
    assert not server.is_alive()


def test_strangers_do_not_disturb_node_0_and_patience_ends(port):
    server = threading.Thread(target=nodes.open_step, args=(port, 7, 2, 2, 2))
    server.start()
    time.sleep(0.5)
    for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 500):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
    server.join(20)
    assert not server.is_alive()


def test_a_failure_of_node_0_reaches_the_others(port):
    waiting = _ask(port, 3)
    nodes.tell_to_stop(port, 2, patience=20)
    _, errors = waiting.communicate(timeout=20)
    assert waiting.returncode == 1 and errors.startswith("error: node 0 has failed")
