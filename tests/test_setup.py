"""setup.py: every command has a console command, which knows its own name."""

import ast
import importlib
import re
import runpy
import sys

import pytest
import setuptools

from tests.commands import ROOT

PACKAGES = ("wsss", "weaktr", "segmentation")


@pytest.fixture(scope="module")
def arguments():
    """What setup.py gives to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", given.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return given


@pytest.fixture(scope="module")
def console_commands(arguments) -> dict[str, str]:
    """Name of each console command: ``module:function``."""
    lines = arguments["entry_points"]["console_scripts"]
    return dict(re.fullmatch(r"([\w-]+) *= *([\w.]+:\w+)", line).groups() for line in lines)


def _command_modules() -> list[str]:
    """The modules that ``python -m`` can run, by their last lines."""
    found = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        last = ast.parse(path.read_text(encoding="utf8")).body[-1:]
        if last and ast.unparse(last[0]).startswith("if __name__ == '__main__':"):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


def test_every_command_has_a_console_command(console_commands):
    modules = [target.split(":")[0] for target in console_commands.values()]
    assert sorted(modules) == sorted(_command_modules())
    assert console_commands["weaktr-generate-cam"] == "weaktr.generate_cam:run"
    assert console_commands["wsss-score"] == "wsss.score:run"
    assert len(console_commands) >= 9


def _usage(module: str, started_as: str, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [started_as, "--help"])
    run = importlib.import_module(module).run
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("module", _command_modules())
def test_help_shows_how_the_command_was_started(module, console_commands, monkeypatch, capsys):
    name = next(n for n, target in console_commands.items() if target == f"{module}:run")
    path = importlib.import_module(module).__file__
    first_line = importlib.import_module(module).__doc__.split("\n")[0]
    for started_as, usage in (
        (f"/environment/bin/{name}", f"usage: {name} [-h]"),
        (path, f"usage: python -m {module} [-h]"),  # as python -m and torchrun set it
    ):
        text = _usage(module, started_as, monkeypatch, capsys)
        assert text.startswith(usage)
        assert first_line in text


def test_packages_of_the_project_are_installed_without_its_tests(arguments):
    assert {name.split(".")[0] for name in arguments["packages"]} == set(PACKAGES)
    wanted = arguments["install_requires"]
    assert "torch==2.13.0" in wanted and not [line for line in wanted if line.startswith(("ruff", "pytest"))]
