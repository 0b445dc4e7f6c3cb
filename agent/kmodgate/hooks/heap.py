# SPDX-License-Identifier: Apache-2.0
"""The C library's heap, of which a busy agent would keep more than it needs (glibc only)."""

from __future__ import annotations

import ctypes
import time
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h
_MANY: Final = 500
_PAUSE: Final = 10.0


def give_memory_back() -> None:
    """Return to the system what is free: parsing type information and storms leave megabytes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def few_arenas() -> None:
    """Let all threads share two malloc arenas; each would else keep megabytes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)


class Relief:
    """Gives memory back after many events; one who is never busy pays nothing."""

    def __init__(self) -> None:
        self._count = 0
        self._not_before = 0.0

    def look(self, count: int) -> None:
        """Give memory back if it is time to. Call now and then.

        Args:
            count: of events so far.
        """
        now = time.monotonic()
        if count - self._count >= _MANY and now >= self._not_before:
            self._count, self._not_before = count, now + _PAUSE
            give_memory_back()
