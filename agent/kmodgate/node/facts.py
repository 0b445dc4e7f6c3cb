# SPDX-License-Identifier: Apache-2.0
"""Everything that is known of the node, read once. Nothing here is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import kernel, keyrings, mounts, security
from .kconfig import read_kconfig
from .paths import NodePaths


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node at one moment; None where it does not tell.

    Attributes:
        release: ``uname -r``.
        modules_built: CONFIG_MODULES, seen by ``/proc/modules``.
        modules_disabled: ``kernel.modules_disabled``: no module loads until reboot.
        ftrace_enabled: ``kernel.ftrace_enabled``: off, it silences BPF programs.
        online_cpus: CPUs that run.
        keys: certificates and keyrings that the kernel lists.
    """

    release: str | None
    btf: bool
    lsms: tuple[str, ...] | None
    lockdown: security.Lockdown | None
    signatures: security.ModuleSignatures
    load_pin: security.KernelLoadPin
    modules_built: bool
    modules_disabled: bool | None
    ftrace_enabled: bool | None
    cgroups: mounts.CgroupHierarchy | None
    online_cpus: int | None
    preemption: kernel.Preemption | None
    pinned_root: mounts.PinnedRoot | None
    keys: keyrings.KernelKeys | None

    @property
    def has_bpf_lsm(self) -> bool | None:
        """Whether BPF programs can be security modules here; None when securityfs is out of sight."""
        return None if self.lsms is None else "bpf" in self.lsms


def read_facts(
    paths: NodePaths | None = None,
    *,
    mount_id_of: Callable[[Path], int | None] = mounts.mount_id_of,
) -> NodeFacts:
    """Read the node.

    Args:
        paths: where its file systems are mounted; the usual places by default.
        mount_id_of: how the mount id of a directory is found out.

    Raises:
        NodeError: a file of the kernel makes no sense. What is merely absent is None.
    """
    paths = NodePaths() if paths is None else paths
    release = kernel.read_release(paths)
    kconfig = read_kconfig(paths, release)
    lsms = security.read_lsms(paths)
    return NodeFacts(
        release=release,
        btf=kernel.has_btf(paths),
        lsms=lsms,
        lockdown=security.read_lockdown(paths),
        signatures=security.read_module_signatures(paths, kconfig),
        load_pin=security.read_load_pin(paths, lsms, kconfig),
        modules_built=(paths.proc / "modules").exists(),
        modules_disabled=kernel.read_sysctl_flag(paths, "kernel/modules_disabled"),
        ftrace_enabled=kernel.read_sysctl_flag(paths, "kernel/ftrace_enabled"),
        cgroups=mounts.read_cgroup_hierarchy(paths),
        online_cpus=kernel.read_online_cpus(paths),
        preemption=kernel.read_preemption(paths, kconfig),
        pinned_root=mounts.read_pinned_root(paths, mount_id_of=mount_id_of),
        keys=keyrings.read_keys(paths),
    )
