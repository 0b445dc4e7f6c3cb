# SPDX-License-Identifier: Apache-2.0
"""Keeps the pinned file systems right while mounts come and go.

The root is pinned once, at start, and never again: what process 1 has as its root later is looked
at, told, and not trusted. File systems on a dm-verity device are pinned while the device's live
table names a trusted root digest:

1. mountinfo of process 1 names the mounts whose device is one of the device mapper's.
2. A descriptor on the mount holds the file system; its mount id shows that it is that mount.
3. The kernel says which superblock and device that is.
4. The device mapper gives the live table of that device, ``node.verity`` judges it.
5. The superblock is pinned. When it goes away, the programs end that by themselves.
6. Every second the table of each pinned one is read again: tables can be swapped.

A thread of its own does this: a walk to a mount point may hang on a dead server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import KmodgateError, NodeError
from .hooks.abi import PINS
from .hooks.rung import PinTable, RungBackend
from .hooks.superblocks import Superblock
from .node import NodeFacts, NodePaths
from .node.devicemapper import is_mapped, live_table
from .node.mounts import Mount, mount_id_of_fd, read_mounts
from .node.verity import TargetLine, trusted_root_digest

log = logging.getLogger(__name__)

_CHECK_EVERY: Final = 1.0  # seconds between two looks at the tables of what is pinned
_LOOK_EVERY: Final = 10.0  # seconds between two looks at all mounts, changed or not
_REST: Final = 0.2  # seconds after a look: mounts come and go all the time on a busy node
_SAID_MAX: Final = 1000
_PATIENCE: Final = 5.0  # seconds that the end of the agent waits for a look
_STALLED: Final = 30.0  # seconds after which a look counts as hung

Device = tuple[int, int]
Tables = Callable[[NodePaths, int, int], tuple[TargetLine, ...]]


@dataclass(frozen=True, slots=True)
class PinState:
    """What is pinned now.

    Attributes:
        root_current: the pinned root is there, and process 1 has it as its root.
        verity: file systems that are pinned by their digest.
    """

    root_current: bool
    verity: int


@dataclass(frozen=True, slots=True)
class _Pin:
    superblock: Superblock
    digest: bytes


class PinKeeper:
    """Looks after the pins of one backend.

    Args:
        table: where the programs look.
        paths: the node.
        changed: told the state after each look.
        tables: gives the live table of a device.
    """

    def __init__(
        self,
        table: PinTable,
        paths: NodePaths,
        changed: Callable[[PinState], None],
        *,
        tables: Tables = live_table,
    ) -> None:
        self._table = table
        self._paths = paths
        self._changed = changed
        self._tables = tables
        self._digests: frozenset[bytes] = frozenset()
        self._pins: dict[Device, _Pin] = {}
        self._lock = threading.Lock()  # the two above; never held over anything that may hang
        self._said: dict[object, str] = {}
        self._root_current = True
        self._looked = time.monotonic()
        self._stalled = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None

    def set_digests(self, digests: frozenset[bytes]) -> None:
        """Trust these from now on. What only others made trusted is unpinned before this returns."""
        with self._lock:
            self._digests = digests
            gone = [device for device, pin in self._pins.items() if pin.digest not in digests]
            for device in gone:
                self._drop(device, "its digest is not trusted any more")
        os.eventfd_write(self._wake, 1)

    def start(self) -> None:
        """Look once, then go on in a thread."""
        self.look()
        self._thread = threading.Thread(target=self._run, name="pins", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; pins stay as they are."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                return  # it hangs in the kernel, and still uses the descriptor
        os.close(self._wake)

    def relieve(self) -> None:
        """Unpin what nobody checks any more: a look that hangs must not keep a swapped table trusted."""
        stalled = time.monotonic() - self._looked > _STALLED
        if stalled and not self._stalled:
            log.critical("looking at the mounts hangs: no dm-verity file system counts as pinned meanwhile")
        self._stalled = stalled
        if stalled:
            with self._lock:
                for device in list(self._pins):
                    self._drop(device, "it cannot be checked")

    def look(self, *, everywhere: bool = True) -> None:
        """Check the root and what is pinned; with ``everywhere`` look for more among the mounts."""
        self._check_root()
        for device, pin in self._snapshot():
            self._check(device, pin)
        if everywhere and self._digests:
            with self._tell("mounts"):
                self._find(read_mounts(self._paths) or ())
        self._looked = time.monotonic()
        with self._lock:
            state = PinState(self._root_current, len(self._pins))
        self._changed(state)

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        mountinfo = self._watch()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if mountinfo is not None:
            # It is always readable; a change of the mounts is an exceptional condition.
            poll.register(mountinfo, select.POLLPRI)
        due = time.monotonic() + _LOOK_EVERY
        while not self._stopping:
            seconds = _CHECK_EVERY if self._digests else _LOOK_EVERY
            changed = poll.poll(seconds * 1000)
            if self._stopping:
                break
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            everywhere = bool(changed) or time.monotonic() >= due
            if everywhere:
                due = time.monotonic() + _LOOK_EVERY
            with self._tell("look"):
                self.look(everywhere=everywhere)
            time.sleep(_REST)
        if mountinfo is not None:
            os.close(mountinfo)

    def _watch(self) -> int | None:
        try:
            return os.open(self._paths.proc / "1/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            log.warning("changes of the mounts are seen late: mountinfo of process 1: %s", error.strerror)
            return None

    # --- the root -----------------------------------------------------------------------

    def _check_root(self) -> None:
        pinned = self._table.root
        now = None
        with self._tell("root"):
            fd = _open(self._paths.proc / "1/root")
            try:
                now = self._table.identify(fd)
            finally:
                os.close(fd)
        if now is None:
            return  # said above; the pin itself stays as it is
        current = pinned == now
        if current != self._root_current:
            if current:
                log.warning("process 1 is back on the pinned root")
            else:
                log.critical(
                    "process 1 has another root (device %d:%d), and modules on it do not lie on the pinned "
                    "root (%s); restart kmodgate to pin the new one",
                    *now.numbers,
                    "gone" if pinned is None else "device {}:{}".format(*pinned.numbers),
                )
        self._root_current = current

    # --- dm-verity ----------------------------------------------------------------------

    def _snapshot(self) -> list[tuple[Device, _Pin]]:
        with self._lock:
            return list(self._pins.items())

    def _check(self, device: Device, pin: _Pin) -> None:
        if not self._table.is_pinned(pin.superblock):
            with self._lock:
                if self._pins.pop(device, None) is not None:
                    log.info("device %d:%d: its file system has gone away, and its pin with it", *device)
            return
        try:
            digest = trusted_root_digest(self._tables(self._paths, *device), self._digests)
            problem = None if digest == pin.digest else "its root digest is another one now"
        except NodeError as error:
            problem = str(error)
        if problem is not None:
            with self._lock:
                self._drop(device, problem)

    def _drop(self, device: Device, why: str) -> None:
        """Unpin; with the lock held."""
        pin = self._pins.pop(device, None)
        if pin is not None:
            self._table.unpin(pin.superblock)
            log.warning("device %d:%d does not count as pinned any more: %s", *device, why)

    def _find(self, mounts: Iterable[Mount]) -> None:
        found: dict[Device, list[Mount]] = {}
        for mount in mounts:
            if mount.major:
                found.setdefault((mount.major, mount.minor), []).append(mount)
        for device, its_mounts in found.items():
            if device not in self._pins and is_mapped(self._paths, *device):
                with self._tell(device):
                    self._consider(device, its_mounts)

    def _consider(self, device: Device, mounts: Iterable[Mount]) -> None:
        fd = self._hold(mounts)
        try:
            superblock = self._table.identify(fd)
            if superblock.numbers != device:
                raise NodeError(f"its mount leads to device {superblock.device:#x}")
            if superblock == self._table.root:
                return
            # The device cannot be taken away from under a file system that is held.
            digest = trusted_root_digest(self._tables(self._paths, *device), self._digests)
            with self._lock:
                if digest not in self._digests:
                    return  # the config changed meanwhile
                if len(self._pins) >= PINS:
                    raise NodeError(f"{PINS} file systems are pinned already, and no more can be")
                self._table.pin(superblock)
                self._pins[device] = _Pin(superblock, digest)
        finally:
            os.close(fd)
        log.info("device %d:%d counts as pinned: its root digest %s is trusted", *device, digest.hex())

    def _hold(self, mounts: Iterable[Mount]) -> int:
        """A descriptor on one of the mounts of a file system."""
        for mount in mounts:
            # Relative to the root of process 1, which is not this process's own.
            fd = None
            with contextlib.suppress(OSError, ValueError):
                fd = _open(self._paths.proc / "1/root" / mount.mount_point.lstrip("/"))
                if mount_id_of_fd(fd) == mount.mount_id:
                    return fd
            if fd is not None:
                os.close(fd)
        raise NodeError("none of its mounts can be reached: others lie above them")

    @contextlib.contextmanager
    def _tell(self, about: object) -> Iterator[None]:
        """Log what goes wrong inside the block: once, until it is something else or went well."""
        try:
            yield
        except (KmodgateError, OSError) as error:
            said = str(error)
            if self._said.get(about) != said:
                place = "device {}:{}".format(*about) if isinstance(about, tuple) else str(about)
                log.warning("%s does not count as pinned: %s", place, said)
            if about in self._said or len(self._said) < _SAID_MAX:
                self._said[about] = said
        else:
            self._said.pop(about, None)


def _open(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def pin_root(backend: RungBackend, facts: NodeFacts, paths: NodePaths) -> None:
    """Have the programs take the root of process 1 for the pinned root.

    Raises:
        NodeError: it cannot be opened, or is not what mountinfo says.
        HookError: the kernel cannot identify it.
    """
    try:
        root = os.open(paths.proc / "1/root", os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise NodeError(
            f"the root of process 1 cannot be opened ({error.strerror}); run as root, with CAP_SYS_PTRACE"
        ) from error
    try:
        device = backend.introduce(root)
    finally:
        os.close(root)
    if facts.pinned_root is not None and device != (facts.pinned_root.major, facts.pinned_root.minor):
        raise NodeError(
            f"the root of process 1 lies on device {facts.pinned_root.device}, but the kernel says "
            f"{device[0]}:{device[1]}; is the agent in the host's PID namespace (hostPID: true)?"
        )
