"""What the commands left in a run folder, as plain values. Nothing but their small record files is opened.

A file that is not as docs/formats.md says does not stop the reading: it is named in ``Run.unreadable``.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss.errors import UserError
from wsss.io import read_json, read_text
from wsss.reporting.files import (
    Facts,
    HeadWeights,
    Score,
    Threshold,
    as_object,
    charted,
    config_of,
    facts_of,
    head_weights_of,
    is_number,
    score_of,
    threshold_of,
)


@dataclass(frozen=True)
class Folder:
    """The output folder of one command; what it does not hold is None or empty."""

    path: Path
    name: str  # relative to the run, with slashes; "." for the run itself
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    log: list[dict[str, float]]
    score: Score | None
    threshold: Threshold | None
    facts: Facts | None
    head_weights: HeadWeights | None
    panels: dict[str, dict[str, Path]] = field(default_factory=dict)  # image id -> name of the column -> PNG

    @property
    def split(self) -> str | None:
        """The list of pictures the command worked on, as its options name it."""
        value = self.config.get("split")
        return value if isinstance(value, str) else None


@dataclass(frozen=True)
class Run:
    path: Path
    folders: list[Folder]  # in the order of their names
    unreadable: list[str]  # one line each

    def of(self, *commands: str) -> list[Folder]:
        return [folder for folder in self.folders if folder.command in commands]


def read_run(path: Path) -> Run:
    """Read every folder below ``path`` that has a ``config.json`` with a command.

    Raises:
        UserError: No such folder, or nothing in it was written by a command.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give --run the folder that a run wrote into")
    reader = _Reader(path)
    found = sorted(Path(where) for where, _, files in os.walk(path) if "config.json" in files)
    if not found:
        raise UserError(
            f"{path}: no config.json in it or below, so no command has written here; "
            "give --run the output folder of a run, such as the OUT of scripts/stage1.sh"
        )
    folders = [folder for folder in map(reader.folder, found) if folder]
    return Run(path, folders, reader.unreadable)


class _Reader:
    """Reads files below ``root`` and notes the ones that cannot be used."""

    def __init__(self, root: Path):
        self.root = root
        self.unreadable: list[str] = []

    def folder(self, path: Path) -> Folder | None:
        config = self._parsed(path / "config.json", config_of)
        if config is None:
            return None
        return Folder(
            path=path,
            name=path.relative_to(self.root).as_posix(),
            command=config["command"],
            config={key: value for key, value in config.items() if key != "command"},
            environment=self._parsed(path / "environment.json", as_object) or {},
            log=self._log(path / "log.jsonl"),
            score=self._parsed(path / "score.json", score_of),
            threshold=self._parsed(path / "threshold.json", threshold_of),
            facts=self._parsed(path / "dataset.json", facts_of),
            head_weights=self._parsed(path / "head_weights.json", head_weights_of),
            panels=_panels(path / "panels"),
        )

    def _parsed(self, path: Path, parse: Callable[[Any], Any]) -> Any:
        if not path.is_file():
            return None
        try:
            return parse(read_json(path))
        except UserError as error:
            self.unreadable.append(str(error))
        except (
            LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            self.unreadable.append(f"{path}: not as docs/formats.md says ({what})")
        return None

    def _log(self, path: Path) -> list[dict[str, float]]:
        """The numbers of each line."""
        if not path.is_file():
            return []
        try:
            lines = read_text(path).split("\n")
        except UserError as error:
            self.unreadable.append(str(error))
            return []
        records, bad = [], []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = as_object(json.loads(line))
                records.append({key: charted(value) for key, value in record.items() if is_number(value)})
            except (ValueError, TypeError, OverflowError, RecursionError):
                bad.append(number)
        if bad:
            also = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            self.unreadable.append(f"{path}, line {bad[0]}{also}: not a JSON object; left out")
        return records


def _panels(folder: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*/*.png")):
        if not path.name.startswith("."):  # a killed writer's temporary file
            found.setdefault(path.parent.name, {})[path.stem] = path
    return found
