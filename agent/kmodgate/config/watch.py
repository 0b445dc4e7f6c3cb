# SPDX-License-Identifier: Apache-2.0
"""Notices edits of the config and of the certificates that it names. No thread, no timer.

inotify watches directories, not files: an editor replaces the file, and a Kubernetes
ConfigMap volume replaces the link ``..data`` that all its files lead through. So every
symbolic link on the way to a file is followed, and each directory that holds a part of
that way is watched for that name. What is missing today is watched for at the nearest
directory that exists. Sources: inotify(7); Kubernetes ``pkg/volume/util/atomic_writer.go``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from inotify_simple import INotify, flags

from kmodgate.errors import NodeError

# Not IN_MODIFY: a write is of interest when the writer closes the file.
_MASK = (
    flags.CLOSE_WRITE
    | flags.CREATE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_ALWAYS = flags.Q_OVERFLOW | flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT
# As the kernel: MAXSYMLINKS, include/linux/namei.h.
_MAX_LINKS = 40


class ConfigWatcher:
    """Watches files by name, whether they exist or not.

    Make it before reading the files: an edit in between is then seen, not lost. It is a
    context manager, and ``select``, ``poll`` and ``selectors`` take it as it is.

    Args:
        paths: the config file, the certificates and the revocation files.

    Raises:
        NodeError: no inotify instance or watch is to be had (``fs.inotify`` sysctls).
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths: tuple[Path, ...] = ()
        self._names: dict[int, set[str]] = {}
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _no_watch(error) from None
        try:
            self.watch(paths)
        except BaseException:
            self._inotify.close()
            raise

    def fileno(self) -> int:
        """A descriptor that becomes readable when ``drain`` has something to look at."""
        return int(self._inotify.fileno())

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these files and no others.

        Raises:
            NodeError: the limit on inotify watches is reached.
        """
        self._paths = tuple(paths)
        self._sync()

    def drain(self) -> bool:
        """Take all pending events; True when one of them may concern a watched file.

        It never waits. The links on the way to the files are followed afresh before it
        returns, so reading the files afterwards misses nothing.

        Raises:
            NodeError: the limit on inotify watches is reached.
        """
        changed = False
        for event in self._inotify.read(timeout=0):
            names = self._names.get(event.wd, set())
            changed |= bool(event.mask & _ALWAYS) or event.name in names
            if event.mask & flags.IGNORED:
                self._names.pop(event.wd, None)
        if changed:
            self._sync()
        return changed

    def close(self) -> None:
        """Stop watching. May be called twice."""
        self._inotify.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sync(self) -> None:
        """Bring the watches in line with the file system as it is now."""
        names: dict[int, set[str]] = {}
        for path in self._paths:
            for directory, name in hops(path):
                try:
                    watch = self._inotify.add_watch(directory, _MASK)
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue  # gone since, or not ours to see: what lies above is watched
                except OSError as error:
                    raise _no_watch(error) from None
                names.setdefault(watch, set()).add(name)
        for watch in self._names.keys() - names.keys():
            with suppress(OSError):  # its directory is gone, and the watch with it
                self._inotify.rm_watch(watch)
        self._names = names


class Debounce:
    """Waits until edits have settled, so that one save is one reload. Pure.

    A steady stream of edits cannot put a reload off for ever: ``longest`` ends the wait.

    Args:
        settle: seconds without an edit before a reload is due.
        longest: seconds after the first edit when it is due at the latest.
    """

    def __init__(self, settle: float = 0.1, longest: float = 1.0) -> None:
        self._settle = settle
        self._longest = longest
        self._first: float | None = None
        self._last = 0.0

    def notice(self, now: float) -> None:
        """An edit was seen at ``now`` (monotonic seconds)."""
        if self._first is None:
            self._first = now
        self._last = now

    def wait(self, now: float) -> float | None:
        """Seconds until a reload is due, 0 when it is, None when no edit was seen."""
        if self._first is None:
            return None
        return max(0.0, min(self._last + self._settle, self._first + self._longest) - now)

    def due(self, now: float) -> bool:
        """True once for each run of edits, when the reload is due."""
        if self.wait(now) != 0:
            return False
        self._first = None
        return True


def hops(path: Path) -> list[tuple[Path, str]]:
    """Each directory on the way to ``path`` that can change where it leads, and the name there.

    The last one holds the file itself, or the first name on the way that is missing.
    """
    found: list[tuple[Path, str]] = []
    current = Path("/")
    todo = list(reversed(Path(os.path.abspath(path)).parts[1:]))  # noqa: PTH100  # resolve() would follow links
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            current = current.parent
            continue
        step = current / name
        try:
            target = str(step.readlink())
        except FileNotFoundError:
            found.append((current, name))
            return found
        except OSError:  # EINVAL: no link. EACCES, ENOTDIR: nothing more to follow.
            if not todo:
                found.append((current, name))
            current = step
            continue
        found.append((current, name))
        links += 1
        if links > _MAX_LINKS:
            return found
        if target.startswith("/"):
            current = Path("/")
        todo.extend(reversed([part for part in target.split("/") if part not in {"", "."}]))
    return found


def _no_watch(error: OSError) -> NodeError:
    return NodeError(
        f"cannot watch the config for edits: {error.strerror}; raise the sysctls "
        "fs.inotify.max_user_watches and fs.inotify.max_user_instances"
    )
