# SPDX-License-Identifier: Apache-2.0
"""Verifies modules in configured directories before anybody loads them.

A load whose digest is known waits for nobody. So driver directories are read at the start,
watched, and read again when something changes in them or when other certificates count.
What is found there is only read and verified: it is decided on when it is loaded, by the
digest of what the kernel then reads. So a directory that anybody may write to lets nothing
in. It may cost time, and that is bounded: directories, names, files, bytes, seconds.

Everything happens on one thread of its own. A file system that never answers ends
pre-verification, and nothing else.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import select
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inotify_simple import INotify, flags

from .answers import FileIdentity
from .config import NodeConfig
from .config.watch import Debounce
from .errors import KmodgateError
from .fsutil import read_regular_fd
from .node import NodePaths
from .node.kernel import read_release
from .scan.root import SUFFIXES, Root
from .telemetry.metrics import PreverifyOutcome, QuestionOutcome

log = logging.getLogger(__name__)

_WILD: Final = frozenset("*?[")
_BELOW: Final = (
    flags.CLOSE_WRITE
    | flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
# On the way to a directory only names are of interest.
_WAY: Final = _BELOW & ~flags.CLOSE_WRITE
_ALWAYS: Final = flags.Q_OVERFLOW | flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT
# A scan takes at most a fifth of the time, however often something changes.
_REST: Final = 4.0
_YIELD_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is looked at. What lies beyond is left out, and that is said.

    Attributes:
        directories: read and watched, those on the way included.
        depth: directories below a configured one.
        names: directory entries of one scan.
        files: module files of one scan.
        total: bytes of them that are read anew in one scan.
        seconds: after which a scan reads no more files.
    """

    directories: int = 256
    depth: int = 8
    names: int = 50_000
    files: int = 2_000
    total: int = 2 << 30
    seconds: float = 120.0


# Given a directory's descriptor, and the one name in it that is of interest.
Watch = Callable[[int, str | None], None]
# Device, inode, size, time of the last write and of the last change, in nanoseconds.
_Version = tuple[int, int, int, int, int]


class _Scan:
    """One pass over the directories: what it may still spend, and what it found."""

    def __init__(self, limits: Limits, watch: Watch, max_size: int) -> None:
        self.watch = watch
        self.max_size = max_size
        self.directories = limits.directories
        self.names = limits.names
        self.files = limits.files
        self.total = limits.total
        self.ends = time.monotonic() + limits.seconds
        self.complete = True
        self.entered: set[tuple[int, int]] = set()
        self.found: dict[_Version, PreverifyOutcome] = {}
        self.left_out = 0

    def leave_out(self) -> None:
        self.complete = False
        self.left_out += 1


