"""Panels of CAM generation: what each kind of attention gives, and how much each head is worth."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weaktr.cams import multi_scale_cams, network_sizes
from weaktr.model import ATTENTIONS, WeakTr
from wsss.datasets import Dataset
from wsss.distributed import all_sum, rank, shard
from wsss.errors import UserError
from wsss.io import read_image, write_json
from wsss.panels import cam_overlay, panel_ids, write_panel, write_picture_panels
from wsss.transforms import normalise, resize_bicubic


def write_cam_panels(
    output_dir: Path,
    model: WeakTr,
    spec: Dataset,
    image_ids: Sequence[str],
    labels_of: Callable[[str, np.ndarray], np.ndarray],
    *,
    count: int,
    exif: bool,
    scales: Sequence[float],
    flip: bool,
    refine: bool,
    max_side: int | None,
) -> None:
    """Write ``panels/`` of some pictures, each by the process whose share it is in, and head_weights.json.

    The columns ``coarse``, ``cross`` and ``fused`` are the CAMs that ``--attention`` of that name gives,
    other options being equal. Of a picture without a class all three are the picture itself, and its head
    weights do not count.

    Args:
        image_ids: The whole list.
        labels_of: (id, uint8 picture (H, W, 3)) to its classes, (C,), non-zero where one is present.
        count: Pictures, spread evenly over the list.
        exif, scales, flip, refine, max_side: As for the CAMs.

    Raises:
        UserError: A bad picture or mask; a picture less than a patch, or too large for the memory.
    """
    device = next(model.parameters()).device
    weights = torch.zeros(model.num_heads, len(model.blocks), dtype=torch.float64, device=device)
    labelled = torch.zeros(1, dtype=torch.int64, device=device)
    chosen = set(panel_ids(image_ids, count))
    how = {"scales": scales, "flip": flip, "max_side": max_side}
    for image_id in (i for i in shard(image_ids) if i in chosen):
        image_path = spec.image_path(image_id)
        image = read_image(image_path, exif=exif)
        write_picture_panels(output_dir, image_id, image, spec.mask_path(image_id))
        try:
            labels = labels_of(image_id, image)
            for attention in ATTENTIONS:
                cams = multi_scale_cams(model, image, labels, attention=attention, refine=refine, **how)
                write_panel(output_dir, image_id, attention, cam_overlay(image, cams, np.flatnonzero(labels)))
            if labels.any():
                weights += head_weights(model, image, **how)
                labelled += 1
        except UserError as error:
            raise UserError(f"{image_path}: {error}") from error
    weights, images = all_sum(weights), int(all_sum(labelled))
    if rank() == 0 and images:
        record = {"images": images, "weights": (weights / images).tolist()}
        write_json(Path(output_dir) / "head_weights.json", record)


@torch.no_grad()
def head_weights(
    model: WeakTr, image: np.ndarray, *, scales: Sequence[float], flip: bool, max_side: int | None
) -> Tensor:
    """Weights of the attention heads for a picture, (H, L), mean over the passes of ``cam_grids``."""
    device = next(model.parameters()).device
    found = []
    for size in network_sizes(model, image.shape[:2], scales, flip=flip, max_side=max_side):
        pixels = normalise(resize_bicubic(image, size), model.pixel_mean, model.pixel_std).to(device)
        batch = torch.stack((pixels, pixels.flip(-1))) if flip else pixels[None]
        found.append(model.cams(batch, "coarse", class_ids=[0]).head_weights)
    return torch.cat(found).double().mean(0)
