"""Options of a segmenter's training, and what follows from them and from the data set."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from segmentation.engine import Clipping
from segmentation.inference import Protocol
from wsss.config import DataOptions, option, result_options
from wsss.errors import UserError
from wsss.parallel import CPUS
from wsss.score import mask_paths_of
from wsss.training import amp_dtype, amp_name


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    mask_dir: Path | None = option(
        None, "folder of <id>.png to train on, such as stage 1's pseudo-masks (default: the data set's masks)"
    )
    backbone: str = option("deit_small_patch16_224", "network size and family, see wsss/backbones.py")
    pretrained: str = option(
        "hub",
        "ImageNet weights: a file, a timm name, hub for the backbone's own, or none to start from nothing",
    )
    train_split: str | None = option(None, "training list (default: the data set's)")
    val_split: str | None = option(None, "list with masks to evaluate on (default: the data set's, if any)")
    val_stride: int = option(1, "evaluate on every N-th picture of that list", minimum=1)
    epochs: int = option(100, "passes over the training list", minimum=1)
    iterations: int | None = option(None, "steps, in place of --epochs", minimum=1)
    eval_every: int | None = option(
        None, "evaluate after every N steps, and after the last (default: an epoch)", minimum=1
    )
    save_every: int = option(
        1000, "save last.pth after every N steps, and at evaluations", changes_result=False, minimum=1
    )
    batch_size: int = option(4, "pictures per step, over all processes", minimum=1)
    short_side: int = option(
        520, "short side of pictures, pixels; training draws half to twice that", minimum=1
    )
    crop_size: int = option(480, "side of the training crop, pixels", minimum=1)
    window: int | None = option(
        None, "side of the evaluation's window, pixels (default: the crop's)", minimum=1
    )
    stride: int | None = option(
        None, "stride of the evaluation's window, pixels (default: two thirds of the window)", minimum=1
    )
    photometric: bool = option(
        True, "distort brightness, contrast, saturation and hue; leave it out for classes told by colour"
    )
    gradient_clipping: bool = option(True, "take the gradient from pixels of high loss")
    clip_start: float = option(1.2, "mean loss below which clipping acts", above=0)
    clip_patch: int | None = option(
        None, "side of clipping's tiles, pixels (default: a quarter crop)", minimum=1
    )
    clip_scope: str = option(
        "global", "clipping's means: over the global batch, or each process's own, as published",
        choices=("global", "process"),
    )  # fmt: skip
    optimizer: str = option(
        "sgd",
        "sgd, as published, or adamw: learns in a hundredth of the steps, where lr 5e-4 suits",
        choices=("sgd", "adamw"),
    )
    lr: float = option(1e-4, "learning rate of the decoder at the first step", above=0)
    min_lr: float = option(1e-5, "learning rate of the decoder at the end", minimum=0)
    encoder_lr_scale: float = option(0.1, "learning rate of the encoder, times the decoder's", minimum=0)
    momentum: float = option(0.9, "SGD's, Nesterov", above=0, maximum=1)
    weight_decay: float = option(0.0, "the optimiser's, on every parameter", minimum=0)
    drop_path: float = option(0.1, "stochastic depth of the encoder's last block", minimum=0, maximum=0.99)
    dropout: float = option(0.1, "in the decoder", minimum=0, maximum=0.99)
    seed: int = option(504, "of initialisation, order, augmentation, dropout and stochastic depth", minimum=0)
    amp: str = option(
        "auto",
        "mixed precision of training; auto: bfloat16 on a GPU that has it, float16 on others, off on CPU",
        choices=("auto", "off", "bfloat16", "float16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    max_side: int | None = option(
        None, "evaluation: make probabilities of larger pictures at this longer side, pixels", minimum=1
    )
    overlays: int = option(
        4, "pictures of the evaluation whose overlays go to TensorBoard", changes_result=False, minimum=0
    )
    workers: int = option(min(8, CPUS), "data-loading processes per process", changes_result=False, minimum=0)


@dataclass(frozen=True)
class Plan:
    """What follows from the options and the data set."""

    num_classes: int  # background included
    train_split: str
    train_ids: list[str]
    train_masks: dict[str, Path]
    val_split: str | None  # None: no masks to evaluate on
    val_ids: list[str]
    val_masks: dict[str, Path]
    steps: int
    eval_every: int
    protocol: Protocol  # of the evaluation: one scale, no mirror
    clipping: Clipping | None
    amp_dtype: torch.dtype | None
    identity: dict  # the options a continued run must share


def make_plan(config: Config, spec, device: torch.device) -> Plan:
    train_split = config.train_split or spec.train_split
    train_ids = spec.image_ids(train_split)
    train_masks = mask_paths_of(spec, train_split, config.mask_dir)
    if not train_masks:
        raise UserError(
            f"{missing_mask(spec, train_ids)}: no such mask; give --mask-dir the pseudo-masks of "
            f"weaktr.make_masks, or complete the data set's own of {train_split}"
        )
    val_split = config.val_split or (spec.val_split if spec.val_split in spec.splits else None)
    if val_split and not spec.has_masks(val_split):
        if config.val_split:
            missing = missing_mask(spec, spec.image_ids(val_split))
            raise UserError(f"{missing}: no such mask; leave --val-split {val_split} out, or give another")
        val_split = None
    val_ids = spec.image_ids(val_split)[:: config.val_stride] if val_split else []
    window = config.window or config.crop_size
    stride = config.stride or max(1, window * 2 // 3)
    if stride > window:
        raise UserError(f"--stride {stride}: larger than the window of {window} pixels; choose less")
    clip_patch = config.clip_patch or max(1, config.crop_size // 4)
    steps_per_epoch = -(-len(train_ids) // config.batch_size)
    steps = config.iterations or config.epochs * steps_per_epoch
    clipping = (
        Clipping(config.clip_start, clip_patch, config.clip_scope) if config.gradient_clipping else None
    )
    dtype = amp_dtype(config.amp, device)
    identity = result_options(config, leave_out=("amp", "epochs", "iterations"))
    identity |= {
        "train_split": train_split, "val_split": val_split, "window": window, "stride": stride,
        "clip_patch": clip_patch, "steps": steps, "amp": amp_name(dtype),
        "eval_every": config.eval_every or steps_per_epoch, "masks": fingerprint(train_masks),
    }  # fmt: skip
    return Plan(
        num_classes=spec.num_fg_classes + 1,
        train_split=train_split, train_ids=train_ids, train_masks=train_masks,
        val_split=val_split, val_ids=val_ids, val_masks={i: spec.mask_path(i) for i in val_ids},
        steps=steps, eval_every=config.eval_every or steps_per_epoch,
        protocol=Protocol(short_side=config.short_side, window=window, stride=stride),
        clipping=clipping, amp_dtype=dtype, identity=identity,
    )  # fmt: skip


def fingerprint(mask_paths: dict[str, Path]) -> str:
    """Hash of the masks' names and sizes in bytes: masks made anew under the same names are noticed."""
    sizes = "".join(f"{path.name} {path.stat().st_size}\n" for path in mask_paths.values() if path.is_file())
    return hashlib.sha256(sizes.encode()).hexdigest()[:16]


def missing_mask(spec, image_ids: list[str]) -> Path:
    """The first of the data set's masks that is not there."""
    paths = list(map(spec.mask_path, image_ids))
    return next((path for path in paths if not path.is_file()), paths[0])
