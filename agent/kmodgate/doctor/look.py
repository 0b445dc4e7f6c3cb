# SPDX-License-Identifier: Apache-2.0
"""Looks at a node, or at the image of one. Attaches nothing and writes nothing.

``/`` is the running node; a folder is a running node when its procfs is mounted below it (a
pod's ``/host``), and an image otherwise. Of an image only what its files say is known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from kmodgate.config import ListenAddress
from kmodgate.errors import HookError, InputError, NodeError
from kmodgate.node import NodeFacts, NodePaths, read_facts
from kmodgate.node.bpf import read_bpffs, read_btf_names, read_pinned
from kmodgate.node.crypto import read_crypto
from kmodgate.node.kconfig import parse_kconfig, read_kconfig
from kmodgate.node.paths import read_text, read_word
from kmodgate.node.process import Capability, ProcessFacts, read_process
from kmodgate.node.security import KernelLoadPin, ModuleSignatures
from kmodgate.running import profile_of

from .ladder import ASKED
from .seen import AgentSeen, Seen

_ANSWER_SECONDS = 3.0
_ANSWER_BYTES = 300
_LOG_CHARS = 400
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # asked, not bound


def look(root: Path, *, listen: ListenAddress | None = None, now: datetime | None = None) -> Seen:
    """Look at the node whose root is mounted at ``root``.

    Args:
        root: ``/`` for this node.
        listen: where its agent would answer, or None.
        now: the clock; the real one by default.

    Raises:
        InputError: ``root`` is no directory.
        NodeError: it is neither a running node nor an image with a kernel's config, or a file
            of the kernel makes no sense.
    """
    if not root.is_dir():
        raise InputError(f"{root}: is no directory; name the root of a node or of a mounted image")
    now = datetime.now(UTC) if now is None else now
    paths = NodePaths(proc=root / "proc", sys=root / "sys", boot=root / "boot")
    if (paths.proc / "sys/kernel").is_dir() or (paths.proc / "version").is_file():
        return _look_at_node(root, paths, listen, now)
    return _look_at_image(root, now)


def _look_at_node(root: Path, paths: NodePaths, listen: ListenAddress | None, now: datetime) -> Seen:
    facts = read_facts(paths)
    if facts.release is None:
        raise NodeError(f"{paths.proc} tells no kernel release; is this Linux, with procfs mounted?")
    process = read_process(paths)
    libbpf, load = _try_programs(process, own=root == Path("/"))
    kconfig = read_kconfig(paths, facts.release)
    crypto = read_crypto(paths)
    return Seen(
        live=True,
        facts=facts,
        now=now,
        machine=os.uname().machine,
        kconfig=kconfig,
        functions=read_btf_names(paths, ASKED),
        crypto=crypto,
        profile=profile_of(facts.release, crypto, kconfig),
        process=process,
        bpffs=read_bpffs(paths),
        pinned=read_pinned(paths),
        headers=(root / "lib/modules" / facts.release / "build").exists(),
        tracefs=(paths.sys / "kernel/tracing").is_dir(),
        jit=_read_jit(paths),
        libbpf=libbpf,
        load=load,
        agent=None if listen is None else _ask_agent(listen),
    )


def _read_jit(paths: NodePaths) -> bool | None:
    word = read_word(paths.proc / "sys/net/core/bpf_jit_enable")  # 2 compiles and logs
    return None if word is None else word != "0"


def _try_programs(process: ProcessFacts, *, own: bool) -> tuple[str | None, str | None]:
    """Why libbpf or the programs are missing, and what the kernel's verifier says to them.

    Nothing is attached: the programs are gone again before this returns.
    """
    if not own:
        return None, None
    from kmodgate.hooks.bpf import BpfBackend  # noqa: PLC0415  # libbpf, only where it is used

    try:
        backend = BpfBackend()
    except HookError as error:
        return _one_line(error), None
    with backend:
        if not all(process.may(item) for item in (Capability.CAP_BPF, Capability.CAP_PERFMON)):
            return "", None
        try:
            backend.load()
        except HookError as error:
            return "", _one_line(error)
    return "", ""


def _one_line(error: HookError) -> str:
    """A verifier log begins with the program's name and ends with the reason."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LOG_CHARS else f"{text[: _LOG_CHARS // 2]} … {text[-_LOG_CHARS // 2 :]}"


def _ask_agent(listen: ListenAddress) -> AgentSeen | None:
    if listen.port == 0:  # the kernel chose one, and nothing says which
        return None
    connection = HTTPConnection(_ANY.get(listen.host, listen.host), listen.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read(_ANSWER_BYTES).decode("utf-8", "backslashreplace")
    except (OSError, HTTPException) as error:
        return AgentSeen(str(listen), ready=None, said=_why(error))
    finally:
        connection.close()
    return AgentSeen(str(listen), ready=answer.status == 200, said=said.split("\n", 1)[0])  # noqa: PLR2004


def _why(error: OSError | HTTPException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


# --- an image --------------------------------------------------------------------------------


def _look_at_image(root: Path, now: datetime) -> Seen:
    kernels = _kernels_of(root)
    if not kernels:
        raise NodeError(
            f"{root}: neither a running node (no proc) nor an image with a kernel's build config "
            "(boot/config-RELEASE or lib/modules/RELEASE/config); mount the image there"
        )
    releases = sorted(kernels, key=_version_key, reverse=True)
    release = releases[0]
    kconfig = kernels[release]
    return Seen(
        live=False,
        facts=_facts_of(root, release, kconfig),
        now=now,
        kernels=tuple(releases),
        kconfig=kconfig,
        headers=(root / "lib/modules" / release / "build").exists(),
        tracefs=kconfig.get("FTRACE_SYSCALLS") == "y",
    )


def _kernels_of(root: Path) -> dict[str, Mapping[str, str]]:
    """Release to build config, of every kernel whose config the image holds."""
    found = {path.name.removeprefix("config-"): path for path in (root / "boot").glob("config-*")}
    for modules in ("lib/modules", "usr/lib/modules"):
        found |= {path.parent.name: path for path in (root / modules).glob("*/config")}
    configs = {release: parse_kconfig(read_text(path) or "") for release, path in found.items()}
    return {release: config for release, config in configs.items() if config}


def _version_key(release: str) -> list[tuple[int, str]]:
    """Sorts 6.12 after 6.9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", release)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _facts_of(root: Path, release: str, kconfig: Mapping[str, str]) -> NodeFacts:
    """What a build config says of the kernel that will run; the rest is not known."""
    lsms = tuple(kconfig.get("LSM", "").split(","))
    if kconfig.get("BPF_LSM") != "y":
        lsms = tuple(name for name in lsms if name != "bpf")
    return replace(
        read_facts(NodePaths(proc=root / "proc", sys=root / "sys", boot=root / "boot")),
        release=release,
        btf=kconfig.get("DEBUG_INFO_BTF") == "y",
        lsms=lsms,
        signatures=ModuleSignatures(
            built=kconfig.get("MODULE_SIG") == "y",
            enforced=True if kconfig.get("MODULE_SIG_FORCE") == "y" else None,
        ),
        load_pin=KernelLoadPin(enforced=None, excludes_modules=False),
        modules_built=kconfig.get("MODULES") == "y",
    )
