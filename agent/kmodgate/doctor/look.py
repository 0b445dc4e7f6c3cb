# SPDX-License-Identifier: Apache-2.0
"""Looks at a node, or at the image of one. Attaches nothing and writes nothing.

``/`` is the running node; a folder is a running node when its procfs is mounted below it (a
pod's ``/host``), and an image otherwise. Of an image only what its files say is known.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from kmodgate.config import ListenAddress
from kmodgate.errors import HookError, NodeError
from kmodgate.model import Backend
from kmodgate.node import NodePaths, read_facts
from kmodgate.node.bpf import read_bpffs, read_btf_names, read_pinned
from kmodgate.node.crypto import read_crypto
from kmodgate.node.kconfig import read_kconfig
from kmodgate.node.paths import read_word
from kmodgate.node.process import Capability, ProcessFacts, read_process
from kmodgate.rungs import ONLY_WATCHES
from kmodgate.running import profile_of
from kmodgate.scan.root import Root

from .image import look_at_image
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
    now = datetime.now(UTC) if now is None else now
    with Root(root) as opened:
        if opened.kind("/proc/sys/kernel") != "directory" and opened.kind("/proc/version") != "file":
            return look_at_image(opened, now)
        own = opened.is_own
    return _look_at_node(root, listen, now, own=own)


def _look_at_node(root: Path, listen: ListenAddress | None, now: datetime, *, own: bool) -> Seen:
    paths = NodePaths.below(root)
    facts = read_facts(paths)
    if facts.release is None:
        raise NodeError(f"{paths.proc} tells no kernel release; is this Linux, with procfs mounted?")
    process = read_process(paths)
    libbpf, load, tried = _try_programs(process, own=own)
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
        headers=(root / "lib/modules" / facts.release / "build").exists()
        or (paths.sys / "kernel/kheaders.tar.xz").is_file(),
        bcc=_bcc_missing() if own else None,
        no_refusal=_no_refusal(paths, process),
        no_tracefs=_no_tracefs(paths, process),
        jit=_read_jit(paths),
        libbpf=libbpf,
        load=load,
        tried=tried,
        agent=None if listen is None else _ask_agent(listen),
    )


def _bcc_missing() -> str:
    from kmodgate.hooks.bcccompile import REMEDY, binding_path  # noqa: PLC0415  # beside libbpf

    return "" if binding_path() else REMEDY


def _no_refusal(paths: NodePaths, process: ProcessFacts) -> str | None:
    """Why a kprobe may only watch. The list of what may be refused is shown to root alone."""
    from kmodgate.hooks.bcc import cannot_refuse  # noqa: PLC0415  # beside libbpf

    found = cannot_refuse(paths)
    return None if found and not process.may(Capability.CAP_DAC_READ_SEARCH) else found


def _no_tracefs(paths: NodePaths, process: ProcessFacts) -> tuple[str, ...] | None:
    """What keeps trace events from being read. Their files are shown to root alone."""
    from kmodgate.hooks.traceinstance import lacks  # noqa: PLC0415  # only when a node is looked at

    found = tuple(lacks(paths))
    return None if found and not process.may(Capability.CAP_DAC_READ_SEARCH) else found


def _read_jit(paths: NodePaths) -> bool | None:
    word = read_word(paths.proc / "sys/net/core/bpf_jit_enable")  # 2 compiles and logs
    return None if word is None else word != "0"


def _try_programs(process: ProcessFacts, *, own: bool) -> tuple[str | None, str | None, Backend | None]:
    """Why libbpf or the programs are missing, what the kernel's verifier says to them, and to whose.

    Those of the best rung are tried, as far as the kernel itself goes; how it was booted is
    judged elsewhere. Nothing is attached: the programs are gone again before this returns.
    """
    if not own:
        return None, None, None
    from kmodgate.hooks.choice import Features, choose, missing_parts  # noqa: PLC0415  # libbpf

    missing = missing_parts()
    if missing or not all(process.may(item) for item in (Capability.CAP_BPF, Capability.CAP_PERFMON)):
        return missing, None, None
    try:
        choice = choose(Features.look(lsm_active=None, paths=NodePaths()))
        if choice.backend in ONLY_WATCHES:  # nothing to load, and nothing is made here
            return "", None, choice.backend
    except HookError as error:
        return "", _one_line(error), None
    try:
        with choice.open(pinned=False, paths=NodePaths()) as backend:
            backend.load()
    except HookError as error:
        return "", _one_line(error), choice.backend
    return "", "", choice.backend


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
