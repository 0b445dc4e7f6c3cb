# SPDX-License-Identifier: Apache-2.0
"""Take the pinned programs out of the kernel, and see them gone.

An unlinked pin is not yet a detached program: the kernel ends the link in a worker of its own
(``bpf_link_put()``, kernel/bpf/syscall.c), and not at all while somebody else holds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from kmodgate.errors import HookError

from . import bpfcall
from .pins import Pins

_RETRY: Final = 0.005  # seconds
_LINKS_GONE: Final = 10.0
# Who only holds a program keeps its number, and runs it nowhere: no error, but it cannot be told from a
# kernel that is slow to detach some forty programs, one after the other.
_PROGRAMS_GONE: Final = 10.0


def remove_all(pins: Pins) -> int:
    """Detach everything and forget it; how many attachments there were.

    Raises:
        HookError: something cannot be removed, or goes on in spite of it.
    """
    links, programs = _attached(pins)
    count = pins.remove_all()
    held = _left(links, bpfcall.link_by_id, _LINKS_GONE)
    if held:
        numbers = ", ".join(map(str, sorted(held)))
        raise HookError(
            f"the pins are removed, and links {numbers} go on enforcing: another process holds them, or they "
            "are pinned elsewhere too (bpftool link show pinned)"
        )
    # A link loses its number just before its program is detached.
    _left(programs, bpfcall.program_by_id, _PROGRAMS_GONE)
    return count


def _attached(pins: Pins) -> tuple[set[int], set[int]]:
    """Numbers of the pinned links, and of their programs."""
    links, programs = set(), set()
    for path in pins.root.glob("abi-*/links/*/*"):
        with contextlib.suppress(HookError):  # not a link: nothing to wait for
            handle = bpfcall.pinned(path)
            try:
                link, program = bpfcall.link_numbers(handle)
            finally:
                os.close(handle)
            links.add(link)
            programs.add(program)
    return links, programs


def _left(numbers: Iterable[int], open_it: Callable[[int], int], seconds: float) -> set[int]:
    """Those that are still there after so long."""
    left = set(numbers)
    deadline = time.monotonic() + seconds
    while True:
        left = {number for number in left if _exists(number, open_it)}
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_RETRY)


def _exists(number: int, open_it: Callable[[int], int]) -> bool:
    try:
        os.close(open_it(number))
    except bpfcall.BpfCallError as error:
        # Who may not look (no CAP_SYS_ADMIN) has to take the removed pin's word.
        return error.number not in {errno.ENOENT, errno.EPERM}
    return True
