"""Checkpoints: saved atomically, read without executing anything, loaded with every tensor accounted for."""

import argparse
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.io import atomic_write

# What a released pickle may hold besides tensors and plain values: argparse namespaces, with paths in them,
# and numpy's numbers and arrays of numbers. Also by their addresses in other versions' files: numpy 2.0 moved
# its functions, Python 3.13 its paths. Paths become pure ones: of any system, without access to files.
_NUMPY_DTYPES = [type(np.dtype(t)) for t in "?bBhHiIlLqQefd"]
_NUMPY_FUNCTIONS = [np._core.multiarray.scalar, np._core.multiarray._reconstruct]
_PATHS = {
    "PosixPath": PurePosixPath,
    "PurePosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PureWindowsPath": PureWindowsPath,
}
_ALLOWED = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *_NUMPY_DTYPES,
    *_NUMPY_FUNCTIONS,
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in _NUMPY_FUNCTIONS),
    *(
        (kind, f"{module}.{name}")
        for name, kind in _PATHS.items()
        for module in ("pathlib", "pathlib._local")
    ),
]

# A tensor that only networks of the kind have, by the beginning of its name.
_KINDS = {
    "adaptive_attention_fusion.": "weaktr",
    "decoder.cls_emb": "segmentation",
    "pretrained.model.": "getam",
}


def save_checkpoint(path: Path, content: dict) -> None:
    """Write a checkpoint; ``path`` keeps its old content until all of the new one is on the disk."""
    buffer = (
        io.BytesIO()
    )  # torch.save on a full disk raises RuntimeError without a reason; file.write an OSError
    torch.save(content, buffer)
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU.

    Only tensors, plain values, ``argparse.Namespace``, paths and numpy's numbers are accepted; nothing else
    is ever executed. ``.safetensors`` files are read as a bare state dict.

    Raises:
        UserError: Missing, truncated, not a checkpoint, or holding anything outside the allow-list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        held = f" (it holds {named[1]})" if named else ""
        raise UserError(
            f"{path}: refused, not a plain checkpoint{held}; "
            "only tensors, plain values, argparse namespaces, paths and numpy's numbers are read"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a cut zip, a cut pickle, a cut safetensors header: many types
        raise UserError(f"{path}: truncated or not a checkpoint; fetch or make it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint; check the path")
    return content


def unwrap_state(content: Mapping, source) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under ``model``, ``state_dict`` or bare; no ``module.``."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    state = {k.removeprefix("module."): v for k, v in tensors.items()}
    if not state:
        raise UserError(f"{source}: holds no tensors; check that it is a weights file")
    return state


def checkpoint_kind(state: Mapping[str, Tensor], source="checkpoint") -> str:
    """The network of a state dict, by its names: ``"weaktr"`` (stage 1), ``"segmentation"`` or ``"getam"``.

    Args:
        state: Of ``unwrap_state``.
        source: Named in the error.

    Raises:
        UserError: Of none of the three.
    """
    for name in state:
        for beginning, kind in _KINDS.items():
            if name.startswith(beginning):
                return kind
    raise UserError(
        f"{source}: no network of stage 1, stage 2 or GETAM (its first tensor is {next(iter(state), None)}); "
        "give a checkpoint of weaktr.train, of segmentation.train, or a released one"
    )


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source) -> None:
    """``load_state_dict(strict=True)`` whose failure is one line with the first names that disagree."""
    own = model.state_dict()
    problems = [f"{k} missing" for k in own if k not in state]
    problems += [f"{k} unexpected" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)}, the network's is {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source}: does not fit the network ({'; '.join(problems[:3])}{more}); "
            "check the backbone and the number of classes"
        )
    model.load_state_dict(state)


def check_classes(path: Path, num_classes: int, class_names, spec) -> None:
    """Refuse a checkpoint of other classes than the data set's."""
    if num_classes != spec.num_fg_classes:
        raise UserError(
            f"{path}: checkpoint of {num_classes} classes, {spec.root} has {spec.num_fg_classes}; "
            "give the checkpoint that was trained on these classes"
        )
    if class_names is not None and list(class_names) != list(spec.class_names):
        ours, theirs = next((a, b) for a, b in zip(spec.class_names, class_names, strict=True) if a != b)
        raise UserError(
            f"{path}: its class names differ from {spec.root}'s ({theirs!r} in place of {ours!r}); "
            "give the checkpoint that was trained on these classes"
        )
