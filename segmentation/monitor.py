"""What TensorBoard shows of a training (docs/training.md)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from segmentation.inference import Protocol
from segmentation.memory import predict_in_memory
from segmentation.segmenter import Segmenter
from wsss.io import read_image, read_mask
from wsss.visualize import overlay, side_by_side


def write_look(writer: SummaryWriter | None, step: int, values: dict[str, float]) -> None:
    """Means since the last look, of the first process's part; ``writer`` is None on the others."""
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(name if name.startswith("lr/") else f"step/{name}", value, step)


def write_record(writer: SummaryWriter, record: dict) -> None:
    """Means of a section of training, and the scores of its evaluation."""
    for name, value in record.items():
        if name.startswith("val_"):
            writer.add_scalar(name, value, record["step"])
        elif name in ("loss", "clipped_loss", "clipped_pixels", "clipping_steps"):
            writer.add_scalar(f"section/{name}", value, record["step"])
    writer.flush()


def write_pictures(
    writer: SummaryWriter,
    model: Segmenter,
    spec,
    image_ids: Sequence[str],
    mask_paths: Mapping[str, Path],
    protocol: Protocol,
    step: int,
    *,
    exif: bool,
    max_side: int | None,
    amp_dtype: torch.dtype | None,
) -> None:
    """Picture, prediction and mask side by side."""
    model.eval()
    for image_id in image_ids:
        image = read_image(spec.image_path(image_id), exif=exif)
        probs = predict_in_memory(model, image, protocol, max_side=max_side, amp_dtype=amp_dtype)
        labels = probs.argmax(0).cpu().numpy()
        mask = read_mask(mask_paths[image_id])
        picture = side_by_side(image, overlay(image, labels), overlay(image, mask))
        writer.add_image(f"predictions/{image_id}", picture, step, dataformats="HWC")
    writer.flush()
