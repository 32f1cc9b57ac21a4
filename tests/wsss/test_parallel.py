"""The process pool: order, errors, a killed worker, a killed parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.commands import ROOT
from wsss.errors import UserError
from wsss.parallel import parallel_map


def _square(x):
    time.sleep(0.01 * (x % 3))
    return x * x, os.getpid(), torch.get_num_threads()


def _fail_at_five(x):
    if x == 5:
        raise UserError("five.png: bad; mend it")
    return x


def _die_at_five(x):
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_in_order(workers):
    results = list(parallel_map(_square, range(40), workers=workers))
    assert [r[0] for r in results] == [x * x for x in range(40)]
    pids = {r[1] for r in results}
    assert len(pids) <= max(workers, 1)
    assert (os.getpid() in pids) == (workers == 0)
    if workers:
        assert {r[2] for r in results} == {1}
    assert list(parallel_map(_square, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_after_the_results_before_it(workers):
    seen = []
    with pytest.raises(UserError, match=r"five\.png: bad; mend it"):
        for result in parallel_map(_fail_at_five, range(10_000), workers=workers):
            seen.append(result)
    assert seen == [0, 1, 2, 3, 4]


def test_killed_worker_is_one_line():
    with pytest.raises(UserError, match="fewer --workers"):
        list(parallel_map(_die_at_five, range(100), workers=2))


PARENT = """
import os, sys, time
from wsss.parallel import parallel_map

def work(x):
    print(os.getpid(), flush=True)
    time.sleep(0.2)

if __name__ == "__main__":
    list(parallel_map(work, range(1000), workers=2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env=environment
    )
    pids = set()
    while len(pids) < 2:
        pids.add(int(parent.stdout.readline()))
    parent.kill()
    parent.stdout.read()  # ends when the last worker has closed it
    parent.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cpus_are_those_this_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system has no processor affinity")
    one = {min(os.sched_getaffinity(0))}
    code = f"import os; os.sched_setaffinity(0, {one}); from wsss.parallel import CPUS; print(CPUS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "1\n"
