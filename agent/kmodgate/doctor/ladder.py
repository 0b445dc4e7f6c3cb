# SPDX-License-Identifier: Apache-2.0
"""The ladder of backends, each rung judged by what the kernel was seen to offer. Pure.

Features are asked for by name, never by release; releases stand in remedies only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from kmodgate.hooks.capabilities import CAPABILITIES
from kmodgate.model import Backend
from kmodgate.node.kernel import Preemption
from kmodgate.rungs import NO_LOAD_PIN, NO_SIG_ENFORCE, NodeCan

from .hardened import GUARD_FUNCTIONS
from .seen import Seen

HELPERS: Final = ("bpf_loop", "bpf_task_storage_get", "bpf_copy_from_user_task", "bpf_d_path")
SIGNATURE_CHECK: Final = "module_sig_check"
VERIFICATION: Final = "mod_verify_sig"
"""What ``bpf-lsm-basic`` attaches to: older kernels have the other one inlined."""
LSM_HOOKS: Final = ("bpf_lsm_kernel_read_file", "bpf_lsm_kernel_load_data", "bpf_lsm_locked_down")
SECURITY_CALLS: Final = ("security_kernel_read_file", "security_kernel_load_data", "security_locked_down")
MEMCG_ACCOUNTING: Final = "bpf_ktime_get_coarse_ns"
"""Came with the kernel that charges BPF memory to the cgroup and forgets RLIMIT_MEMLOCK (5.11)."""

ASKED: Final = (
    *HELPERS,
    SIGNATURE_CHECK,
    VERIFICATION,
    *LSM_HOOKS,
    *SECURITY_CALLS,
    MEMCG_ACCOUNTING,
    *GUARD_FUNCTIONS,
)
"""All names that are looked up in the kernel's BTF."""

MACHINES: Final = ("x86_64", "aarch64")


class Need(NamedTuple):
    """Something that a rung needs.

    Attributes:
        met: None when it could not be seen.
        problem: what is wrong when it is not met, and what to do.
        unseen: what to do to see it.
    """

    met: bool | None
    problem: str
    unseen: str


@dataclass(frozen=True, slots=True)
class Rung:
    """One backend on this node.

    Attributes:
        offered: the node has all it needs; None when that could not be seen.
        enforces: what it could refuse here.
        unknown: fields of an event that it never knows.
        fleeting: fields that it knows only while the caller is there.
        unasked: fields that it does not know of a load that it refuses.
        problems: what is missing, each with its remedy.
        unseen: what could not be seen, each with how to see it.
    """

    backend: Backend
    offered: bool | None
    enforces: str
    problems: tuple[str, ...]
    unseen: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    fleeting: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


def rungs(seen: Seen) -> tuple[Rung, ...]:
    """Every rung, best first."""
    return tuple(
        _rung(backend, enforces, needs)
        for backend, enforces, needs in (
            (
                Backend.BPF_LSM,
                "every load",
                _with_ours(seen, Backend.BPF_LSM, [*_lsm(seen), *_full(seen)]),
            ),
            (
                Backend.BPF_FMOD_RET,
                _fmod_ret_enforces(seen),
                _with_ours(seen, Backend.BPF_FMOD_RET, [*_full(seen), *_security_calls(seen)]),
            ),
            (
                Backend.BPF_LSM_BASIC,
                "LoadPin and the kernel's keyrings; no configured certificates, no revocations",
                _with_ours(seen, Backend.BPF_LSM_BASIC, [*_lsm(seen), *_basic(seen)]),
            ),
            (Backend.BCC, _bcc_enforces(seen), list(_bcc(seen))),
            (Backend.TRACEFS, _tracefs_enforces(seen), list(_tracefs(seen))),
        )
    )


def _rung(backend: Backend, enforces: str, needs: list[Need]) -> Rung:
    problems = tuple(need.problem for need in needs if need.met is False)
    unseen = tuple(dict.fromkeys(need.unseen for need in needs if need.met is None))
    able = CAPABILITIES[backend]
    return Rung(
        backend=backend,
        offered=False if problems else None if unseen else True,
        enforces=enforces,
        problems=problems,
        unseen=unseen,
        unknown=able.unknown,
        fleeting=able.fleeting,
        unasked=able.unasked,
    )


def node_can(seen: Seen) -> NodeCan:
    """What the node offers the rungs below compiled programs, as far as it was seen."""
    facts = seen.facts
    no_refusal = seen.no_refusal
    if no_refusal is None:
        off = seen.option("BPF_KPROBE_OVERRIDE") is False
        no_refusal = "the kernel is built without CONFIG_BPF_KPROBE_OVERRIDE" if off else ""
    return NodeCan(
        no_refusal=no_refusal,
        no_sig_enforce=NO_SIG_ENFORCE if facts.signatures.built is False else "",
        no_load_pin="" if "loadpin" in (facts.lsms or ()) else NO_LOAD_PIN,
    )


def _names(seen: Seen, names: tuple[str, ...]) -> tuple[bool | None, str]:
    """Whether BTF has all of them, and those that it lacks."""
    if seen.functions is None:
        # Without type information nothing that needs it works, and that is said elsewhere.
        return None, ""
    missing = [name for name in names if name not in seen.functions]
    return not missing, ", ".join(missing)


