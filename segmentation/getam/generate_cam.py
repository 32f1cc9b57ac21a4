"""Generate GETAM's attention maps of a list of pictures, as CAM files like stage 1's.

    python -m segmentation.getam.generate_cam --dataset folder --data-path DATA --split train \\
        --checkpoint OUT/getam/last.pth --output-dir OUT/getam_cams/train

weaktr.search_threshold scores them; weaktr.make_masks turns them into pseudo-masks for segmentation.train.
Alone or under torchrun. Writes <id>.npz per picture (docs/formats.md); existing files are kept, so the same
command continues a run that was stopped.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segmentation.getam.attention_maps import FORMS, START_LAYER, getam_maps
from segmentation.getam.classes import ClassTable, class_table
from segmentation.getam.inference import PUBLISHED_SQUARES
from segmentation.getam.model import STRIDE, Getam, load_getam
from segmentation.getam.pamr import PAMR
from wsss.cam_files import maps_from_grids, write_cams, write_compact_cams
from wsss.checkpoint import check_classes
from wsss.config import REQUIRED, DataOptions, next_command, option, result_options, run_command
from wsss.datasets import Dataset, load_dataset
from wsss.distributed import all_sum, barrier, distributed_session, rank, shard
from wsss.errors import UserError
from wsss.io import read_image, write_image
from wsss.released import find_released
from wsss.run import open_run, sha256
from wsss.transforms import normalise, resize_bilinear
from wsss.visualize import heat_overlay, side_by_side

log = logging.getLogger(__name__)

EPSILON = 1e-5  # in the division of a map by its maximum, as in training


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    checkpoint: Path = option(
        REQUIRED, "network: a checkpoint of segmentation.getam.train, or a released one, by file or by name"
    )
    backbone: str | None = option(None, "encoder of a released checkpoint, where its file leaves it open")
    split: str | None = option(None, "list of pictures (default: the data set's training list)")
    squares: tuple[int, ...] = option(
        PUBLISHED_SQUARES, f"sides of the squares a picture is resized to, pixels, multiples of {STRIDE}",
        minimum=STRIDE,
    )  # fmt: skip
    flip: bool = option(False, "also use the mirrored picture")
    start_layer: int = option(START_LAYER, "first block, from 0, whose attention is used", minimum=0)
    form: str = option(
        "getam",
        "getam; unsquared: without the second gradient factor; grad_cam: Grad-CAM of attention",
        choices=FORMS,
    )
    pamr: bool = option(False, "refine the maps along the picture's edges (PAMR), as training does")
    compact: bool = option(False, "without PAMR: write the small grids, from which readers rebuild the maps")
    overlays: int = option(
        0, "also write overlay PNGs of the first N pictures", changes_result=False, minimum=0
    )
    exif: bool = option(False, "honour the EXIF rotation; by default pixels are taken as stored")


def main(config: Config) -> None:
    check_squares(config.squares)
    if config.compact and config.pamr:
        raise UserError("--compact: holds grids, PAMR works at the picture's size; leave one of them out")
    with distributed_session(config.device) as device:
        spec = load_dataset(config.dataset, config.data_path, voc_masks=config.voc_masks)
        table = class_table(spec)
        split = config.split or spec.train_split
        image_ids = spec.image_ids(split)
        spec.check_image_labels(split)
        path, model, _ = find_getam(config.checkpoint, config.backbone, table)
        check_start_layer(config.start_layer, model)
        output_dir = open_run(
            config.output_dir,
            "segmentation.getam.generate_cam",
            {
                **result_options(config, leave_out=("checkpoint",)),
                "split": split,
                "checkpoint_sha256": sha256(path),
            },
            owned=("*.npz", ".*.npz.tmp", "overlays"),
            overwrite=config.overwrite,
        )
        model.to(device)
        counts = torch.zeros(3, dtype=torch.int64, device=device)  # written, kept, skipped
        overlaid = set(image_ids[: config.overlays])
        for image_id in tqdm(shard(image_ids), f"maps {split}", unit="img", disable=rank() != 0):
            counts[one_picture(config, spec, table, model, output_dir, image_id, image_id in overlaid)] += 1
        written, kept, skipped = all_sum(counts).tolist()
        barrier()
        log.info(
            "wrote %d CAM files to %s (%d were there already, %d pictures without a class skipped)",
            written, output_dir, kept, skipped,
        )  # fmt: skip
        where = {"split": split, "output_dir": output_dir.parent.parent / "threshold"}
        log.info(next_command("weaktr.search_threshold", config, cam_dir=output_dir, **where))


def find_getam(checkpoint: Path, backbone: str | None, table: ClassTable) -> tuple[Path, Getam, dict]:
    """The file of a checkpoint or released name, its network, and its other entries.

    Raises:
        UserError: Not there, not GETAM's, or of other classes than the data set's.
    """
    path, released = find_released(checkpoint)
    if released is not None and released.kind == "getam":
        backbone = backbone or released.backbone
    model, entries = load_getam(path, backbone=backbone)
    check_classes(path, model.num_classes, entries.get("class_names"), table)
    return path, model, entries


def check_squares(squares: Sequence[int]) -> None:
    """Refuse sides that the network does not take."""
    for side in squares:
        if side % STRIDE:
            raise UserError(f"--squares {side}: not a multiple of {STRIDE} pixels; choose one")


def check_start_layer(start_layer: int, model: Getam) -> None:
    depth = len(model.pretrained.model.blocks)
    if start_layer >= depth:
        raise UserError(f"--start-layer {start_layer}: the network has blocks 0..{depth - 1}; choose one")


def one_picture(
    config: Config,
    spec: Dataset,
    table: ClassTable,
    model: Getam,
    output_dir: Path,
    image_id: str,
    overlaid: bool,
) -> int:
    """Write one file unless it is there. Returns 0: written, 1: kept, 2: the picture has no class."""
    path = output_dir / f"{image_id}.npz"
    if path.is_file():
        return 1
    classes = np.flatnonzero(table.targets(spec.labels(image_id)))
    if not len(classes):
        return 2
    image = read_image(spec.image_path(image_id), exif=config.exif)
    grids = attention_grids(
        model,
        image,
        classes,
        squares=config.squares,
        flip=config.flip,
        start_layer=config.start_layer,
        form=config.form,
    )
    class_ids = np.array(table.indices)[classes]
    maps = maps_from_grids(grids, image.shape[:2])
    if config.pamr:
        maps = refine(maps, image, next(model.parameters()).device)
    if config.compact:
        write_compact_cams(path, grids, class_ids, image.shape[:2])
    else:
        write_cams(path, maps, class_ids)
    if overlaid:
        heats = [heat_overlay(image, heat) for heat in maps]
        write_image(output_dir / "overlays" / f"{image_id}.png", side_by_side(image, *heats))
    return 0


def attention_grids(
    model: Getam,
    image: np.ndarray,
    classes: np.ndarray,
    *,
    squares: Sequence[int],
    flip: bool,
    start_layer: int = START_LAYER,
    form: str = "getam",
) -> list[np.ndarray]:
    """Maps of the present classes, one float32 (n, h, h) per square, each map divided by its maximum.

    The sizes of gradients differ from square to square, so each map counts by its shape alone.

    Args:
        image: uint8 (H, W, 3).
        classes: (n,) the network's foreground indices.
        squares: Sides that the picture is resized to, bilinearly.
        flip: Add the mirrored picture's maps.
    """
    device = next(model.parameters()).device
    grids = []
    for side in squares:
        pixels = normalise(resize_bilinear(image, (side, side)), model.pixel_mean, model.pixel_std)
        batch = (torch.stack((pixels, pixels.flip(-1))) if flip else pixels[None]).to(device)
        labels = torch.zeros(len(batch), model.num_classes, device=device)
        labels[:, classes] = 1
        maps = getam_maps(model, batch, labels, start_layer=start_layer, form=form)[:, classes]
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        total = maps[0] + maps[1].flip(-1) if flip else maps[0]
        grids.append(total.cpu().numpy())
    return grids


def refine(maps: np.ndarray, image: np.ndarray, device: torch.device) -> np.ndarray:
    """PAMR at the picture's own size, then each map over its maximum; float32 (n, H, W)."""
    levels = torch.tensor(image).permute(2, 0, 1)[None].float().to(device)
    refined = PAMR()(levels, torch.from_numpy(maps)[None].to(device))[0]
    return (refined / (refined.amax((1, 2), keepdim=True) + EPSILON)).cpu().numpy()


def run() -> None:
    run_command(main, Config, prog="segmentation.getam.generate_cam", description=__doc__)


if __name__ == "__main__":
    run()
