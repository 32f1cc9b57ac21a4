"""What the tests of both preparations share."""

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT, run_process


def script(name: str, *words, **variables) -> subprocess.CompletedProcess:
    """``bash data/NAME.sh`` with this Python, from another folder than the project's."""
    environment = {**os.environ, "WEAKTR_PYTHON": sys.executable, **variables}
    command = ["bash", ROOT / "data" / f"{name}.sh", *words]
    return subprocess.run(
        list(map(str, command)), env=environment, cwd="/", capture_output=True, text=True, check=False
    )


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every file below a folder: its bytes and time of change."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def contents(folder: Path, *, but: tuple[str, ...] = ("prepared.json",)) -> dict[str, bytes]:
    """Every file below a folder but some names, hidden ones included."""
    return {name: data for name, (data, _) in snapshot(folder).items() if Path(name).name not in but}


def die_in_write(count: int, suffix: str, module: str, *options) -> None:
    """Run a preparation that is killed in the middle of its ``count``-th write of such a file."""
    done = run_process(sys.executable, ROOT / "tests" / "die_in_write.py", count, suffix, module, *options)
    assert done.returncode == -9, done.stdout + done.stderr


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
