"""Bad input for tests: files that are cut, weights nobody should load, odd pictures, a full disk."""

import errno
import pathlib
import pickle
import shutil

import numpy as np
import torch
from PIL import Image


def files(folder: pathlib.Path) -> list[str]:
    """Names of what a command has written, TensorBoard's events left out."""
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(n for n in names if not n.startswith("tensorboard"))


def cut(path: pathlib.Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def append(path: pathlib.Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf8") + text, encoding="utf8")


def add_pictures(folder: pathlib.Path, original: Image.Image) -> list[str]:
    """Write a picture as grey, RGBA, palette, CMYK and 16-bit grey; returns the names without suffix."""
    kinds = {"grey": "L", "alpha": "RGBA", "palette": "P", "press": "CMYK"}
    for name, mode in kinds.items():
        original.convert(mode).save(folder / f"{name}{'.jpg' if mode == 'CMYK' else '.png'}")
    Image.fromarray(np.array(original.convert("L")).astype(np.uint16) * 256).save(folder / "deep.png")
    return [*kinds, "deep"]


# ------------------------------------------------------------------------------------------- weights


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


BAD_WEIGHTS = {  # kind: what the error says
    "truncated": "truncated",
    "malicious": "refused",
    "text": "checkpoint",
    "missing": "no such",
    "foreign": "missing",
}


def write_bad_weights(kind: str, path: pathlib.Path, good: pathlib.Path, canary: pathlib.Path) -> None:
    """One of ``BAD_WEIGHTS``; ``canary`` is the file that exists if anything in it was executed."""
    path.unlink(missing_ok=True)
    if kind == "truncated":
        shutil.copy(good, path)
        cut(path)
    elif kind == "malicious":
        torch.save({"model": {"head.weight": torch.zeros(3)}, "args": Exploit(canary)}, path)
        pickle.loads(pickle.dumps(Exploit(canary)))  # the trap works,
        canary.unlink()  # and is set again
    elif kind == "text":
        path.write_text("no weights here")
    elif kind == "foreign":
        torch.save({"model": {"conv.weight": torch.zeros(3)}}, path)


# ---------------------------------------------------------------------------------------------- disk


def fill_disk(monkeypatch, name: str, *, write: int) -> None:
    """The disk is full in the middle of the given write (from 1) of a file of that name, and only then."""
    write_bytes, writes = pathlib.Path.write_bytes, []

    def full(self, content):
        if self.name == name:
            writes.append(self)
            if len(writes) == write:
                write_bytes(self, bytes(content)[:1000])
                raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write_bytes(self, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
