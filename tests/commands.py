"""Running the project's commands in tests: in this process (fast), or as real processes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from wsss.config import run_command

ROOT = Path(__file__).resolve().parents[1]


def run_here(module: str, *arguments) -> None:
    """``python -m module arguments`` in this process; failures raise ``SystemExit`` as they would there."""
    command = importlib.import_module(module)
    run_command(command.main, command.Config, list(map(str, arguments)), prog=module)


def error_line(capsys, module: str, *arguments) -> str:
    """Run a command that must fail as bad input fails: status 2 and one ``error:`` line. Returns the line."""
    capsys.readouterr()
    status = None
    try:
        run_here(module, *arguments)
    except SystemExit as stop:
        status = stop.code
    text = capsys.readouterr().err
    errors = [line for line in text.split("\n") if "error:" in line]
    assert status == 2, f"status {status}: {text}"
    assert len(errors) == 1 and errors[0].startswith("error: "), text
    assert "Traceback" not in text
    return errors[0]


def argv(module: str, *arguments, processes: int = 1) -> list[str]:
    """The command line of a command in one process, or in several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", module, *map(str, arguments)]


def run_process(*command) -> subprocess.CompletedProcess:
    """Run a command line to its end, with the project importable."""
    return subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def finish(*command) -> str:
    """``run_process`` that must succeed; returns what it printed."""
    done = run_process(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
