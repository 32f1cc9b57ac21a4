"""Training crops, saliency maps, and the classes' numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation.getam.classes import class_table
from segmentation.getam.data import GetamDataset, read_saliency
from tests.miniature import make
from wsss.backbones import IMAGENET
from wsss.datasets import load_dataset
from wsss.errors import UserError
from wsss.io import read_image, write_mask
from wsss.labels import COCO_UNUSED


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return load_dataset("coco14", make(tmp_path_factory.mktemp("coco"), "coco14", train=6, val=2))


def samples(root, crop_size=64, saliency_dir=None, seed=504):
    spec = load_dataset("folder", root)
    return GetamDataset(
        spec, class_table(spec), spec.image_ids("train"), crop_size=crop_size, mean=IMAGENET.mean,
        std=IMAGENET.std, saliency_dir=saliency_dir, seed=seed,
    )  # fmt: skip


def test_a_sample(miniature):
    found = samples(miniature)
    sample = found[3, 5]
    assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.float32
    assert sample["crop_mask"].shape == sample["salient"].shape == (64, 64)
    assert sample["targets"].tolist() == found.spec.labels(sample["image_id"]).tolist()
    assert not sample["salient"].any()
    assert (sample["image"][:, sample["crop_mask"] == 0] == 0).all()
    assert sample["image"].abs().sum(0)[sample["crop_mask"] == 1].gt(0).float().mean() > 0.99


def test_a_sample_follows_from_seed_epoch_and_index_alone(miniature):
    one, other = samples(miniature), samples(miniature)
    assert torch.equal(one[2, 3]["image"], other[2, 3]["image"])
    assert not torch.equal(one[2, 3]["image"], one[3, 3]["image"])
    assert not torch.equal(one[2, 3]["image"], samples(miniature, seed=1)[2, 3]["image"])


def test_long_sides_of_230_to_292_in_a_crop_of_256(miniature):
    """The picture's part of a crop: its long side is drawn from 230..292, both ends, and cut at 256."""
    found = samples(miniature, crop_size=256)
    image = read_image(found.spec.image_path(found.image_ids[0]))
    long, short = max(image.shape[:2]), min(image.shape[:2])
    sides = set()
    for epoch in range(150):
        mask = found[epoch, 0]["crop_mask"]
        sides.add(int(mask.any(int(image.shape[0] >= image.shape[1])).sum()))
        inside = mask[mask.any(1)][:, mask.any(0)]
        assert inside.all()  # one rectangle
        if max(inside.shape) < 256:
            assert abs(min(inside.shape) / max(inside.shape) - short / long) < 0.01
    assert min(sides) == 230 and max(sides) == 256 and len(sides) > 20


def test_offsets_are_random_both_ways(miniature):
    found = samples(miniature, crop_size=256)
    firsts = {tuple(np.argwhere(found[e, 0]["crop_mask"].numpy())[0]) for e in range(40)}
    assert len({row for row, _ in firsts}) > 3 or len({column for _, column in firsts}) > 3


def test_saliency_follows_its_picture(miniature, tmp_path):
    """A saliency map of the picture's own brightness stays with it through resizing, mirror and crop."""
    spec = load_dataset("folder", miniature)
    for image_id in spec.image_ids("train"):
        image = read_image(spec.image_path(image_id)).mean(2)
        write_mask(tmp_path / f"{image_id}.png", np.where(image > 128, 255, 0).astype(np.uint8))
    found = samples(miniature, crop_size=96, saliency_dir=tmp_path)
    for epoch in range(4):
        sample = found[epoch, 1]
        pixels = sample["image"] * torch.tensor(IMAGENET.std)[:, None, None]
        bright = (pixels + torch.tensor(IMAGENET.mean)[:, None, None]).mean(0) > 128 / 255
        inside = sample["crop_mask"] > 0
        assert (bright == sample["salient"])[inside].float().mean() > 0.85
        assert not sample["salient"][~inside].any()


def test_saliency_maps_of_0_and_1_and_of_0_to_255(tmp_path):
    values = np.array([[0, 1], [1, 0]], np.uint8)
    write_mask(tmp_path / "one.png", values)
    assert read_saliency(tmp_path / "one.png", (2, 2)).tolist() == [[0, 255], [255, 0]]
    Image.fromarray(np.array([[0, 127], [128, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert (read_saliency(tmp_path / "grey.png", (2, 2)) >= 128).tolist() == [[False, False], [True, True]]
    with pytest.raises(UserError, match=r"grey\.png: is 2x2, its picture is 4x3"):
        read_saliency(tmp_path / "grey.png", (3, 4))


def test_bad_pictures_are_handed_on(miniature, tmp_path):
    found = samples(miniature, saliency_dir=tmp_path)
    assert isinstance(found[0, 0], UserError) and "no such file" in str(found[0, 0])


def test_coco_s_80_classes(coco):
    table = class_table(coco)
    assert table.num_fg_classes == 80 and not any(n.startswith("unused") for n in table.class_names)
    assert table.class_names[0] == "person" and table.class_names[79] == "toothbrush"
    numbers = [index + 1 for index in table.indices]
    assert sorted({*numbers, *COCO_UNUSED}) == list(range(1, 91))
    labels = np.zeros(90, np.float32)
    labels[[0, 12, 89]] = 1  # person, stop sign (category 13), toothbrush (90)
    assert np.flatnonzero(table.targets(labels)).tolist() == [0, 11, 79]
    dense = np.array([[0, 1], [12, 80]])
    assert table.label_map(dense).tolist() == [[0, 1], [13, 90]]
    mask = np.array([[0, 1, 13], [90, 255, 12]], np.uint8)
    assert table.network_map(mask).tolist() == [[0, 1, 12], [80, 255, 255]]


def test_other_data_sets_keep_their_numbers(miniature):
    table = class_table(load_dataset("folder", miniature))
    assert table.indices == (0, 1, 2) and table.class_names == ("disc", "square", "triangle")
