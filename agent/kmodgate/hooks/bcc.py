# SPDX-License-Identifier: Apache-2.0
"""The ``bcc`` rung: ``bpf/bcc``, compiled on the node, for kernels without type information.

Kprobes watch every load. Where the kernel lets a program override what the two system calls return
(CONFIG_BPF_KPROBE_OVERRIDE, and both in the list of functions whose errors may be injected), loads are
refused as well: at the entry of the call, before the file is read, by what is known of the file. See
docs/adr/0016-what-a-kprobe-can-refuse.md for what that is worth.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, ClassVar, Final

from kmodgate.errors import HookError
from kmodgate.model import Backend, Decision, Verification
from kmodgate.node import NodePaths
from kmodgate.node.paths import read_text
from kmodgate.policy import refuses
from kmodgate.rungs import only_watches

from . import abi, bccabi, bccheaders, heap, libbpf
from .bcccompile import REMEDY, binding_path
from .bpf import BpfBackend, ProbeResult, shipped_object
from .generations import Generations
from .known import KnownDigests
from .library import TestRunOpts, library

log = logging.getLogger(__name__)

_TEXT: Final = "kmodgate.bcc.c"
_MAPS: Final = (
    "control",
    "decisions",
    "counters",
    "stats",
    "histograms",
    "introduction",
    "pinned",
    "verdicts",
    "events",
    "questions",
)
_MACHINES: Final = {"x86_64": ("-DKMG_X86", "x64"), "aarch64": ("-DKMG_ARM64", "arm64")}
_REQUIRED: Final = ("security_kernel_read_file", "security_kernel_load_data", "security_sb_free")
_CALLS: Final = ("finit_module", "init_module")
_SIGNATURE: Final = "mod_verify_sig"
_PMU: Final = "bus/event_source/devices/kprobe/type"
_INJECTABLE: Final = "kernel/debug/error_injection/list"
_COMPILE_SECONDS: Final = 900.0  # an emulated node takes minutes
_ANSWER_BYTES: Final = 1 << 16
_COMPILER_TAIL: Final = 1500
_SYMBOL: Final = re.compile(rb"^[0-9a-f]+ [tT] (\w+)$", re.MULTILINE)


def _symbols(proc: Path, names: frozenset[str]) -> frozenset[str]:
    """Those of the names that the kernel has as functions to put a probe on."""
    try:
        data = (proc / "kallsyms").read_bytes()
    except OSError:
        return frozenset()
    return names.intersection(match.decode() for match in _SYMBOL.findall(data))


class Probes:
    """Which functions of this kernel the programs go to, and what is missing.

    Attributes:
        calls: entries of the two system calls, the native ones first.
        overrides: every one of them may be refused.
        signature: what the kernel's keyrings say can be seen.
    """

    def __init__(self, paths: NodePaths, machine: str | None = None) -> None:
        self._paths = paths
        self._machine = machine or platform.machine()
        _, prefix = _MACHINES.get(self._machine, ("", ""))
        kinds = (prefix, "ia32") if prefix == "x64" else (prefix,)
        calls = [f"__{kind}_sys_{call}" for kind in kinds for call in _CALLS]
        self._native = frozenset(calls[:2])
        self._symbols = _symbols(paths.proc, frozenset((*calls, *_REQUIRED, _SIGNATURE)))
        self.calls: Final = tuple(call for call in calls if call in self._symbols)
        self.signature: Final = _SIGNATURE in self._symbols
        self.overrides: Final = not self.cannot_refuse()

    def lacks(self) -> Iterator[str]:
        """What keeps this rung from seeing loads, each with a remedy."""
        if self._machine not in _MACHINES:
            yield f"machine type {self._machine}: only {' and '.join(_MACHINES)} work"
            return
        for name in sorted((self._native | set(_REQUIRED)) - self._symbols):
            yield f"no function {name}() to put a probe on (CONFIG_KALLSYMS, CONFIG_SECURITY, CONFIG_MODULES)"
        if not (self._paths.sys / _PMU).exists():
            yield f"no kprobes as perf events ({self._paths.sys / _PMU}): CONFIG_KPROBE_EVENTS, Linux 4.17"
        if binding_path() is None:
            yield f"the Python binding of BCC is missing: {REMEDY}"
        try:
            bccheaders.find(os.uname().release)
        except HookError as error:
            yield str(error)

    def cannot_refuse(self) -> str:
        """Why loads can be watched only; empty when they can be refused.

        The list says more than the build's configuration: which functions may be overridden, not
        only whether any may.
        """
        text = read_text(self._paths.sys / _INJECTABLE)
        if text is None:
            return (
                "no list of functions whose errors may be injected (debugfs is not mounted on "
                "/sys/kernel/debug, or the kernel is built without CONFIG_FUNCTION_ERROR_INJECTION and "
                "CONFIG_BPF_KPROBE_OVERRIDE)"
            )
        listed = {line.split()[0] for line in text.splitlines() if line.strip()}
        missing = [call for call in self.calls if call not in listed]
        if missing or not self.calls:
            return f"the kernel lets nobody override {' or '.join(missing) or 'the system calls'}"
        return ""


def lacks(paths: NodePaths) -> tuple[str, ...]:
    """What keeps this node from the rung; empty when nothing does."""
    return tuple(Probes(paths).lacks())


def cannot_refuse(paths: NodePaths) -> str:
    """Why loads can only be watched on this node; empty when they can be refused."""
    return Probes(paths).cannot_refuse()


class _Loaded:
    """What the compiler's process handed over, in the shape of ``libbpf.Object``."""

    def __init__(self, maps: dict[str, int], programs: dict[str, int]) -> None:
        self._maps = maps
        self.fds = programs

    def map(self, name: str) -> libbpf.Map:
        """A map by name."""
        return libbpf.Map(name, self._maps[name])

    def close(self) -> None:
        """Unload what nothing else holds."""
        for fd in (*self._maps.values(), *self.fds.values()):
            os.close(fd)
        self._maps, self.fds = {}, {}


