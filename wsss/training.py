"""What both training commands do around their loops: precision, and the files that a run continues from."""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from wsss.checkpoint import check_classes, load_checkpoint, load_strict, save_checkpoint
from wsss.errors import UserError
from wsss.io import write_text

log = logging.getLogger(__name__)


def amp_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast's type for ``--amp``; None is float32."""
    if name == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name == "float16" and device.type == "cpu":
        raise UserError("--amp float16: needs a GPU; use bfloat16 or off on a CPU")
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def amp_name(dtype: torch.dtype | None) -> str:
    """``bfloat16``, ``float16`` or ``float32``: what a run records."""
    return str(dtype or torch.float32).removeprefix("torch.")


def broken_loss(loss: float | str, step: int, image_ids: Sequence[str]) -> UserError:
    """The error of a loss that is not finite."""
    return UserError(
        f"loss is {loss} at step {step}, pictures {', '.join(image_ids)}: stopped, "
        "the last checkpoint is kept; lower --lr, use --amp off, or look at these pictures"
    )


def check_weights(model: nn.Module, step: int, image_ids: Sequence[str]) -> None:
    """Refuse weights that the last update, which no loss has seen, has made infinite or nan."""
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise UserError(
            f"weights are not finite after step {step} ({broken[0]}), pictures {', '.join(image_ids)}: "
            "stopped, the last checkpoint is kept; lower --lr"
        )


def load_training(
    path: Path, model: nn.Module, model_args: dict, optimizer, scaler, spec, *, background: bool
) -> dict | None:
    """Load last.pth into network, optimiser and scaler. Returns its content, None where there is none.

    Args:
        model_args: What the network was built with.
        background: The network's classes include the background.

    Raises:
        UserError: Damaged, or of other classes or another network.
    """
    if not path.is_file():
        return None
    content = load_checkpoint(path)
    remedy = "move it away, or choose another --output-dir"
    for name in ("model", "optimizer", "scaler", "model_args", "class_names", "history", "best"):
        if name not in content:
            raise UserError(f"{path}: no training can be continued from it ({name} is missing); {remedy}")
    num_classes = content["model_args"]["num_classes"] - background
    check_classes(path, num_classes, content["class_names"], spec)
    for name, value in model_args.items():  # some networks of equal shapes differ
        if content["model_args"].get(name) != value:
            found = content["model_args"].get(name)
            raise UserError(f"{path}: its network has {name} {found}, this run's has {value}; {remedy}")
    load_strict(model, content["model"], path)
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    return content


def resume_steps(path: Path, model: nn.Module, model_args: dict, optimizer, scaler, spec, **how) -> dict:
    """``load_training`` of a training counted in steps: steps done, their records, and the best one."""
    content = load_training(path, model, model_args, optimizer, scaler, spec, **how)
    if content is None:
        return {"step": 0, "history": [], "best": None}
    log.info("continuing %s after step %d", path, content["step"])
    return {key: content[key] for key in ("step", "history", "best")}


def step_sections(first_step: int, steps: int, *every: int, once: Iterable[int] = ()) -> list[range]:
    """The steps from ``first_step`` to ``steps``, cut wherever something is saved.

    Args:
        every: Cut after every so many steps, for each of them.
        once: Further cuts.
    """
    cuts = {steps, *once, *(cut for n in every for cut in range(n, steps, n))}
    ends = sorted({first_step, *(cut for cut in cuts if first_step < cut <= steps)})
    return [range(a, b) for a, b in pairwise(ends)]


def note_section(state: dict, record: dict, *, steps_per_epoch: int, split: str | None, every: int) -> bool:
    """Add a section's record to ``state``, with its ``val_miou`` as the best where it is; says whether it is.

    Args:
        split, every: List of the evaluation, of which every N-th picture was taken.
    """
    state["step"] = record["step"]
    state["history"].append(record)
    score = record.get("val_miou", math.nan)
    improved = score > (state["best"]["score"] if state["best"] else -1)
    if improved:
        state["best"] = {
            "step": record["step"], "epoch": round(record["step"] / steps_per_epoch, 2), "score": score,
            "measure": "val_miou", "split": split, "every": every,
        }  # fmt: skip
    return improved


def save_training(output_dir: Path, content: dict, model: nn.Module, optimizer, scaler, *, improved: bool):
    """Write best.pth where the network has improved, last.pth, and log.jsonl. For one process only.

    In this order: killed in between, the part of the training since the last save is repeated, with the same
    result. log.jsonl is rewritten from the checkpoint's own ``history``, so that the two cannot disagree.
    """
    content = {"model": {k: v.cpu() for k, v in model.state_dict().items()}, **content}
    if improved:
        save_checkpoint(output_dir / "best.pth", content)
    content |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    save_checkpoint(output_dir / "last.pth", content)
    write_text(output_dir / "log.jsonl", "".join(json.dumps(r) + "\n" for r in content["history"]))
