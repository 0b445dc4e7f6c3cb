# SPDX-License-Identifier: Apache-2.0
"""A process of its own that has BCC compile, load and attach the programs, and hands them over.

LLVM takes more memory than all the rest of the agent, and gives none back. It ends with this process;
maps, programs and probes live on in the agent's descriptors, and end with those.

    python -m kmodgate.hooks.bcccompile DESCRIPTOR

Standard input: one line of JSON, ``Request``; a line ``attach`` when the policy is in place.
DESCRIPTOR: a socket; one message for each of the two, JSON with the descriptors in its order.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, Final

from kmodgate.errors import HookError

PLACES: Final = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
)
"""Where distributions keep the binding for their own Python: outside of every virtual environment."""

REMEDY: Final = (
    "install your distribution's (Debian: apt-get install python3-bpfcc; Fedora, RHEL: dnf install "
    "python3-bcc); the package bcc on PyPI is something else"
)
_PR_SET_PDEATHSIG: Final = 1


def binding_path(places: tuple[str, ...] = PLACES) -> str | None:
    """The file of BCC's Python binding, or None; nothing is imported.

    Only the distribution's: a package of the same name on PyPI has nothing to do with eBPF.
    """
    spec = PathFinder.find_spec("bcc", list(places))
    if spec is None or spec.origin is None:
        return None
    # What any binding of libbcc has, and the other package has not.
    library = os.path.join(os.path.dirname(spec.origin), "libbcc.py")  # noqa: PTH118, PTH120  # one string
    return spec.origin if os.path.isfile(library) else None  # noqa: PTH113  # the same


def binding(places: tuple[str, ...] = PLACES) -> ModuleType:
    """BCC's Python binding. Only it is taken from the distribution's folder, nothing beside it.

    Raises:
        HookError: it is missing, or does not fit this Python.
    """
    path = binding_path(places)
    if path is None:
        raise HookError(f"the Python binding of BCC is missing; {REMEDY}")
    spec = importlib.util.spec_from_file_location("bcc", path)
    if spec is None or spec.loader is None:
        raise HookError(f"{path}: no Python package; {REMEDY}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError) as error:
        del sys.modules["bcc"]
        raise HookError(f"{path} cannot be imported: {error}; {REMEDY}") from error
    return module


class Compiled:
    """The programs of one text, compiled by BCC."""

    def __init__(self, bcc: Any, text: str, flags: list[str]) -> None:
        """Compile. BCC writes what the compiler says to standard error; raises HookError."""
        self._bcc = bcc
        try:
            self._module = bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:  # BCC raises nothing more special
            raise HookError(f"BCC could not compile the programs: {error}") from error
        self._loaded: dict[str, int] = {}

    def map(self, name: str) -> int:
        """Descriptor of a map."""
        fd = int(self._bcc.lib.bpf_table_fd(self._module.module, name.encode()))
        if fd < 0:
            raise HookError(f"BCC made no map {name}")
        return fd

    def program(self, name: str, kind: str) -> int:
        """Load a program (kind ``probe`` or ``tracepoint``); its descriptor."""
        if name not in self._loaded:
            kinds = {"probe": self._bcc.BPF.KPROBE, "tracepoint": self._bcc.BPF.RAW_TRACEPOINT}
            try:
                self._loaded[name] = int(self._module.load_func(name.encode(), kinds[kind]).fd)
            except Exception as error:  # BCC raises nothing more special
                raise HookError(f"the kernel does not take the program {name}: {error}") from error
        return self._loaded[name]

    def attach(self, name: str, how: str, where: str) -> int:
        """Attach a loaded program: ``entry`` or ``return`` of a function, or a ``tracepoint``.

        The probes are perf events that belong to their descriptor: nothing of them has a name in
        tracefs, and nothing stays when the descriptor is closed.
        """
        fd = self._loaded[name]
        library = self._bcc.lib
        if how == "tracepoint":
            link = int(library.bpf_attach_raw_tracepoint(fd, where.encode()))
        else:
            event = f"kmodgate_{how}_{where}".encode()
            link = int(library.bpf_attach_kprobe(fd, int(how == "return"), event, where.encode(), 0, 0))
        if link < 0:
            number = ctypes.get_errno()
            raise HookError(f"{name} cannot be attached to the {how} of {where}: {os.strerror(number)}")
        return link


def _serve(channel: socket.socket) -> None:
    request = json.loads(sys.stdin.readline())
    try:
        compiled = Compiled(binding(), request["text"], request["flags"])
        fds = [compiled.map(name) for name in request["maps"]]
        fds += [compiled.program(name, kind) for name, kind in request["programs"]]
    except HookError as error:
        channel.send(json.dumps({"error": str(error)}).encode())
        return
    socket.send_fds(channel, [b"{}"], fds)
    if sys.stdin.readline() != "attach\n":
        return
    links: list[int] = []
    try:
        for name, how, where in request["attach"]:
            links.append(compiled.attach(name, how, where))
    except HookError as error:
        channel.send(json.dumps({"error": str(error)}).encode())
        return
    socket.send_fds(channel, [b"{}"], links)


def main() -> None:
    """Serve one agent, and end with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        _serve(channel)
    sys.stderr.flush()
    # BCC would detach at exit what now belongs to the agent.
    os._exit(0)


if __name__ == "__main__":
    main()
