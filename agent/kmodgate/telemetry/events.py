# SPDX-License-Identifier: Apache-2.0
"""The event log: one JSON object a line for every load that is worth telling.

``to_json`` and ``is_remarkable`` are pure. ``EventLog`` numbers the remarkable events, limits
floods, and hands the lines to a writer thread, so that a log collector that hangs holds up
neither the agent nor a load. Whatever is left out or lost is counted, and a ``suppressed``
record states the number. The keys are described in docs/events.md and, for machines, in
event.schema.json beside this file; a test compares all three.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

from kmodgate.model import By, LoadEvent, Reason, Signer, Verdict
from kmodgate.workload import Pod

from .exemplars import Exemplars
from .flood import FloodLimit, LeftOut
from .lines import LineWriter, Loss, Statement, Stream
from .text import PATH_LIMIT, printable

SCHEMA_VERSION: Final = 1
"""``schema``: raised when a key changes its meaning or goes away, not when one is added."""

STATEMENT_INTERVAL: Final = 5.0
"""Seconds between two ``suppressed`` records."""

# A load that these let in, and that then went well, is what a node does all day.
_ROUTINE_REASONS: Final = frozenset({Reason.PINNED_ROOT, Reason.NOT_RESTRICTED})
# EEXIST: another loader was faster. udev starts one per device, so each boot has dozens.
_ROUTINE_RESULTS: Final = frozenset({0, -errno.EEXIST})


# Numbers with two names in errno.h, for which Python knows the one that the kernel does not use.
_KERNEL_NAMES: Final = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"}


class Kind(StrEnum):
    """``event``: what a line is."""

    MODULE_LOAD = "module_load"
    MODULE_INVENTORY = "module_inventory"
    SUPPRESSED = "suppressed"


class Cause(StrEnum):
    """``cause`` within a ``suppressed`` record: why events are missing from the log."""

    FLOOD = "flood"
    QUEUE_FULL = "queue_full"
    WRITE_FAILED = "write_failed"
    SLOW_READER = "slow_reader"
    """``kmodgate events`` read more slowly than events came; the log itself has them."""


_CAUSE_OF: Final = {Loss.QUEUE_FULL: Cause.QUEUE_FULL, Loss.WRITE_FAILED: Cause.WRITE_FAILED}


def is_remarkable(event: LoadEvent) -> bool:
    """Whether a load belongs in the log: everything but an allow that is daily routine.

    Routine is: allowed because the kernel's own keys trust the module, because it lies on
    the pinned root, or because nothing restricts loads; and it loaded, or was loaded already.
    """
    if event.verdict is not Verdict.ALLOW or event.result not in _ROUTINE_RESULTS:
        return True
    if event.reason is Reason.TRUSTED_SIGNATURE:
        return event.by is not By.KERNEL
    return event.reason not in _ROUTINE_REASONS


def to_record(event: LoadEvent, *, sequence: int | None = None) -> dict[str, object]:
    """The keys and values of one load, every string escaped (``text.printable``).

    Args:
        event: the load.
        sequence: its number in this agent's log; None outside the log.
    """
    return {
        "event": Kind.MODULE_LOAD.value,
        "schema": SCHEMA_VERSION,
        "sequence": sequence,
        "time": time_value(event.time),
        "node": text_value(event.node),
        "pool": text_value(event.pool),
        "verdict": event.verdict.label,
        "reason": event.reason.label,
        "errno": errno_name(event.errno) if event.errno else None,
        "by": event.by.label,
        "mode": event.mode.value,
        "policy": event.policy.value,
        "api": event.api.label,
        "origin": None if event.origin is None else event.origin.label,
        "result": errno_name(-event.result) if event.result else "ok",
        "module": text_value(event.module),
        "path": text_value(event.path, PATH_LIMIT),
        "path_truncated": event.path_truncated,
        "file_system": text_value(event.file_system),
        "device": None if event.device is None else f"{event.device[0]}:{event.device[1]}",
        "inode": event.inode,
        "size": event.size,
        "sha256": text_value(event.sha256),
        "signature_status": None if event.signature_status is None else event.signature_status.value,
        "signature_detail": text_value(event.signature_detail),
        "trusted_by": text_value(event.trusted_by),
        "signer": signer_record(event.signer),
        "pid": event.pid,
        "tid": event.tid,
        "ppid": event.ppid,
        "comm": text_value(event.comm),
        "exe": text_value(event.exe, PATH_LIMIT),
        "uid": event.uid,
        "workload": None if event.workload is None else event.workload.value,
        "container_id": text_value(event.container_id),
        "pod": _pod(event.pod),
        "kernel_request": text_value(event.kernel_request),
        "hold_us": event.hold_ns // 1000,
        "decision_us": event.decision_ns // 1000,
    }


def to_json(event: LoadEvent, *, sequence: int | None = None) -> str:
    """One line of ASCII without its newline: ``to_record`` as JSON."""
    return _line(to_record(event, sequence=sequence))


def errno_name(number: int) -> str:
    """``"EPERM"`` for 1; a number that errno.h does not name stays a number, as text."""
    return _KERNEL_NAMES.get(number) or errno.errorcode.get(number, str(number))


class Tap(Protocol):
    """Hears every event that the log tells, beside its stream. Must return at once."""

    def __call__(self, record: Mapping[str, object], line: bytes) -> None:
        """One event: what ``to_record`` gave, and the same as a line with its newline."""


class MissingEvents:
    """Makes the ``suppressed`` records for one reader of the log: what it did not get since the last one.

    Args:
        left_out: what the flood limit has left out so far.
        node: name of the node.
        wall: the time.
    """

    def __init__(
        self,
        left_out: Callable[[], Mapping[LeftOut, int]],
        *,
        node: str | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._left_out = left_out
        self._node = node
        self._wall = wall
        self._stated_flood = Counter(left_out())
        self._stated: Counter[Cause] = Counter()

    def __call__(self, lost: Mapping[Loss, int], *, final: bool) -> Statement | None:
        """As ``lines.Statements`` wants it."""
        del final
        return self.statement({_CAUSE_OF[loss]: count for loss, count in lost.items()})

    def statement(self, lost: Mapping[Cause, int]) -> Statement | None:
        """What is missing since the last statement; ``lost`` only ever grows."""
        left_out, total = Counter(self._left_out()), Counter(lost)
        flood, broken = left_out - self._stated_flood, total - self._stated
        missing: list[dict[str, object]] = [
            {"cause": Cause.FLOOD.value, "verdict": key.verdict.label, "reason": key.reason.label, "count": n}
            for key, n in sorted(flood.items())
        ]
        missing += [
            {"cause": cause.value, "verdict": None, "reason": None, "count": n} for cause, n in broken.items()
        ]
        if not missing:
            return None
        record: dict[str, object] = {
            "event": Kind.SUPPRESSED.value,
            "schema": SCHEMA_VERSION,
            "time": time_value(self._wall()),
            "node": text_value(self._node),
            "count": flood.total() + broken.total(),
            "missing": missing,
        }

        def delivered() -> None:
            self._stated_flood, self._stated = left_out, total

        return Statement(_line(record).encode("ascii") + b"\n", delivered)


class EventLog:
    """The log of one agent.

    Args:
        stream: where the lines go, usually ``sys.stdout``. Only its descriptor is used.
        node: name of the node for the ``suppressed`` records.
        flood: the limit; None for the default one.
        capacity: lines that wait at most while the stream takes none.
        log_all: tell routine loads too.
        now: seconds on a clock that never goes back, for the limit.
        wall: the time for the ``suppressed`` records.

    Attributes:
        exemplars: the latest events that the log has, for the metrics.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        node: str | None = None,
        flood: FloodLimit | None = None,
        capacity: int = 1024,
        log_all: bool = False,
        interval: float = STATEMENT_INTERVAL,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.exemplars = Exemplars()
        self._node = node
        self._flood = flood or FloodLimit()
        self._log_all = log_all
        self._now = now
        self._wall = wall
        self._lock = threading.Lock()
        self._sequence = 0
        self._taps: tuple[Tap, ...] = ()
        self._writer = LineWriter(
            stream, capacity=capacity, interval=interval, statements=self.missing_events()
        )

    def tap(self, tap: Tap) -> None:
        """Tell every event from now on to ``tap`` as well."""
        with self._lock:
            self._taps = (*self._taps, tap)

    def missing_events(self) -> MissingEvents:
        """What states to one reader, from now on, what it does not get."""
        return MissingEvents(self.suppressed, node=self._node, wall=self._wall)

    def write(self, event: LoadEvent) -> int | None:
        """Tell one load, unless it is routine. Never waits and never fails.

        Returns:
            The event's number, whether its line was written, left out or lost; None for
            a routine load, which has none. Numbers start at 1 and a gap in the log is as
            long as the ``suppressed`` records say.
        """
        if not self._log_all and not is_remarkable(event):
            return None
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            if self._flood.allow(event, self._now()):
                # Inside the lock, so that the numbers rise from line to line.
                self._tell(to_record(event, sequence=sequence))
                self.exemplars.note(event, sequence)
        return sequence

    def write_record(self, make: Callable[[datetime, str | None, int], Mapping[str, object]]) -> None:
        """Tell something else than a load: ``make`` gets time, node and number. Never waits.

        The flood limit does not know it: who calls this bounds how often.
        """
        with self._lock:
            self._sequence += 1
            self._tell(make(self._wall(), self._node, self._sequence))

    def _tell(self, record: Mapping[str, object]) -> None:
        line = _line(record).encode("ascii") + b"\n"
        self._writer.put(line)
        for tap in self._taps:
            tap(record, line)

    @property
    def last_number(self) -> int:
        """Number of the last event; 0 before the first one."""
        return self._sequence

    def suppressed(self) -> Mapping[LeftOut, int]:
        """Events that the flood limit left out since the start, by verdict and reason."""
        with self._lock:
            return self._flood.left_out()

    def lost(self) -> Mapping[Loss, int]:
        """Lines that the stream did not take since the start, by cause."""
        return self._writer.lost()

    def written(self) -> int:
        """Events that the stream took since the start."""
        return self._writer.written()

    def close(self, timeout: float = 2.0) -> None:
        """State what was left out, write what waits within ``timeout`` seconds, and stop."""
        self._writer.close(timeout)


