"""ImageNet starting weights: read from a file or timm's hub, and brought to the encoder's names and sizes.

Files are read under the names they were published with. ``encoder_state`` then accounts for every tensor:
loaded, resized, or skipped by name; anything else stops with its name.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.backbones import Backbone, fitting_backbones, get_backbone
from wsss.checkpoint import load_checkpoint, unwrap_state
from wsss.errors import UserError
from wsss.vit import VisionTransformer, resize_positions

Rules = tuple[tuple[str, str], ...]  # (pattern, replacement) at the start of a name, the first that matches

# AugReg's names (JAX). The numbers of the sub-layers count over all of a block in the original exports
# (0, 1, 2, 3), over each kind in later ones (LayerNorm 0 and 1, attention 0, MLP 0).
_JAX_BLOCK = r"Transformer/encoderblock_(\d+)/"
_JAX_NAMES: Rules = (
    (r"embedding/", "patch_embed.proj."),
    (r"cls$", "cls_token"),
    (r"(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"Transformer/encoder_norm/", "norm."),
    (r"head/", "head."),
    (r"pre_logits/", "pre_logits.fc."),
    (_JAX_BLOCK + r"LayerNorm_0/", r"blocks.\1.norm1."),
    (_JAX_BLOCK + r"LayerNorm_[12]/", r"blocks.\1.norm2."),
    (_JAX_BLOCK + r"MultiHeadDotProductAttention_[01]/([qkv])[a-z]+/", r"blocks.\1.attn.\2_proj."),
    (_JAX_BLOCK + r"MultiHeadDotProductAttention_[01]/out/", r"blocks.\1.attn.proj."),
    (_JAX_BLOCK + r"MlpBlock_[03]/Dense_0/", r"blocks.\1.mlp.fc1."),
    (_JAX_BLOCK + r"MlpBlock_[03]/Dense_1/", r"blocks.\1.mlp.fc2."),
)

# DINOv2 trained in chunks: blocks.CHUNK.N, N counted over all chunks
_CHUNKS: Rules = ((r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),)

# timm's EVA-02 and the variants with separate layers, to the original's names
_BLOCK = r"(blocks\.\d+)\."
_EVA_NAMES: Rules = (
    (_BLOCK + r"mlp\.fc1\.", r"\1.mlp.w12."),
    (_BLOCK + r"mlp\.fc1_g\.", r"\1.mlp.w1."),
    (_BLOCK + r"mlp\.fc1_x\.", r"\1.mlp.w2."),
    (_BLOCK + r"mlp\.fc2\.", r"\1.mlp.w3."),
    (_BLOCK + r"attn\.([qkv])_proj\.bias$", r"\1.attn.\2_bias"),
)

# Layers that stand side by side in one of ours, in this order. Of w12 the first half is the gate (SiLU): w1.
_QKV = ("attn.qkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj"))
_GATES = ("mlp.w12", ("mlp.w1", "mlp.w2"))

# What the encoder does not have: classifiers with their norm of the averaged patches (EVA-02's only norm
# is another matter, see _eva_names), the token and head of masked pre-training.
_SKIPPED = re.compile(r"(head|head_dist|fc_norm|pre_logits|lm_head)\.|mask_token$")
# Tables that follow from a grid: ours are computed for our own.
_EVA_TABLES = re.compile(
    r"(blocks\.\d+\.attn\.)?rope\.(freqs_cos|freqs_sin|bands|pos_embed)$|(.+\.)?relative_position_index$"
)
_KEY_BIAS = re.compile(r"blocks\.\d+\.attn\.k_bias$")


class EncoderState(NamedTuple):
    """Starting weights under the encoder's names, and what became of the file's tensors."""

    state: dict[str, Tensor]  # float32, complete but for the head and rotary tables
    loaded: list[str]  # names in ``state`` taken as they are
    resized: list[str]  # names in ``state`` with what was done: "pos_embed 37x37 to 30x30 (bilinear)"
    skipped: list[str]  # the file's names that the encoder has no use for


# ------------------------------------------------------------------------------------------- reading


def read_weights(source: str, backbone_name: str) -> dict[str, Tensor]:
    """ImageNet weights under the names of their file.

    Args:
        source: A file (.pth, .pt, .safetensors; .npz of AugReg, which gets timm's names), or a name on timm's
            hub, or ``"hub"`` for the backbone's published starting weights.

    Raises:
        UserError: Neither a file nor a name that the hub delivers, or a file that is damaged.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix == ".npz":
            return _timm_names(_read_npz(path), path)
        content = load_checkpoint(path)
        if isinstance(content.get("module"), Mapping):  # DeepSpeed's wrapper, of EVA-02's own files
            content = content["module"]
        return unwrap_state(content, source)
    name = get_backbone(backbone_name).hub_name if source == "hub" else source
    if name is None:
        raise UserError(f"--pretrained {source}: {backbone_name} has no published weights; give a file")
    if path.suffix in (".pth", ".pt", ".safetensors", ".npz") or "/" in source:
        raise UserError(f"{source}: no such file; give --pretrained an existing file or a timm model name")
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # unknown name, no network, hub's own errors: many types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(
            f"--pretrained {source}: no such file, and timm's hub did not deliver it ({reason}); "
            "give the path of a downloaded weights file"
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file; nothing in it is executed."""
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except MemoryError:
            raise
        except Exception as error:  # a cut zip, damaged data, arrays of objects: many types
            raise UserError(
                f"{path}: truncated or not a file of weights; fetch it again, or give .pth or .safetensors"
            ) from error


def _timm_names(arrays: dict[str, Tensor], source) -> dict[str, Tensor]:
    """AugReg's arrays as timm names and lays them out; what has no known name keeps its own."""
    prefix = next((p for p in ("opt/target/", "params/") if f"{p}embedding/kernel" in arrays), "")
    state = _rename(_rename(arrays, ((prefix, ""),), source), _JAX_NAMES, source)
    for name, value in state.items():
        if name.endswith(".kernel"):
            state[name] = _transpose(name, value)
        elif name.endswith(".bias"):
            state[name] = value.flatten()  # those of queries, keys and values are (H, d)
    return _join(_rename(state, ((r"(.+)\.(kernel|scale)$", r"\1.weight"),), source), *_QKV)


def _transpose(name: str, kernel: Tensor) -> Tensor:
    """JAX's kernels, inputs first, as torch's. They are (h, w, in, out) or (in, out), queries' and keys' and
    values' (D, H, d), the output projection's (H, d, D)."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1)
    if kernel.ndim == 3:
        kernel = kernel.flatten(0, 1) if name.endswith(".proj.kernel") else kernel.flatten(1)
    return kernel.T if kernel.ndim == 2 else kernel


# ---------------------------------------------------------------------------------- names and sizes


def encoder_state(
    raw: dict[str, Tensor], backbone_name: str, *, grid: tuple[int, int], source
) -> EncoderState:
    """Bring starting weights to the names, sizes and type of stage 2's encoder.

    Patch kernels are resized bicubically to the patch size that the backbone runs at; positions bilinearly to
    the grid, of AugReg's ViT bicubically; all as published (align_corners False). EVA-02 comes in the
    original's or timm's naming. The rotary tables are never taken from a file: they belong to a grid.

    Args:
        raw: What ``read_weights`` returns.
        grid: (h, w) patches of the training crop.
        source: Names the file in errors.

    Raises:
        UserError: A tensor of another name or shape, one that is missing, or one that holds no numbers.
    """
    if "dist_token" in raw:
        raise UserError(f"{source}: distilled DeiT has a second token; give the plain DeiT's weights")
    backbone = get_backbone(backbone_name)
    state = _rename(raw, _CHUNKS, source)
    if backbone.family == "eva02":
        state = _eva_names(state, source)
    skipped = [k for k in state if _SKIPPED.match(k)]
    if backbone.family == "eva02":
        skipped += [k for k in state if _EVA_TABLES.match(k)]
        # rotation makes a key bias matter, and the encoder has none
        skipped += [k for k in state if _KEY_BIAS.match(k) and not state[k].any()]
    state = {k: v for k, v in state.items() if k not in skipped}
    _check_fit(state, raw, backbone_name, source)
    state = {k: v.float() for k, v in state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{source}: {name} holds nan or infinite values; fetch the file again")
    resized = _resize(state, backbone, grid)
    names = [note.split()[0] for note in resized]
    return EncoderState(state, [k for k in state if k not in names], resized, skipped)


def _resize(state: dict[str, Tensor], backbone: Backbone, grid: tuple[int, int]) -> list[str]:
    """Resize positions and patch kernel in place where they differ; says what was done."""
    notes = []
    positions = state["pos_embed"]
    side = math.isqrt(positions.shape[1] - 1)
    if grid != (side, side):
        mode = "bicubic" if backbone.family == "vit" else "bilinear"
        patches = resize_positions(positions[:, 1:], grid, mode=mode)
        state["pos_embed"] = torch.cat((positions[:, :1], patches), 1)
        notes.append(f"pos_embed {side}x{side} to {grid[0]}x{grid[1]} ({mode})")
    kernel = state["patch_embed.proj.weight"]
    P, side = backbone.patch_size, kernel.shape[-1]
    if side != P:
        kernel = F.interpolate(kernel, size=(P, P), mode="bicubic", align_corners=False)
        state["patch_embed.proj.weight"] = kernel
        notes.append(f"patch_embed.proj.weight {side}x{side} to {P}x{P} (bicubic)")
    return notes


def _eva_names(state: dict[str, Tensor], source) -> dict[str, Tensor]:
    """EVA-02 in any of its namings, under the original's.

    ``fc_norm`` is the final norm where the file has no ``norm``: networks that average the patches, timm's
    default, keep it there. Beside a ``norm`` it belongs to the classifier.
    """
    if "norm.weight" not in state:
        state = _rename(state, ((r"fc_norm\.", "norm."),), source)
    state = _join(_join(_rename(state, _EVA_NAMES, source), *_GATES), *_QKV)
    split = {}
    for name, value in state.items():
        names = [name.removesuffix("qkv.bias") + f"{part}_bias" for part in "qkv"]
        splits = name.endswith("attn.qkv.bias") and value.ndim == 1 and len(value) % 3 == 0
        if splits and not any(n in state for n in names):
            split |= zip(names, value.chunk(3), strict=True)
        else:
            split[name] = value
    return split


def _rename(state: Mapping[str, Tensor], rules: Rules, source) -> dict[str, Tensor]:
    renamed, origin = {}, {}
    for name, value in state.items():
        new = name
        for pattern, replacement in rules:
            new, count = re.subn("^" + pattern, replacement, name)
            if count:
                break
        if new in renamed:
            raise UserError(f"{source}: {origin[new]} and {name} are both {new}; give one network's weights")
        renamed[new], origin[new] = value, name
    return renamed


def _join(state: dict[str, Tensor], whole: str, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Lay layers side by side in one, weights and biases, where all parts are there and alike."""
    joined, taken = {}, set()
    for name, value in state.items():
        before, found, leaf = name.partition(f"{parts[0]}.")
        names = [f"{before}{part}.{leaf}" for part in parts]
        shapes = {state[n].shape if n in state else None for n in names}
        new = f"{before}{whole}.{leaf}"
        if found and value.ndim and shapes == {value.shape} and new not in state:
            joined[new] = torch.cat([state[n] for n in names])
            taken.update(names)
        else:
            joined[name] = value
    return {k: v for k, v in joined.items() if k not in taken}


# -------------------------------------------------------------------------------------------- checks


def _check_fit(state: dict[str, Tensor], raw: dict[str, Tensor], backbone_name: str, source) -> None:
    """Refuse a state that is not the backbone's, and name the backbones that it may be of."""
    expected = _expected_shapes(get_backbone(backbone_name))
    problems = []
    for name, shape in expected.items():
        if name not in state:
            problems.append(f"{name} missing")
            continue
        found = tuple(state[name].shape)
        if name == "pos_embed":
            patches = found[1] - 1 if len(found) == 3 else 0
            fits = patches > 0 and found[::2] == shape[::2] and math.isqrt(patches) ** 2 == patches
            wanted = f"(1, 1 + n*n, {shape[2]})"
        elif name == "patch_embed.proj.weight":
            fits = len(found) == 4 and found[:2] == shape[:2] and found[2] == found[3] > 0
            wanted = f"({shape[0]}, {shape[1]}, n, n)"
        else:
            fits, wanted = found == shape, str(shape)
        if not fits:
            problems.append(f"{name} is {found}, expected {wanted}")
        elif not state[name].is_floating_point():
            problems.append(f"{name} holds {state[name].dtype}, not floating-point numbers")
    for name in state:
        if name not in expected:
            problems.append(f"{name} {'not zero' if _KEY_BIAS.match(name) else 'unexpected'}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        fitting = _fitting_backbones(raw)
        other = fitting and backbone_name not in fitting
        remedy = f"--backbone {' or '.join(fitting)}" if other else f"plain weights of {backbone_name}"
        raise UserError(
            f"{source}: does not fit {backbone_name} ({'; '.join(problems[:3])}{more}); give {remedy}"
        )


def _expected_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder, but for its head and rotary tables; positions of one patch."""
    with torch.device("meta"):
        encoder = VisionTransformer(**backbone.architecture, image_size=backbone.patch_size)
    return {k: tuple(v.shape) for k, v in encoder.state_dict().items() if "rope." not in k}


def _fitting_backbones(raw: dict[str, Tensor]) -> list[str]:
    """Backbones of the width, depth and family that a file's names and class token tell."""
    names = [re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", k) for k in raw]
    depth = len({k.split(".")[1] for k in names if k.startswith("blocks.")})
    width = raw["cls_token"].shape[-1] if "cls_token" in raw and raw["cls_token"].ndim else None
    return fitting_backbones(names, width, depth)


# ------------------------------------------------------------------------------------------- logging


def log_starting_weights(log: logging.Logger, source, result: EncoderState, fresh: Iterable[str]) -> None:
    """One line each: tensors loaded, resized, skipped, and those of the network that start fresh."""
    for group, names in (*result._asdict().items(), ("fresh", list(fresh))):
        if group != "state":
            log.info("starting weights %s, %s: %d (%s)", source, group, len(names), shorten(names) or "none")


def shorten(names: Iterable[str]) -> str:
    """Names in a row, those that differ in a block's number as one: ``blocks.*.norm1.bias x12``."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return ", ".join(name + (f" x{n}" if n > 1 else "") for name, n in counts.items())
