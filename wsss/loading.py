"""Which sample, when, with which random numbers: functions of (seed, epoch, index) alone.

Neither the number of workers nor the number of processes nor a restart changes what a sample looks like.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from wsss.distributed import rank, world_size
from wsss.errors import UserError


@contextmanager
def seeded(*key: int):
    """Seed Python's, numpy's and torch's CPU generators from ``key`` inside the block; restore them after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """This process's part of every shuffled global batch, as ``(epoch, index)`` pairs.

    The order is a permutation drawn from (seed, epoch). A global batch is dealt out to the processes in
    turns, so that their parts together are the batch that one process alone would take.

    Args:
        length: Samples in the data set.
        batch_size: Global batch size.
        drop_last: Leave out the last incomplete batch.

    Raises:
        UserError: The batch cannot be dealt evenly, or there is not one whole batch to give.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, drop_last: bool):
        if batch_size % world_size():
            raise UserError(
                f"--batch-size {batch_size}: not a multiple of {world_size()} processes; choose a multiple"
            )
        if length == 0 or (drop_last and length < batch_size):
            raise UserError(
                f"--batch-size {batch_size}: the training list has only {length} pictures; choose less"
            )
        self.length, self.batch_size, self.seed, self.drop_last = length, batch_size, seed, drop_last
        self.epoch = 0

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [(self.epoch, int(index)) for index in batch[rank() :: world_size()]]


def make_loader(dataset: Dataset, batch_sampler, *, workers: int, device: torch.device) -> DataLoader:
    """A loader whose batches ``batches`` reads."""
    cv2.setNumThreads(1)  # a forked worker that touches OpenCV's thread pool of its parent waits for ever
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        # A loader draws a seed when it starts its workers, so once per run: from a generator of its own, or
        # stochastic depth would differ after a restart and with another number of workers.
        generator=torch.Generator(),
    )


def batches(loader: DataLoader) -> Iterator[dict]:
    """The loader's batches; a worker's ``UserError`` is raised here, without its traceback."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _collate(samples: list):
    errors = [s for s in samples if isinstance(s, UserError)]
    return errors[0] if errors else default_collate(samples)


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)