class Preverifier:
    """The thread, its directories, and what is known of the files in them.

    Args:
        learn: verifies a file's bytes and stores the answer (``Answerer.learn``).
        root: the node's root directory; all paths are looked up inside it.
        report: given the number of files by outcome after each scan, and none when all is void.
        busy: loads wait for answers: the next file can wait, for a while.
        max_size: bytes of the largest module.
        limits: the bounds of a scan.
        settle: seconds without a change before a scan.
    """

    def __init__(
        self,
        learn: Callable[[bytes, FileIdentity], QuestionOutcome],
        *,
        root: Path,
        report: Callable[[Mapping[PreverifyOutcome, int]], None],
        busy: Callable[[], bool] = lambda: False,
        max_size: int = 64 << 20,
        limits: Limits | None = None,
        settle: float = 0.05,
    ) -> None:
        self._learn = learn
        self._root = root
        self._report = report
        self._busy = busy
        self._limits = limits or Limits()
        self._max_size = max_size
        self._lock = threading.Lock()
        self._patterns: tuple[str, ...] = ()
        self._epoch = 0
        self._stopping = False
        self._known: dict[_Version, PreverifyOutcome] = {}
        self._known_epoch = 0
        self._names: dict[int, set[str] | None] = {}
        self._said: tuple[int, ...] | None = None
        self._settle = settle
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="preverify", daemon=True)
        self._thread.start()

    def watch(self, patterns: Sequence[str], max_size: int) -> None:
        """Look after these directories from now on: absolute, each part maybe a shell pattern."""
        with self._lock:
            if (tuple(patterns), max_size) == (self._patterns, self._max_size):
                return
            self._patterns, self._max_size = tuple(patterns), max_size
            self._epoch += 1
        self._poke()

    def redo(self) -> None:
        """Everything that was found is void, because other certificates count now."""
        with self._lock:
            self._epoch += 1
        self._poke()

    def close(self, timeout: float = 2.0) -> None:
        """End the thread; one that a file system holds up is left behind."""
        self._stopping = True
        self._poke()
        self._thread.join(timeout)

    def _poke(self) -> None:
        with suppress(BlockingIOError):  # it has enough to wake up from
            os.write(self._woken, b"x")

    # --- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with INotify(nonblocking=True) as inotify:
                self._serve(inotify)
        except OSError as error:
            log.error(
                "modules are not verified before they are loaded: %s; raise the sysctls "
                "fs.inotify.max_user_watches and fs.inotify.max_user_instances",
                error.strerror,
            )
        except Exception:
            log.exception("modules are no longer verified before they are loaded")

    def _serve(self, inotify: INotify) -> None:
        poll = select.poll()
        poll.register(inotify.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        changes = Debounce(self._settle, longest=20 * self._settle)
        rested = 0.0
        while not self._stopping:
            now = time.monotonic()
            wait = changes.wait(now)
            timeout = None if wait is None else max(wait, rested - now) * 1000
            if any(fd == self._wake for fd, _ in poll.poll(timeout)):
                self._drain_wake()
                changes.notice(time.monotonic())
            if self._changed(inotify):
                changes.notice(time.monotonic())
            now = time.monotonic()
            if now >= rested and not self._stopping and changes.due(now):
                self._scan(inotify)
                done = time.monotonic()
                rested = done + _REST * (done - now)

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _changed(self, inotify: INotify) -> bool:
        changed = False
        for event in inotify.read(timeout=0):
            names = self._names.get(event.wd, set())
            changed |= bool(event.mask & _ALWAYS) or names is None or event.name in names
        return changed

    # --- one scan ------------------------------------------------------------------------

    def _scan(self, inotify: INotify) -> None:
        with self._lock:
            patterns, epoch, max_size = self._patterns, self._epoch, self._max_size
        if epoch != self._known_epoch:
            self._known, self._known_epoch = {}, epoch
            self._report({})
        watched: dict[int, set[str] | None] = {}

        def watch(fd: int, name: str | None) -> None:
            mask = _BELOW if name is None else _WAY
            wd = inotify.add_watch(f"/proc/self/fd/{fd}", mask | flags.MASK_ADD)
            names = watched.setdefault(wd, set())
            if name is None or names is None:
                watched[wd] = None
            else:
                names.add(name)

        scan = _Scan(self._limits, watch, max_size)
        with Root(self._root) as root:
            for pattern in patterns:
                for path in _expand(root, pattern, scan):
                    self._folder(root, path, 0, scan)
        for wd in self._names.keys() - watched.keys():
            with suppress(OSError):  # its directory is gone, and the watch with it
                inotify.rm_watch(wd)
        self._names = watched
        self._known = scan.found
        self._tell(scan)

    def _folder(self, root: Root, path: str, depth: int, scan: _Scan) -> None:
        """One directory and what lies below it."""
        try:
            fd = root.open_folder(path)
        except OSError:
            return  # gone since; the way to it is watched
        folders: list[str] = []
        files: list[str] = []
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) in scan.entered:
                return
            if not scan.directories or depth > self._limits.depth:
                scan.leave_out()
                return
            scan.directories -= 1
            scan.entered.add((status.st_dev, status.st_ino))
            scan.watch(fd, None)  # before it is read: nothing that comes later is missed
            for entry in _entries(fd, scan):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.endswith(SUFFIXES):
                    files.append(entry.name)
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            scan.leave_out()
        finally:
            os.close(fd)
        for name in sorted(files):
            self._file(root, f"{path}/{name}", scan)
        for name in sorted(folders):
            self._folder(root, f"{path}/{name}", depth + 1, scan)

    def _file(self, root: Root, path: str, scan: _Scan) -> None:
        if not scan.files or self._stopping or time.monotonic() > scan.ends:
            scan.leave_out()
            return
        scan.files -= 1
        try:
            handle = root.find(path)
        except (OSError, ValueError):
            return  # gone since, or a link to nothing
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return  # a FIFO or a device: no module, and opening it could do things
            version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known = scan.found.get(version) or self._known.get(version)
            if known is None and status.st_size <= scan.max_size:
                if status.st_size > scan.total:
                    scan.leave_out()
                    return
                scan.total -= status.st_size
            scan.found[version] = known or self._verify(handle, path, status, scan.max_size)
        finally:
            os.close(handle)

    def _verify(self, handle: int, path: str, status: os.stat_result, max_size: int) -> PreverifyOutcome:
        if status.st_size > max_size:
            return PreverifyOutcome.TOO_LARGE
        deadline = time.monotonic() + _YIELD_SECONDS
        while self._busy() and not self._stopping and time.monotonic() < deadline:
            time.sleep(0.005)
        try:
            reader = os.open(
                f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            )
            try:
                file = FileIdentity.of(status, reader)
                outcome = self._learn(read_regular_fd(reader, max_size, path), file)
            finally:
                os.close(reader)
        except (OSError, KmodgateError) as error:
            log.debug("%s: %s", path, error)
            return PreverifyOutcome.UNREADABLE
        except Exception:  # one bad module must not end it for all
            log.exception("%s", path)
            return PreverifyOutcome.UNREADABLE
        trusted = outcome is QuestionOutcome.TRUSTED
        return PreverifyOutcome.TRUSTED if trusted else PreverifyOutcome.NOT_TRUSTED

    def _tell(self, scan: _Scan) -> None:
        counts = Counter(scan.found.values())
        counts[PreverifyOutcome.LEFT_OUT] = scan.left_out
        with self._lock:
            if self._epoch == self._known_epoch:
                self._report(counts)
        said = tuple(counts[outcome] for outcome in PreverifyOutcome)
        if said != self._said and (self._said is not None or any(said)):
            level = logging.INFO if scan.complete else logging.WARNING
            found = ", ".join(f"{counts[outcome]} {outcome}" for outcome in PreverifyOutcome)
            log.log(level, "verified before they are loaded: %s", found)
        self._said = said


