# SPDX-License-Identifier: Apache-2.0
"""The ``bpf-lsm`` rung: loads, attaches and talks to the programs of ``bpf/kmodgate.bpf.c``.

What the programs decide is in the table that ``set_policy`` writes; this module moves
records between the kernel and the agent, and knows no policy.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar, Final, Self

from kmodgate.errors import HookError
from kmodgate.model import Backend, Decision
from kmodgate.policy import TABLE_SIZE, judges_bytes

from . import abi, heap, libbpf
from .counts import KernelCounts
from .generations import PLUMBING, Generations
from .known import KnownDigests
from .pins import Pins
from .superblocks import Superblocks

log = logging.getLogger(__name__)

_SYS_INIT_MODULE: Final = {"x86_64": 175, "aarch64": 105}
_SYS_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273}
_PROBE_IMAGE: Final = bytes(128)  # long enough to be looked at, and no ELF file
_HEARTBEAT_MAX_AGE: Final = 3_000_000_000
_SYSCALLS: Final = (
    "__x64_sys_finit_module",
    "__x64_sys_init_module",
    "__ia32_sys_finit_module",
    "__ia32_sys_init_module",
    "__arm64_sys_finit_module",
    "__arm64_sys_init_module",
)
_INSTANCE_SECTION: Final = ".rodata.instance"


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
        only_watches: the programs refuse nothing, this load neither.
    """

    errno: int
    first_hook: bool
    signature: bool
    ended: bool
    bytes_read: bool = False
    only_watches: bool = False


