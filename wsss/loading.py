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


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """This process's part of the shuffled global batch of every step, as ``(epoch, index)`` pairs.

    The order within an epoch is a permutation drawn from (seed, epoch), so that a step's batch is a function
    of (seed, step). A global batch is dealt out to the processes in turns: their parts together are the batch
    that one process alone would take. A process for which the last batch of an epoch has no sample gets the
    first one as a filler (``local_size`` is then 0).

    Args:
        length: Samples in the data set.
        batch_size: Global batch size.
        drop_last: Leave out the last incomplete batch of an epoch; the parts are then of one size. Without
            it they may differ by one.

    Attributes:
        steps: The global steps that iterating gives; at first those of epoch 0.

    Raises:
        UserError: The batch cannot be dealt evenly, or there is not one whole batch to give.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, drop_last: bool):
        if drop_last and batch_size % world_size():  # so that every part counts the same in a mean of means
            raise UserError(
                f"--batch-size {batch_size}: not a multiple of {world_size()} processes; choose a multiple"
            )
        if length == 0 or (drop_last and length < batch_size):
            raise UserError(
                f"--batch-size {batch_size}: the training list has only {length} pictures; choose less"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.steps_per_epoch = length // batch_size if drop_last else -(-length // batch_size)
        self.steps = range(self.steps_per_epoch)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_epoch, order = None, None
        for step in self.steps:
            epoch = step // self.steps_per_epoch
            if epoch != order_epoch:
                order_epoch, order = epoch, self._order(epoch)
            batch = self._batch(order, step)
            local = batch[rank() :: world_size()]
            yield [(epoch, int(index)) for index in (local if len(local) else batch[:1])]

    def batch(self, step: int) -> list[int]:
        """Indices of a step's global batch."""
        return self._batch(self._order(step // self.steps_per_epoch), step).tolist()

    def global_size(self, step: int) -> int:
        """Samples of a step, over all processes."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.length - start)

    def local_size(self, step: int) -> int:
        """Samples of a step in this process's part."""
        return len(range(rank(), self.global_size(step), world_size()))

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)

    def _batch(self, order: np.ndarray, step: int) -> np.ndarray:
        start = step % self.steps_per_epoch * self.batch_size
        return order[start : start + self.batch_size]


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
