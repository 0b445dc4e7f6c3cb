# SPDX-License-Identifier: Apache-2.0
"""Work in other processes: all of it, errors too, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from kmodgate.scan.pool import WorkerError, spread


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_item_once(jobs: int) -> None:
    offset = 7  # what the parent knows needs no copying
    assert sorted(spread(lambda item: item + offset, range(50), jobs)) == list(range(7, 57))
    assert list(spread(lambda item: item, [], jobs)) == []


def test_the_work_is_done_elsewhere() -> None:
    assert os.getpid() not in set(spread(lambda _: os.getpid(), [1], 2))
    assert set(spread(lambda _: os.getpid(), [1, 2], 1)) == {os.getpid()}


def test_errors_come_through() -> None:
    def fail(item: int) -> int:
        raise LookupError(item)

    with pytest.raises(LookupError, match="3"):
        list(spread(fail, [3], 2))


def test_a_killed_worker_is_an_error_with_a_remedy() -> None:
    def die(item: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(WorkerError, match="--jobs 1") as caught:
        list(spread(die, range(8), 2))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    code = """
import os, time
from kmodgate.scan.pool import spread
def work(item):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
list(spread(work, range(8), 3))
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    workers = [int(child.stdout.readline()) for _ in range(3)]
    child.send_signal(number)
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, workers
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
