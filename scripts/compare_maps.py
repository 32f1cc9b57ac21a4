"""Gradient maps of a WeakTr classifier, as CAM files, to compare with its own CAMs (compare_maps.sh).

GETAM's maps, their unsquared form and Grad-CAM of attention, each of the class's own token: its row of the
attention matrices, and the gradient of its class logit. The squares and mirrors are those that are given.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segmentation.getam.attention_maps import FORMS, maps_of_rows
from weaktr.model import WeakTr, load_weaktr
from wsss.cam_files import maps_from_grids, write_cams
from wsss.datasets import load_dataset
from wsss.io import read_image
from wsss.transforms import normalise, resize_bicubic


def gradient_maps(model: WeakTr, images: torch.Tensor, classes: np.ndarray, start_layer: int) -> dict:
    """Form -> maps (B, n, h, w) of the given classes, which every picture of the batch has."""
    C = model.num_classes
    tokens, grid = model.embed(images.clone().requires_grad_())
    rows = []
    for number, block in enumerate(model.blocks):
        tokens, record = block(tokens, first_rows=C if number >= start_layer else 0)
        if number >= start_layer:
            rows.append(record.first_rows)
    logits = tokens[:, :C].mean(-1)
    found = {form: [] for form in FORMS}
    for c in classes:
        gradients = torch.autograd.grad(logits[:, c].sum(), rows, retain_graph=True)
        own = [[values[:, :, c : c + 1] for values in group] for group in (rows, gradients)]
        for form in FORMS:
            found[form].append(maps_of_rows(*own, form)[:, C:].unflatten(1, grid))
    return {form: torch.stack(maps, 1) for form, maps in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of weaktr.train")
    parser.add_argument("--split", required=True)
    parser.add_argument("--output-dir", type=Path, required=True, help="receives FORM/ID.npz")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.2])
    parser.add_argument("--start-layer", type=int, help="first block, from 0 (default: half of the blocks)")
    parser.add_argument("--overwrite", action="store_true", help="make maps anew that are there")
    options = parser.parse_args()
    spec = load_dataset(options.dataset, options.data_path)
    model, _ = load_weaktr(options.checkpoint)
    start_layer = len(model.blocks) // 2 if options.start_layer is None else options.start_layer
    for image_id in tqdm(spec.image_ids(options.split)):
        classes = np.flatnonzero(spec.labels(image_id))
        paths = {form: options.output_dir / form / f"{image_id}.npz" for form in FORMS}
        kept = not options.overwrite and all(path.is_file() for path in paths.values())
        if not len(classes) or kept:
            continue
        image = read_image(spec.image_path(image_id))
        grids = {form: [] for form in FORMS}
        for scale in options.scales:
            size = tuple(int(np.round(side * scale)) for side in image.shape[:2])
            pixels = normalise(resize_bicubic(image, size), model.pixel_mean, model.pixel_std)
            batch = torch.stack((pixels, pixels.flip(-1)))
            for form, maps in gradient_maps(model, batch, classes, start_layer).items():
                maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
                grids[form].append((maps[0] + maps[1].flip(-1)).numpy())
        for form, path in paths.items():
            write_cams(path, maps_from_grids(grids[form], image.shape[:2]), classes)


if __name__ == "__main__":
    main()
