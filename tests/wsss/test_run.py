"""Whose an output folder is."""

import json

import pytest

from wsss.errors import UserError
from wsss.run import environment, open_run, sha256

OPTIONS = {"lr": 0.1, "scales": (1.0, 2.0)}
OWNED = ("*.npz", "sub")


def opened(folder, options=OPTIONS, command="weaktr.x", **more):
    return open_run(folder, command, options, owned=OWNED, **more)


def test_continued_with_equal_options(tmp_path):
    folder = tmp_path / "a" / "b"
    opened(folder)
    (folder / "one.npz").write_text("kept")
    opened(folder, {"scales": [1.0, 2.0], "lr": 0.1})  # tuples and lists are one, order does not matter
    assert (folder / "one.npz").read_text() == "kept"
    record = json.loads((folder / "environment.json").read_text())
    assert record["packages"]["torch"] and record["threads"] >= 1


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
