# SPDX-License-Identifier: Apache-2.0
"""Lines on the kernel's other limits, this process, the configured trust and the agent. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from kmodgate.node import RootProtection
from kmodgate.node.process import Capability

from .ladder import MEMCG_ACCOUNTING
from .line import Check, Findings, judged, ok, problem, unknown, warning
from .seen import Purpose, Seen

_PROTECTION: Final = {
    RootProtection.VERITY: "checked by dm-verity",
    RootProtection.READ_ONLY_DEVICE: "on a read-only device",
    RootProtection.READ_ONLY_MOUNT: "mounted read-only on a writable device",
    RootProtection.WRITABLE: "writable",
}
_ROOMY: Final = 64 << 20  # bytes: the maps and programs need about half of it
_FIRST_RELEASE: Final = datetime(2025, 1, 1, tzinfo=UTC)


def other_limits(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    """LoadPin, cgroups, pinned root, processors."""
    del purpose
    if not seen.live:
        return
    facts = seen.facts
    pin = facts.load_pin
    yield judged(
        "loadpin",
        "the kernel's LoadPin",
        findings,
        ("kernel-loadpin-stricter",),
        unknown("loadpin", "the kernel's LoadPin", "seen with securityfs mounted on /sys/kernel/security")
        if pin.enforced is None
        else ok(
            "loadpin",
            "the kernel's LoadPin",
            "off" if not pin.enforced else "on" + (", modules excluded" if pin.excludes_modules else ""),
        ),
    )
    yield judged(
        "cgroups",
        "cgroup mode",
        findings,
        ("cgroup-v1",),
        unknown("cgroups", "cgroup mode", "no cgroup file system is mounted for process 1")
        if facts.cgroups is None
        else ok("cgroups", "cgroup mode", str(facts.cgroups)),
    )
    yield _root(seen, findings)
    if facts.online_cpus == 1:
        yield warning(
            "cpus",
            "processors",
            "one only: the first load of an unknown module from memory ends in hold_timeout; "
            "give the machine a second one",
        )
    elif facts.online_cpus is not None:
        yield ok("cpus", "processors", f"{facts.online_cpus}, preemption {facts.preemption or 'unknown'}")


def _root(seen: Seen, findings: Findings) -> Check:
    code, subject = "pinned-root", "pinned root"
    root, own = seen.facts.pinned_root, seen.process
    if root is None and own is not None and own.may(Capability.CAP_SYS_PTRACE) is False:
        return unknown(code, subject, "this user may not look at process 1; run as root to see it")
    if root is None:
        fine = unknown(code, subject, "the root of process 1 cannot be identified; run on the node itself")
    else:
        fine = ok(
            code,
            subject,
            f"{root.fs_type} on {root.source}, device {root.device}, {_PROTECTION[root.protection]}",
        )
    return judged(code, subject, findings, ("pinned-root-unknown", "pinned-root-writable"), fine)


def process(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    """What this process may do, and what BPF objects are there."""
    del purpose, findings
    own = seen.process
    if not seen.live or own is None:
        return
    yield _capabilities(seen)
    if own.in_initial_pid_namespace is False:
        yield problem(
            "pid-namespace",
            "PID namespace",
            "not the machine's: /proc/1 is not the node's first process; run with hostPID: true",
        )
    else:
        yield (
            unknown("pid-namespace", "PID namespace", "/proc/self/ns cannot be read")
            if own.in_initial_pid_namespace is None
            else ok("pid-namespace", "PID namespace", "the machine's own")
        )
    yield _memory(seen)
    if seen.bpffs is None:
        yield unknown("bpffs", "bpffs", "the mounts of process 1 cannot be read; run as root")
    elif seen.bpffs:
        yield ok("bpffs", "bpffs", f"mounted on {', '.join(seen.bpffs)}")
    else:
        yield ok("bpffs", "bpffs", "not mounted; this version pins nothing and needs none")
    if seen.pinned is None:
        yield unknown("pinned", "pinned objects", "/sys/fs/bpf cannot be listed; run as root to see it")
    elif seen.pinned:
        yield warning(
            "pinned",
            "pinned objects",
            f"in /sys/fs/bpf: {', '.join(seen.pinned)}; this version pins nothing: remove them with rm -r",
        )
    else:
        yield ok("pinned", "pinned objects", "none")


def _capabilities(seen: Seen) -> Check:
    code, subject = "capabilities", "capabilities"
    own = seen.process
    if own is None or own.capabilities is None:
        return unknown(code, subject, "/proc/self/status does not tell")
    missing = own.lacking()
    if missing:
        return unknown(
            code,
            subject,
            f"this process lacks {', '.join(missing)}; run `kmodgate run` as root",
        )
    held = ", ".join(str(item.name) for item in Capability if item in own.capabilities)
    return ok(code, subject, held)


def _memory(seen: Seen) -> Check:
    code, subject = "locked-memory", "locked memory"
    limit = None if seen.process is None else seen.process.locked_memory
    if seen.functions is not None and MEMCG_ACCOUNTING in seen.functions:
        return ok(code, subject, "BPF memory is charged to the cgroup, not to RLIMIT_MEMLOCK")
    if limit is None:
        return unknown(code, subject, "/proc/self/limits does not tell")
    if 0 <= limit < _ROOMY:
        return warning(
            code, subject, f"RLIMIT_MEMLOCK is {limit} bytes, too little for the maps; set it to unlimited"
        )
    return ok(code, subject, "unlimited" if limit < 0 else f"{limit} bytes")


def trust(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    """The config, and the clock against its certificates."""
    del findings
    if purpose.refusal is not None:
        yield problem("config-refused", "node config", purpose.refusal)
    for number, said in enumerate(purpose.warnings, 1):
        yield warning(f"config-{number}", "node config", said)
    if seen.now < _FIRST_RELEASE:
        yield warning("clock", "clock", f"it says {seen.now:%Y-%m-%d}, which is past; set it")
    elif not purpose.trust.anchors:
        yield ok("clock", "clock", f"{seen.now:%Y-%m-%d %H:%M} UTC; no configured certificate depends on it")
    else:
        yield _validity(seen, purpose)


def _validity(seen: Seen, purpose: Purpose) -> Check:
    outside = [
        f"{anchor.label} expired on {anchor.not_after:%Y-%m-%d}"
        if anchor.not_after < seen.now
        else f"{anchor.label} is not valid before {anchor.not_before:%Y-%m-%d}"
        for anchor in purpose.trust.anchors
        if not anchor.not_before <= seen.now <= anchor.not_after
    ]
    count = len(purpose.trust.anchors)
    when = f"{seen.now:%Y-%m-%d %H:%M} UTC"
    if not outside:
        return ok("clock", "clock", f"{when}, within the validity of {count} configured certificate(s)")
    effect = (
        "it counts for nothing under requireValidity; renew it, or set the clock"
        if purpose.require_validity
        else "kernels do not mind, and neither does this config; renew it in time, or set the clock"
    )
    return warning("clock", "clock", f"{when}: {'; '.join(outside)}; {effect}")


def agent(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    """Whether one runs."""
    del purpose, findings
    if not seen.live:
        return
    found = seen.agent
    if found is None:
        yield unknown("agent", "agent", "whether one runs is asked where a config says; give --config FILE")
    elif found.ready is None:
        yield warning(
            "agent", "agent", f"none answers on {found.address} ({found.said}): nothing is enforced"
        )
    elif found.ready:
        yield ok("agent", "agent", f"runs on {found.address} and is ready")
    else:
        yield warning("agent", "agent", f"runs on {found.address} and is not ready: {found.said}")
