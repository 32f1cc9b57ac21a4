"""Sections of the report that say what was run: head, settings of every step, machines, versions, times."""

import datetime
from collections.abc import Callable, Iterable, Sequence

from wsss.reporting.page import cell, details, duration, escape, missing, paragraph, row, table
from wsss.reporting.read import Folder, Run
from wsss.reporting.scores import in_order, title_of

TRAININGS = ("weaktr.train", "segmentation.train", "segmentation.getam.train")


def head(run: Run) -> str:
    """What was run on what, when, with which code."""
    folders = in_order(run.folders)
    data = [
        f"{f.config['data_path']} ({f.config.get('dataset', 'folder')})"
        for f in folders
        if f.config.get("data_path")
    ]
    with_backbone = [f for f in folders if f.config.get("backbone")]
    trained = [f for f in with_backbone if f.command in TRAININGS] or with_backbone
    backbones = [f"{f.config['backbone']} ({title_of(f).removesuffix(' training')})" for f in trained]
    times = [_when(f, key) for f in folders for key in ("started", "ended")]
    times = sorted(time for time in times if time)
    facts = {
        "Steps": _each(title_of(f) for f in folders),
        "Data set": _each(data),
        "Backbone": _each(backbones),
        "When": " to ".join(dict.fromkeys(f"{t:%Y-%m-%d %H:%M}" for t in (times[:1] + times[-1:]))),
        "Commit": _each(_text(f.environment.get("commit")) for f in folders),
        "Time of all steps": _total(folders),
    }
    return _definitions({name: value or "not known" for name, value in facts.items()})


def _definitions(facts: dict[str, str]) -> str:
    lines = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>\n{lines}\n</dl>"


def _each(texts: Iterable[str]) -> str:
    """Different texts, each once."""
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _text(value: object) -> str:
    """A value of a record file in words."""
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(v) or '–'}" for key, v in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _when(folder: Folder, key: str) -> datetime.datetime | None:
    """A time of ``environment.json`` in UTC."""
    try:
        time = datetime.datetime.fromisoformat(str(folder.environment.get(key)))
        return time.replace(tzinfo=time.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return None


def _seconds(folder: Folder) -> float | None:
    value = folder.environment.get("seconds")
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else None


def _total(folders: Sequence[Folder]) -> str:
    known = [seconds for seconds in map(_seconds, folders) if seconds is not None]
    if not known:
        return ""
    unknown = len(folders) - len(known)
    return duration(sum(known)) + (f", without {unknown} whose time is not recorded" if unknown else "")


def settings(run: Run) -> str:
    """Options and environment of every step, folded."""
    return "\n".join(
        details(
            f"{title_of(folder)}: {folder.name}",
            _values("option", folder.config) + _values("environment", folder.environment),
        )
        for folder in in_order(run.folders)
    )


def _values(heading: str, values: dict[str, object]) -> str:
    if not values:
        return missing(f"No {heading}.")
    rows = [f"<tr>{cell(key, 'key')}{cell(_text(v) or '–', 'value')}</tr>" for key, v in values.items()]
    return table([heading, "value"], rows)


def machines(run: Run) -> str:
    """Where, when and how long each step ran; versions."""
    folders = in_order(run.folders)
    columns: dict[str, Callable[[Folder], str]] = {
        "folder": lambda f: f.name,
        "started (UTC)": lambda f: f"{t:%Y-%m-%d %H:%M}" if (t := _when(f, "started")) else "",
        "time": lambda f: "" if _seconds(f) is None else duration(_seconds(f)),
        "commit": lambda f: _text(f.environment.get("commit")),
        "seed": lambda f: _text(f.config.get("seed")),
        "processor": lambda f: _text(f.environment.get("processor")),
        "GPUs": lambda f: _text(f.environment.get("gpus")),
        "processes": lambda f: _text(f.environment.get("processes")),
        "threads": lambda f: _text(f.environment.get("threads")),
    }  # fmt: skip
    narrow = ("started (UTC)", "time")
    rows = [
        row(title_of(f), [cell(of(f) or "–", "short" if c in narrow else "") for c, of in columns.items()])
        for f in folders
    ]
    total = f"Time of all steps: {_total(folders) or 'not recorded'}."
    if _total(folders):
        total += " Starts that were stopped, and the start of Python, are not counted."
    versions: dict[str, list[str]] = {}
    for f in folders:
        python = _text(f.environment.get("python"))
        parts = [
            f"Python {python}" if python else "",
            *(_text(f.environment.get(k)) for k in ("packages", "platform")),
        ]
        versions.setdefault(_each(parts) or "not known", []).append(f.name)
    lines = [
        paragraph(f"Versions: {text}." + (f" In {', '.join(names)}." if len(versions) > 1 else ""))
        for text, names in versions.items()
    ]
    note = paragraph("A commit with + behind it: files differed from it.", "note")
    return table(["step", *columns], rows) + "\n".join([paragraph(total), *lines, note])
