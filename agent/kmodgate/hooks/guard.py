# SPDX-License-Identifier: Apache-2.0
"""Loads, attaches and talks to the guard's programs (``bpf/guard.bpf.c``): ``hardened: true``.

Each agent brings a guard of its own and pins it, below a directory given to it::

    DIRECTORY/guard/7/PROGRAM    links of guard 7
    DIRECTORY/guard/7/register   how the next agent registers
    DIRECTORY/guard/7/control    what the next agent takes over
    DIRECTORY/guard/7/sysctl     the program on the root cgroup

The next agent registers with the guard that it finds, attaches its own, and removes the old
one: at no moment is there none. The program on the root cgroup stays until somebody detaches it,
which takes a descriptor that the guard refuses; it is pinned for the next agent, to whom the
kernel does not give a program by its number alone (CAP_SYS_ADMIN).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Self

from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.node.process import Capability, read_process

from . import abi, bpfcall, guardabi, heap, libbpf
from .guardabi import ObjectKind, Switch
from .guardplace import need_bpffs, root_cgroup, what_works

OBJECT_NAME: Final = "guard.bpf.o"
REGISTER: Final = "register"
CONTROL: Final = "control"
SYSCTL: Final = "sysctl"
_SYSCTL: Final = "kmg_guard_sysctl"
_REGISTER_PROGRAM: Final = "kmg_guard_register"
_RETRY: Final = 0.1  # seconds
_FTRACE: Final = "sys/kernel/ftrace_enabled"


@dataclass(frozen=True, slots=True)
class Denial:
    """What the guard has denied of one kind; ``tgid``, ``uid`` and ``comm`` are of the last time.

    ``comm`` is chosen by whoever was denied.
    """

    count: int
    tgid: int
    uid: int
    comm: str


class Guard:
    """One guard: object, attachments, pins.

    Args:
        directory: on a BPF file system; kmodgate's other pins may lie in it too. Made when missing.
        paths: where the node's file systems are mounted.
        data: another object than the one that is shipped.
    """

    def __init__(self, directory: Path, paths: NodePaths | None = None, data: bytes | None = None) -> None:
        self._directory: Final = directory
        self._home: Final = directory / "guard"
        self._paths = paths or NodePaths()
        self._data = data
        self._object: libbpf.Object | None = None
        self._links: dict[str, libbpf.Link] = {}
        self._memory: list[mmap.mmap] = []
        self._number = 0
        self._sysctl = False
        self._used = bytes(guardabi.DIGEST_LEN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- before anything of kmodgate's is touched ---------------------------------------

    def register_with_former(self, wait: float = 10.0) -> bool:
        """Become the registered agent of the guards that an earlier agent left; False for none.

        Before this, maps and pins of the earlier agent are closed to this process.

        Args:
            wait: seconds that the earlier agent may take to end, as in a rolling update.

        Raises:
            HookError: the earlier agent still lives.
        """
        deadline = time.monotonic() + wait
        former = self._numbers()
        for number in former:
            home = self._home / str(number)
            while True:
                result = self._register_pinned(home / REGISTER)
                if result == 0:
                    break
                if result not in {errno.EBUSY, errno.EPERM}:
                    raise HookError(f"{home}: registering with the guard: {os.strerror(result)}")
                if time.monotonic() >= deadline:
                    raise HookError(
                        f"the guard in {home} belongs to an agent that is still alive, or this process is "
                        "being traced; end the other agent, or lift the guard: kmodgate unlock"
                    )
                time.sleep(_RETRY)
            with contextlib.suppress(HookError):
                self._used = _first_bytes(home / CONTROL, guardabi.DIGEST_LEN)
        return bool(former)

    def _register_pinned(self, path: Path) -> int:
        try:
            handle = bpfcall.pinned(path)
        except bpfcall.BpfCallError as error:
            # A guard that was being made or removed when its agent was killed has no such pin.
            return 0 if error.number == errno.ENOENT else error.number
        try:
            return -self._register(lambda candidate: bpfcall.run(handle, candidate))
        finally:
            os.close(handle)

    def _register(self, run: Callable[[guardabi.Candidate], int]) -> int:
        place = self._paths.proc / "1/root" / self._directory.relative_to("/")
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HookError(f"{place}: {error.strerror}") from error
        try:
            return run(guardabi.Candidate(fd=descriptor))
        finally:
            os.close(descriptor)

    def _numbers(self) -> list[int]:
        try:
            names = [path.name for path in self._home.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HookError(f"{self._home}: {error.strerror}") from error
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    # --- start ----------------------------------------------------------------------------

    def attach(self, programs: Iterable[int], links: Iterable[int]) -> None:
        """Load, register, attach, pin, and take the earlier guards away.

        Args:
            programs: descriptors of the programs to protect; their maps follow from them.
            links: descriptors of their attachments.

        Raises:
            HookError: something cannot be guarded here. Nothing is left behind, and an
                earlier guard stays.
        """
        if read_process(NodePaths()).may(Capability.CAP_NET_ADMIN) is False:
            raise HookError(
                "hardened: the program that guards kernel.ftrace_enabled needs CAP_NET_ADMIN, which this "
                "process lacks (the chart grants it with hardened: true)"
            )
        former = self._numbers()
        self._number = max(former, default=0) + 1
        try:
            with root_cgroup(self._paths) as cgroup:
                self._load()
                self._pin_directory()
                self._protect(programs, links)
                self._attach_all(cgroup)
                for number in former:
                    self._detach_sysctl(cgroup, number)
                    self._unpin(number)
        except OSError as error:
            self.remove()
            raise HookError(f"{error.filename or self._home}: {error.strerror}") from error
        except HookError:
            self.remove()
            raise

    def _load(self) -> None:
        data = self._data if self._data is not None else _shipped_object()
        self._object = libbpf.Object(data)
        hooks = {
            program.section.partition("/")[2]
            for program in self._object.programs.values()
            if program.section.startswith("lsm/")
        }
        present = libbpf.kernel_functions(f"bpf_lsm_{hook}" for hook in hooks)
        missing = sorted(hook for hook in hooks if f"bpf_lsm_{hook}" not in present)
        if missing:
            raise HookError(f"hardened: this kernel has no BPF LSM hook {', '.join(missing)}")
        self._object.load()
        self._control = guardabi.Control.from_buffer(
            self._shared("guard_control", ctypes.sizeof(guardabi.Control))
        )
        self._denied = (guardabi.Denied * len(Switch)).from_buffer(
            self._shared("guard_denied", len(Switch) * ctypes.sizeof(guardabi.Denied))
        )
        self._control.used[:] = self._used
        heap.give_memory_back()

    def _shared(self, name: str, size: int) -> mmap.mmap:
        assert self._object is not None  # noqa: S101  # _load comes first
        memory = self._object.map(name).memory(size)
        self._memory.append(memory)
        return memory

    def _pin_directory(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        need_bpffs(self._directory, self._paths)
        assert self._object is not None  # noqa: S101  # attach loads first
        result = self._register(self._object.programs[_REGISTER_PROGRAM].test_run)
        if result:
            raise HookError(
                f"registering with the guard: {os.strerror(-result)}"
                + ("; this process is being traced" if result == -errno.EPERM else "")
            )

    def _protect(self, programs: Iterable[int], links: Iterable[int]) -> None:
        """Note the numbers of programs, of their maps, and of their links."""
        assert self._object is not None  # noqa: S101  # attach loads first
        register, _ = bpfcall.program_numbers(self._object.programs[_REGISTER_PROGRAM].fd)
        own = (program.fd for program in self._object.programs.values())
        for handle in (*programs, *own):
            number, maps = bpfcall.program_numbers(handle)
            kind = ObjectKind.REGISTER if number == register else ObjectKind.PROGRAM
            self._note(kind, number)
            for one in maps:
                self._note(ObjectKind.MAP, one)
        for handle in links:
            self._note_link(handle)

    def _note(self, kind: ObjectKind, number: int) -> None:
        assert self._object is not None  # noqa: S101  # attach loads first
        key = (kind << 32 | number).to_bytes(8, "little")
        self._object.map("guard_objects").update(key, (1).to_bytes(4, "little"))

    def _note_link(self, handle: int) -> None:
        self._note(ObjectKind.LINK, bpfcall.link_numbers(handle)[0])

    def _attach_all(self, cgroup: int) -> None:
        assert self._object is not None  # noqa: S101  # attach loads first
        for name, program in self._object.programs.items():
            if program.section.startswith("lsm/"):
                self._links[name] = program.attach()
                self._note_link(self._links[name].fd)
        self.pin_missing()
        bpfcall.attach_to_cgroup(cgroup, self._object.programs[_SYSCTL].fd, bpfcall.CGROUP_SYSCTL)
        self._sysctl = True

    # --- while it runs ----------------------------------------------------------------------

    def pin_missing(self) -> list[str]:
        """Pin what is not pinned, and name it: at the start all, later what somebody has removed."""
        assert self._object is not None  # noqa: S101  # attach loads first
        home = self._home / str(self._number)
        # The way in for the next agent comes first, and goes last: whenever this process is
        # killed, no guard stays in force with which nobody can register.
        wanted = {
            REGISTER: self._object.programs[_REGISTER_PROGRAM].fd,
            CONTROL: self._object.map("guard_control").fd,
            SYSCTL: self._object.programs[_SYSCTL].fd,
            **{name: link.fd for name, link in self._links.items()},
        }
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            present = {path.name for path in home.iterdir()}
        except OSError as error:
            raise HookError(f"{home}: {error.strerror}") from error
        missing = [name for name in wanted if name not in present]
        for name in missing:
            bpfcall.pin(wanted[name], home / name)
        return missing

    def denied(self) -> dict[Switch, Denial]:
        """What was denied so far, by what was tried."""
        return {
            switch: Denial(
                entry.count, entry.tgid, entry.uid, abi.text(entry.comm).decode("utf-8", "replace")
            )
            for switch, entry in zip(Switch, self._denied, strict=True)
        }

    def lift(self, seconds: float) -> None:
        """Deny nothing for some seconds; 0 denies again at once."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._control.lifted_until = now + int(seconds * 1e9) if seconds else 0

    @property
    def lifted(self) -> bool:
        """Whether the guard is lifted now."""
        return bool(self._control.lifted_until > time.clock_gettime_ns(time.CLOCK_MONOTONIC))

    @property
    def used_token(self) -> bytes:
        """SHA-256 of the last token that lifted this guard or one before it; zeros for none."""
        return bytes(self._control.used)

    def burn(self, digest: bytes) -> None:
        """Remember that this token was used."""
        self._control.used[:] = digest

    def denies_others(self) -> str | None:
        """What the guard lets a process that is not the agent do, or None: asked by doing it."""
        return what_works(self._paths.proc / _FTRACE, self._home / "probe")

    # --- the end ----------------------------------------------------------------------------

    def remove(self) -> None:
        """Detach, and take this guard's pins away."""
        if self._sysctl:
            assert self._object is not None  # noqa: S101  # only what _load opened gets attached
            with root_cgroup(self._paths) as cgroup:
                fd = self._object.programs[_SYSCTL].fd
                bpfcall.detach_from_cgroup(cgroup, fd, bpfcall.CGROUP_SYSCTL)
            self._sysctl = False
        self._unpin(self._number)
        with contextlib.suppress(OSError):
            self._home.rmdir()
        self.close()

    def remove_former(self) -> int:
        """Take away every guard that is there; only for who is registered with them. How many?"""
        numbers = self._numbers()
        with root_cgroup(self._paths) as cgroup:
            for number in numbers:
                self._detach_sysctl(cgroup, number)
                self._unpin(number)
        with contextlib.suppress(OSError):
            self._home.rmdir()
        return len(numbers)

    def _unpin(self, number: int) -> None:
        """Take one guard's pins away, ``register`` last; one that has none is no error."""
        home = self._home / str(number)
        try:
            names = sorted((path.name for path in home.iterdir()), key=lambda name: name == REGISTER)
            for name in names:
                (home / name).unlink()
            home.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise HookError(f"{error.filename or home}: {error.strerror}") from error

    def _detach_sysctl(self, cgroup: int, number: int) -> None:
        """Detach an earlier guard's program from the root cgroup."""
        try:
            handle = bpfcall.pinned(self._home / str(number) / SYSCTL)
        except bpfcall.BpfCallError as error:
            if error.number == errno.ENOENT:  # its agent was killed before it was pinned, or attached
                return
            raise
        try:
            bpfcall.detach_from_cgroup(cgroup, handle, bpfcall.CGROUP_SYSCTL)
        except bpfcall.BpfCallError as error:
            if error.number != errno.ENOENT:  # somebody has detached it
                raise
        finally:
            os.close(handle)

    def close(self) -> None:
        """Let go of everything; what is pinned stays in force. Safe to call twice."""
        for link in self._links.values():
            link.close()
        self._links = {}
        if self._object is not None:
            self._object.close()
            self._object = None


def _first_bytes(path: Path, count: int) -> bytes:
    handle = bpfcall.pinned(path)
    try:
        return bpfcall.first_value(handle)[:count]
    finally:
        os.close(handle)


def _shipped_object() -> bytes:
    resource = resources.files(__package__).joinpath(OBJECT_NAME)
    try:
        return resource.read_bytes()
    except FileNotFoundError:
        raise HookError(
            f"{OBJECT_NAME} is not in the package; from a source tree, build it: make bpf"
        ) from None