def _line(record: Mapping[str, object]) -> str:
    # ensure_ascii: whatever a terminal, a locale or a log shipper makes of UTF-8, it sees none.
    return json.dumps(record, ensure_ascii=True, separators=(",", ":"))


def time_value(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds."""
    # isoformat and not strftime: the latter does not pad years before 1000.
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def text_value(value: str | None, limit: int | None = None) -> str | None:
    """A string of unknown origin, escaped and cut."""
    if value is None:
        return None
    return printable(value) if limit is None else printable(value, limit)


def signer_record(signer: Signer | None) -> dict[str, object] | None:
    """``signer``: each part a string or null."""
    if signer is None:
        return None
    return {
        "issuer": text_value(signer.issuer),
        "serial": text_value(signer.serial),
        "skid": text_value(signer.skid),
        "subject": text_value(signer.subject),
    }


def _pod(pod: Pod | None) -> dict[str, object] | None:
    if pod is None:
        return None
    owner = pod.owner
    return {
        "uid": text_value(pod.uid),
        "namespace": text_value(pod.namespace),
        "name": text_value(pod.name),
        "container": text_value(pod.container),
        "image": text_value(pod.image),
        "owner": None if owner is None else {"kind": text_value(owner.kind), "name": text_value(owner.name)},
        "service_account": text_value(pod.service_account),
    }
