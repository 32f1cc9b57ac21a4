"""Processes: set-up under torchrun, sharding, and the few collectives the commands need.

Alone, every function is the identity; nothing here keeps a module global. Start several processes with
``torchrun --nproc_per_node=N -m weaktr.train ...``.
"""

import datetime
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from wsss.errors import UserError

LONGEST_WAIT = datetime.timedelta(hours=6)  # for a process whose share of the pictures took longer


def rank() -> int:
    """Rank of this process, 0 when alone. Valid before ``distributed_session`` too."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device(name: str) -> torch.device:
    """``auto | cpu | cuda`` to this process's device.

    Raises:
        UserError: ``cuda`` asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "start at most one process per GPU, or use --device cpu"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def distributed_session(device_name: str):
    """Join the process group torchrun describes, if any; yields this process's ``torch.device``."""
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: CAMs equal a CPU's
    if world_size() > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
    yield device
    # not after an error: a peer may still wait in a collective, and torchrun ends it when this process exits
    if dist.is_initialized():
        dist.destroy_process_group()


def count_failures(own: int) -> int:
    """Processes of this run that have stopped with an error, ``own`` (0 or 1) of this one included.

    The first one says what is wrong. torchrun's store keeps the count; where there is none, it is ``own``.
    """
    if world_size() == 1:
        return own
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=10))
        return store.add(f"failures of start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", own)
    except (KeyError, RuntimeError):
        return own


def shard(items: Sequence) -> Sequence:
    """Every ``world_size``-th item, starting at ``rank``: this process's share."""
    return items[rank() :: world_size()]


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over processes, in place; returns the tensor."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather_objects(value: Any) -> list:
    """``value`` of every process, in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
