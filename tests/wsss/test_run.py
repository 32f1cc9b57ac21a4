"""Whose an output folder is, and the time its commands took."""

import datetime
import json
import re
import subprocess

import pytest

from wsss import run
from wsss.config import DataOptions, run_command
from wsss.errors import UserError
from wsss.run import close_run, environment, open_run, sha256

OPTIONS = {"lr": 0.1, "scales": (1.0, 2.0)}
OWNED = ("*.npz", "sub")


def opened(folder, options=OPTIONS, command="weaktr.x", **more):
    return open_run(folder, command, options, owned=OWNED, **more)


def record(folder):
    return json.loads((folder / "environment.json").read_text())


def test_continued_with_equal_options(tmp_path):
    folder = tmp_path / "a" / "b"
    opened(folder)
    (folder / "one.npz").write_text("kept")
    opened(folder, {"scales": [1.0, 2.0], "lr": 0.1})  # tuples and lists are one, order does not matter
    assert (folder / "one.npz").read_text() == "kept"
    assert record(folder)["packages"]["torch"] and record(folder)["threads"] >= 1


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        (OPTIONS | {"lr": 0.2}, "weaktr.x", "lr was 0.1, now 0.2"),
        ({"scales": [1.0, 2.0]}, "weaktr.x", "lr was 0.1, now None"),
        (OPTIONS, "weaktr.y", "command was 'weaktr.x', now 'weaktr.y'"),
    ],
)
def test_another_run_is_refused_unless_told(tmp_path, options, command, words):
    opened(tmp_path)
    for name in ("one.npz", "mine.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="--overwrite") as caught:
        opened(tmp_path, options, command)
    assert words in str(caught.value)
    assert (tmp_path / "one.npz").exists()
    opened(tmp_path, options, command, overwrite=True)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"config.json", "environment.json", "mine.txt"}  # never what the command did not write
    assert json.loads((tmp_path / "config.json").read_text())["command"] == command


def test_a_folder_without_results_may_change_its_mind(tmp_path):
    opened(tmp_path)
    opened(tmp_path, OPTIONS | {"lr": 0.2})
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.2
    with pytest.raises(UserError, match=r"command was 'weaktr\.x'"):
        opened(tmp_path, command="weaktr.y")  # but stays the command's


def test_overwrite_keeps_an_equal_run(tmp_path):
    opened(tmp_path)
    (tmp_path / "one.npz").write_text("x")
    opened(tmp_path, overwrite=True)
    assert (tmp_path / "one.npz").exists()


def test_results_of_unknown_origin_and_files_in_the_way(tmp_path):
    (tmp_path / "one.npz").write_text("x")
    with pytest.raises(UserError, match=r"without a config\.json"):
        opened(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "one.npz")
    (tmp_path / "config.json").write_text("{ cut")
    with pytest.raises(UserError, match="different run"):
        opened(tmp_path)


def test_environment_is_plain_and_sha256_known(tmp_path):
    assert json.loads(json.dumps(environment()))["python"].startswith("3.")
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def ago(seconds):
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)


def test_seconds_add_up_over_starts_that_end_well(tmp_path):
    opened(tmp_path)
    assert not {"seconds", "ended"} & record(tmp_path).keys()
    close_run(tmp_path, ago(100))
    assert 100 <= record(tmp_path)["seconds"] < 102
    assert datetime.datetime.fromisoformat(record(tmp_path)["ended"]) > ago(5)
    (tmp_path / "one.npz").write_text("x")
    opened(tmp_path)  # continued, and killed
    assert 100 <= record(tmp_path)["seconds"] < 102 and "ended" not in record(tmp_path)
    opened(tmp_path)
    close_run(tmp_path, ago(50))
    assert 150 <= record(tmp_path)["seconds"] < 154 and record(tmp_path)["packages"]["torch"]
    opened(tmp_path, OPTIONS | {"lr": 0.2}, overwrite=True)
    assert "seconds" not in record(tmp_path)


def test_seconds_are_set_back_where_the_results_are_gone(tmp_path):
    opened(tmp_path)
    close_run(tmp_path, ago(100))
    opened(tmp_path)
    assert "seconds" not in record(tmp_path)


@pytest.mark.parametrize("damage", ["{ cut", "[1]", '{"seconds": "x"}', '{"seconds": NaN}', None])
def test_a_damaged_record_stops_nothing(tmp_path, damage):
    opened(tmp_path)
    (tmp_path / "one.npz").write_text("x")
    path = tmp_path / "environment.json"
    path.unlink() if damage is None else path.write_text(damage)
    close_run(tmp_path, ago(0))
    assert (path.read_text() if path.exists() else None) == damage
    opened(tmp_path)
    close_run(tmp_path, ago(7))
    assert 7 <= record(tmp_path)["seconds"] < 9


def test_only_the_folder_that_was_opened_is_closed_by_the_first_process(tmp_path, monkeypatch):
    close_run(tmp_path, ago(1))
    assert not list(tmp_path.iterdir())
    opened(tmp_path)
    before = (tmp_path / "environment.json").read_bytes()
    close_run(tmp_path, ago(-60))  # a later command that keeps no record
    monkeypatch.setenv("RANK", "1")
    close_run(tmp_path, ago(60))
    assert (tmp_path / "environment.json").read_bytes() == before


@pytest.mark.parametrize("error", [UserError("a.jpg: broken; mend it"), KeyboardInterrupt(), ValueError()])
def test_commands_that_fail_leave_seconds_as_they_were(tmp_path, error, capsys):
    def main(config):
        opened(config.output_dir)
        (config.output_dir / "one.npz").write_text("x")

    def failing(config):
        main(config)
        raise error

    arguments = ["--data-path", "d", "--output-dir", str(tmp_path)]
    run_command(main, DataOptions, arguments, prog="weaktr.x")
    first = record(tmp_path)
    assert 0 <= first["seconds"] < 60 and first["ended"] >= first["started"]
    (tmp_path / "environment.json").write_text(json.dumps(first | {"seconds": 1000}))
    with pytest.raises((SystemExit, KeyboardInterrupt, ValueError)):
        run_command(failing, DataOptions, arguments, prog="weaktr.x")
    assert record(tmp_path)["seconds"] == 1000 and "ended" not in record(tmp_path)
    run_command(main, DataOptions, arguments, prog="weaktr.x")
    assert 1000 <= record(tmp_path)["seconds"] < 1060


def test_no_commit_where_the_project_lies_in_another_repository(tmp_path, monkeypatch):
    own = tmp_path / "project"
    (own / "wsss").mkdir(parents=True)
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(run, "__file__", str(own / "wsss" / "run.py"))
    assert run.commit() is None
    monkeypatch.setattr(run, "__file__", str(tmp_path / "wsss" / "run.py"))
    assert re.fullmatch(r"[0-9a-f]{12}", run.commit())
