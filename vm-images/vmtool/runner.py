# SPDX-License-Identifier: Apache-2.0
"""Boot a machine, run one command in it, bring back its output and its status.

The guest's side of the contract is ``guest/init``. Standard output, standard error and
status each have a virtio-serial port. The first two end with a token made for this run, so
output is known to be whole; a machine that ends without status and tokens has died.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import accel, apt, artifacts, cache, stage
from .errors import VmDied, VmToolError
from .host import PROJECT, find
from .machine import ERR_PORT, OUT_PORT, STATUS_PORT, Machine, Share, arguments

DEFAULT_SUITE = apt.BASE_SUITE
# Status and tokens come within the guest's own grace of 2 s; emulation is slow.
_FLUSH_SECONDS = 20.0
_TAIL_LINES = 25
PANIC = "Kernel panic"
_KEEP_LOGS = 50
_GUEST_ENV = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "KMODGATE_VM": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_ADDOPTS": "-p no:cacheprovider",
}

Sink = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Options:
    """What one run may choose.

    Attributes:
        suite: Debian suite of the kernel, or another word of ``artifacts.parts``.
        share: folder mounted read-write at ``/share``, also the working directory.
        append: more kernel arguments.
        memory: MiB.
        timeout: seconds for the whole run, boot included.
        boot: seconds until the command begins.
        readonly_root: root device and mount read-only.
        icount: guest time follows instructions; TCG, one CPU.
        in_turn: emulated processors run one after another.
        network: user-mode network.
        forward: with it, ports of the host's loopback that lead to ports of the guest.
        env: variables for the command.
    """

    suite: str = DEFAULT_SUITE
    share: Path | None = None
    append: str = ""
    smp: int = 2
    memory: int = 1024
    timeout: float = 600.0
    boot: float = 120.0
    readonly_root: bool = False
    icount: bool = False
    in_turn: bool = False
    network: bool = False
    forward: Mapping[int, int] | None = None
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended, like ``subprocess.CompletedProcess``.

    Attributes:
        status: 0 to 255; 128 + N when signal N ended the command.
        log: the console log.
    """

    status: int
    stdout: bytes
    stderr: bytes
    log: Path


class Tail:
    """Passes a stream on, but for the token that ends it.

    Args:
        token: the end mark.
        sink: gets every byte before it, in pieces.
    """

    def __init__(self, token: bytes, sink: Sink) -> None:
        self._token = token
        self._sink = sink
        self._held = b""
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take the next piece; holds back only what may be the token's beginning."""
        if self.done:
            return
        data = self._held + data
        end = data.find(self._token)
        if end >= 0:
            self.done, self._held = True, b""
            rest = data[:end]
        else:
            keep = next((n for n in range(len(self._token) - 1, 0, -1) if data.endswith(self._token[:n])), 0)
            rest, self._held = data[: len(data) - keep], data[len(data) - keep :]
        if rest:
            self._sink(rest)


def to_descriptor(descriptor: int) -> Sink:
    """An unbuffered binary writer: what arrives goes out at once, byte for byte."""

    def write(data: bytes) -> None:
        with open(descriptor, "wb", buffering=0, closefd=False) as raw:
            view = memoryview(data)
            while view:
                view = view[raw.write(view) :]

    return write


def parse_status(text: bytes) -> int | None:
    """The status in what came from the status port, or None: ``start`` line, ``exit N`` line."""
    for line in text.split(b"\n")[:-1]:
        word, _, number = line.partition(b" ")
        if word == b"exit" and number.isdigit():
            return int(number)
    return None


def console_tail(log: Path) -> str:
    """The end of the console log, from the panic on if there was one; no control characters."""
    try:
        text = log.read_bytes()[-65536:].decode(errors="replace")
    except OSError:
        return ""
    lines = ["".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines()]
    for number, line in enumerate(lines):
        if PANIC in line:
            return "\n".join(lines[number : number + _TAIL_LINES])
    return "\n".join(lines[-_TAIL_LINES:])


def _why_it_ended(log: Path, qemu_error: str, *, started: bool) -> str:
    """One line about a machine that ended by itself."""
    if PANIC in console_tail(log):
        return "the guest's kernel panicked"
    if qemu_error.strip():
        return f"QEMU failed: {qemu_error.strip().splitlines()[-1]}"
    return (
        "the guest powered off before the command ended"
        if started
        else "the guest ended before the command began"
    )


def _new_log() -> Path:
    """A fresh log file's path; the oldest logs go."""
    folder = cache.root() / "logs"
    folder.mkdir(exist_ok=True)
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for old in logs[:-_KEEP_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(2)}.log"


