"""Sampling and augmentation are functions of (seed, epoch, index), whatever the workers and processes."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from wsss.errors import UserError
from wsss.loading import StepBatchSampler, batches, make_loader, seeded
from wsss.transforms import classification_train_transform


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_depends_on_its_key_alone_and_restores():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    with seeded(1, 2, 3):
        first = draws()
    after = draws()
    with seeded(1, 2, 3):
        assert draws() == first
    with seeded(1, 2, 4):
        assert all(a != b for a, b in zip(draws(), first, strict=True))
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    assert draws() == after  # as if nothing had happened in between


def parts(monkeypatch, processes, **options):
    found = []
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        sampler = StepBatchSampler(50, 8, seed=3, drop_last=True, **options)
        sampler.steps = range(7 * 6, 8 * 6)
        found.append(list(sampler))
    return found


def test_processes_share_out_the_same_batches(monkeypatch):
    alone = parts(monkeypatch, 1)[0]
    assert len(alone) == 6 and all(len(b) == 8 for b in alone)
    assert len({i for b in alone for _, i in b}) == 48
    assert all(epoch == 7 for b in alone for epoch, _ in b)
    shared = parts(monkeypatch, 4)
    for step in range(6):
        assert sorted(pair for part in shared for pair in part[step]) == sorted(alone[step])
        assert all(len(part[step]) == 2 for part in shared)


def test_order_changes_with_epoch_and_seed():
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = StepBatchSampler(50, 50, seed=seed, drop_last=True)
        sampler.steps = range(epoch, epoch + 1)
        orders.add(tuple(index for _, index in next(iter(sampler))))
    assert len(orders) == 3


def test_impossible_batches_are_refused(monkeypatch):
    with pytest.raises(UserError, match="only 5 pictures"):
        StepBatchSampler(5, 8, seed=0, drop_last=True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="multiple of 3"):
        StepBatchSampler(50, 8, seed=0, drop_last=True)


def test_parts_may_be_uneven_where_the_last_batch_is_kept(monkeypatch):
    """Batches of 4 of 9 samples, dealt to 3 processes; one without a sample gets a filler."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    given, sizes = [], []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        sampler = StepBatchSampler(9, 4, seed=0, drop_last=False)
        given.append([[index for _, index in part] for part in sampler])
        sizes.append([sampler.local_size(step) for step in range(3)])
        assert [sampler.global_size(step) for step in range(3)] == [4, 4, 1]
    assert sizes == [[2, 2, 1], [1, 1, 0], [1, 1, 0]]
    for step in range(3):
        dealt = [index for rank in range(3) for index in given[rank][step][: sizes[rank][step]]]
        assert sorted(dealt) == sorted(sampler.batch(step))
        assert all(given[rank][step] for rank in range(3))
    assert sorted(i for step in range(3) for i in sampler.batch(step)) == list(range(9))


class Augmented(Dataset):
    """Generated pictures through the real training transform; index 5 is broken when asked."""

    def __init__(self, broken=False):
        self.transform = classification_train_transform(32, (0.5,) * 3, (0.5,) * 3)
        self.broken = broken

    def __getitem__(self, key):
        if self.broken and key[1] == 5:
            return UserError("five.jpg: truncated; replace it")
        pixels = np.random.default_rng(key[1]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        with seeded(0, *key):
            return {"image": self.transform(Image.fromarray(pixels)), "index": key[1]}


def loaded(workers):
    sampler = StepBatchSampler(16, 8, seed=0, drop_last=True)
    loader = make_loader(Augmented(), sampler, workers=workers, device=torch.device("cpu"))
    return {
        epoch: {int(i): x for b in batches(loader) for i, x in zip(b["index"], b["image"], strict=True)}
        for epoch in (0, 1)
        if setattr(sampler, "steps", range(2 * epoch, 2 * epoch + 2)) is None
    }


def test_augmentation_is_the_same_for_any_number_of_workers():
    here, there = loaded(0), loaded(2)
    for epoch in (0, 1):
        assert len(here[epoch]) == 16
        for index, image in here[epoch].items():
            assert torch.equal(image, there[epoch][index])
    assert not torch.equal(here[0][3], here[1][3])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_in_a_worker_arrives_as_its_own_line(workers):
    sampler = StepBatchSampler(16, 8, seed=0, drop_last=True)
    loader = make_loader(Augmented(broken=True), sampler, workers=workers, device=torch.device("cpu"))
    with pytest.raises(UserError) as caught:
        list(batches(loader))
    assert str(caught.value) == "five.jpg: truncated; replace it"


def test_posterize_keeps_a_bit():
    """RandAugment's increasing posterize emits 0 bits, which Pillow refuses; clamped to 1 everywhere."""
    from timm.data import auto_augment

    classification_train_transform(32, (0.5,) * 3, (0.5,) * 3)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        found = np.asarray(auto_augment.NAME_TO_OP[name](ramp, 0))
        assert sorted(np.unique(found)) == [0, 128]
