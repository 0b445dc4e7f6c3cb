# SPDX-License-Identifier: Apache-2.0
"""The ``bpf-lsm`` rung: loads, attaches and talks to the programs of ``bpf/kmodgate.bpf.c``.

What the programs decide is in the table that ``set_policy`` writes; this module moves
records between the kernel and the agent, and knows no policy.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final, Self

from kmodgate.errors import HookError
from kmodgate.model import Api, By, Decision, KernelHistogram, Reason, Verdict, Verification
from kmodgate.policy import TABLE_SIZE, judges_bytes

from . import abi, libbpf

OBJECT_NAME: Final = "kmodgate.bpf.o"
_SYS_INIT_MODULE: Final = {"x86_64": 175, "aarch64": 105}
_PROBE_IMAGE: Final = bytes(128)  # long enough to be looked at, and no ELF file
_HEARTBEAT_MAX_AGE: Final = 3_000_000_000
_TRUSTED_MAX: Final = 8192
_REFUSED_MAX: Final = 4096
_SYSCALLS: Final = (
    "__x64_sys_finit_module",
    "__x64_sys_init_module",
    "__ia32_sys_finit_module",
    "__ia32_sys_init_module",
    "__arm64_sys_finit_module",
    "__arm64_sys_init_module",
)
_PLUMBING: Final = ("kmg_introduce",)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the self-probe saw of its own harmless load.

    Attributes:
        errno: of the system call: ``ENOEXEC`` when nothing refused it.
        first_hook: ``kernel_load_data`` saw it.
        signature: ``locked_down`` saw it, with its bytes noted.
        bytes_read: ``kernel_post_load_data`` saw it; looked for only where the table asks for the
            bytes of every load.
        ended: the end of the system call was seen.
    """

    errno: int
    first_hook: bool
    signature: bool
    ended: bool
    bytes_read: bool = False


