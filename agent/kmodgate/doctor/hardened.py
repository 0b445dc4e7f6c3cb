# SPDX-License-Identifier: Apache-2.0
"""Whether ``hardened: true`` would work on this node. Pure.

It is off by default, so a node that cannot be hardened is no problem: the line says what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kmodgate.node import CgroupHierarchy

from .line import Check, Findings, ok, unknown
from .seen import Purpose, Seen

GUARD_HOOKS: Final = (
    "bpf_lsm_bpf",
    "bpf_lsm_bpf_map",
    "bpf_lsm_bpf_prog",
    "bpf_lsm_inode_create",
    "bpf_lsm_inode_mkdir",
    "bpf_lsm_inode_rename",
    "bpf_lsm_inode_rmdir",
    "bpf_lsm_inode_symlink",
    "bpf_lsm_inode_unlink",
    "bpf_lsm_move_mount",
    "bpf_lsm_ptrace_access_check",
    "bpf_lsm_sb_mount",
    "bpf_lsm_sb_umount",
)
"""What ``bpf/guard.bpf.c`` attaches to; a test compares the two."""
SYSCALL_PROGRAMS: Final = "bpf_sys_bpf"
"""Came with the programs of type ``syscall`` (5.14), of which registration is one."""
GUARD_FUNCTIONS: Final = (*GUARD_HOOKS, SYSCALL_PROGRAMS)


def hardening(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    """One line, for a running node."""
    del purpose, findings
    if not seen.live:
        return
    code, subject = "hardening", "hardened: true"
    facts = seen.facts
    if seen.functions is None or facts.lsms is None:
        yield unknown(
            code, subject, "seen with /sys/kernel/btf/vmlinux and /sys/kernel/security/lsm readable"
        )
        return
    missing = [name.removeprefix("bpf_lsm_") for name in GUARD_HOOKS if name not in seen.functions]
    if SYSCALL_PROGRAMS not in seen.functions:
        missing.append("programs of type syscall (Linux 5.14)")
    if "bpf" not in facts.lsms:
        missing.append("bpf among the security modules")
    if facts.cgroups in {None, CgroupHierarchy.V1}:
        missing.append("cgroup v2 hierarchy")
    if not seen.bpffs:
        missing.append("BPF file system (mount -t bpf bpf /sys/fs/bpf)")
    if missing:
        yield ok(code, subject, f"would be an error at the start here: there is no {', no '.join(missing)}")
    else:
        yield ok(code, subject, "possible here")
