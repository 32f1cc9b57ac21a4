"""CAMs of one picture: multi-scale, mirrored, present classes only; which sizes are possible."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weaktr.model import WeakTr
from wsss.cam_files import maps_from_grids
from wsss.errors import UserError
from wsss.memory import free_memory
from wsss.transforms import normalise, resize_bicubic


@torch.no_grad()
def cam_grids(
    model: WeakTr,
    image: np.ndarray,
    class_ids: Sequence[int],
    *,
    scales: Sequence[float] = (1.0, 1.2),
    flip: bool = True,
    attention: str = "fused",
    refine: bool = True,
    max_side: int | None = None,
) -> list[Tensor]:
    """The network's own small maps: one (n, h_s, w_s) float32 CPU tensor per scale, summed over the mirror.

    ``maps_from_grids`` turns them into CAMs. Bilinear resizing is linear and commutes with mirroring, so that
    summing first equals the published order (resize, mirror back, sum) up to rounding.

    Args:
        image: uint8 (H, W, 3).
        class_ids: The n present classes, foreground indices.
        attention: See ``WeakTr.cams``.
        refine: False leaves patch attention out.
        max_side: Shrink a larger picture to this longer side (pixels) first.

    Raises:
        UserError: A scaled picture is smaller than a patch, or too large for the free memory.
    """
    device = next(model.parameters()).device
    image = np.asarray(image)
    sizes = network_sizes(
        model, image.shape[:2], scales, num_maps=len(class_ids), flip=flip, max_side=max_side
    )
    grids = []
    for size in sizes:
        pixels = normalise(resize_bicubic(image, size), model.pixel_mean, model.pixel_std).to(device)
        batch = torch.stack((pixels, pixels.flip(-1))) if flip else pixels[None]
        found = model.cams(batch, attention, class_ids=list(class_ids))
        maps = found.fine_cams if refine else found.cams
        total = maps[0] + maps[1].flip(-1) if flip else maps[0]
        grids.append(total.cpu())
    return grids


def multi_scale_cams(
    model: WeakTr,
    image: np.ndarray,
    labels: np.ndarray,
    *,
    scales: Sequence[float] = (1.0, 1.2),
    flip: bool = True,
    **options,
) -> np.ndarray:
    """CAMs of the present classes: float32 (n, H, W) in [0, 1], each map min-max normalised.

    Args:
        image: uint8 (H, W, 3).
        labels: (C,), non-zero where a class is present.
        options: Further arguments of ``cam_grids``.
    """
    image = np.asarray(image)
    labels = torch.as_tensor(labels).cpu().numpy()
    if labels.shape != (model.num_classes,):
        raise ValueError(f"labels have the shape {labels.shape}, the network has {model.num_classes} classes")
    class_ids = np.flatnonzero(labels)
    if len(class_ids) == 0:
        return np.zeros((0, *image.shape[:2]), np.float32)
    grids = cam_grids(model, image, class_ids.tolist(), scales=scales, flip=flip, **options)
    return maps_from_grids(grids, image.shape[:2])


@torch.no_grad()
def predicted_labels(
    model: WeakTr, image: np.ndarray, threshold: float, *, max_side: int | None = None
) -> np.ndarray:
    """(C,) float32: 1 where the class token's probability, mean over the mirror, exceeds ``threshold``."""
    size = network_sizes(model, image.shape[:2], (1.0,), max_side=max_side)[0]
    device = next(model.parameters()).device
    pixels = normalise(resize_bicubic(image, size), model.pixel_mean, model.pixel_std).to(device)
    logits = model.encode(torch.stack((pixels, pixels.flip(-1))))[0]
    return (logits.sigmoid().mean(0) > threshold).float().cpu().numpy()


def network_sizes(
    model: WeakTr,
    size: tuple[int, int],
    scales: Sequence[float],
    *,
    num_maps: int = 1,
    flip: bool = True,
    max_side: int | None = None,
) -> list[tuple[int, int]]:
    """(H, W) of a picture as the network sees it, at every scale.

    Args:
        size: (H, W) of the picture.
        num_maps: Classes whose maps are made.
        max_side: Shrink a larger picture to this longer side (pixels) first.

    Raises:
        UserError: A scaled picture is smaller than a patch, or too large for the free memory.
    """
    shrink = min(1.0, max_side / max(size)) if max_side else 1.0
    # numpy rounds halves to even, as published
    sizes = [tuple(int(np.round(side * shrink * scale)) for side in size) for scale in scales]
    for height, width in sizes:
        if min(height, width) < model.patch_size:
            raise UserError(
                f"{width}x{height} pixels (width x height, scaled) is less than one {model.patch_size}-pixel "
                "patch; enlarge the picture, leave it out of the list, or use larger --scales"
            )
    height, width = max(sizes)
    tokens = (1 + flip) * (height // model.patch_size) * (width // model.patch_size)
    # per token and block: queries, keys, values and branch output; in one block: the MLP's two hidden layers
    network = 4 * tokens * model.embed_dim * (4 * len(model.blocks) + 8)  # bytes
    maps = 4 * 4 * num_maps * size[0] * size[1]
    free = free_memory(next(model.parameters()).device)
    if free is not None and network + maps > 0.8 * free:
        share = max(0.0, (0.8 * free - maps) / network)
        side = int(max(height, width) / max(scales) * math.sqrt(share))
        remedy = f"shrink it with --max-side {side // 100 * 100 or side}" if side else "make memory free"
        raise UserError(
            f"{width}x{height} pixels (width x height, scaled) needs about {(network + maps) / 2**30:.2g} "
            f"GiB, {free / 2**30:.2g} GiB are free; {remedy}"
        )
    return sizes