class BccBackend(BpfBackend):
    """Programs, maps and counters of the BCC rung.

    Nothing outlives the process: the kernel ends the probes with their descriptors.

    Attributes:
        overrides: loads can be refused; else they are watched.
    """

    backend: ClassVar[Backend] = Backend.BCC
    object_name: ClassVar[str] = _TEXT

    def __init__(self, *, paths: NodePaths, data: bytes | None = None) -> None:  # libbpf has no part in it
        KnownDigests.__init__(self)
        Generations.__init__(self, None)
        self.timings: dict[str, float] = {}
        self._probes = Probes(paths)
        missing = "; ".join(self._probes.lacks())
        if missing:
            raise HookError(f"backend {self.backend} cannot work here: {missing}")
        self.overrides = self._probes.overrides
        self._text = (data if data is not None else shipped_object(_TEXT)).decode()
        self._loaded = _Loaded({}, {})
        self._compiler: subprocess.Popen[str] | None = None
        self._attachments: list[int] = []
        self._maps = []
        self._task = 0

    # --- life ---------------------------------------------------------------------------

    def load(self) -> None:
        """Have BCC compile and load the programs, in a process of its own.

        Raises:
            HookError: no headers, no compiler, or the kernel refused.
        """
        start = time.perf_counter()
        heap.few_arenas()
        try:
            self._compile()
        except BaseException:
            self._end_compiler()
            raise
        self._object = self._loaded  # type: ignore[assignment]  # what of it is used has the same shape
        self._open_maps()
        heap.give_memory_back()
        self.timings["compile"] = time.perf_counter() - start

    def _compile(self) -> None:
        headers = bccheaders.find(os.uname().release)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the compiler
        with bccheaders.at_hand(headers) as (trees, environment):
            flag, _ = _MACHINES[platform.machine()]
            flags = [flag, bccheaders.inode_time(trees)]
            if self.overrides:
                flags.append("-DKMG_OVERRIDE")
            self._start_compiler([flag for flag in flags if flag], environment)
            fds = self._receive()
        programs = [name for name, _ in self._programs()]
        self._loaded = _Loaded(
            dict(zip(_MAPS, fds, strict=False)), dict(zip(programs, fds[len(_MAPS) :], strict=True))
        )

    def _programs(self) -> list[tuple[str, str]]:
        """Programs to load, each with its kind."""
        probes = {name: "probe" for name, how, _ in self._places() if how != "tracepoint"}
        return [*probes.items(), ("kmg_module_load", "tracepoint"), ("kmg_introduce", "tracepoint")]

    def _places(self) -> Iterator[tuple[str, str, str]]:
        """Program, how it is attached and where, in this order.

        Of two probes at one function the kernel asks the younger one first, and the other not at
        all where the first has ended the call. So the one that notes where the function returns
        comes last.
        """
        yield "kmg_superblock_freed", "entry", "security_sb_free"
        yield "kmg_module_load", "tracepoint", "module_load"
        if self._probes.signature:
            yield "kmg_signature_return", "return", _SIGNATURE
        yield "kmg_read_file", "entry", "security_kernel_read_file"
        yield "kmg_load_data", "entry", "security_kernel_load_data"
        for call in self._probes.calls:
            compat = "_compat" if call.startswith("__ia32") else ""
            yield f"kmg_{call.partition('_sys_')[2]}{compat}", "entry", call
        for call in self._probes.calls:
            yield "kmg_return", "return", call

    def _start_compiler(self, flags: list[str], environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_COMPILE_SECONDS)
        self._channel = ours
        with theirs:
            self._compiler = subprocess.Popen(
                # -P: nothing from the working directory.
                [sys.executable, "-P", "-m", "kmodgate.hooks.bcccompile", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **environment},
                text=True,
            )
        request = {
            "text": self._text,
            "flags": flags,
            "maps": _MAPS,
            "programs": self._programs(),
            "attach": list(self._places()),
        }
        self._tell_compiler(json.dumps(request))

    def _tell_compiler(self, line: str) -> None:
        pipe: IO[str] | None = self._compiler.stdin if self._compiler is not None else None
        if pipe is None:
            raise HookError("the compiler's process is gone")
        try:
            pipe.write(f"{line}\n")
            pipe.flush()
        except OSError as error:
            raise HookError(
                f"the compiler's process is gone ({error.strerror}); it said: {self._tail()}"
            ) from error

    def _receive(self) -> list[int]:
        """The descriptors that the compiler's process hands over. Raises HookError with what it said."""
        try:
            message, fds, _, _ = socket.recv_fds(self._channel, _ANSWER_BYTES, 64)
        except TimeoutError as error:
            raise HookError(f"BCC did not compile the programs within {_COMPILE_SECONDS:.0f} s") from error
        if not message:
            raise HookError(f"the compiler's process has died; it said: {self._tail() or 'nothing'}")
        answer = json.loads(message)
        if "error" in answer:
            said = self._tail()
            raise HookError(str(answer["error"]) + (f"; the compiler said: {said}" if said else ""))
        for fd in fds:
            os.set_inheritable(fd, False)
        return fds

    def _tail(self) -> str:
        """The end of what BCC wrote to standard error, on one line."""
        self._said.seek(0)
        return " ".join(self._said.read().decode("utf-8", "backslashreplace").split())[-_COMPILER_TAIL:]

    def _end_compiler(self) -> None:
        if self._compiler is not None:
            self._compiler.kill()
            self._compiler.wait()
            if self._compiler.stdin is not None:
                self._compiler.stdin.close()
            self._compiler = None
            self._channel.close()
            self._said.close()

    def _open_maps(self) -> None:
        self._open_tables()
        self._introduction = abi.Introduction.from_buffer(
            self._shared("introduction", ctypes.sizeof(abi.Introduction))
        )
        self._verdicts = self._loaded.map("verdicts")
        self.question_ring = libbpf.RingBuffer(self._loaded.map("questions"))

    def attach(self) -> None:
        """Attach every program; the compiler's process ends with that."""
        if not self._control.generation:
            raise HookError("no policy was set before attaching")
        start = time.perf_counter()
        self._tell_compiler("attach")
        self._attachments = self._receive()
        self._end_compiler()
        self._acts = True
        if not self.overrides:
            log.warning("loads are watched and not refused: %s", self._probes.cannot_refuse())
        self.timings["attach"] = time.perf_counter() - start

    def detach(self) -> None:
        """Detach every program; maps and counters stay readable."""
        for fd in reversed(self._attachments):
            os.close(fd)
        self._attachments = []

    def leave(self) -> None:
        """Let go of the attachments, which ends them."""
        self.detach()

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
        self._end_compiler()
        self.leave()
        for ring in ("event_ring", "question_ring"):
            if hasattr(self, ring):
                getattr(self, ring).close()
        self._loaded.close()

    def program_fds(self) -> list[int]:
        """Descriptors of all programs, for whoever protects them."""
        return list(self._loaded.fds.values())

    def link_fds(self) -> list[int]:
        """None: what ends its attachments is the end of a perf event."""
        return []

    def misses(self) -> int:
        """The kernel does not count what it skips of a perf event's programs."""
        return 0

    def _identify(self, who: abi.Introduction) -> int:
        self._introduction.fd = who.fd
        opts = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        fd = self._loaded.fds["kmg_introduce"]
        library.integer("kmg_introduce", library.lib.bpf_prog_test_run_opts(fd, ctypes.byref(opts)))
        for name in ("device", "superblock", "task"):
            setattr(who, name, getattr(self._introduction, name))
        return ctypes.c_int32(opts.retval).value

    # --- what the agent tells the programs ----------------------------------------------

    def set_policy(self, table: tuple[Decision, ...]) -> int:
        """Put a table in force; one that refuses only where loads can be refused. Raises HookError."""
        if not self.overrides and refuses(table):
            raise HookError(only_watches(self.backend, self._probes.cannot_refuse()))
        return super().set_policy(table)

    def probe(self) -> ProbeResult:
        """As on the other rungs; where nothing is refused, that is what it says."""
        return replace(super().probe(), only_watches=not self.overrides)

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """No program of this rung sees a digest."""

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        """Said by ``judged``, which knows the file's time as well."""

    def judged(
        self,
        version: tuple[tuple[int, int], int, int, int],
        verification: Verification,
        contents: Verification,
        trust_generation: int,
    ) -> None:
        """Store what was found for a file, as long as it stays as it was. Any thread may call this.

        Args:
            version: device, inode, size and ctime in ns, as they were before it was read.
            verification: of its bytes.
            contents: of what they unpack to.
            trust_generation: that it was verified with.
        """
        (major, minor), inode, size, changed = version
        key = bccabi.Version(inode=inode, size=size, changed=changed, device=major << 20 | minor)
        value = abi.Answer(trust_generation=trust_generation, verification=verification, contents=contents)
        with self._answer_lock:
            if trust_generation == self._control.trust_generation:
                self._verdicts.update(bytes(key), bytes(value))

    def done(self, question: int) -> None:
        """Nobody waits."""

    # --- what the programs tell the agent -----------------------------------------------

    def questions(self) -> Iterator[abi.Question]:
        """Questions of loaders that have been refused meanwhile: each knows the way to its file."""
        for record in self.question_ring.read():
            asked = bccabi.Question.from_buffer_copy(record)
            question = abi.Question.from_buffer_copy(asked.question)
            if asked.path_length:
                question.place = os.fsdecode(abi.text(asked.path))
            yield question
