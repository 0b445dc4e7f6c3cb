# SPDX-License-Identifier: Apache-2.0
"""Where the node's files are, and how they are read: bounded, and None when absent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Far above anything the kernel prints into one of these files, /proc/keys and
# mountinfo of a busy node included.
MAX_BYTES = 16 << 20
# A sysctl answers ENOMEM to a larger read: proc_sys_call_handler() wants less than
# KMALLOC_MAX_SIZE, 4 MiB at most.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class NodePaths:
    """Roots of the file systems that describe the node.

    In a pod these are the host's: process 1 must be the node's init (``hostPID: true``).
    """

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    boot: Path = Path("/boot")
    dev: Path = Path("/dev")

    @classmethod
    def below(cls, root: Path) -> Self:
        """Those of the node whose root is seen at ``root``, for instance ``/proc/1/root``."""
        return cls(root / "proc", root / "sys", root / "boot", root / "dev")


def read_bytes(path: Path) -> bytes | None:
    """The file's bytes, at most 16 MiB of them; None when absent or not readable by this user."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    data = bytearray()
    try:
        while chunk := os.read(descriptor, min(_CHUNK, MAX_BYTES - len(data))):
            data += chunk
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return bytes(data)


def read_text(path: Path) -> str | None:
    r"""The file as text; None when absent. Bytes that are no UTF-8 become ``\xNN``."""
    data = read_bytes(path)
    return None if data is None else data.decode("utf-8", "backslashreplace")


def read_word(path: Path) -> str | None:
    """The file's text without white space around it; None when absent or empty."""
    text = read_text(path)
    return None if text is None else text.strip() or None
