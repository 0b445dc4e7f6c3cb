# SPDX-License-Identifier: Apache-2.0
"""Small parts of the agent's loop: what it survives, and how signals reach it."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import KmodgateError

log = logging.getLogger(__name__)


class Timings:
    """How long each part of a start took, in seconds.

    Args:
        imports: what was over before the agent's own code ran.
    """

    def __init__(self, imports: float) -> None:
        self.parts: dict[str, float] = {"imports": imports}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note the duration of a block."""
        start = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - start

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in self.parts.items())
        return f"{sum(self.parts.values()) * 1e3:.0f} ms ({parts})"


class UnseenLoads:
    """Modules that got in without a decision: each is told as critical.

    Args:
        count: how many there were when the agent came.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def look(self, count: int) -> None:
        """Tell how many there are more than at the last look."""
        if count > self._count:
            log.critical(
                "%d module(s) got in without a decision; compare /proc/modules with a good node, and keep "
                "this one for analysis",
                count - self._count,
            )
        self._count = count


def wait_limit(cpus: int) -> int:
    """How many loads may wait at once: one CPU is left to the agent, which is to end their waits.

    On a single CPU loads wait asleep (``wait_asleep``), and a few do not hinder it much.
    """
    return 4 if cpus == 1 else min(cpus - 1, 8)


@contextmanager
def survive() -> Iterator[None]:
    """Log what fails inside the block, and go on."""
    try:
        yield
    except KmodgateError as error:
        log.error("%s", error)
    except Exception:
        log.exception("unexpected; the agent goes on")


@contextmanager
def signals_on_a_socket() -> Iterator[socket.socket]:
    """SIGTERM, SIGINT and SIGHUP as bytes on a socket, for the time of the block."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    old = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()
