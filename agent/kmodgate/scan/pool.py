# SPDX-License-Identifier: Apache-2.0
"""Work spread over processes that share what the parent had read before.

Processes, not threads: between two digests a module costs some 100 microseconds of Python,
and threads would take turns there (docs/performance.md has both). They are forked, so that
trust stores and lists need no copies; fork before any thread is started. A worker ends with
its parent, however that ends.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from kmodgate.errors import KmodgateError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Set in the parent and found by the forked workers: only indices travel.
_job: tuple[Callable[[Any], Any], Sequence[Any]] | None = None


class WorkerError(KmodgateError):
    """A worker process died."""


class Results(Iterator[Result]):
    """What comes back from the workers, in no order.

    Raises:
        WorkerError: while iterating, when a process was killed.
    """

    def __init__(self, results: Iterator[Result], futures: Sequence[Future[Result]] = ()) -> None:
        self._results = results
        self._futures = futures

    def __next__(self) -> Result:
        return next(self._results)

    @property
    def ready(self) -> bool:
        """No other process is at work on any of them."""
        return all(future.done() for future in self._futures)


def spread(work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Results[Result]:
    """``work(item)`` for every item, by ``jobs`` processes.

    The processes are started by the call and not by the first ``next``. With one job the
    work is done here, when results are asked for.
    """
    if jobs == 1 or not items:
        return Results(map(work, items))
    global _job  # noqa: PLW0603  # a fork hands over what lies in the module
    _job = (work, items)
    gc.freeze()  # the collector must not touch, and so copy, what is shared
    pool = ProcessPoolExecutor(
        min(jobs, len(items)), mp_context=multiprocessing.get_context("fork"), initializer=_settle_in
    )
    futures = [pool.submit(_do, index) for index in range(len(items))]
    return Results(_collect(pool, futures), futures)


def _collect(pool: ProcessPoolExecutor, futures: list[Future[Any]]) -> Iterator[Any]:
    try:
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process was killed, perhaps for lack of memory; try again with --jobs 1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        gc.unfreeze()


def _do(index: int) -> Any:
    assert _job is not None  # noqa: S101  # set before the fork
    work, items = _job
    return work(items[index])


def _settle_in() -> None:
    """Leave ^C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # this runs in a worker

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
