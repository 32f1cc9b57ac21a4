"""Fixtures of all tests: no network, one thread, real data where the environment names it, the miniature."""

import os
import socket
from pathlib import Path

# One thread each, here and in the commands that tests start: results do not depend on the machine's cores.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import pytest
import torch

from tests.commands import argv, finish
from tests.miniature import make

torch.set_num_threads(1)

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _check_local(sock: socket.socket, address) -> None:
    local = sock.family not in (socket.AF_INET, socket.AF_INET6)
    if not local and address[0] not in ("localhost", "::1") and not address[0].startswith("127."):
        raise RuntimeError(f"tests must not use the network: connection to {address}")


def _guarded(original):
    def connect(self, address):
        _check_local(self, address)
        return original(self, address)

    return connect


socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
# what tests start has no such guard: give it a proxy where nobody listens
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[name] = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


def _folder_named_by(variable: str, what: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set ({what})")
    assert Path(folder).is_dir(), f"{variable}={folder}: no such folder"
    return Path(folder)


@pytest.fixture(scope="session")
def voc_animals() -> Path:
    return _folder_named_by("VOC_ANIMALS", "the voc-animals data set, docs/data.md")


@pytest.fixture(scope="session")
def pretrained() -> Path:
    return _folder_named_by("PRETRAINED", "folder of ImageNet weights, docs/install.md")


@pytest.fixture(scope="session")
def recorded() -> Path:
    return _folder_named_by("RECORDED", "results recorded from the published code, docs/install.md")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """The miniature in the folder layout: 16 training and 6 validation pictures, with masks. Read only."""
    return make(tmp_path_factory.mktemp("miniature"), train=16, val=6)


@pytest.fixture(scope="session")
def miniature_without_masks(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("miniature_without_masks"), train=16, val=6, masks=False)


# 2 epochs of 2 steps at a rate that moves the weights, so that equal results mean something
TRAIN_OPTIONS = (
    "--backbone", "vit_micro_patch8_96", "--pretrained", "none", "--drop-path", "0",
    "--epochs", "2", "--batch-size", "8",
    "--schedule", "step", "--warmup-epochs", "0", "--lr", "0.03", "--workers", "0", "--overlays", "1",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(miniature, tmp_path_factory) -> Path:
    """Output folder of a training on the miniature with TRAIN_OPTIONS. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "train"
    finish(*argv("weaktr.train", "--data-path", miniature, "--output-dir", folder, *TRAIN_OPTIONS))
    return folder


# 8 steps, 4 an epoch, saved twice in between; the rate moves the weights
SEGMENTER_OPTIONS = (
    "--backbone", "vit_micro_patch8_96", "--pretrained", "none", "--short-side", "72", "--crop-size", "64",
    "--batch-size", "4", "--iterations", "8", "--save-every", "3", "--lr", "0.05", "--workers", "0",
    "--overlays", "1",
)  # fmt: skip

# 8 steps, the last 4 joint, saved twice in between
GETAM_OPTIONS = (
    "--backbone", "vit_micro", "--pretrained", "none", "--crop-size", "64", "--batch-size", "4",
    "--epochs", "2", "--save-every", "3", "--optimizer", "adamw", "--lr", "2e-3", "--joint-lr-scale", "1",
    "--workers", "0", "--overlays", "1",
)  # fmt: skip


@pytest.fixture(scope="session")
def getam(miniature, tmp_path_factory) -> Path:
    """Output folder of a GETAM training on the miniature. Read only."""
    folder = tmp_path_factory.mktemp("getam") / "train"
    options = ("--data-path", miniature, "--output-dir", folder, *GETAM_OPTIONS)
    finish(*argv("segmentation.getam.train", *options))
    return folder


@pytest.fixture(scope="session")
def segmenter(miniature, tmp_path_factory) -> Path:
    """Output folder of a stage 2 training on the miniature's true masks. Read only."""
    folder = tmp_path_factory.mktemp("segmenter") / "train"
    options = ("--data-path", miniature, "--output-dir", folder, *SEGMENTER_OPTIONS)
    finish(*argv("segmentation.train", *options))
    return folder
