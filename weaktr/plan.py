"""Options of WeakTr's training, and what follows from them and from the data set."""

from dataclasses import dataclass

import torch

from wsss.backbones import get_backbone
from wsss.config import DataOptions, option, result_options
from wsss.errors import UserError
from wsss.parallel import CPUS
from wsss.training import amp_dtype, amp_name

PUBLISHED_RATE = {"voc12": 6e-4, "folder": 6e-4, "coco14": 2e-4}


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    backbone: str = option("deit_small_patch16_224", "network size and family, see wsss/backbones.py")
    pretrained: str = option(
        "hub",
        "ImageNet weights: a file, a timm name, hub for the backbone's own, or none to start from nothing",
    )
    train_split: str | None = option(None, "training list (default: the data set's)")
    val_split: str | None = option(None, "list for mAP (default: the data set's, if it exists)")
    cam_split: str | None = option(None, "list with masks for the CAMs' mIoU (default: the data set's)")
    cam_stride: int = option(1, "score the CAMs of every N-th picture of that list", minimum=1)
    cam_scales: tuple[float, ...] = option((1.0,), "scales for that score, each with its mirror", above=0)
    select: str | None = option(
        None,
        "which epoch becomes best.pth: best CAM mIoU (a choice made on masks, as published), best sample "
        "mAP, or the last epoch (default: miou where the list has masks, else last)",
        choices=("miou", "map", "last"),
    )
    eval_every: int = option(1, "evaluate after every N-th epoch, and after the last", minimum=1)
    epochs: int = option(60, "passes over the training list", minimum=1)
    batch_size: int = option(64, "pictures per step, over all processes", minimum=1)
    image_size: int | None = option(
        None, "side of the training crop, pixels (default: the backbone's)", minimum=1
    )
    augmentation: str = option(
        "published",
        "published: DeiT's; geometric: crops of half the area or more, and flips, for classes told by colour",
        choices=("published", "geometric"),
    )
    lr: float | None = option(
        None, "peak learning rate for a batch of 512, scaled linearly (default: 6e-4; coco14: 2e-4)", above=0
    )
    new_lr_scale: float = option(1.0, "learning rate of head and AAF, times the backbone's", minimum=0)
    token_lr_scale: float = option(
        1.0,
        "learning rate of the class tokens, times the backbone's: they start equal, and part slowly",
        minimum=0,
    )
    schedule: str = option(
        "published",
        "published: by epoch, cosine not shifted by the warm-up, one epoch late; shifted: the same, in time; "
        "step: by step, linear warm-up, cosine to 0",
        choices=("published", "shifted", "step"),
    )
    warmup_epochs: int = option(5, "epochs of linear warm-up", minimum=0)
    weight_decay: float = option(0.03, "AdamW's, on every parameter", minimum=0)
    drop_path: float = option(0.1, "stochastic depth of the last block", minimum=0, maximum=0.99)
    reduction: int = option(8, "bottleneck of the head weights: heads * blocks / reduction", minimum=1)
    feat_reduction: int = option(8, "bottleneck of the head features: head width / feat_reduction", minimum=1)
    pool: str = option("max", "pooling of block features for AAF", choices=("max", "avg", "random"))
    seed: int = option(504, "of initialisation, order, augmentation and stochastic depth", minimum=0)
    amp: str = option(
        "auto",
        "mixed precision; auto: bfloat16 on a GPU that has it, float16 on others, off on CPU",
        choices=("auto", "off", "bfloat16", "float16"),
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")
    max_side: int | None = option(
        None,
        "for CAMs that are scored or shown: shrink pictures with a longer side than this, pixels",
        minimum=1,
    )
    overlays: int = option(
        4, "pictures whose CAM overlays go to TensorBoard", changes_result=False, minimum=0
    )
    workers: int = option(min(8, CPUS), "data-loading processes per process", changes_result=False, minimum=0)


@dataclass(frozen=True)
class Plan:
    """What follows from the options and the data set."""

    train_split: str
    train_ids: list[str]
    val_split: str | None  # None: no mAP
    cam_split: str | None  # None: no masks to score on
    cam_ids: list[str]
    select: str
    image_size: int
    peak_rate: float
    amp_dtype: torch.dtype | None
    identity: dict  # the options a continued run must share


def make_plan(config: Config, spec, device: torch.device) -> Plan:
    train_split = config.train_split or spec.train_split
    train_ids = spec.image_ids(train_split)
    spec.check_image_labels(train_split)
    val_split = config.val_split or (spec.val_split if spec.val_split in spec.splits else None)
    if val_split:
        spec.check_image_labels(val_split)
    cam_split = config.cam_split or (spec.cam_split if spec.cam_split in spec.splits else train_split)
    if not spec.has_masks(cam_split):
        if config.cam_split or config.select == "miou":
            raise UserError(
                f"{spec.root}: split {cam_split} lacks masks; use --select last, or another --cam-split"
            )
        cam_split = None
    if config.select == "map" and not val_split:
        raise UserError(f"{spec.root}: --select map needs a validation list; give val.txt or --val-split")
    select = config.select or ("miou" if cam_split else "last")
    cam_ids = spec.image_ids(cam_split)[:: config.cam_stride] if cam_split else []
    rate = PUBLISHED_RATE[config.dataset] if config.lr is None else config.lr
    image_size = config.image_size or get_backbone(config.backbone).image_size
    patch = get_backbone(config.backbone).patch_size
    if image_size % patch:
        raise UserError(f"--image-size {image_size}: not a multiple of the {patch}-pixel patch; choose one")
    dtype = amp_dtype(config.amp, device)
    identity = result_options(config, leave_out=("amp",))
    identity |= {
        "train_split": train_split, "val_split": val_split, "cam_split": cam_split, "select": select,
        "image_size": image_size, "lr": rate, "amp": amp_name(dtype),
    }  # fmt: skip
    return Plan(
        train_split=train_split, train_ids=train_ids, val_split=val_split,
        cam_split=cam_split, cam_ids=cam_ids, select=select,
        image_size=image_size, peak_rate=rate * config.batch_size / 512, amp_dtype=dtype,
        identity=identity,
    )  # fmt: skip