class BpfBackend:
    """Programs, maps and counters of one loaded object.

    Use as a context manager; leaving it detaches. Not thread-safe but for ``answer`` and
    ``done``, which any thread may call.
    """

    name: Final = "bpf-lsm"

    def __init__(self, data: bytes | None = None) -> None:
        """Open the object that is shipped with the package, or ``data``.

        Raises:
            HookError: libbpf or the object is missing, or the kernel has no BTF.
        """
        self.timings: dict[str, float] = {}
        start = time.perf_counter()
        libbpf.few_arenas()
        present = libbpf.kernel_functions((*_SYSCALLS, "module_sig_check"))
        if "module_sig_check" not in present:
            raise HookError(
                "the kernel's BTF has no module_sig_check(): CONFIG_MODULE_SIG is off, or the compiler "
                "inlined it; signatures cannot be enforced through this backend"
            )
        self.syscalls: Final = tuple(name for name in _SYSCALLS if name in present)

        def wanted(section: str) -> bool:
            target = section.partition("/")[2]
            return target not in _SYSCALLS or target in present

        self._object: Final = libbpf.Object(data if data is not None else _shipped_object(), wanted)
        self._links: list[libbpf.Link] = []
        self._maps: list[mmap.mmap] = []
        self._answered: OrderedDict[bytes, bool] = OrderedDict()
        self._refused: OrderedDict[bytes, bool] = OrderedDict()
        self._answer_lock = threading.Lock()
        self._task = 0
        self.timings["open"] = time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def load(self) -> None:
        """Have the kernel verify the programs and create the maps. Raises HookError."""
        start = time.perf_counter()
        self._object.load()
        self._control = abi.Control.from_buffer(self._shared("control", ctypes.sizeof(abi.Control)))
        table = abi.TABLE_COPIES * TABLE_SIZE
        self._table = (abi.Decision * table).from_buffer(
            self._shared("decisions", table * ctypes.sizeof(abi.Decision))
        )
        self._counters = self._numbers("counters", abi.COUNTERS)
        self._stats = self._numbers("stats", len(abi.Stat))
        self._histograms = self._numbers("histograms", abi.HISTOGRAM_ROW * len(abi.Histogram))
        self._answers = self._object.map("answers")
        self._done = self._object.map("done")
        self.event_ring = libbpf.RingBuffer(self._object.map("events"))
        self.question_ring = libbpf.RingBuffer(self._object.map("questions"))
        self._control.heartbeat_max_age = _HEARTBEAT_MAX_AGE
        self._control.trust_generation = 1
        libbpf.give_memory_back()
        self.timings["load"] = time.perf_counter() - start

    def _shared(self, name: str, size: int) -> mmap.mmap:
        memory = self._object.map(name).memory(size)
        self._maps.append(memory)
        return memory

    def _numbers(self, name: str, count: int) -> ctypes.Array[ctypes.c_uint64]:
        return (ctypes.c_uint64 * count).from_buffer(self._shared(name, 8 * count))

    def attach(self) -> None:
        """Attach every program. A policy must have been set: the table starts empty.

        Raises:
            HookError: a program could not be attached; those before it stay attached
                until ``close``.
        """
        if not self._control.generation:
            raise HookError("no policy was set before attaching")
        start = time.perf_counter()
        # What ends a load goes first and what begins one last, so that no load is seen to
        # begin whose end cannot be.
        order = sorted(self._object.programs.values(), key=lambda program: _attach_rank(program.section))
        self._links = [program.attach() for program in order if program.name not in _PLUMBING]
        self.timings["attach"] = time.perf_counter() - start

    def detach(self) -> None:
        """Detach every program; maps and counters stay readable."""
        for link in reversed(self._links):
            link.close()
        self._links = []

    def close(self) -> None:
        """Detach and unload. Safe to call twice."""
        self.detach()
        for ring in ("event_ring", "question_ring"):
            if hasattr(self, ring):
                getattr(self, ring).close()
        self._object.close()

    # --- what the agent tells the programs ---------------------------------------------

    def set_policy(self, table: tuple[Decision, ...]) -> int:
        """Put a compiled table in force, in one step.

        The hooks that see the bytes of every load look at the table only while it asks for them.
        That is switched on before such a table is in force, and off after it.

        Args:
            table: ``TABLE_SIZE`` decisions, see ``policy.compile_table``.

        Returns:
            The generation that decides from now on; events carry it.
        """
        generation = int(self._control.generation) + 1
        base = generation % abi.TABLE_COPIES * TABLE_SIZE
        for index, decision in enumerate(table):
            entry = self._table[base + index]
            entry.generation = generation & 0xFFFFFFFF
            entry.verdict, entry.reason, entry.error = decision.verdict, decision.reason, decision.errno
        judges = judges_bytes(table)
        if judges:
            self._control.every_load = 1
        self._control.generation = generation
        if not judges:
            self._control.every_load = 0
        return generation

    def forget_answers(self) -> None:
        """Make every stored answer void at once: the trust anchors changed."""
        with self._answer_lock:
            self._control.trust_generation += 1
            for known in (self._answered, self._refused):
                for digest in known:
                    self._answers.delete(digest)
                known.clear()

    @property
    def trust_generation(self) -> int:
        """Generation that an answer must carry to count; note it before verifying."""
        return int(self._control.trust_generation)

    def configure(
        self, *, hold_seconds: float, max_size: int, wait_asleep: bool, sig_enforce: bool, lockdown: bool
    ) -> None:
        """Set the bounds of the wait and of the digest, how to wait, and what the kernel does itself."""
        self._control.hold = int(hold_seconds * 1e9)
        self._control.max_size = max_size
        self._control.wait_asleep = wait_asleep
        self._control.sig_enforce = sig_enforce
        self._control.kernel_refuses = sig_enforce or lockdown

    def introduce(self, root_fd: int) -> tuple[int, int]:
        """Pin the file system of ``root_fd`` as the root, and note who this thread is.

        Returns:
            ``(major, minor)`` of the pinned superblock.

        Raises:
            HookError: also when the process has a PID namespace of its own: /proc/1 is then
                not the node's first process, and no question could be followed to its asker.
        """
        who = abi.Introduction(fd=root_fd)
        result = self._object.programs["kmg_introduce"].test_run(who)
        if result:
            raise HookError(f"the pinned root cannot be identified: {os.strerror(-result)}")
        if who.task >> 32 != os.getpid():
            raise HookError(
                f"this process is {os.getpid()} here and {who.task >> 32} for the kernel: run it in the "
                "host's PID namespace (hostPID: true)"
            )
        self._control.root_device = who.device
        self._control.root_superblock = who.superblock
        self._task = who.task
        return who.device >> 20, who.device & 0xFFFFF

    @property
    def root_pinned(self) -> bool:
        """False when the pinned file system has gone away: LoadPin then denies everything."""
        return bool(self._control.root_superblock)

    def heartbeat(self) -> None:
        """Tell the programs that the agent answers."""
        self._control.heartbeat = time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def stop_heartbeat(self) -> None:
        """Tell the programs that nobody answers any more, so that no load waits."""
        self._control.heartbeat = 0

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """Store what verification found for a digest (32 bytes, SHA-256).

        ``contents`` is what it found for what a compressed file unpacks to.

        Trusted digests are kept apart from refused ones, so that a storm of refused modules
        evicts none of them. Raises HookError when the map is full or gone.
        """
        known, limit = (
            (self._answered, _TRUSTED_MAX)
            if Verification.TRUSTED in {verification, contents}
            else (self._refused, _REFUSED_MAX)
        )
        answer = abi.Answer(trust_generation=trust_generation, verification=verification, contents=contents)
        other = self._refused if known is self._answered else self._answered
        with self._answer_lock:
            if trust_generation != self._control.trust_generation:
                return  # verified against anchors that are gone
            other.pop(digest, None)
            known.pop(digest, None)
            while len(known) >= limit:
                oldest, _ = known.popitem(last=False)
                self._answers.delete(oldest)
            self._answers.update(digest, bytes(answer))
            known[digest] = True

    def done(self, question: int) -> None:
        """End the wait for a question. After ``answer``, never before it."""
        self._done.update(question.to_bytes(8, "little"), (1).to_bytes(4, "little"))

    # --- what the programs tell the agent ----------------------------------------------

    def questions(self) -> Iterator[abi.Question]:
        """Questions that wait, oldest first."""
        for record in self.question_ring.read():
            yield abi.Question.from_buffer_copy(record)

    def drain(self) -> Iterator[abi.Event]:
        """Every event that is left; only after ``detach``, when no more can come."""
        while records := self.event_ring.read():
            yield from (abi.Event.from_buffer_copy(record) for record in records)

    def events(self) -> Iterator[abi.Event]:
        """Loads that ended, oldest first."""
        for record in self.event_ring.read():
            yield abi.Event.from_buffer_copy(record)

    def probe(self) -> ProbeResult:
        """Try a load that can never succeed, and see whether the programs saw it.

        128 zero bytes are no ELF file: with no hook at all ``init_module(2)`` answers
        ``ENOEXEC``. Needs CAP_SYS_MODULE, without which the kernel asks no hook.
        """
        stats = (
            abi.Stat.PROBE_FIRST_HOOK,
            abi.Stat.PROBE_SIGNATURE,
            abi.Stat.PROBE_EXIT,
            abi.Stat.PROBE_BYTES,
        )
        before = [self._stats[stat] for stat in stats]
        number = _SYS_INIT_MODULE.get(os.uname().machine)
        if number is None:
            raise HookError(f"no self-probe for machine type {os.uname().machine}")
        libc = ctypes.CDLL(None, use_errno=True)
        self._control.probe = self._task
        try:
            libc.syscall(number, _PROBE_IMAGE, ctypes.c_ulong(len(_PROBE_IMAGE)), b"")
            code = ctypes.get_errno()
        finally:
            self._control.probe = 0
        seen = [self._stats[stat] > count for stat, count in zip(stats, before, strict=True)]
        if code == errno.EPERM and not any(seen):
            raise HookError("the self-probe was refused before any hook: the agent lacks CAP_SYS_MODULE")
        return ProbeResult(code, *seen)

    # --- counters (kmodgate.telemetry reads these) --------------------------------------

    def loads(self) -> Iterator[tuple[Verdict, Reason, Api, By, int]]:
        """Verdicts by reason, call and decider, those that were ever given."""
        for verdict in Verdict:
            for reason in Reason:
                for api in Api:
                    for by in By:
                        slot = (verdict * abi.REASON_SLOTS + reason) * len(Api) + api
                        count = self._counters[slot * abi.BY_SLOTS + by]
                        if count:
                            yield verdict, reason, api, by, count

    def stat(self, stat: abi.Stat) -> int:
        """One plain count."""
        return int(self._stats[stat])

    def histogram(self, name: str) -> KernelHistogram:
        """One histogram, ``"hold"`` or ``"decision"``; buckets double from one microsecond."""
        base = abi.Histogram[name.upper()] * abi.HISTOGRAM_ROW
        last = abi.HISTOGRAM_BUCKETS - 1
        buckets = tuple(
            (math.inf if bucket == last else 2**bucket * 1e-6, int(self._histograms[base + bucket]))
            for bucket in range(abi.HISTOGRAM_BUCKETS)
        )
        return KernelHistogram(buckets, self._histograms[base + abi.HISTOGRAM_BUCKETS] / 1e9)

    def attempts(self) -> int:
        """Loads that reached the first hook."""
        return self.stat(abi.Stat.ATTEMPTS_FINIT) + self.stat(abi.Stat.ATTEMPTS_INIT)

    def undecided(self) -> int:
        """Loads that failed on their own before a decision was due."""
        return self.stat(abi.Stat.UNDECIDED)

    def program_fds(self) -> list[int]:
        """Descriptors of all programs, for whoever protects them."""
        return [program.fd for program in self._object.programs.values()]

    def misses(self) -> int:
        """How often the kernel's recursion guard skipped one of the programs."""
        return sum(program.recursion_misses() for program in self._object.programs.values())

    def lost(self) -> Mapping[str, int]:
        """Records that found their ring full, by ring."""
        return {
            "event_ring": self.stat(abi.Stat.EVENTS_LOST),
            "question_ring": self.stat(abi.Stat.QUESTIONS_LOST),
        }

    def errors(self) -> Mapping[str, int]:
        """What failed inside the programs, by kind."""
        kinds = (
            abi.Stat.LOADED_UNSEEN,
            abi.Stat.STORAGE_FAILED,
            abi.Stat.READ_FAILED,
            abi.Stat.PATH_FAILED,
            abi.Stat.TABLE_RACED,
            abi.Stat.ABANDONED,
            abi.Stat.REDECIDED,
            abi.Stat.REFUSED_EARLY,
        )
        return {kind.name.lower(): self.stat(kind) for kind in kinds}


def _attach_rank(section: str) -> int:
    kind, _, target = section.partition("/")
    if kind == "fexit":
        return 0
    return 2 if target in ("kernel_read_file", "kernel_load_data") else 1


def _shipped_object() -> bytes:
    resource = resources.files(__package__).joinpath(OBJECT_NAME)
    try:
        return resource.read_bytes()
    except FileNotFoundError:
        raise HookError(
            f"{OBJECT_NAME} is not in the package; from a source tree, build it: make bpf"
        ) from None
