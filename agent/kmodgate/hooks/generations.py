# SPDX-License-Identifier: Apache-2.0
"""Programs that outlive their agent, and the change from one generation of them to the next.

Twin: ``bpf/generation.h``, which says how one of two generations acts at each hook.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError

from . import abi, libbpf
from .counts import Numbers
from .pins import Pins

log = logging.getLogger(__name__)

PLUMBING: Final = ("kmg_introduce",)
"""Programs that are run and not attached."""

_SETTLE_SECONDS: Final = 1.0


class Generations:
    """The part of a backend that attachments and their pins belong to.

    Attributes:
        adopted: programs of an earlier agent were in force when this one came.
        last_seen: CLOCK_BOOTTIME seconds of an earlier agent's last sign of life; None for none.
    """

    _control: abi.Control
    _stats: Numbers
    _object: libbpf.Object
    _key: int

    def __init__(self, pins: Pins | None) -> None:
        self._pins: Final = pins
        self._links: dict[str, libbpf.Link | libbpf.PinnedLink] = {}
        self._instance = 1
        self._acts = False
        self._settles = 0.0
        self.adopted = False
        self.last_seen: float | None = None

    def _adopt(self, pins: Pins) -> None:
        """See what an earlier agent has left in force, and take its programs if they are the same.

        Attaching anew would not be for nothing only: the kernel skips the end of system calls that
        are under way when another program is attached there, and their loads would not be counted.
        """
        former = _in_force(pins)
        self._instance = pins.next_instance(former.instance)
        attached = {path.name: path for path in pins.programs(former.instance)}
        self.adopted = bool(attached)
        ours = self._object.programs.keys() - set(PLUMBING)
        if former.programs != self._key or attached.keys() != ours:
            return
        code = pins.code(former.instance)
        self._links = {name: libbpf.PinnedLink(path, code / name) for name, path in attached.items()}
        self._instance = former.instance
        self._acts = True
        for name in ours:
            self._object.programs.pop(name).skip()

    def pin_links(self) -> list[str]:
        """Pin the attachments that are not, and name them: someone has removed their pins."""
        if self._pins is None or not self._links:
            return []
        links, code = self._pins.links(self._instance), self._pins.code(self._instance)
        # The programs first: without its program's pin an attachment is of little use to the next agent.
        bare, loose = self._unpinned(code), self._unpinned(links)
        for name in bare:
            self._links[name].pin_program(code / name)
        for name in loose:
            self._links[name].pin(links / name)
        return sorted(bare | loose)

    def _unpinned(self, directory: Path) -> set[str]:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._links.keys() - {path.name for path in directory.iterdir()}
        except OSError as error:
            raise HookError(f"{directory}: {error.strerror}: pins cannot be made") from error

    def _take_over(self, pins: Pins) -> None:
        """Let these programs act from now on, and detach those of the agents before.

        Both were attached for a moment; ``bpf/generation.h`` says how one of them acts at each hook.
        """
        former = [instance for instance in pins.instances() if instance != self._instance]
        self._control.instance = self._instance
        self._control.programs = self._key
        self._acts = True
        for instance in former:
            for path in pins.programs(instance):
                link = libbpf.PinnedLink(path, pins.code(instance) / path.name)
                self._stats[abi.Stat.FORMER_MISSES] += link.recursion_misses()
                link.close()
            pins.remove_instance(instance)
        for home in pins.foreign():
            log.warning("%s: other records than this version's; its counts end here", home)
            pins.remove(home)
        self._settles = time.monotonic() + _SETTLE_SECONDS

    @property
    def pinned(self) -> bool:
        """Whether the attachments outlive this process."""
        return self._pins is not None and self._acts

    def settle(self) -> None:
        """End the hand-over, once no load can be between two generations any more. Call now and then."""
        if self._control.handover and time.monotonic() >= self._settles:
            self._control.handover = 0

    def program_fds(self) -> list[int]:
        """Descriptors of all programs, for whoever protects them. They stay this object's."""
        loaded = [program.fd for program in self._object.programs.values()]
        return loaded + [
            link.program_fd for link in self._links.values() if isinstance(link, libbpf.PinnedLink)
        ]

    def link_fds(self) -> list[int]:
        """Descriptors of all attachments, for whoever protects them. They stay this object's."""
        return [link.fd for link in self._links.values()]

    def misses(self) -> int:
        """How often the kernel's recursion guard skipped one of the programs."""
        ours = sum(link.recursion_misses() for link in self._links.values())
        return ours + int(self._stats[abi.Stat.FORMER_MISSES])


def _in_force(pins: Pins) -> abi.Control:
    """What the pinned control map says; all 0 where nothing is pinned."""
    path = pins.maps / "control"
    if not path.exists():
        return abi.Control()
    pinned = libbpf.pinned_map(path)
    try:
        with pinned.memory(ctypes.sizeof(abi.Control)) as memory:
            return abi.Control.from_buffer_copy(memory)
    finally:
        os.close(pinned.fd)
