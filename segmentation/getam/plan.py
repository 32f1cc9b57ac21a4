"""Options of GETAM's training, and what follows from them and from the data set."""

from dataclasses import dataclass
from pathlib import Path

import torch

from segmentation.getam.attention_maps import START_LAYER
from segmentation.getam.classes import ClassTable, class_table
from segmentation.getam.dense_energy import GRADIENTS
from segmentation.getam.encoders import get_backbone
from segmentation.getam.losses import ENERGY_WEIGHT, SALIENCY_TARGETS, LossOptions
from segmentation.getam.model import STRIDE
from segmentation.getam.pseudo_labels import COMPLETION_QUANTILES, LabelRules
from wsss.config import DataOptions, option, result_options
from wsss.errors import UserError
from wsss.parallel import CPUS
from wsss.training import amp_dtype, amp_name


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    backbone: str = option("vitb_hybrid", "encoder, see segmentation/getam/encoders.py")
    pretrained: str = option(
        "hub",
        "ImageNet weights: a file, a timm name, hub for the encoder's own, or none to start from nothing",
    )
    train_split: str | None = option(None, "training list (default: the data set's)")
    val_split: str | None = option(None, "list with masks to evaluate on (default: the data set's, if any)")
    val_stride: int = option(1, "evaluate on every N-th picture of that list", minimum=1)
    saliency_dir: Path | None = option(
        None, "folder of <id>.png saliency maps, 255 salient (default: none; see --band)"
    )
    epochs: int = option(20, "passes over the training list", minimum=1)
    class_share: float = option(
        0.5, "first part of the steps, which trains classification alone", minimum=0, maximum=1
    )
    save_every: int = option(
        500, "save last.pth after every N steps, and after each epoch", changes_result=False, minimum=1
    )
    batch_size: int = option(4, "pictures per step, over all processes", minimum=1)
    crop_size: int = option(256, f"side of the training crop, pixels, a multiple of {STRIDE}", minimum=STRIDE)
    start_layer: int = option(START_LAYER, "first block, from 0, whose attention makes the maps", minimum=0)
    completion: bool = option(True, "label completion")
    completion_quantile: float | None = option(
        None,
        "of a class's values on background, above which completion fills in (default: 0.9; coco14: 0.95)",
        minimum=0,
        maximum=1,
    )
    band: float = option(
        0.3,
        "without saliency maps: background where all of a pixel's maps are below 0.077, unknown up to this",
        minimum=0,
        maximum=1,
    )
    energy_weight: float = option(ENERGY_WEIGHT, "of the dense energy loss; 0 leaves it out", minimum=0)
    energy_gradient: str = option(
        "published", "of the dense energy: published, or the value's true one", choices=GRADIENTS
    )
    saliency_target: str = option(
        "published",
        "of the background's probability: published (0 where completion has filled in), or intended "
        "(0 where salient)",
        choices=SALIENCY_TARGETS,
    )
    optimizer: str = option(
        "published",
        "published: SGD with momentum 5e-4 and no decay; intended: no momentum, decay 5e-4; adamw: learns "
        "in fewer steps, where lr 1e-4 suits",
        choices=("published", "intended", "adamw"),
    )
    lr: float = option(0.04, "learning rate at the first step; falls as (1 - step / steps)^0.9", above=0)
    joint_lr_scale: float = option(0.1, "of the learning rate, in the joint part", above=0)
    encoder_lr_scale: float = option(1.0, "of the learning rate, for the encoder", above=0)
    seed: int = option(504, "of initialisation, order, crops and dropout", minimum=0)
    amp: str = option(
        "auto",
        "mixed precision of training; auto: bfloat16 on a GPU that has it, off elsewhere",
        choices=("auto", "off", "bfloat16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    overlays: int = option(
        4, "pictures of the evaluation whose overlays go to TensorBoard", changes_result=False, minimum=0
    )
    workers: int = option(min(8, CPUS), "data-loading processes per process", changes_result=False, minimum=0)


@dataclass(frozen=True)
class Plan:
    """What follows from the options and the data set."""

    table: ClassTable
    train_split: str
    train_ids: list[str]
    val_split: str | None  # None: no masks to evaluate on
    val_ids: list[str]
    steps_per_epoch: int
    steps: int
    first_joint_step: int
    rules: LabelRules
    losses: LossOptions
    amp_dtype: torch.dtype | None
    identity: dict  # the options a continued run must share


def make_plan(config: Config, spec, device: torch.device) -> Plan:
    if config.crop_size % STRIDE:
        raise UserError(f"--crop-size {config.crop_size}: not a multiple of {STRIDE} pixels; choose one")
    depth = get_backbone(config.backbone).depth
    if config.start_layer >= depth:
        raise UserError(f"--start-layer {config.start_layer}: {config.backbone} has blocks 0..{depth - 1}")
    train_split = config.train_split or spec.train_split
    train_ids = spec.image_ids(train_split)
    check_saliency_maps(config.saliency_dir, train_ids)
    val_split = config.val_split or (spec.val_split if spec.val_split in spec.splits else None)
    if val_split and not spec.has_masks(val_split):
        if config.val_split:
            raise UserError(f"--val-split {val_split}: not every picture of it has a mask; give another list")
        val_split = None
    steps_per_epoch = len(train_ids) // config.batch_size  # the last incomplete batch is left out
    steps = steps_per_epoch * config.epochs
    quantile = config.completion_quantile
    rules = LabelRules(
        completion=config.completion,
        quantile=COMPLETION_QUANTILES[spec.name] if quantile is None else quantile,
        band=config.band,
    )
    dtype = amp_dtype("off" if config.amp == "auto" and not _has_bfloat16(device) else config.amp, device)
    identity = result_options(config, leave_out=("amp", "completion_quantile"))
    identity |= {
        "train_split": train_split, "val_split": val_split, "steps": steps, "amp": amp_name(dtype),
        "completion_quantile": rules.quantile,
    }  # fmt: skip
    return Plan(
        table=class_table(spec),
        train_split=train_split,
        train_ids=train_ids,
        val_split=val_split,
        val_ids=spec.image_ids(val_split)[:: config.val_stride] if val_split else [],
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        first_joint_step=round(steps * config.class_share),
        rules=rules,
        losses=LossOptions(config.energy_weight, config.energy_gradient, config.saliency_target),
        amp_dtype=dtype,
        identity=identity,
    )


def _has_bfloat16(device: torch.device) -> bool:
    """Gradients of single attention weights underflow in float16, so it is not offered."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def check_saliency_maps(folder: Path | None, image_ids: list[str]) -> None:
    """Every picture must have its map; UserError names the first that has none."""
    for path in () if folder is None else (folder / f"{i}.png" for i in image_ids):
        if not path.is_file():
            raise UserError(
                f"{path}: no such saliency map; give every training picture one, or leave --saliency-dir out"
            )
