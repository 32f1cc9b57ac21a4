"""The output folder of a command: whose it is, whether it may be continued, and its record files.

    config.json        command and the options that decide the result; compared when a run is continued
    environment.json   versions, hardware, commit, threads, command line of the last start; time of all
    log.jsonl          one JSON object per epoch or step (training)

The layout of every command's folder is in docs/formats.md.
"""

import datetime
import hashlib
import json
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from wsss.distributed import gather_objects, rank, world_size
from wsss.errors import UserError
from wsss.io import write_json, write_text

log = logging.getLogger(__name__)


def open_run(
    output_dir: Path, command: str, options: dict, *, owned: Sequence[str], overwrite: bool = False
) -> Path:
    """Create or continue an output folder.

    Args:
        output_dir: The folder. Created with its parents.
        command: Name of the command, such as ``weaktr.train``.
        options: JSON-able options that decide the result (``wsss.config.result_options``), with the hashes of
            the files the command reads where those may change under the same name.
        owned: Glob patterns, relative to the folder, of what the command writes; deleted by ``overwrite``
            when the folder belongs to a different run.
        overwrite: Start afresh in a folder of a different run.

    Raises:
        UserError: The folder holds results of another command, or of this one with other options, or
            results without a ``config.json``.
    """
    output_dir = Path(output_dir)
    problem = None
    if rank() == 0:
        problem = _claim(output_dir, command, options, owned, overwrite)
    problem = gather_objects(problem)[0]  # every process stops together, with the same line
    if problem:
        raise UserError(problem)
    return output_dir


def _claim(output_dir: Path, command: str, options: dict, owned, overwrite: bool) -> str | None:
    wanted = json.loads(json.dumps({"command": command, **options}))
    config_path = output_dir / "config.json"
    if output_dir.exists() and not output_dir.is_dir():
        return f"{output_dir}: is a file; give --output-dir a folder"
    output_dir.mkdir(parents=True, exist_ok=True)
    difference = None
    results = [p for pattern in owned for p in output_dir.glob(pattern)]
    if config_path.is_file():
        try:
            found = json.loads(config_path.read_text(encoding="utf8"))
        except ValueError:
            found = {}
        if not results and found.get("command") == command:
            found = wanted  # nothing there yet: it may still change its mind
        keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        if keys:
            shown = ", ".join(f"{k} was {found.get(k)!r}, now {wanted.get(k)!r}" for k in keys[:3])
            difference = f"of a different run ({shown})"
    elif results:
        difference = "holding results without a config.json"
    if difference and not overwrite:
        return (
            f"{output_dir}: output folder {difference}; "
            "choose another --output-dir, or start afresh with --overwrite"
        )
    if difference:
        config_path.unlink(missing_ok=True)  # first: killed in between, what is left has no owner
        for path in results:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(config_path, json.dumps(wanted, indent=2) + "\n")
    continued = bool(results) and not difference
    seconds = recorded_seconds(output_dir) if continued else None
    carried = {} if seconds is None else {"seconds": seconds}
    write_json(output_dir / "environment.json", environment() | carried)
    return None


def close_run(output_dir: Path, begun: datetime.datetime) -> None:
    """Record that the command has ended well: ``ended``, and the time since ``begun`` added to ``seconds``.

    Only the first process writes, and only into a folder that the command has opened (``open_run``).

    Args:
        output_dir: The command's output folder.
        begun: When the command began, with its time zone.
    """
    path = Path(output_dir) / "environment.json"
    record = _environment_of(output_dir) if rank() == 0 else {}
    if str(record.get("started", "")) < _utc(begun):
        return  # of an earlier start, or of none: this command keeps no record here
    ended = datetime.datetime.now(datetime.UTC)
    seconds = max(0.0, (ended - begun).total_seconds()) + (recorded_seconds(output_dir) or 0.0)
    write_json(path, record | {"ended": _utc(ended), "seconds": round(seconds, 1)})


def recorded_seconds(output_dir: Path) -> float | None:
    """Wall time of the starts in a folder that ended well; None where there was none."""
    seconds = _environment_of(output_dir).get("seconds")
    number = isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds >= 0
    return float(seconds) if number else None


def _environment_of(output_dir: Path) -> dict:
    """environment.json; empty where it is missing or damaged, as it decides nothing."""
    try:
        found = json.loads((Path(output_dir) / "environment.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _utc(time: datetime.datetime) -> str:
    return time.astimezone(datetime.UTC).isoformat(timespec="seconds")


def environment() -> dict:
    """What a reader needs to judge or repeat a number: versions, hardware, commit, threads, command line."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "pydensecrf2")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": _utc(datetime.datetime.now(datetime.UTC)),
        "command_line": shlex.join(sys.orig_argv),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": world_size(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Commit of the project's checkout, with ``+`` behind it where files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # unpacked inside another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} logical cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
