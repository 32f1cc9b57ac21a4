"""Training samples are functions of (seed, epoch, index); bad masks and pictures are named."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation.data import SegmentationDataset, check_masks
from wsss.datasets import load_dataset
from wsss.errors import UserError
from wsss.io import write_mask
from wsss.loading import batches, make_loader
from wsss.score import mask_paths_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Spec:
    """Pictures ``<id>`` and masks ``<id>.png`` in two folders."""

    def __init__(self, root: Path):
        self.root = root

    def image_path(self, image_id):
        return self.root / "images" / image_id

    def mask_path(self, image_id):
        return self.root / "masks" / f"{image_id}.png"


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "images").mkdir()
    return Spec(tmp_path)


def half_mask(height=60, width=80):
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 2
    mask[:4] = 255
    return mask


def add(spec, image_id, image=None, mask=None, **save):
    """Write a picture (PIL or array) and its mask; returns the id."""
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(spec.image_path(image_id), **save)
    write_mask(spec.mask_path(image_id), half_mask(image.height, image.width) if mask is None else mask)
    return image_id


def dataset_of(spec, ids, **changes):
    options = {
        "crop_size": 64, "short_side": 64, "mean": MEAN, "std": STD, "num_classes": 4, "seed": 0
    } | changes  # fmt: skip
    return SegmentationDataset(spec, ids, {i: spec.mask_path(i) for i in ids}, **options)


def check(spec, ids, **changes):
    paths = {i: spec.mask_path(i) for i in ids}
    check_masks(spec, ids, paths, **({"num_classes": 4, "exif": False, "workers": 0} | changes))


def pixels(sample):
    """Values 0..255 of a sample's picture, (S, S, 3), before rounding."""
    image = sample["image"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return (image * 255).permute(1, 2, 0)


# ----------------------------------------------------------------------------------------------- samples


def test_sample_is_a_normalised_padded_crop(spec):
    dataset = dataset_of(spec, [add(spec, "a.png")], crop_size=70)
    padded = 0
    for epoch in range(20):
        sample = dataset[epoch, 0]
        image, mask = sample["image"], sample["mask"]
        assert sample["image_id"] == "a.png"
        assert (
            image.shape == (3, 70, 70) and image.dtype == torch.float32 and image.is_contiguous()
        )  # alike in every batch
        assert mask.shape == (70, 70) and mask.dtype == torch.int64
        assert set(mask.unique().tolist()) <= {0, 2, 255} and torch.isfinite(image).all()
        height, width = (int((image != 0).any(0).any(axis).sum()) for axis in (1, 0))
        assert (image[:, height:] == 0).all() and (image[:, :, width:] == 0).all()
        assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
        inside = pixels(sample)[:height, :width]
        assert (inside - inside.round()).abs().max() < 1e-3
        assert inside.min() > -0.01 and inside.max() < 255.01
        padded += min(height, width) < 70
    assert 2 < padded < 18


def test_key_alone_decides(miniature):
    spec = load_dataset("folder", miniature)
    ids, paths = spec.image_ids("train"), mask_paths_of(spec, "train")
    ids[6] = ids[5]  # one picture under two indices
    options = {"crop_size": 48, "short_side": 64, "mean": MEAN, "std": STD, "num_classes": 4}
    sets = [SegmentationDataset(spec, ids, paths, seed=seed, **options) for seed in (0, 0, 1)]
    np.random.seed(0), torch.manual_seed(0)
    first = sets[0][3, 5]
    np.random.seed(1), torch.manual_seed(1)
    sets[1][0, 0]
    again = sets[1][3, 5]
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["mask"], again["mask"])
    for other in (sets[0][4, 5], sets[0][3, 6], sets[2][3, 5]):
        assert not torch.equal(first["image"], other["image"])


def test_samples_are_the_same_for_any_number_of_workers(miniature):
    spec = load_dataset("folder", miniature)
    ids, paths = spec.image_ids("train"), mask_paths_of(spec, "train")
    dataset = SegmentationDataset(
        spec, ids, paths, crop_size=48, short_side=64, mean=MEAN, std=STD, num_classes=4, seed=3
    )
    keys = [[(epoch, index) for index in range(epoch, len(ids), 4)] for epoch in range(4)]
    found = [
        list(batches(make_loader(dataset, keys, workers=workers, device=torch.device("cpu"))))
        for workers in (0, 2)
    ]
    assert len(found[0]) == 4
    for here, there in zip(*found, strict=True):
        assert here["image_id"] == there["image_id"]
        assert torch.equal(here["image"], there["image"]) and torch.equal(here["mask"], there["mask"])


def test_picture_without_any_label_gives_a_sample(spec):
    add(spec, "void.png", mask=np.full((60, 80), 255, np.uint8))
    sample = dataset_of(spec, ["void.png"])[0, 0]
    assert (sample["mask"] == 255).all() and torch.isfinite(sample["image"]).all()


def test_samples_without_photometric_distortion_keep_their_colours(spec):
    """The same crops as with it; the option is on unless it is left out."""
    colour = np.array([201, 33, 77], np.uint8)
    ids = [add(spec, "flat.png", np.broadcast_to(colour, (60, 80, 3)).copy())]
    plain, distorted = dataset_of(spec, ids, photometric=False), dataset_of(spec, ids)
    others = 0
    for epoch in range(10):
        sample, other = plain[epoch, 0], distorted[epoch, 0]
        assert torch.equal(sample["mask"], other["mask"])
        inside = (sample["image"] != 0).any(0)
        assert torch.equal(inside, (other["image"] != 0).any(0)) and inside.sum() > 30 * 30
        assert (pixels(sample)[inside] - torch.tensor(colour)).abs().max() < 1e-3
        others += int((pixels(other)[inside] - torch.tensor(colour)).abs().max() > 2)
    assert others > 5


