"""One function over many items in several processes, results in order, errors passed on."""

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
import torch

from wsss.errors import UserError

# processors this process may use: fewer than the machine's under taskset, Slurm or in some containers
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
AHEAD = 4  # items in flight per process: enough to keep all busy, few enough to stop soon after an error


def parallel_map(function: Callable, items: Iterable, *, workers: int) -> Iterator:
    """Yield ``function(item)`` in the order of ``items``.

    Args:
        function: Picklable (a module's function, or ``functools.partial`` of one).
        items: Picklable values.
        workers: Processes, one thread each; 0 computes in this process.

    Raises:
        UserError: A process was killed, as happens when memory runs out.
        Exception: Whatever ``function`` raised for the first item that failed, in order.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    cv2.setNumThreads(1)  # a forked process that touches OpenCV's thread pool of its parent waits for ever
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    items = iter(items)
    try:
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, AHEAD * workers)
        )
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for lack of memory; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent alone reports
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A worker waits for work for ever if its parent was killed; so watch the parent."""
    multiprocessing.parent_process().join()
    os._exit(1)