def _trampolines(seen: Seen) -> Iterator[Need]:
    """What every program at a kernel function needs."""
    facts = seen.facts
    yield Need(
        facts.btf,
        "no type information (/sys/kernel/btf/vmlinux): use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        "",
    )
    yield Need(
        facts.ftrace_enabled is not False,
        "kernel.ftrace_enabled is 0: run sysctl kernel.ftrace_enabled=1 and remove the setting",
        "",
    )
    yield Need(
        seen.jit is not False,
        "net.core.bpf_jit_enable is 0: run sysctl net.core.bpf_jit_enable=1 and remove the setting",
        "",
    )


def _lsm(seen: Seen) -> Iterator[Need]:
    """BPF programs as a security module."""
    facts = seen.facts
    if seen.option("BPF_LSM") is False:
        problem = "the kernel is built without CONFIG_BPF_LSM: use a kernel that has it"
    else:
        listed = ",".join((*(facts.lsms or ()), "bpf"))
        problem = f"bpf is not among the active security modules: add lsm={listed} to the kernel command line"
    yield Need(
        facts.has_bpf_lsm,
        problem,
        "the list of security modules: mount -t securityfs securityfs /sys/kernel/security",
    )


def _full(seen: Seen) -> Iterator[Need]:
    """Digest and wait inside the kernel."""
    yield from _trampolines(seen)
    unseen = _functions_unseen(seen)
    if seen.facts.btf:
        met, missing = _names(seen, HELPERS)
        yield Need(met, f"no BPF helper {missing}: use Linux 5.18 or later", unseen)
        met, missing = _names(seen, (SIGNATURE_CHECK,))
        yield Need(
            met,
            f"no function {missing}() to attach to: use a kernel with CONFIG_MODULE_SIG=y",
            unseen,
        )


def _basic(seen: Seen) -> Iterator[Need]:
    """The kernel's own signature check, seen from outside."""
    yield from _trampolines(seen)
    if seen.facts.btf:
        met, missing = _names(seen, (VERIFICATION,))
        yield Need(
            met,
            f"no function {missing}() to attach to: use a kernel with CONFIG_MODULE_SIG=y",
            _functions_unseen(seen),
        )


def _functions_unseen(seen: Seen) -> str:
    if seen.live:
        return "the kernel's functions: make /sys/kernel/btf/vmlinux readable"
    return "the kernel's functions: put its image in boot/vmlinuz-RELEASE, or ask the running node"


def _with_ours(seen: Seen, backend: Backend, kernel: list[Need]) -> list[Need]:
    """The kernel's part, and what kmodgate's programs met on it; that only echoes a missing part."""
    machines = " and ".join(MACHINES)
    needs = [
        *kernel,
        Need(seen.machine in {None, *MACHINES}, f"machine type {seen.machine}: only {machines} work", ""),
    ]
    if seen.tried in {None, backend} and all(need.met is not False for need in needs):
        needs.append(Need(not seen.libbpf, seen.libbpf or "", ""))
        needs.append(Need(not seen.load, f"the kernel does not take the programs: {seen.load}", ""))
    return needs


def _security_calls(seen: Seen) -> Iterator[Need]:
    if seen.facts.btf:
        met, missing = _names(seen, SECURITY_CALLS)
        yield Need(
            met,
            f"no function {missing} to attach to: use a kernel with CONFIG_SECURITY=y",
            _functions_unseen(seen),
        )


def _fmod_ret_enforces(seen: Seen) -> str:
    preemption = seen.facts.preemption
    if preemption in {None, Preemption.DYNAMIC}:
        return "every load, but best effort if the kernel is preemptible, which could not be seen"
    if preemption is not None and preemption.may_preempt_kernel:
        return "best effort only: this kernel is preemptible, and the kernel skips such programs at times"
    return "every load"


def _bcc(seen: Seen) -> Iterator[Need]:
    build = "the kernel's build config: keep /boot/config-RELEASE, or build with CONFIG_IKCONFIG_PROC=y"
    for option in ("KPROBES", "BPF_EVENTS"):
        yield Need(seen.option(option), f"the kernel is built without CONFIG_{option}", build)
    release = seen.facts.release or "RELEASE"
    yield Need(
        seen.headers, f"no kernel headers: install them (Debian: apt-get install linux-headers-{release})", ""
    )
    yield Need(not seen.bcc, f"the Python binding of BCC is missing: {seen.bcc}", "")


def _bcc_enforces(seen: Seen) -> str:
    why = node_can(seen).no_refusal
    if why:
        return f"nothing: {why}"
    if seen.no_refusal is None and seen.option("BPF_KPROBE_OVERRIDE") is None:
        return "loads, if the kernel has CONFIG_BPF_KPROBE_OVERRIDE"
    return "loads, by where they lie and by what the agent knows of the file"


def _tracefs(seen: Seen) -> Iterator[Need]:
    if seen.no_tracefs is None:
        yield Need(
            seen.option("FTRACE_SYSCALLS"),
            "the kernel is built without CONFIG_FTRACE_SYSCALLS: use one that has it",
            "trace events: look at the running node as root",
        )
        return
    for problem in seen.no_tracefs:
        yield Need(met=False, problem=problem, unseen="")


def _tracefs_enforces(seen: Seen) -> str:
    able = []
    if seen.facts.signatures.built:
        able.append("module.sig_enforce=1 for its own keyrings")
    if seen.facts.load_pin.enforced is not None and "loadpin" in (seen.facts.lsms or ()):
        able.append("its own LoadPin")
    if able:
        return f"nothing by itself; the kernel does with {' and '.join(able)}"
    return "nothing; it only watches"