RED_TO_BLUE = np.linspace([255, 0, 0], [0, 0, 255], 80)[None].repeat(60, 0).astype(np.uint8)
KINDS = {
    "grey": Image.fromarray(RED_TO_BLUE).convert("L"),
    "rgba": Image.fromarray(RED_TO_BLUE).convert("RGBA"),
    "palette": Image.fromarray(RED_TO_BLUE).convert("P"),
    "cmyk": Image.fromarray(RED_TO_BLUE).convert("CMYK"),
    "grey of 16 bits": Image.fromarray((RED_TO_BLUE[..., 0].astype(np.uint16) << 8) + 77),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind(spec, kind):
    image_id = add(spec, "odd.jpg" if kind == "cmyk" else "odd.png", KINDS[kind])
    check(spec, [image_id])
    sample = dataset_of(spec, [image_id])[0, 0]
    assert sample["image"].shape == (3, 64, 64) and torch.isfinite(sample["image"]).all()
    if kind.startswith("grey"):
        assert (pixels(sample).std(dim=-1) < 40).all()


def turned(spec, mask):
    """A picture stored as 80x60 whose EXIF tag says that it stands upright, 60x80."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return add(spec, "turned.jpg", RED_TO_BLUE, mask, exif=exif)


def test_exif_turns_the_picture_where_asked(spec):
    image_id = turned(spec, half_mask(80, 60))
    assert isinstance(dataset_of(spec, [image_id], exif=True)[0, 0], dict)
    check(spec, [image_id], exif=True)
    error = dataset_of(spec, [image_id])[0, 0]
    assert isinstance(error, UserError)
    assert "turned.jpg.png: is 60x80, its picture" in str(error) and "--exif" in str(error)
    with pytest.raises(UserError, match=r"turned\.jpg\.png: is 60x80.* is 80x60"):
        check(spec, [image_id])
    turned(spec, half_mask(60, 80))
    check(spec, [image_id])


# -------------------------------------------------------------------------------------------- bad input


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILED = {  # name: (what is done, words that the line must hold)
    "mask missing": (lambda s: s.mask_path("b.png").unlink(), ("masks/b.png.png", "no such file", "put it")),
    "mask of another size": (
        lambda s: write_mask(s.mask_path("b.png"), half_mask(60, 81)),
        ("masks/b.png.png: is 81x60", "images/b.png is 80x60", "make masks"),
    ),
    "mask with a class too many": (
        lambda s: write_mask(s.mask_path("b.png"), np.where(half_mask() == 2, 4, 0)),
        ("masks/b.png.png: holds the value 4", "end at 3", "give masks"),
    ),
    "mask with 254": (
        lambda s: write_mask(s.mask_path("b.png"), np.where(half_mask() == 2, 254, 0)),
        ("masks/b.png.png: holds the value 254", "give masks"),
    ),
    "mask in colour": (
        lambda s: Image.fromarray(RED_TO_BLUE).save(s.mask_path("b.png")),
        ("masks/b.png.png: is a RGB picture", "palette"),
    ),
    "mask truncated": (lambda s: cut(s.mask_path("b.png")), ("masks/b.png.png: damaged", "replace")),
    "picture missing": (lambda s: s.image_path("b.png").unlink(), ("images/b.png: no such file", "put it")),
    "picture truncated": (lambda s: cut(s.image_path("b.png")), ("images/b.png: damaged", "replace")),
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_input_is_named_in_the_check_and_in_training(spec, name):
    ids = [add(spec, i) for i in ("a.png", "b.png", "c.png")]
    spoil, words = SPOILED[name]
    check(spec, ids)
    spoil(spec)
    with pytest.raises(UserError) as caught:
        check(spec, ids)
    assert isinstance(dataset_of(spec, ids)[0, 0], dict)
    in_training = dataset_of(spec, ids)[0, 1]
    assert isinstance(in_training, UserError)
    for line in (str(caught.value), str(in_training)):
        assert all(word in line for word in words) and "\n" not in line


def test_check_in_worker_processes(spec):
    ids = [add(spec, f"{k}.png") for k in range(6)]
    check(spec, ids, workers=2)
    for k in (4, 2):
        cut(spec.image_path(f"{k}.png"))
    with pytest.raises(UserError, match=r"images/2\.png: damaged"):
        check(spec, ids, workers=2)


def test_a_picture_without_entry_is_named(spec):
    ids = [add(spec, i) for i in ("a.png", "b.png")]
    with pytest.raises(UserError, match=r"b\.png\.png: no such mask; .*--mask-dir"):
        check_masks(spec, ids, {"a.png": spec.mask_path("a.png")}, num_classes=4)


def test_masks_without_labels(spec, caplog):
    nothing, background = np.full((60, 80), 255, np.uint8), np.zeros((60, 80), np.uint8)
    ids = [add(spec, f"void{k}.png", mask=nothing) for k in range(3)]
    with pytest.raises(UserError, match=r"masks: every pixel of all 3 masks is 255; give"):
        check(spec, ids)
    ids += [add(spec, f"empty{k}.png", mask=background) for k in range(2)]
    ids += [add(spec, f"good{k}.png") for k in range(4)]
    with caplog.at_level(logging.WARNING):
        check(spec, ids)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "3 of 9 masks" in lines[0] and "255 everywhere" in lines[0]
    assert "2 of 9 masks" in lines[1] and "background only" in lines[1]
    caplog.clear()
    check(spec, ids[-2:])
    assert not caplog.records
