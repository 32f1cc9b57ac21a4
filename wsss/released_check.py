"""Whether a file is what its row in the table of released files says."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from wsss.backbones import BACKBONES, fitting_backbones
from wsss.checkpoint import checkpoint_kind, load_checkpoint, unwrap_state
from wsss.errors import UserError
from wsss.fetch import is_web_page
from wsss.released import Released

_KINDS = {"weaktr": "cam", "segmentation": "segmenter", "getam": "getam"}  # of wsss.checkpoint
WHAT = {"cam": "network of stage 1", "segmenter": "segmenter", "getam": "network of GETAM"}


def refuse_web_page(row: Released, path: Path, source) -> None:
    """What a browser saves where a host refuses the file."""
    if path.is_file() and is_web_page(path):
        raise UserError(f"{source}: is a web page, not the file; open {row.address} and save what it offers")


def check_file(row: Released, path: Path, source) -> None:
    """Read a checkpoint or a file of weights, and compare kind, classes and backbone with its row.

    Args:
        path: The file; not of kind "masks".
        source: Names it in errors.

    Raises:
        UserError: Not readable, or another network.
    """
    from wsss.pretrained import encoder_state, read_weights  # here: timm takes seconds to import

    refuse_web_page(row, path, source)
    try:
        if row.kind == "imagenet" and row.backbone in BACKBONES:
            # names, shapes and numbers; the grid is any
            encoder_state(read_weights(str(path), row.backbone), row.backbone, grid=(14, 14), source=source)
            return
        state = unwrap_state(load_checkpoint(path), source)
    except UserError as error:
        text = str(error).replace(str(path), str(source))
        reason = text.split("; give ")[0]  # the remedy is another than for an option of a training
        raise UserError(text if reason == text else f"{reason}; give the file of {row.address}") from None
    weights = row.kind == "imagenet"
    found = Found("imagenet", None, _getam_backbones(state)) if weights else _network(state, source)
    if row.backbone not in found.backbones or (found.kind, found.num_classes) != (row.kind, row.num_classes):
        wanted = Found(row.kind, row.num_classes, [row.backbone])
        raise UserError(f"{source}: is {found.words()}, not {wanted.words()}; give the file of {row.address}")


class Found(NamedTuple):
    """What a file holds."""

    kind: str  # as in the table
    num_classes: int | None  # as the network counts them
    backbones: list[str]  # that fit

    def words(self) -> str:
        backbones = " or ".join(self.backbones) or "an unknown backbone"
        if self.kind == "imagenet":
            return f"weights of {backbones}"
        return f"a {WHAT[self.kind]} of {self.num_classes} classes, {backbones}"


def _network(state: Mapping[str, Tensor], source) -> Found:
    kind = _KINDS[checkpoint_kind(state, source)]
    # the tensor and its side that count the classes, and what the encoder's names begin with
    name, side, prefix = {
        "cam": ("cls_token", 1, ""),
        "segmenter": ("decoder.cls_emb", 1, "encoder."),
        "getam": ("cls_head.weight", 0, "pretrained.model."),
    }[kind]
    if name not in state or state[name].ndim <= side:
        raise UserError(f"{source}: a {WHAT[kind]} without {name}; fetch it again")
    encoder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    backbones = _getam_backbones(encoder) if kind == "getam" else fitting_backbones(encoder, *_size(encoder))
    return Found(kind, state[name].shape[side], backbones)


def _getam_backbones(state: Mapping[str, Tensor]) -> list[str]:
    """Of GETAM's encoders: ViT-B and DeiT-B share every shape."""
    if _size(state) != (768, 12):
        return []
    if any(k.startswith("patch_embed.backbone.") for k in state):
        return ["vitb_hybrid"]
    return ["deit_distilled"] if "dist_token" in state else ["vitb", "deit"]


def _size(state: Mapping[str, Tensor]) -> tuple[int | None, int]:
    """D and the number of blocks."""
    width = state["cls_token"].shape[-1] if "cls_token" in state and state["cls_token"].ndim else None
    return width, len({k.split(".")[1] for k in state if k.startswith("blocks.")})
