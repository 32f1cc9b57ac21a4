"""Run a command that dies (SIGKILL) half-way through its N-th write of a file with a given suffix.

    python tests/die_in_write.py N SUFFIX MODULE [the command's options]

The temporary file holds the first half of the bytes when the process dies.
"""

import contextlib
import os
import runpy
import signal
import sys

import wsss.io

count, suffix, module = int(sys.argv[1]), sys.argv[2], sys.argv[3]
atomic_write = wsss.io.atomic_write
writes = 0


@contextlib.contextmanager
def dying_write(path):
    global writes
    with atomic_write(path) as temporary:
        yield temporary
        writes += str(path).endswith(suffix)
        if writes == count:
            os.truncate(temporary, temporary.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


wsss.io.atomic_write = dying_write  # before the modules that import it by name
sys.argv = [module, *sys.argv[4:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