def _entries(fd: int, scan: _Scan) -> Iterator[os.DirEntry[str]]:
    """The entries of a directory, as far as the scan may go on."""
    with os.scandir(fd) as entries:
        for entry in entries:
            if not scan.names:
                scan.leave_out()
                return
            scan.names -= 1
            yield entry


def _expand(root: Root, pattern: str, scan: _Scan) -> Iterator[str]:
    """Directories that a pattern stands for; those on the way are watched for the names that matter.

    Links are followed: what is in a directory's place is what modprobe(8) would read.
    """
    todo: list[tuple[str, list[str]]] = [("", [part for part in pattern.split("/") if part])]
    while todo:
        path, parts = todo.pop()
        if not parts:
            yield path or "/"
            continue
        part, rest = parts[0], parts[1:]
        if not scan.directories:
            scan.leave_out()
            return
        try:
            fd = root.open_folder(path or "/")
        except OSError:
            continue
        try:
            scan.directories -= 1
            if _WILD.isdisjoint(part):
                scan.watch(fd, part)
                todo.append((f"{path}/{part}", rest))
                continue
            scan.watch(fd, None)
            names = [entry.name for entry in _entries(fd, scan) if fnmatch.fnmatchcase(entry.name, part)]
        except OSError as error:
            log.warning("%s: %s", path, error.strerror)
            scan.leave_out()
            continue
        finally:
            os.close(fd)
        todo += [(f"{path}/{name}", rest) for name in sorted(names, reverse=True)]


def directories(config: NodeConfig, paths: NodePaths) -> tuple[str, ...]:
    """The directories that a config asks for; of the running kernel if it names none.

    depmod(8) puts there what does not belong to the kernel: DKMS and vendors' packages.
    """
    if config.preverify is not None:
        return config.preverify
    release = read_release(paths)
    return () if release is None else (f"/lib/modules/{release}/updates",)
