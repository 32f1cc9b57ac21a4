"""Checkpoints: nothing is executed, nothing half-read or half-written, every tensor accounted for."""

import argparse
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsss import checkpoint as module
from wsss.checkpoint import load_checkpoint, load_strict, save_checkpoint, unwrap_state
from wsss.errors import UserError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def test_round_trip_of_everything_allowed(tmp_path):
    content = {
        "model": STATE,
        "args": argparse.Namespace(lr=1e-3, names=["a"], flag=None),
        "best": np.float64(41.5),
        "epoch": np.int64(3),
        "plain": {"x": (1, 2.5, "s", True, None)},
    }
    torch.save(content, tmp_path / "c.pth")
    found = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(found["model"]["a.weight"], STATE["a.weight"])
    assert found["args"].lr == 1e-3 and found["args"].names == ["a"]
    assert found["best"] == 41.5 and found["epoch"] == 3 and found["plain"] == content["plain"]


def test_old_files_are_read(tmp_path):
    """The format before zip files, and numpy's address before 2.0."""
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "old.pth")["model"]["a.bias"], torch.ones(2))
    torch.save({"best": np.float64(1.5)}, tmp_path / "np.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "np.pth").read_bytes()
    assert b"numpy._core.multiarray" in data
    (tmp_path / "np.pth").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_checkpoint(tmp_path / "np.pth")["best"] == 1.5


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_foreign_objects_are_refused_and_never_executed(tmp_path, writer):
    content = {"model": STATE if writer == "torch" else {}, "extra": Malicious(tmp_path / "executed")}
    path = tmp_path / "bad.pth"
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"bad\.pth") as caught:
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()
    assert "\n" not in str(caught.value)
    if writer == "torch":
        assert "mkdir" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_truncated_files(tmp_path, keep):
    path = tmp_path / "cut.pth"
    save_checkpoint(path, {"model": STATE})
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"cut\.pth: "):
        load_checkpoint(path)


def test_other_bad_files(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match=r"cut\.safetensors: truncated"):
        load_checkpoint(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="no tensors"):
        unwrap_state({"model": {}}, "x.pth")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_disk_full_keeps_the_previous_file(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": STATE, "epoch": 1})
    (tmp_path / ".last.pth.tmp").symlink_to("/dev/full")  # the temporary name leads to a full disk
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(path, {"model": STATE, "epoch": 2})
    assert caught.value.errno == errno.ENOSPC
    assert load_checkpoint(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"module." + k: v for k, v in s.items()}, "args": argparse.Namespace()},
    ],
)
def test_wrappers_are_taken_off(wrap):
    found = unwrap_state(wrap(STATE), "x.pth")
    assert list(found) == list(STATE)


def test_load_strict_names_what_disagrees():
    network = nn.Sequential()
    network.add_module("a", nn.Linear(3, 2))
    load_strict(network, STATE, "x.pth")
    assert torch.equal(network.a.weight, STATE["a.weight"])
    for state, words in (
        ({"a.weight": STATE["a.weight"]}, r"a\.bias missing"),
        (STATE | {"b": torch.ones(1)}, "b unexpected"),
        (STATE | {"a.bias": torch.ones(5)}, r"a\.bias is \(5,\), the network's is \(2,\)"),
    ):
        with pytest.raises(UserError, match=r"x\.pth: .*" + words):
            load_strict(network, state, "x.pth")


def test_the_allow_list_does_not_leak():
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(UserError):
        load_checkpoint(module.__file__)
    assert set(torch.serialization.get_safe_globals()) == before
