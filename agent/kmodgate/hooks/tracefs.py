# SPDX-License-Identifier: Apache-2.0
"""The ``tracefs`` rung: load attempts as the kernel's trace events tell them, judged afterwards.

For kernels that take no BPF program. Nothing here refuses a load; ``afterwards`` says what a
verdict means then, ``switches`` what the kernel can be told to refuse by itself, ``capabilities``
what this rung cannot know. A load goes this way:

1. ``sys_enter_*`` is read. While the call lasts, procfs tells who calls, and with which file.
2. A question goes to the agent, which reads the bytes through the caller's descriptor or memory.
3. ``module_load`` and ``sys_exit_*`` are read, put in order with what other CPUs recorded.
4. With the answer, or without one when the caller had gone, the load is judged, counted and told.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import ClassVar, Final, Self

from kmodgate.errors import HookError
from kmodgate.model import Api, Backend, Decision, Origin, Verification
from kmodgate.node import NodePaths
from kmodgate.node.security import read_load_pin

from . import abi
from .afterwards import COMPRESSED, KernelChecks, Outcome, SeenLoad, judge
from .bpf import ProbeResult, load_nothing
from .counts import KernelCounts
from .lateanswers import Doorbell, Found, LateAnswers
from .tracecaller import MountTable, read_caller, read_file
from .traceinstance import Record, TraceInstance, lacks
from .traceload import Followed, Load, event_of

log = logging.getLogger(__name__)

_SETTLING_NS: Final = 100_000_000
"""A record may be read before an earlier one of another CPU: so long all wait to be put in order."""
_ANSWER_NS: Final = 10_000_000_000
_FOLLOWED: Final = 64
"""Callers that are looked at in one batch: the latest, as the others have gone most likely."""
_OPEN_MAX: Final = 16_384
_READY_MAX: Final = 8_192
_EVENTS_AT_ONCE: Final = 64
_PROBE_READS: Final = 64
_APIS: Final = {"finit_module": Api.FINIT_MODULE, "init_module": Api.INIT_MODULE}


class TracefsBackend(KernelCounts, LateAnswers):
    """An instance of tracefs, and the counts of what it told. Counts end with the agent.

    Use as a context manager; leaving it removes the instance. Not thread-safe but for ``answer``,
    ``answered_for`` and ``done``, which one worker calls in this order.

    Attributes:
        backend: the rung.
        adopted: never; nothing outlives the agent here.
        last_seen: never known.
        pinned: never.
        timings: how long each part of the start took, in seconds.
        superblocks: which mounts count as the pinned root.
    """

    backend: ClassVar[Backend] = Backend.TRACEFS
    adopted: Final = False
    last_seen: Final[float | None] = None
    pinned: Final = False

    def __init__(self, paths: NodePaths | None = None) -> None:
        """Look whether the kernel has what it takes. Raises HookError when it has not."""
        self._paths = paths or NodePaths()
        missing = list(lacks(self._paths))
        if missing:
            raise HookError(f"backend {self.backend} cannot work on this kernel: {'; '.join(missing)}")
        LateAnswers.__init__(self)
        self.timings: dict[str, float] = {}
        self._counters = (ctypes.c_uint64 * abi.COUNTERS)()
        self._stats = (ctypes.c_uint64 * len(abi.Stat))()
        self._histograms = (ctypes.c_uint64 * (abi.HISTOGRAM_ROW * len(abi.Histogram)))()
        self._instance = TraceInstance(self._paths)
        self.superblocks = MountTable(self._paths.proc)
        self.question_ring = self._instance
        self._table: tuple[Decision, ...] = ()
        self._generation = 0
        self._kernel = KernelChecks()
        self._tid = 0
        self._probe_saw: set[str] = set()
        self._order = itertools.count()
        self._records: list[tuple[int, int, Record]] = []
        self._open: OrderedDict[int, Load] = OrderedDict()
        self._early: OrderedDict[tuple[int, int], Followed] = OrderedDict()
        self._over: deque[Load] = deque()
        self._ready: deque[abi.Event] = deque()
        self._asked: deque[abi.Question] = deque()
        self._questions = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- life ---------------------------------------------------------------------------

    def load(self) -> None:
        """Check that this process may do what it must. Raises HookError."""
        me = read_caller(self._paths.proc, threading.get_native_id())
        if me is None or me.tgid != os.getpid():
            raise HookError(
                f"process {os.getpid()} is another one in {self._paths.proc}: run it in the host's PID "
                "namespace (hostPID: true)"
            )
        if not me.privileged:
            raise HookError("the self-probe needs CAP_SYS_MODULE, which this process lacks")
        self._tid = threading.get_native_id()

    def attach(self) -> None:
        """Begin to record. Raises HookError."""
        start = time.perf_counter()
        self._instance.create()
        self.timings["attach"] = time.perf_counter() - start

    def detach(self) -> None:
        """Stop recording, judge what is over, and remove the instance."""
        if self._instance.name:
            self._instance.silence()  # or a storm would never let go
            while self._pump(settle=False):
                pass
            self._conclude(wait=False)
        self._instance.remove()

    def forget(self) -> None:
        """Nothing outlives this process."""

    def leave(self) -> None:
        """The instance goes with whoever made it."""
        self._instance.remove()

    def close(self) -> None:
        """Leave nothing behind. Safe to call twice."""
        self._instance.close()
        self.superblocks.close()

    def settle(self) -> None:
        """Switch on again what somebody has switched off in the instance. Once a second."""
        try:
            if self._instance.rearm():
                log.critical("the trace instance was switched off by somebody, and is on again")
        except OSError as error:
            raise HookError(f"the trace instance is gone: {error.strerror}") from error

    def pin_links(self) -> list[str]:
        """There is nothing to pin."""
        return []

    def program_fds(self) -> list[int]:
        """There are no programs."""
        return []

    def link_fds(self) -> list[int]:
        """And no attachments."""
        return []

    def misses(self) -> int:
        """There are no programs that could be skipped."""
        return 0

    # --- what the agent says ------------------------------------------------------------

    def set_policy(self, table: tuple[Decision, ...]) -> int:
        """Judge by this table from now on; its generation."""
        self._table = table
        self._generation += 1
        return self._generation

    def configure(
        self,
        *,
        hold_seconds: float,
        max_size: int,
        wait_asleep: bool,
        wait_limit: int,
        sig_enforce: bool,
        lockdown: bool,
    ) -> None:
        """Note what the kernel refuses by itself; nobody waits here, so the rest has no meaning."""
        del hold_seconds, max_size, wait_asleep, wait_limit
        self._kernel = KernelChecks(
            signatures_built=(self._paths.sys / "module/module/parameters/sig_enforce").exists(),
            sig_enforce=sig_enforce,
            lockdown=lockdown,
            load_pin=read_load_pin(self._paths, None).restricts_modules,
        )

    def set_quiet(self, quiet: bool) -> None:
        """Every record wakes: a caller is followed at once or not at all."""

    def introduce(self, root_fd: int) -> tuple[int, int]:
        """Pin the file system of ``root_fd`` as the root: ``(major, minor)``. Raises HookError."""
        return self.superblocks.pin_root(root_fd)

    @property
    def root_pinned(self) -> bool:
        """Whether a root was pinned. It is known by its number only, and not seen to go away."""
        return self.superblocks.root is not None

    def heartbeat(self) -> None:
        """Nobody waits for the agent."""

    def stop_heartbeat(self) -> None:
        """Nobody waits for the agent."""

    # --- records ------------------------------------------------------------------------

    def rings(self) -> tuple[TraceInstance, Doorbell]:
        """What to wait on: records, and loads that were judged."""
        return self.question_ring, self.event_ring

    def questions(self) -> Iterator[abi.Question]:
        """Callers whose bytes are to be looked at, as far as they are still there."""
        self._pump()
        self._instance.heard()
        while self._asked:
            yield self._asked.popleft()

    def events(self) -> Iterator[abi.Event]:
        """A batch of loads that were judged, oldest first."""
        self.event_ring.answer()
        self._pump()
        self._conclude()
        for _ in range(min(len(self._ready), _EVENTS_AT_ONCE)):
            yield self._ready.popleft()
        if self._ready:
            self.event_ring.ring()

    def drain(self) -> Iterator[abi.Event]:
        """Every event that is left; only after ``detach``."""
        while self._ready:
            yield self._ready.popleft()

    def _pump(self, *, settle: bool = True) -> bool:
        """Read a batch, follow the latest callers, and work off what is in order; False for nothing read."""
        horizon = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - _SETTLING_NS
        records, complete = self._instance.read()
        begun: deque[Record] = deque(maxlen=_FOLLOWED)
        for record in records:
            if record.pid == self._tid:
                self._probe_saw.add(record.event)
                continue
            if record.event.startswith("sys_enter_"):
                begun.append(record)
            heapq.heappush(self._records, (record.time, next(self._order), record))
        for record in begun:
            self._follow(record)
        if self._asked:  # maybe in the middle of a probe: the loop must come for the questions
            self._instance.poke()
        if complete is not None:
            horizon = min(horizon, complete)
        while self._records and (not settle or self._records[0][0] <= horizon):
            _, _, record = heapq.heappop(self._records)
            try:
                self._take(record)
            except HookError as error:
                self._instance.malformed += 1
                log.error("%s", error)
        self._stats[abi.Stat.READ_FAILED] = self._instance.malformed
        return bool(records)

    def _follow(self, record: Record) -> None:
        """See who calls with what, and have the bytes looked at."""
        form = self._instance.formats[record.event]
        caller = read_caller(self._paths.proc, record.pid)
        if caller is None or not caller.privileged:
            if caller is not None:
                self._note(record, Followed(caller, None, 0))
            return
        api = _APIS[record.event.removeprefix("sys_enter_")]
        question = abi.Question(
            id=next(self._questions), start_time=caller.start_time, tgid=caller.tgid, tid=record.pid, api=api
        )
        file = None
        if api is Api.FINIT_MODULE:
            question.fd = ctypes.c_int32(form.number(record.data, "fd")).value
            file = read_file(self._paths.proc, record.pid, question.fd, self.superblocks)
            if file is None:  # it has gone already
                self._note(record, Followed(caller, None, 0))
                return
        else:
            question.address = form.number(record.data, "umod")
            question.length = form.number(record.data, "len")
        self._note(record, Followed(caller, file, question.id))
        self._asked.append(question)

    def _note(self, record: Record, followed: Followed) -> None:
        self._early[record.pid, record.time] = followed
        while len(self._early) > _OPEN_MAX:
            self._early.popitem(last=False)

    def _take(self, record: Record) -> None:
        """One record, in the order of time."""
        form = self._instance.formats[record.event]
        if record.event == "module_load":
            load = self._open.get(record.pid)
            if load is None:
                # Through a call that these events do not tell: a 32-bit program's.
                self._stats[abi.Stat.LOADED_UNSEEN] += 1
                return
            load.got_in = True
            load.taints = form.number(record.data, "taints")
            load.module = form.text(record.data, "name")[: abi.NAME_LEN]
            return
        api = _APIS[record.event.partition("_")[2].partition("_")[2]]
        if record.event.startswith("sys_enter_"):
            if self._open.pop(record.pid, None) is not None:
                self._stats[abi.Stat.ABANDONED] += 1
            load = Load(
                api, record.pid, record.time, followed=self._early.pop((record.pid, record.time), None)
            )
            if api is Api.FINIT_MODULE:
                load.flags = form.number(record.data, "flags") & 0xFFFFFFFF
            else:
                load.length = form.number(record.data, "len")
            self._open[record.pid] = load
            while len(self._open) > _OPEN_MAX:
                self._open.popitem(last=False)
                self._stats[abi.Stat.ABANDONED] += 1
            return
        ended = self._open.pop(record.pid, None)
        if ended is None or ended.api is not api:  # its beginning was before the agent's, or was lost
            ended = Load(api, record.pid, record.time)
        ended.end = record.time
        ended.result = ctypes.c_int32(form.number(record.data, "ret")).value
        self._over.append(ended)

    # --- verdicts -----------------------------------------------------------------------

    def _conclude(self, *, wait: bool = True) -> None:
        """Judge the loads that are over and whose question is."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for _ in range(len(self._over)):
            load = self._over.popleft()
            found: Found | None = None
            if load.followed is not None and load.followed.question:
                found = self.take(load.followed.question)
                if found is None and wait and now - load.end < _ANSWER_NS:
                    self._over.append(load)
                    continue
            self._tell(load, found or Found())

    def _tell(self, load: Load, found: Found) -> None:
        unpacked = load.flags & COMPRESSED and found.contents is not Verification.NOT_YET
        seen = SeenLoad(
            api=load.api,
            result=load.result,
            got_in=load.got_in,
            taints=load.taints,
            flags=load.flags,
            origin=self._origin(load, found),
            found=found.contents if unpacked else found.verification,
            privileged=None if load.followed is None else load.followed.caller.privileged,
        )
        judgement = judge(seen, self._table, self._kernel)
        if judgement.outcome is Outcome.EARLY:
            self._stats[abi.Stat.REFUSED_EARLY] += 1
            return
        file = load.api is Api.FINIT_MODULE
        self._stats[abi.Stat.ATTEMPTS_FINIT if file else abi.Stat.ATTEMPTS_INIT] += 1
        if judgement.outcome is Outcome.UNDECIDED:
            self._stats[abi.Stat.UNDECIDED] += 1
            return
        decision = judgement.decision
        slot = (decision.verdict * abi.REASON_SLOTS + decision.reason) * len(Api) + load.api
        self._counters[slot * abi.BY_SLOTS + judgement.by] += 1
        if len(self._ready) >= _READY_MAX:
            self._stats[abi.Stat.EVENTS_LOST] += 1
            return
        self._ready.append(event_of(load, found, seen, judgement, self._generation))

    def _origin(self, load: Load, found: Found) -> Origin | None:
        if load.api is Api.INIT_MODULE:
            return Origin.MEMORY
        file = None if load.followed is None else load.followed.file
        if file is None or (file.mount is None and found.device is None):
            return None
        inside = self.superblocks.counts_as_root(file.mount, found.device)
        return Origin.PINNED_ROOT if inside else Origin.OTHER_FILESYSTEM

    def lost(self) -> dict[str, int]:
        """Records that were overwritten, and events that nobody took."""
        lost = super().lost()
        return {**lost, "event_ring": lost["event_ring"] + self._instance.lost}

    # --- the self-probe -----------------------------------------------------------------

    def probe(self) -> ProbeResult:
        """Try a load that can never succeed, and see whether the instance tells it. Raises HookError."""
        self._probe_saw = set()
        number = load_nothing()
        for _ in range(_PROBE_READS):
            if not self._pump() or "sys_exit_init_module" in self._probe_saw:
                break
        return ProbeResult(
            number,
            first_hook="sys_enter_init_module" in self._probe_saw,
            signature=True,
            ended="sys_exit_init_module" in self._probe_saw,
        )
