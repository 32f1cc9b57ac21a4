"""Pseudo-labels of GETAM with and without label completion, on the same maps: called by label_completion.sh.

Pictures are brought to a long side of --side pixels and padded; labels are made as in training and compared
with the true masks. Saliency: none (the band), or the true foreground, an upper bound of what maps can give.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segmentation.getam.attention_maps import getam_maps
from segmentation.getam.engine import pixel_levels
from segmentation.getam.model import STRIDE, load_getam
from segmentation.getam.pamr import PAMR
from segmentation.getam.pseudo_labels import LabelRules, make_labels, refine_maps
from wsss.datasets import load_dataset
from wsss.io import IGNORED, read_image, read_mask
from wsss.metrics import ConfusionMatrix
from wsss.tables import markdown_table
from wsss.transforms import normalise, resize_bilinear, resize_nearest


class Tally:
    """Scores of one way of making labels."""

    def __init__(self, num_classes: int):
        self.labelled, self.all = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
        self.unknown = self.pixels = 0

    def update(self, labels: np.ndarray, mask: np.ndarray) -> None:
        unknown = labels == IGNORED
        background = np.where(unknown, 0, labels)
        self.labelled.update(background, np.where(unknown, IGNORED, mask))
        self.all.update(background, mask)
        self.unknown += int(unknown.sum())
        self.pixels += labels.size

    def cells(self) -> tuple[str, str, str]:
        scores = (self.labelled.scores().mean_iou, self.all.scores().mean_iou, self.unknown / self.pixels)
        return tuple(f"{100 * value:.1f}" for value in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="a folder data set with masks")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of segmentation.getam.train")
    parser.add_argument("--split", required=True)
    parser.add_argument("--side", type=int, default=256, help="longer side of the pictures, pixels")
    parser.add_argument("--band", type=float, default=LabelRules.band)
    options = parser.parse_args()
    spec = load_dataset("folder", options.data_path)
    model, _ = load_getam(options.checkpoint)
    pamr = PAMR()
    ways = {
        (saliency, completion): Tally(spec.num_fg_classes + 1)
        for saliency in ("none", "true foreground")
        for completion in (False, True)
    }
    for image_id in tqdm(spec.image_ids(options.split)):
        scores, classes, mask = scored(model, pamr, spec, image_id, options.side)
        for (saliency, completion), tally in ways.items():
            rules = LabelRules(completion=completion, band=options.band)
            salient = mask > 0 if saliency != "none" else None
            labels = np.zeros_like(mask)  # of a picture without a class, as in training
            if len(classes):
                labels, _ = make_labels(scores, classes, salient, rules)
            tally.update(labels, mask)
    rows = [("saliency", "completion", "mIoU of labelled pixels", "unknown as background", "unknown, %")]
    rows += [(s, "on" if c else "off", *tally.cells()) for (s, c), tally in ways.items()]
    rules = dataclasses.asdict(LabelRules(band=options.band))
    sys.stdout.write("\n".join([*markdown_table(rows), f"rules: {rules}"]) + "\n")


def scored(model, pamr: PAMR, spec, image_id: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refined maps of the present classes (n, H, W), their indices, and the mask, at the small size."""
    image, mask = read_image(spec.image_path(image_id)), read_mask(spec.mask_path(image_id))
    factor = side / max(image.shape[:2])
    size = tuple(max(1, round(length * factor)) for length in image.shape[:2])
    padded = [-(-length // STRIDE) * STRIDE for length in size]
    pixels = torch.zeros(1, 3, *padded)
    pixels[0, :, : size[0], : size[1]] = normalise(
        resize_bilinear(image, size), model.pixel_mean, model.pixel_std
    )
    labels = torch.from_numpy(spec.labels(image_id))[None]
    if not labels.any():
        return np.zeros((0, *size), np.float32), np.zeros(0, np.int64), resize_nearest(mask, size)
    maps = getam_maps(model, pixels, labels)[:, labels[0] > 0]
    scores = refine_maps(maps, pixel_levels(pixels, model.pixel_mean, model.pixel_std), pamr)[0]
    classes = np.flatnonzero(labels[0].numpy())
    return scores[:, : size[0], : size[1]].numpy(), classes, resize_nearest(mask, size)


if __name__ == "__main__":
    main()
