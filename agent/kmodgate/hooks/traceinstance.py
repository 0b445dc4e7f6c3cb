# SPDX-License-Identifier: Apache-2.0
"""An instance of tracefs that belongs to this agent alone: made, read and removed here.

The global buffer is never touched: other tools use it. An instance is a directory that outlives
its maker, so its name says who made it, and the next agent removes what a killed one has left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.node.paths import read_text
from kmodgate.node.procstat import read_task_stat

from .traceformat import EventFormat, PageLayout, parse_format, parse_header_page, parse_page

log = logging.getLogger(__name__)

CALLS: Final = {
    "sys_enter_finit_module": ("fd", "flags"),
    "sys_exit_finit_module": ("ret",),
    "sys_enter_init_module": ("umod", "len"),
    "sys_exit_init_module": ("ret",),
}
MODULES: Final = {"module_load": ("name", "taints")}

_EVENTS: Final = {
    **{name: ("syscalls", fields) for name, fields in CALLS.items()},
    **{name: ("module", fields) for name, fields in MODULES.items()},
}
_PREFIX: Final = "kmodgate-"
_OURS: Final = re.compile(r"kmodgate-([1-9][0-9]{0,9})-([0-9]{1,20})", re.ASCII)
_CPU: Final = re.compile(r"cpu([0-9]{1,5})", re.ASCII)
_BUFFER_KIB: Final = 512
"""For each CPU: some six thousand load attempts that nobody has read yet."""
_LEAST_KIB: Final = 64
_TOTAL_KIB: Final = 32 << 10
_PAGES_AT_ONCE: Final = 8


class Record(NamedTuple):
    """One record of the instance.

    Attributes:
        time: nanoseconds, CLOCK_MONOTONIC.
        event: its name.
        pid: thread that it happened in, in the initial PID namespace.
        data: its bytes.
    """

    time: int
    event: str
    pid: int
    data: bytes


def tracing_directory(paths: NodePaths) -> Path | None:
    """Where tracefs is mounted; None when it is not."""
    for place in ("kernel/tracing", "kernel/debug/tracing"):
        directory = paths.sys / place
        if (directory / "trace_clock").exists():
            return directory
    return None


def lacks(paths: NodePaths) -> Iterator[str]:
    """What keeps an instance from being of use here, each with its remedy. Makes nothing."""
    directory = tracing_directory(paths)
    if directory is None:
        yield (
            "tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing), or the kernel is built "
            "without CONFIG_TRACING"
        )
        return
    if not (directory / "instances").is_dir():
        yield "this tracefs has no instances"
    for name, (system, _) in _EVENTS.items():
        if not (directory / "events" / system / name / "format").is_file():
            option = "FTRACE_SYSCALLS" if system == "syscalls" else "MODULES and CONFIG_TRACING"
            yield f"no trace event {system}:{name}: the kernel is built without CONFIG_{option}"


class TraceInstance:
    """The instance of this process. A context manager; leaving it removes the instance.

    Args:
        paths: where sysfs and procfs are mounted.

    Attributes:
        lost: records that were overwritten before they were read.
        malformed: pages and records that made no sense.
    """

    def __init__(self, paths: NodePaths | None = None) -> None:
        self._paths = paths or NodePaths()
        directory = tracing_directory(self._paths)
        if directory is None:
            raise HookError("; ".join(lacks(self._paths)))
        self._tracing = directory
        self._own: Path | None = None
        self._pipes: dict[int, int] = {}  # descriptor by CPU
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._bell, select.EPOLLIN)
        self.lost = 0
        self.malformed = 0
        self.formats: Mapping[str, EventFormat] = {
            name: self._format(system, name, fields) for name, (system, fields) in _EVENTS.items()
        }
        self._names = {event.id: name for name, event in self.formats.items()}
        self._layout: PageLayout = parse_header_page(self._read("events/header_page"))

    def _read(self, name: str) -> str:
        text = read_text(self._tracing / name)
        if text is None:
            raise HookError(f"{self._tracing / name} cannot be read; is this root?")
        return text

    def _format(self, system: str, name: str, fields: tuple[str, ...]) -> EventFormat:
        return parse_format(self._read(f"events/{system}/{name}/format"), name, fields)

    # --- life ---------------------------------------------------------------------------

    def create(self) -> None:
        """Remove what killed agents have left, make the instance, and begin to record.

        Raises:
            HookError: another agent runs, or the kernel refuses.
        """
        self.remove_leftovers()
        self._own = self._tracing / "instances" / f"{_PREFIX}{os.getpid()}-{self._started(os.getpid())}"
        try:
            self._own.mkdir(mode=0o700)
            self._prepare(self._own)
        except OSError as error:
            self.remove()
            raise HookError(
                f"no trace instance can be made ({error.filename}: {error.strerror}); is this root, and is "
                "lockdown off?"
            ) from error

    def _prepare(self, own: Path) -> None:
        cpus = sorted(
            int(match[1]) for path in (own / "per_cpu").iterdir() if (match := _CPU.fullmatch(path.name))
        )
        size = max(_LEAST_KIB, min(_BUFFER_KIB, _TOTAL_KIB // max(1, len(cpus))))
        _write(own / "trace_clock", "mono")
        # Events before the size: the first one lets the kernel give the global buffer the size that it
        # promises, and a size set before that would leave the global one at its few bytes for good (6.1).
        _write(own / "tracing_on", "0")
        for name, (system, _) in _EVENTS.items():
            _write(own / "events" / system / name / "enable", "1")
        _write(own / "buffer_size_kb", str(size))
        if (own / "buffer_percent").exists():
            _write(own / "buffer_percent", "0")  # each record wakes
        for cpu in cpus:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._pipes[cpu] = os.open(own / f"per_cpu/cpu{cpu}/trace_pipe_raw", flags)
            self._poll.register(self._pipes[cpu], select.EPOLLIN)
        self.rearm()

    def rearm(self) -> bool:
        """Switch on what is off; True when something was. Raises OSError when the instance is gone."""
        if self._own is None:
            return False
        switches = [self._own / "tracing_on"]
        switches += [self._own / "events" / system / name / "enable" for name, (system, _) in _EVENTS.items()]
        off = [switch for switch in switches if not (read_text(switch) or "").startswith("1")]
        for switch in off:
            _write(switch, "1")
        return bool(off)

    def silence(self) -> None:
        """Record nothing more; what was recorded can still be read."""
        if self._own is not None:
            with contextlib.suppress(OSError):
                _write(self._own / "tracing_on", "0")

    def remove_leftovers(self) -> int:
        """Remove the instances of agents that are gone, and say how many.

        Raises:
            HookError: one of them runs.
        """
        count = 0
        for path in sorted((self._tracing / "instances").glob(f"{_PREFIX}*")):
            match = _OURS.fullmatch(path.name)
            if match is None:
                continue
            pid = int(match[1])
            if pid != os.getpid() and self._started(pid) == int(match[2]):
                raise HookError(f"another agent runs on this node (process {pid}, {path}); end it first")
            try:
                _remove(path)
                count += 1
            except OSError as error:  # somebody reads it; it only costs memory
                log.warning("%s of an agent that is gone cannot be removed: %s", path, error.strerror)
        if count:
            log.info("removed %d trace instance(s) of agents that are gone", count)
        return count

    def _started(self, pid: int) -> int | None:
        """When a process began, in ticks since boot; None for none."""
        stat = read_task_stat(self._paths.proc / str(pid))
        return None if stat is None else stat.start

    def remove(self) -> None:
        """Stop, and leave nothing behind. Safe to call twice."""
        for descriptor in self._pipes.values():
            os.close(descriptor)
        self._pipes = {}
        if self._own is not None:
            own, self._own = self._own, None
            try:
                _remove(own)
            except OSError as error:
                log.error("%s cannot be removed: %s; the next agent tries again", own, error.strerror)

    def close(self) -> None:
        """``remove``, and give back the last descriptor."""
        self.remove()
        if not self._poll.closed:
            self._poll.close()
            os.close(self._bell)

    # --- records ------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable while a CPU has records, and after ``poke``."""
        return self._poll.fileno()

    def poke(self) -> None:
        """Be readable until ``heard``: records that somebody else has read have left something to do."""
        os.eventfd_write(self._bell, 1)

    def heard(self) -> None:
        """End that."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    @property
    def name(self) -> str:
        """Of the instance's directory; empty before it is made."""
        return self._own.name if self._own is not None else ""

    def read(self) -> tuple[list[Record], int | None]:
        """A batch of records, each CPU's in order, and not more than ``_PAGES_AT_ONCE`` pages of each.

        Returns:
            The records, and a time up to which they are complete: later ones may be missing. None where
            nothing is left.
        """
        records: list[Record] = []
        complete: int | None = None
        # Not through epoll: a wake-up that got lost must not hide a record.
        for descriptor in self._pipes.values():
            latest = 0
            for _ in range(_PAGES_AT_ONCE):
                page = self._page(descriptor)
                if not page:
                    break
                for record in self._records(page):
                    records.append(record)
                    latest = record.time
            else:
                complete = latest if complete is None else min(complete, latest)
        return records, complete

    def _page(self, descriptor: int) -> bytes:
        try:
            return os.read(descriptor, self._layout.size)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise HookError(f"the trace instance cannot be read: {error.strerror}") from error

    def _records(self, data: bytes) -> Iterator[Record]:
        try:
            page = parse_page(data, self._layout)
        except HookError as error:
            self.malformed += 1
            log.error("a page of the trace instance is left out: %s", error)
            return
        self.lost += 1 if page.lost is None else page.lost
        for time, record in page.records:
            name = self._names.get(int.from_bytes(record[:2], sys.byteorder))
            if name is None:
                continue  # of an event that somebody else has switched on here
            try:
                yield Record(time, name, self.formats[name].number(record, "common_pid"), record)
            except HookError as error:
                self.malformed += 1
                log.error("a record of %s is left out: %s", name, error)


def _remove(own: Path) -> None:
    """An instance goes as a whole, by rmdir; what records into it is switched off first."""
    with contextlib.suppress(OSError):
        _write(own / "events/enable", "0")
    own.rmdir()


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
