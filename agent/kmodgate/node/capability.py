# SPDX-License-Identifier: Apache-2.0
"""What on this node prevents or weakens what the policy asks for. Pure.

It names findings with a remedy; whether an error stops the agent is the agent's choice.
It trusts the facts it is given and probes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kmodgate.model import EffectivePolicy, Mode, Policy

from .facts import NodeFacts
from .mounts import CgroupHierarchy
from .security import Lockdown


class Severity(StrEnum):
    """``error``: the policy cannot be enforced here. ``warning``: less holds than one may think."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit of the node.

    Attributes:
        code: stable and lower-case with hyphens, for tests and machines.
        message: what was found and what to do, in one line.
    """

    code: str
    severity: Severity
    message: str


def limits(
    facts: NodeFacts,
    policy: EffectivePolicy,
    *,
    configured_certificates: bool,
    kernel_keyrings: bool = True,
) -> tuple[Finding, ...]:
    """Every limit that this node sets to this policy, errors first.

    Args:
        facts: the node.
        policy: what is to be enforced on it.
        configured_certificates: the config names certificates of its own.
        kernel_keyrings: the kernel's keyrings are trusted.
    """
    found = [
        *_hooks(facts),
        *_modules(facts),
        *_signatures(facts, policy, configured_certificates=configured_certificates),
        *_trust(
            facts, policy, configured_certificates=configured_certificates, kernel_keyrings=kernel_keyrings
        ),
        *_root(facts, policy),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity is not Severity.ERROR))


def _error(code: str, message: str) -> Finding:
    return Finding(code, Severity.ERROR, message)


def _warning(code: str, message: str) -> Finding:
    return Finding(code, Severity.WARNING, message)


def _hooks(facts: NodeFacts) -> Iterator[Finding]:
    """What the BPF programs need."""
    if facts.has_bpf_lsm is False:
        lsms = ",".join(facts.lsms or ())
        yield _warning(
            "bpf-lsm-inactive",
            "bpf is not among the active security modules, so programs are attached to the kernel's own "
            "functions, best effort where the kernel is preemptible; add "
            f"lsm={lsms},bpf to the kernel command line",
        )
    elif facts.has_bpf_lsm is None:
        yield _warning(
            "lsm-list-unreadable",
            "the list of active security modules cannot be read; mount securityfs on /sys/kernel/security",
        )
    if not facts.btf:
        yield _warning(
            "btf-missing",
            "the kernel carries no type information (/sys/kernel/btf/vmlinux), which the best backends need; "
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        )
    if facts.ftrace_enabled is False:
        yield _error(
            "ftrace-disabled",
            "kernel.ftrace_enabled is 0, which silences every BPF security program; "
            "run sysctl kernel.ftrace_enabled=1 and remove the setting",
        )


def _modules(facts: NodeFacts) -> Iterator[Finding]:
    """Kernels that load no module anyway."""
    if not facts.modules_built:
        yield _warning(
            "modules-not-built",
            "this kernel cannot load modules (CONFIG_MODULES=n); kmodgate has nothing to do here",
        )
    elif facts.modules_disabled is True:
        yield _warning(
            "modules-disabled",
            "kernel.modules_disabled is 1: no module loads until the node is rebooted without it",
        )


def _signatures(
    facts: NodeFacts, policy: EffectivePolicy, *, configured_certificates: bool
) -> Iterator[Finding]:
    """What the kernel's own signature check allows kmodgate to do."""
    enforce = policy.policy is Policy.ENFORCE
    if enforce and facts.signatures.built is False and facts.modules_built:
        yield _error(
            "module-sig-missing",
            "the kernel was built without CONFIG_MODULE_SIG and asks nobody about unsigned modules; "
            f"use a kernel with it, or a policy other than {Policy.ENFORCE}",
        )
    if enforce and facts.signatures.built is None:
        yield _warning(
            "module-sig-unknown",
            "whether the kernel checks module signatures cannot be seen; mount sysfs on /sys",
        )
    if enforce and facts.cgroups in {CgroupHierarchy.V1, CgroupHierarchy.HYBRID}:
        yield _error(
            "cgroup-v1",
            "kernel module signature enforcement requires cgroup v2, and this node mounts "
            f"{facts.cgroups}; boot with systemd.unified_cgroup_hierarchy=1",
        )
    strict = facts.lockdown in {Lockdown.INTEGRITY, Lockdown.CONFIDENTIALITY}
    for code, active, who, remedy in (
        (
            "sig-enforce",
            facts.signatures.enforced is True,
            "module.sig_enforce",
            "boot without module.sig_enforce=1",
        ),
        ("lockdown", strict, f"lockdown={facts.lockdown}", "boot without lockdown="),
    ):
        if active and enforce and configured_certificates:
            yield _warning(
                f"{code}-excludes-certificates",
                f"{who} makes the kernel refuse what its own keyrings do not trust before kmodgate is asked: "
                f"configured certificates cannot admit anything; {remedy}, or enrol the keys with the kernel",
            )
        elif active and (not enforce or policy.mode is Mode.AUDIT or policy.pinned_root_exempt):
            yield _warning(
                f"{code}-stricter",
                f"{who} makes the kernel refuse untrusted modules by itself, whatever this policy says; "
                f"{remedy} if that is not wanted",
            )


def _trust(
    facts: NodeFacts, policy: EffectivePolicy, *, configured_certificates: bool, kernel_keyrings: bool
) -> Iterator[Finding]:
    """Whether anything at all can be trusted."""
    if (
        policy.policy is not Policy.ENFORCE
        or configured_certificates
        or not kernel_keyrings
        or facts.keys is None
    ):
        return
    # Without the builtin keyring in view the list is another namespace's, and says nothing.
    if ".builtin_trusted_keys" in facts.keys.keyrings and not facts.keys.certificates:
        yield _error(
            "kernel-keyrings-empty",
            "the kernel's keyrings hold no certificate and none is configured: every module would be denied; "
            "list trust.certificates",
        )


def _root(facts: NodeFacts, policy: EffectivePolicy) -> Iterator[Finding]:
    """The pinned root, where the verdict depends on it."""
    enforce = policy.policy is Policy.ENFORCE
    if enforce and facts.load_pin.restricts_modules:
        yield _warning(
            "kernel-loadpin-stricter",
            "the kernel's own LoadPin refuses modules from other file systems, trusted ones too; "
            "boot with loadpin.exclude=kernel-module",
        )
    if not (policy.pinned_root_exempt if enforce else policy.load_pin):
        return
    root = facts.pinned_root
    if root is None:
        yield _error(
            "pinned-root-unknown",
            "the root file system of process 1 cannot be identified; run as root in the host's PID namespace "
            "(hostPID: true)",
        )
    elif root.protection.is_weak:
        how = (
            "it is mounted read-only, but on a writable device: root can mount it anew"
            if root.superblock_read_only
            else "its file system is writable, its mount alone is not"
            if root.mount_read_only
            else "it is writable"
        )
        yield _warning(
            "pinned-root-writable",
            f"the pinned root ({root.fs_type}, {root.device}) is a weak pin, because {how}: "
            "whoever can write to it can load modules; use a root file system on a read-only device, "
            "best of all dm-verity",
        )