class BpfBackend(KernelCounts, KnownDigests, Generations):
    """Programs, maps and counters of one loaded object.

    Use as a context manager; leaving it detaches what is not pinned. Not thread-safe but for
    ``answer`` and ``done``, which any thread may call.

    Attributes:
        backend: the rung of the ladder.
        object_name: file of the compiled programs, beside this module.
        required: kernel functions without which nothing can be enforced, one of them at least.
        optional: kernel functions whose programs are left out where they are missing.
        adopted: programs of an earlier agent were in force when this one came.
        last_seen: CLOCK_BOOTTIME seconds of an earlier agent's last sign of life; None for none.
    """

    backend: ClassVar[Backend] = Backend.BPF_LSM
    object_name: ClassVar[str] = "kmodgate.bpf.o"
    required: ClassVar[tuple[str, ...]] = ("module_sig_check",)
    optional: ClassVar[tuple[str, ...]] = _SYSCALLS

    def __init__(self, data: bytes | None = None, *, pins: Pins | None = None) -> None:
        """Open the object that is shipped with the package, or ``data``.

        Args:
            data: another object.
            pins: where programs and maps outlive this process; None for nowhere.

        Raises:
            HookError: libbpf or the object is missing, or the kernel has no BTF.
        """
        KnownDigests.__init__(self)
        Generations.__init__(self, pins)
        self.timings: dict[str, float] = {}
        start = time.perf_counter()
        heap.few_arenas()
        present = libbpf.kernel_functions((*self.optional, *self.required))
        if not present.intersection(self.required):
            raise HookError(
                f"the kernel's BTF has no {self.required[0]}(): CONFIG_MODULE_SIG is off, or the compiler "
                "inlined it; signatures cannot be enforced through this backend"
            )
        self.syscalls: Final = tuple(name for name in _SYSCALLS if name in present)

        def wanted(section: str) -> bool:
            target = section.partition("/")[2]
            return target not in self.optional or target in present

        shipped = data if data is not None else shipped_object(self.object_name)
        self._key = int.from_bytes(hashlib.sha256(shipped).digest()[:8], "little")
        self._object = libbpf.Object(shipped, wanted)
        self._maps: list[mmap.mmap] = []
        self._task = 0
        self.timings["open"] = time.perf_counter() - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def load(self) -> None:
        """Have the kernel verify the programs, and create the maps or take those that are pinned.

        Raises:
            HookError: the kernel refused, or another agent runs.
        """
        start = time.perf_counter()
        if self._pins is not None:
            self._pins.prepare()
            self._adopt(self._pins)
            self._object.pin_maps(self._pins.maps)
        self._object.set_constant(_INSTANCE_SECTION, self._instance.to_bytes(4, "little"))
        self._object.load()
        self._open_maps()
        if self._pins is not None:
            self.last_seen = self._control.seen / 1e9 or None
        heap.give_memory_back()
        self.timings["load"] = time.perf_counter() - start

    def _open_maps(self) -> None:
        """Map into memory what is read and written often, and open the rings."""
        self._open_tables()
        self._answers = self._object.map("answers")
        self._done = self._object.map("done")
        self._files = self._object.map("files")
        self.question_ring = libbpf.RingBuffer(self._object.map("questions"))
        self._remember_answers()

    def _open_tables(self) -> None:
        """What all rungs have."""
        self._control = abi.Control.from_buffer(self._shared("control", ctypes.sizeof(abi.Control)))
        table = abi.TABLE_COPIES * TABLE_SIZE
        self._table = (abi.Decision * table).from_buffer(
            self._shared("decisions", table * ctypes.sizeof(abi.Decision))
        )
        self._counters = self._numbers("counters", abi.COUNTERS)
        self._stats = self._numbers("stats", len(abi.Stat))
        self._histograms = self._numbers("histograms", abi.HISTOGRAM_ROW * len(abi.Histogram))
        self.superblocks = Superblocks(self._object.map("pinned"), self._control, self._identify)
        self.event_ring = libbpf.RingBuffer(self._object.map("events"))
        self._control.heartbeat_max_age = _HEARTBEAT_MAX_AGE
        self._control.probe = 0  # of an agent that was killed in the middle of one
        if not self._control.trust_generation:
            self._control.trust_generation = 1

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
        if self._acts and self._pins is not None:  # they are attached
            self.pin_links()
            self._take_over(self._pins)
            return
        if self.adopted:
            self._control.handover = 1  # before the first of ours is attached
        # What ends a load goes first and what begins one last, so that no load is seen to
        # begin whose end cannot be.
        order = sorted(self._object.programs.values(), key=lambda program: _attach_rank(program.section))
        for program in order:
            if program.name not in PLUMBING:
                self._links[program.name] = program.attach()
        if self._pins is not None:
            self.pin_links()
            self._take_over(self._pins)
        else:
            self._control.instance = self._instance
            self._acts = True
        self.timings["attach"] = time.perf_counter() - start

    def detach(self) -> None:
        """Detach every program, the pinned ones too; maps and counters stay readable."""
        if self._pins is not None and self._links:
            self._pins.remove_instance(self._instance)
        for link in reversed(self._links.values()):
            link.close()
        self._links = {}

    def forget(self) -> None:
        """Take every pin away, counters included. After ``detach`` and the last look at them."""
        if self._pins is not None:
            self._pins.remove_all()

    def leave(self) -> None:
        """Let go of the attachments. Pinned ones stay in force, but for those that never were."""
        for link in self._links.values():
            link.close()
        if self._pins is not None and self._links and not self._acts:
            self._pins.remove_instance(self._instance)
        self._links = {}

    def close(self) -> None:
        """Let go of everything; what is pinned stays. Safe to call twice."""
        self.leave()
        for ring in ("event_ring", "question_ring"):
            if hasattr(self, ring):
                getattr(self, ring).close()
        self._object.close()
        if self._pins is not None:
            self._pins.release()

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
        """Set the bounds of the wait and of the digest, how to wait, and what the kernel does itself."""
        self._control.wait_limit = wait_limit
        self._control.hold = int(hold_seconds * 1e9)
        self._control.max_size = max_size
        self._control.wait_asleep = wait_asleep
        self._control.sig_enforce = sig_enforce
        self._control.kernel_refuses = sig_enforce or lockdown

    def set_quiet(self, quiet: bool) -> None:
        """Whether loads that are let in without the agent leave it asleep: read ``events`` now and then."""
        self._control.quiet = quiet

    def introduce(self, root_fd: int) -> tuple[int, int]:
        """Pin the file system of ``root_fd`` as the root, and note who this thread is.

        Returns:
            ``(major, minor)`` of the pinned superblock.

        Raises:
            HookError: also when the process has a PID namespace of its own: /proc/1 is then
                not the node's first process, and no question could be followed to its asker.
        """
        who = abi.Introduction(fd=root_fd)
        result = self._identify(who)
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

    def _identify(self, who: abi.Introduction) -> int:
        """Have the kernel fill ``who``; 0, or a negative errno."""
        return self._object.programs["kmg_introduce"].test_run(who)

    @property
    def root_pinned(self) -> bool:
        """False when the pinned file system has gone away: LoadPin then denies everything."""
        return bool(self._control.root_superblock)

    def heartbeat(self) -> None:
        """Tell the programs that the agent answers."""
        self._control.heartbeat = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._control.seen = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def stop_heartbeat(self) -> None:
        """Tell the programs that nobody answers any more, so that no load waits."""
        self._control.heartbeat = 0

    # --- what the programs tell the agent ----------------------------------------------

    def rings(self) -> tuple[libbpf.RingBuffer, ...]:
        """What to wait on: the ring of events last, before it that of questions if there is one."""
        return self.question_ring, self.event_ring

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
        self._control.probe = self._task
        try:
            code = load_nothing()
        finally:
            self._control.probe = 0
        seen = [self._stats[stat] > count for stat, count in zip(stats, before, strict=True)]
        if code == errno.EPERM and not any(seen):
            raise HookError("the self-probe was refused before any hook: the agent lacks CAP_SYS_MODULE")
        return ProbeResult(code, *seen)


def load_nothing() -> int:
    """``init_module(2)`` with bytes that are no module: the errno. Raises HookError on other machines."""
    number = _SYS_INIT_MODULE.get(os.uname().machine)
    if number is None:
        raise HookError(f"no self-probe for machine type {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(number, _PROBE_IMAGE, ctypes.c_ulong(len(_PROBE_IMAGE)), b"")
    return ctypes.get_errno()


def load_file(descriptor: int) -> int:
    """``finit_module(2)`` on a file that is no module: the errno. Raises HookError on other machines."""
    number = _SYS_FINIT_MODULE.get(os.uname().machine)
    if number is None:
        raise HookError(f"no module loading for machine type {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(number, descriptor, b"", 0) else 0


def _attach_rank(section: str) -> int:
    kind, _, target = section.partition("/")
    if kind == "fexit":
        return 0
    if target not in ("kernel_read_file", "kernel_load_data"):
        return 1
    # Of two programs at one hook the kernel runs the later one first: kmg_make_state.
    return 3 if section == "lsm/kernel_read_file" else 2


def shipped_object(name: str) -> bytes:
    """A compiled object of the package, by its file name. Raises HookError when it was not built."""
    resource = resources.files(__package__).joinpath(name)
    try:
        return resource.read_bytes()
    except FileNotFoundError:
        raise HookError(f"{name} is not in the package; from a source tree, build it: make bpf") from None
