"""The released checkpoints' layouts: names and shapes of tests/manifests, drawn values, published wrappers.

Nothing here asks the packages what a network looks like.
"""

import argparse
import re
import zipfile
import zlib
from pathlib import Path, PosixPath

import numpy as np
import torch

_VALUES = np.random.default_rng(0).normal(0, 0.1, 100_003).astype(np.float32)
MANIFESTS = Path(__file__).parent / "manifests"


def manifest(name: str, num_fg_classes: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a released network, in its order.

    Args:
        name: Of a file in tests/manifests, without its suffix.
        num_fg_classes: C; K is C + 1.
    """
    symbols = {"C": num_fg_classes, "K": num_fg_classes + 1}
    found = {}
    for line in (MANIFESTS / f"{name}.txt").read_text(encoding="utf8").splitlines():
        if line.startswith("#"):
            continue
        template, *sizes = line.split()
        shape = tuple(sum(symbols.get(part) or int(part) for part in size.split("+")) for size in sizes)
        numbers = re.search(r"\[(\d+)-(\d+)\]", template)
        first, last = map(int, numbers.groups()) if numbers else (0, 0)
        for number in range(first, last + 1):
            found[re.sub(r"\[\d+-\d+\]", str(number), template)] = shape
    return found


def drawn_state(shapes, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Values from the names alone. Rotary tables are the same in all blocks, as in the released files."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        seed = zlib.crc32((name.rsplit(".", 1)[-1] if "rope." in name else name).encode())
        values = np.resize(_VALUES[seed % 1000 :], shape)
        state[name] = torch.from_numpy(values).to(dtype)
    return state


def _optimizer() -> dict:
    group = {"lr": np.float64(1e-4), "momentum": 0.9, "nesterov": True, "params": [0, 1]}
    return {"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [group]}


def training_arguments() -> argparse.Namespace:
    return argparse.Namespace(
        lr=6e-4, data_path=PosixPath("/data/VOCdevkit"), output_dir=PosixPath("runs/weaktr"), resume="",
        scales=(1.0, 1.2), device=torch.device("cuda"), seed=np.int64(504), crop=np.array([224, 224]),
    )  # fmt: skip


WRAPPERS = {
    "bare": lambda state: state,
    "stage 2": lambda state: {
        "model": state, "optimizer": _optimizer(), "n_cls": 21, "epoch": 99,
        "lr_scheduler": {"step_size": 1, "iter_max": 264600, "_last_lr": [np.float64(1e-5)]},
    },
    "stage 1": lambda state: {
        "model": state, "optimizer": _optimizer(), "epoch": np.int64(59), "args": training_arguments(),
        "lr_scheduler": {"t_initial": 60}, "scaler": {"scale": 65536.0, "_growth_tracker": 11},
        "max_accuracy": np.float64(0.694), "curve": np.linspace(0, 1, 5), "flags": np.array([True, False]),
    },
    "module": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 9},
    "state_dict": lambda state: {"state_dict": state, "epoch": 59},
}  # fmt: skip


def save(path: Path, content, *, zipped: bool = True, numpy_1: bool = False) -> Path:
    """Write a checkpoint.

    Args:
        zipped: False for the format of PyTorch before 1.6.
        numpy_1: As a program with numpy 1 would have written it.
    """
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if not numpy_1:
        return path
    if not zipped:
        path.write_bytes(_as_numpy_1(path.read_bytes()))
        return path
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, _as_numpy_1(data) if name.endswith("/data.pkl") else data)
    return path


def _as_numpy_1(data: bytes) -> bytes:
    assert b"numpy._core.multiarray\n" in data
    return data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
