"""data/prepare_*.sh: they parse, say what they are, and refuse nonsense before anything is started."""

import re
import subprocess

import pytest

from tests.commands import ROOT
from tests.wsss.prepare.helpers import finished, script

NAMES = ("prepare_voc12", "prepare_coco14")


@pytest.mark.parametrize("name", [*NAMES, "prepare"])
def test_script_parses_and_says_what_it_is(name):
    path = ROOT / "data" / f"{name}.sh"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    header = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf8"))[0]
    if name == "prepare":
        assert header.startswith("# Sourced by ")
        return
    assert f"bash data/{name}.sh DIR" in header
    for word in ("Needs", "Writes", "Resumes", "Expect", "Time", "Disk", "published", "not measured"):
        assert word in header, word


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [(), ("",), ("--partial",), ("--from", "x")])
def test_folder_comes_first(name, words):
    done = script(name, *words, WEAKTR_PYTHON="/nothing")
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert f"DIR, the folder to make, comes first; usage: bash data/{name}.sh DIR" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_options_in_the_header_exist(name):
    text = finished(script(name, "--help"))
    header = re.match(r"(?:#.*\n)+", (ROOT / "data" / f"{name}.sh").read_text(encoding="utf8"))[0]
    shown = set(re.findall(r"--[a-z][\w-]+", header)) - {"--dataset"}  # of the commands that come later
    assert len(shown) >= 4
    for option in shown:
        assert re.search(rf"{option}(?![\w-])", text), option