@contextlib.contextmanager
def prepared(options: Options, command: Sequence[str] | None, token: str) -> Iterator[Machine]:
    """The machine for one run, with its run folder, which lives as long as the context."""
    if options.share is not None and not options.share.is_dir():
        raise VmToolError(f"--share {options.share}: no such folder")
    parts = artifacts.parts(options.suite)
    its_kernel, disk = parts.kernel, parts.disk
    run_folder = Path(tempfile.mkdtemp(prefix="kmodgate-vm-"))
    try:
        shares = {
            "agent": Share(stage.get(), stage.GUEST_SOURCE),
            "src": Share(PROJECT, "/src"),
            "testmodules": Share(parts.testmodules, "/testmodules"),
            "certs": Share(parts.certs, "/certs"),
        }
        if options.share is not None:
            shares["share"] = Share(options.share.absolute(), "/share", writable=True)
        env = {**_GUEST_ENV, "KMODGATE_VM_CWD": "/share" if options.share else "/root", **(options.env or {})}
        files = {
            "token": token,
            "env": "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items()),
            "mounts": "".join(f"{tag} {share.guest} {share.options}\n" for tag, share in shares.items()),
            "shell" if command is None else "command": ""
            if command is None
            else f"exec {shlex.join(command)}\n",
        }
        for name, text in files.items():
            (run_folder / name).write_text(text)
        yield Machine(
            kernel=its_kernel.vmlinux,
            initrd=its_kernel.initrd,
            disk=disk,
            console=_new_log(),
            accel="tcg" if options.icount else accel.choose(its_kernel),
            smp=options.smp,
            memory=options.memory,
            append=options.append,
            readonly_root=options.readonly_root,
            icount=options.icount,
            in_turn=options.in_turn,
            network=options.network,
            forward=options.forward or {},
            shares={"run": Share(run_folder, "/run/vm"), **shares},
        )
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)


def launch_argv(machine: Machine, ports: Mapping[str, int] | None) -> list[str]:
    """QEMU under ``setpriv``, so that it never outlives us."""
    argv = arguments(machine, ports)
    return [find("setpriv"), "--pdeathsig", "KILL", find(argv[0]), *argv[1:]]


class _Conversation:
    """The host's end of one run: reads the ports until status and tokens are there."""

    def __init__(self, machine: Machine, token: str, out: Sink, err: Sink, options: Options) -> None:
        self._machine = machine
        self._streams = {OUT_PORT: Tail(token.encode(), out), ERR_PORT: Tail(token.encode(), err)}
        self._status = b""
        self._timeout, self._boot = options.timeout, options.boot

    def _feed(self, name: str, data: bytes) -> None:
        if name == STATUS_PORT:
            self._status += data
        else:
            self._streams[name].feed(data)

    @property
    def _started(self) -> bool:
        return self._status.startswith(b"start\n")

    def hold(self, qemu: subprocess.Popen[bytes], ends: Mapping[str, socket.socket]) -> int:
        """Read until the end.

        Raises:
            VmDied: the machine ended, hung or took too long.
        """
        log = self._machine.console
        begin = time.monotonic()
        flush_by: float | None = None
        with selectors.DefaultSelector() as selector:
            for name, end in ends.items():
                selector.register(end, selectors.EVENT_READ, name)
            while True:
                for key, _ in selector.select(timeout=0.2):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if data:
                        self._feed(key.data, data)
                    else:
                        selector.unregister(key.fileobj)
                status = parse_status(self._status)
                if status is not None and all(stream.done for stream in self._streams.values()):
                    return status
                now = time.monotonic()
                if not selector.get_map():
                    qemu.wait()
                    error = qemu.stderr.read().decode(errors="replace") if qemu.stderr else ""
                    raise VmDied(_why_it_ended(log, error, started=self._started), log, console_tail(log))
                if now - begin > self._timeout:
                    raise VmDied(f"timeout after {self._timeout:.0f} s", log, console_tail(log))
                if not self._started and now - begin > self._boot:
                    raise VmDied(f"the guest did not boot within {self._boot:.0f} s", log, console_tail(log))
                if status is not None:
                    flush_by = flush_by or now + _FLUSH_SECONDS
                    if now > flush_by:
                        raise VmDied(
                            "the command ended, but its output did not arrive whole", log, console_tail(log)
                        )


def run(
    command: Sequence[str],
    options: Options | None = None,
    *,
    stdout: Sink | None = None,
    stderr: Sink | None = None,
    **changes: object,
) -> Completed:
    """Run ``command`` as root in a fresh machine.

    Args:
        command: program and arguments; no shell is involved.
        options: how to run it.
        stdout: gets the command's output live; without it the output is only collected.
        stderr: the same for standard error.
        changes: fields of ``Options`` by name.

    Raises:
        VmDied: the machine ended without a status from the command.
        VmToolError: the machine could not be started.
    """
    chosen = replace(options or Options(), **changes)  # type: ignore[arg-type]
    collected = {"out": bytearray(), "err": bytearray()}

    def sink(name: str, live: Sink | None) -> Sink:
        def take(data: bytes) -> None:
            if live is None:
                collected[name].extend(data)
            else:
                live(data)

        return take

    token = secrets.token_hex(16)
    with prepared(chosen, command, token) as machine, contextlib.ExitStack() as stack:
        pairs = {name: socket.socketpair() for name in (OUT_PORT, ERR_PORT, STATUS_PORT)}
        for pair in pairs.values():
            for end in pair:
                stack.callback(end.close)
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        qemu = subprocess.Popen(
            launch_argv(machine, theirs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=tuple(theirs.values()),
        )
        try:
            for pair in pairs.values():
                pair[1].close()
            talk = _Conversation(machine, token, sink("out", stdout), sink("err", stderr), chosen)
            status = talk.hold(qemu, {name: pair[0] for name, pair in pairs.items()})
        except VmDied as error:
            error.stdout, error.stderr = bytes(collected["out"]), bytes(collected["err"])
            raise
        finally:
            qemu.send_signal(signal.SIGKILL)
            qemu.wait()
            if qemu.stderr:
                qemu.stderr.close()
    return Completed(status, bytes(collected["out"]), bytes(collected["err"]), machine.console)


def shell(options: Options) -> int:
    """An interactive root shell on this terminal; returns QEMU's status."""
    with prepared(options, None, "") as machine:
        return subprocess.run(launch_argv(machine, None), check=False).returncode
