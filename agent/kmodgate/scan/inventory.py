# SPDX-License-Identifier: Apache-2.0
"""The files of what is loaded now, verified: a process of its own that ends when it is done.

``python -m kmodgate.scan.inventory`` reads what to judge by from standard input and writes
what it found to standard output, both as JSON. The agent (``kmodgate.inventory``) starts
it, so that neither a kernel image being unpacked nor a hundred modules being verified is
ever part of the agent's own memory, or in the way of a load that waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kmodgate.errors import KmodgateError, NodeError
from kmodgate.model import EffectivePolicy, Mode, Policy, SignatureStatus, Signer
from kmodgate.node import NodePaths, read_facts, read_modules
from kmodgate.node.paths import read_text, read_word

from .kernels import read_image
from .live import RunningKernel, find_running
from .plan import ALL, make_plan
from .pool import Results
from .records import LoadedNow, Outcome, module_name
from .root import Root
from .session import Inputs, run

_MEMORY: Final = 1 << 30
# What unpacking a kernel image may take; Debian's 6.1 takes half of it.
_IMAGE_MEMORY: Final = 160 << 20
_CPU_SECONDS: Final = 300


def word(module: LoadedNow, *, kernel_keyrings: bool) -> tuple[str, Outcome]:
    """What is known of a loaded module, in one word, and what ENFORCE would have done. Pure.

    The kernel's word counts for more than a file: it saw what was loaded. Without the taint
    E its keys trusted that, whatever lies on disk today; with it they did not, whatever the
    file says. The word is ``telemetry.metrics.LoadedSignature``.
    """
    file = module.file
    if file is not None and module.same is not False and file.signature.status is SignatureStatus.REVOKED:
        return SignatureStatus.REVOKED.value, Outcome.REFUSED
    if module.trusted_at_load and kernel_keyrings:
        return SignatureStatus.TRUSTED_SIGNATURE.value, Outcome.ACCEPTED
    if file is None:
        return "no_file", Outcome.UNKNOWN
    if file.outcome is Outcome.UNREADABLE:
        return SignatureStatus.UNREADABLE.value, Outcome.UNKNOWN
    by_kernel_key = (file.signature.trusted_by or "").startswith("kernel:")
    if module.same is False or (by_kernel_key and module.trusted_at_load is False):
        return "file_differs", Outcome.UNKNOWN
    if file.outcome is Outcome.UNKNOWN:
        return "unknown", Outcome.UNKNOWN
    return file.signature.status.value, file.outcome


def take(root: Root, running: RunningKernel, request: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Find and verify the files of what is loaded on a root.

    Args:
        root: the node's.
        running: its kernel.
        request: see ``kmodgate.inventory``.
        now: the time, UTC.

    Raises:
        KmodgateError: certificates that cannot be used, or a node that makes no sense.
    """
    keyrings = bool(request["kernel_keyrings"])
    built = bool(read_facts(running.paths).signatures.built)
    modules = read_modules(running.paths) or ()
    paths = sorted(_files(root, running, {module.name for module in modules}))
    vouched = built and keyrings and not any(module.is_unsigned for module in modules)
    with_image = keyrings and not vouched and memory_left(running.paths) >= _IMAGE_MEMORY
    found = _pair(root, running, paths, request, now, with_image=with_image)
    return {"modules": [_item(module, keyrings) for module in found]}


def memory_left(paths: NodePaths) -> int:
    """Bytes that this process's cgroup may still take; very many where it has no limit.

    Above it the kernel kills, often the container as a whole: no image is worth that.
    """
    lines = (read_text(paths.proc / "self/cgroup") or "").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    mount = paths.sys / "fs/cgroup"
    # In a cgroup namespace of its own the path is "/"; in another's it may lead nowhere.
    for directory in (mount / own, mount):
        limit, used = read_word(directory / "memory.max"), read_word(directory / "memory.current")
        if limit is not None and used is not None and limit.isdecimal() and used.isdecimal():
            return int(limit) - int(used)
    return 1 << 62


def _files(root: Root, running: RunningKernel, names: set[str]) -> Iterator[str]:
    """Files of these names among the running kernel's modules."""
    for base in ("/lib/modules", "/usr/lib/modules"):
        folders = list(root.walk(f"{base}/{running.release}"))
        yield from (
            f"{folder.path}/{name}"
            for folder in folders
            for name in folder.names
            if module_name(name) in names
        )
        if any(folder.names for folder in folders):
            return  # the other one is the same directory, by a link


def _pair(
    root: Root,
    running: RunningKernel,
    paths: list[str],
    request: Mapping[str, Any],
    now: datetime,
    *,
    with_image: bool,
) -> tuple[LoadedNow, ...]:
    keyrings = bool(request["kernel_keyrings"])
    if not paths or running.release is None:
        return _without_files(running)
    plan = make_plan(root, kernel=ALL, paths=paths, running=running.release)
    inputs = Inputs(
        policy=EffectivePolicy(
            Policy.ENFORCE,
            Mode.ENFORCE,
            load_pin=False,
            pinned_root_exempt=bool(request["pinned_root_exempt"]),
            kernel_keyrings=keyrings,
        ),
        certificates=tuple(map(Path, request["certificates"])),
        revoked=tuple(map(Path, request["revoked"])),
        revoked_certificates=tuple(map(Path, request["revoked_certificates"])),
        kernel_keyrings=keyrings,
        require_validity=bool(request["require_validity"]),
        max_size=int(request["max_size"]),
        profile=None,
        loaded=True,
        jobs=1,
        now=now,
    )
    images = [read_image(root, running.release)] if with_image else []
    report = run(root, plan, Results(iter(images)), running, inputs, _no_progress)
    return report.loaded or ()


def _without_files(running: RunningKernel) -> tuple[LoadedNow, ...]:
    built = read_facts(running.paths).signatures.built
    return tuple(
        LoadedNow(
            module.name,
            module.taints,
            trusted_at_load=False if module.is_unsigned else (True if built else None),
            file=None,
            same=None,
        )
        for module in read_modules(running.paths) or ()
    )


@contextlib.contextmanager
def _no_progress(_total: int) -> Iterator[Any]:
    yield lambda _count: None


def _item(module: LoadedNow, keyrings: bool) -> dict[str, Any]:  # one flag, named at the call
    signature, outcome = word(module, kernel_keyrings=keyrings)
    file = module.file
    return {
        "name": module.name,
        "taints": module.taints,
        "signature": signature,
        "outcome": outcome.value,
        "errno": file.errno if file is not None and outcome is Outcome.REFUSED else None,
        "trusted_at_load": module.trusted_at_load,
        "path": None if file is None else file.path,
        "sha256": None if file is None else file.signature.sha256,
        "same_source": module.same,
        "detail": None if file is None else file.signature.detail,
        "signer": None if file is None else _signer(file.signature.signer),
    }


def _signer(signer: Signer | None) -> dict[str, str | None] | None:
    if signer is None:
        return None
    return {
        "issuer": signer.issuer,
        "serial": signer.serial,
        "skid": signer.skid,
        "subject": signer.subject,
    }


def _step_back() -> None:
    """Let everything else go first, and be the first to go."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> int:
    """One request, one answer; 3 when this node cannot be looked at."""
    _step_back()
    request = json.load(sys.stdin)
    try:
        with Root(request["root"]) as root:
            running = find_running(root)
            if running is None:
                raise NodeError(f"{root.path} has no proc and sys of its own")
            found = take(root, running, request, datetime.now(UTC))
    except (KmodgateError, OSError, MemoryError) as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 3
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
