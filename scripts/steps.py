"""Is a step of a script done? Exit status 0 and one line "done before: ..." if so, else 1.

    python scripts/steps.py FOLDER [--after FOLDER ...] -- -m weaktr.train --epochs 60 ...

A step is done when its output folder says that the command ended (environment.json), that it was this command
with these options, on the same data, and that it began when all steps before it (--after) had ended: a step
whose input was made anew is not done. What is damaged or missing is not done. Reads small files only and
imports nothing but the standard library, so that asking takes no time.
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# Options that may differ: they decide neither what is computed nor which files there are.
FREE = {"output-dir", "overwrite", "device", "workers", "window-batch", "save-every"}


def read_object(path: Path) -> dict:
    """A JSON object; empty where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command_of(words: list[str]) -> tuple[str, dict[str, tuple[str, ...]]] | None:
    """The module after ``-m`` and its options, the last of each counting; None without a module.

    ``--crf`` has no values and ``--no-crf`` has ("no",), both under "crf".
    """
    if "-m" not in words[:-1]:
        return None
    start = words.index("-m") + 1
    options, name = {}, ""
    for word in words[start + 1 :]:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = (value,) if equals else ()
            if name.startswith("no-"):
                name, values = name[3:], ("no",)
            options[name] = values
        else:
            options[name] = (*options.get(name, ()), word)
    return words[start], {name: values for name, values in options.items() if name not in FREE}


def difference(folder: Path, words: list[str], record: dict) -> str | None:
    """In what the folder's command differs from ``words``; None if in nothing."""
    try:
        found = command_of(shlex.split(record["command_line"]))
    except (KeyError, ValueError, AttributeError, TypeError):
        found = None
    wanted = command_of(words)
    config = read_object(folder / "config.json")
    if found is None or wanted is None or found[0] != wanted[0] or config.get("command") != wanted[0]:
        return "another command"
    recorded, file = config.get("checkpoint_sha256"), Path(*wanted[1].get("checkpoint", ()))
    if recorded and file.is_file() and sha256(file) != recorded:
        return f"{file} has changed"
    for name in {**wanted[1], **found[1]}:
        before, now = found[1].get(name), wanted[1].get(name)
        place = config.get(name.replace("-", "_"))
        if isinstance(place, str) and place.startswith("/") and now is not None and len(now) == 1:
            # a path: the same one however it is written, and not that of another working directory
            before, now = (place,), (str(Path(now[0]).resolve()),)
        if before != now:
            shown = ["left out" if v is None else " ".join(v) or "given" for v in (before, now)]
            return f"--{name} was {shown[0]}, is {shown[1]}"
    return None


def why_not_done(folder: Path, words: list[str], after: list[Path]) -> str | None:
    """Why the step must run; None if it is done, "" if it was never run."""
    record = read_object(folder / "environment.json")
    started, ended = record.get("started"), record.get("ended")
    if not started and not folder.exists():
        return ""
    if not isinstance(started, str) or not isinstance(ended, str):
        return "it has not ended"
    if changed := difference(folder, words, record):
        return changed
    for earlier in after:
        last = read_object(earlier / "environment.json").get("ended")
        if isinstance(last, str) and last > started:
            return f"{earlier} is newer"
    return None


def result_of(folder: Path) -> str:
    """The number a command has recorded in its folder; empty where there is none."""
    score = read_object(folder / "score.json")
    if isinstance(score.get("mean_iou"), float):
        return f"mIoU {100 * score['mean_iou']:.2f}% on {score.get('split')}"
    threshold = read_object(folder / "threshold.json")
    if isinstance(threshold.get("threshold"), float):
        return f"threshold {threshold['threshold']:.2f}, {threshold.get('selected_by')}"
    try:
        last = json.loads((folder / "log.jsonl").read_text(encoding="utf8").splitlines()[-1])
        parts = [f"loss {last['loss']:.4f}"]
        for name, words in (("cam_miou", "CAM mIoU"), ("val_miou", "val mIoU")):
            if name in last:
                parts.append(f"{words} {100 * last[name]:.2f}%")
        return "last " + ", ".join(parts)
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--after", type=Path, nargs="*", default=[])
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    reason = why_not_done(options.folder, options.words, options.after)
    if reason is None:
        ended = read_object(options.folder / "environment.json")["ended"]
        parts = (f"done before: {options.folder}", result_of(options.folder), f"ended {ended}")
        log.info("; ".join(filter(None, parts)))
    elif reason:
        log.info("to be done: %s: %s", options.folder, reason)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main())
