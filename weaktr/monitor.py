"""What TensorBoard shows of a training (docs/training.md)."""

from collections.abc import Sequence

import torch
from torch.utils.tensorboard import SummaryWriter

from weaktr.cams import multi_scale_cams
from weaktr.model import WeakTr
from wsss.errors import UserError
from wsss.io import read_image
from wsss.transforms import normalise, resize_bicubic
from wsss.visualize import heat_overlay, side_by_side


def write_step(writer: SummaryWriter | None, step: int, values: dict[str, float]) -> None:
    """Losses and learning rate of every tenth step. ``writer`` is None on all processes but the first."""
    if writer is not None and step % 10 == 0:
        for name, value in values.items():
            writer.add_scalar("lr" if name == "lr" else f"step_loss/{name}", value, step)


def write_epoch(writer: SummaryWriter, record: dict, step: int) -> None:
    """Mean losses of an epoch, and the scores of its evaluation."""
    for name, value in record.items():
        if name in ("loss", "class", "coarse", "fine"):
            writer.add_scalar(f"epoch_loss/{name}", value, step)
        elif name.startswith(("sample_map", "class_map", "cam_")):
            writer.add_scalar(name, value, step)
    writer.flush()


@torch.no_grad()
def write_pictures(
    writer: SummaryWriter,
    model: WeakTr,
    spec,
    image_ids: Sequence[str],
    step: int,
    *,
    image_size: int,
    exif: bool,
    max_side: int | None,
) -> None:
    """CAM overlays of a few labelled pictures, and the mean weight of each attention head over them.

    Args:
        image_size: Side to which pictures are brought for the head weights, pixels.
    """
    model.eval()
    device = next(model.parameters()).device
    weights = []
    for image_id in image_ids:
        image = read_image(spec.image_path(image_id), exif=exif)
        try:
            maps = multi_scale_cams(model, image, spec.labels(image_id), scales=(1.0,), max_side=max_side)
        except UserError:  # too thin or too large for a map: no reason to end a training
            continue
        heats = [heat_overlay(image, cam) for cam in maps]
        writer.add_image(f"cams/{image_id}", side_by_side(image, *heats), step, dataformats="HWC")
        square = resize_bicubic(image, (image_size, image_size))
        pixels = normalise(square, model.pixel_mean, model.pixel_std).to(device)
        weights.append(model.cams(pixels[None], class_ids=[0]).head_weights[0])
    if weights:
        writer.add_figure("head_weights", head_weight_figure(torch.stack(weights).mean(0)), step)
    writer.flush()


def head_weight_figure(weights: torch.Tensor):
    """Heat map of the head weights (H, L), blocks across and heads down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(weights.cpu().numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel="block", ylabel="head", title="mean weight of each attention head")
    figure.colorbar(shown)
    return figure
