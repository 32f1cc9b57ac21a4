"""CAM files: one npz per picture, full-size maps or the small grids they are made from.

    full      cams      float16 (n, H, W)   one map per class of the picture, in 0..1
              class_ids int64   (n,)        foreground class indices, counted from 0
    compact   grid_0, grid_1, ...  float32 (n, h, w)   one per scale, mirrors already summed
              class_ids int64   (n,)
              size      int64   (2,)        H, W of the picture

Both are uncompressed and readable with ``numpy.load(path)``. ``read_cams`` gives bit-equal maps from both.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from wsss.errors import UserError
from wsss.io import atomic_write

# what numpy and zipfile raise on truncated, foreign or pickled content
UNREADABLE = (ValueError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
EPSILON = 1e-8  # keeps a constant map at 0, as published


class CamFile(NamedTuple):
    cams: np.ndarray  # float16 (n, H, W)
    class_ids: np.ndarray  # int64 (n,)


def maps_from_grids(grids: Sequence[np.ndarray | torch.Tensor], size: tuple[int, int]) -> np.ndarray:
    """The final maps of a picture: the one definition, used by generation and by every reader.

    Args:
        grids: One (n, h, w) array per scale, mirrors summed, in float32.
        size: (H, W) of the picture.

    Returns:
        float32 (n, H, W): each grid resized bilinearly (align_corners False), summed over scales, and each
        map stretched to 0..1 as (x - min) / (max - min + 1e-8). Computed on the CPU, map by map, so that a
        map does not depend on which others are computed with it.
    """
    grids = [torch.as_tensor(grid).detach().to("cpu", torch.float32).contiguous() for grid in grids]
    height, width = map(int, size)
    maps = np.empty((len(grids[0]), height, width), dtype=np.float32)
    for i in range(len(maps)):
        total = sum(
            F.interpolate(grid[i][None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
            for grid in grids
        )
        low, high = total.min(), total.max()
        maps[i] = ((total - low) / (high - low + EPSILON)).numpy()
    return maps


def write_cams(path: Path, cams: np.ndarray, class_ids: np.ndarray) -> None:
    """Write full-size maps, atomically; equal input gives equal bytes.

    Args:
        path: ``<id>.npz``.
        cams: (n, H, W), rounded to float16; n may be 0.
        class_ids: (n,) foreground class indices, counted from 0.

    Raises:
        ValueError: Shapes do not fit or a value is not finite.
    """
    cams = np.asarray(cams).astype(np.float16)
    class_ids = _class_ids(class_ids, len(cams))
    if cams.ndim != 3 or not np.isfinite(cams).all():
        raise ValueError(f"{path}: CAMs must be finite and (n, H, W), got shape {cams.shape}")
    _save(path, {"cams": cams, "class_ids": class_ids})


def write_compact_cams(
    path: Path, grids: Sequence[np.ndarray], class_ids: np.ndarray, size: tuple[int, int]
) -> None:
    """Write the grids that ``maps_from_grids`` turns into the maps, atomically.

    Args:
        path: ``<id>.npz``.
        grids: One float32 (n, h, w) array per scale, mirrors summed.
        class_ids: (n,) foreground class indices, counted from 0.
        size: (H, W) of the picture.

    Raises:
        ValueError: Shapes do not fit or a value is not finite.
    """
    grids = [np.ascontiguousarray(grid, dtype=np.float32) for grid in grids]
    if not grids or any(g.ndim != 3 or len(g) != len(grids[0]) or not np.isfinite(g).all() for g in grids):
        raise ValueError(f"{path}: grids must be finite and (n, h, w), n the same for every scale")
    arrays = {f"grid_{i}": grid for i, grid in enumerate(grids)}
    arrays["class_ids"] = _class_ids(class_ids, len(grids[0]))
    arrays["size"] = np.array([int(size[0]), int(size[1])], dtype=np.int64)
    _save(path, arrays)


def _class_ids(class_ids, n: int) -> np.ndarray:
    class_ids = np.asarray(class_ids, dtype=np.int64)
    if class_ids.shape != (n,):
        raise ValueError(f"{n} maps need {n} class_ids, got shape {class_ids.shape}")
    return class_ids


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # an open file: given a name, savez would append .npz to the temporary one
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_cams(path: Path) -> CamFile:
    """Read either form.

    Raises:
        UserError: The file is missing, damaged, or not a CAM file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such CAM file; make it with python -m weaktr.generate_cam for the same split"
        ) from None
    except UNREADABLE as error:
        raise UserError(
            f"{path}: damaged or not a CAM file ({error}); delete it and run weaktr.generate_cam again"
        ) from None
    problem, grids = _problem(arrays)
    if problem:
        raise UserError(f"{path}: not a CAM file as docs/formats.md describes it ({problem}); delete it "
                        "and run weaktr.generate_cam again")  # fmt: skip
    cams = arrays["cams"] if grids is None else maps_from_grids(grids, arrays["size"])
    return CamFile(cams.astype(np.float16, copy=False), arrays["class_ids"].astype(np.int64))


def _problem(arrays: dict[str, np.ndarray]) -> tuple[str | None, list[np.ndarray] | None]:
    """What is wrong with a file's arrays, if anything, and the grids of a compact one."""
    class_ids = arrays.get("class_ids")
    if class_ids is None or class_ids.ndim != 1 or class_ids.dtype.kind not in "iu":
        return "class_ids is missing or not a list of integers", None
    if "cams" in arrays:
        grids, maps = None, [arrays["cams"]]
    else:
        grids = maps = [arrays[f"grid_{i}"] for i in range(len(arrays)) if f"grid_{i}" in arrays]
        size = arrays.get("size")
        if not grids or size is None or size.shape != (2,) or size.dtype.kind not in "iu" or min(size) < 1:
            return "neither cams nor grid_0 and size", None
    for array in maps:
        if array.dtype.kind != "f" or array.ndim != 3 or len(array) != len(class_ids) or 0 in array.shape[1:]:
            return f"a map array is {array.dtype} {array.shape} for {len(class_ids)} class_ids", None
        if not np.isfinite(array).all():
            return "a map is not finite", None
    return None, grids


def label_map(cams: np.ndarray, threshold: float) -> np.ndarray:
    """CAMs to labels: 0 where no map exceeds ``threshold`` (a tie is background), else 1 + the largest map.

    Args:
        cams: float16 (n, H, W); n may be 0, which is background everywhere.
        threshold: Compared in float64 with the float16 values.

    Returns:
        int64 (H, W), 0..n; of equal maps the first wins.
    """
    if not len(cams):
        return np.zeros(cams.shape[1:], dtype=np.int64)
    # float64: numpy would round a Python float to float16 before comparing
    above = cams.max(axis=0).astype(np.float64) > threshold
    return np.where(above, cams.argmax(axis=0) + 1, 0)
