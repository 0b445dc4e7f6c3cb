# SPDX-License-Identifier: Apache-2.0
"""Which superblocks the programs take for pinned. Twin: ``bpf/pinned.h``.

Whether one deserves it is not known here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass

from kmodgate.errors import HookError

from . import abi, libbpf

_YES = (1).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Superblock:
    """A mounted file system, as the kernel knows it.

    Attributes:
        address: of its ``struct super_block``; an identity, never followed.
        device: its ``s_dev``, as the kernel packs it.
    """

    address: int
    device: int

    @property
    def numbers(self) -> tuple[int, int]:
        """``(major, minor)``."""
        return self.device >> 20, self.device & 0xFFFFF


class Superblocks:
    """The pinned root and what is pinned beside it. Safe to use from any thread.

    What an earlier agent has pinned beside the root is forgotten: nobody knows what it trusted.

    Args:
        pinned: the programs' map.
        control: their control record.
        introduce: has the kernel fill an introduction; 0, or a negative errno.
    """

    def __init__(
        self, pinned: libbpf.Map, control: abi.Control, introduce: Callable[[abi.Introduction], int]
    ) -> None:
        self._pinned = pinned
        self._control = control
        self._introduce = introduce
        for key, _ in list(pinned.items(ctypes.sizeof(abi.Pin), len(_YES))):
            pinned.delete(key)

    def identify(self, fd: int) -> Superblock:
        """The file system that a descriptor of this process lies on.

        While the descriptor is open, its superblock cannot go away. Raises HookError.
        """
        who = abi.Introduction(fd=fd)
        result = self._introduce(who)
        if result:
            raise HookError(f"the file system cannot be identified: {os.strerror(-result)}")
        return Superblock(who.superblock, who.device)

    @property
    def root(self) -> Superblock | None:
        """The pinned root; None once it has gone away."""
        address = int(self._control.root_superblock)
        return Superblock(address, int(self._control.root_device)) if address else None

    def pin(self, superblock: Superblock) -> None:
        """Let a file system count as pinned, until it goes away. Raises HookError when there are too many."""
        self._pinned.update(_key(superblock), _YES)

    def unpin(self, superblock: Superblock) -> None:
        """End that; one that is not pinned is no error."""
        self._pinned.delete(_key(superblock))

    def is_pinned(self, superblock: Superblock) -> bool:
        """Whether it still counts; the programs end it when the file system goes away."""
        return self._pinned.lookup(_key(superblock), len(_YES)) is not None


def _key(superblock: Superblock) -> bytes:
    return bytes(abi.Pin(superblock=superblock.address, device=superblock.device))
