# SPDX-License-Identifier: Apache-2.0
"""Everything that is built for one kernel, by name: what ``vm build`` and ``vm path`` know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import apt, kernel, keys, rootfs, smallkernel, testmodules, toolchain
from .kernel import Kernel
from .testmodules import DKMS_PACKAGES

BCC = "+bcc"
"""Behind a suite's name: its kernel, and a disk on which BCC can compile."""
SYSTEMD = "+systemd"
"""Behind a suite's name: its kernel, and a disk that systemd boots (``kmodgate.systemd=1``)."""
OVERRIDE = "override"
"""In the place of a suite: the small kernel whose system calls BPF programs may refuse; with BCC."""
NOBPF = "nobpf"
"""In the place of a suite: the small kernel that takes no BPF programs."""

_MAKERS: Mapping[str, Callable[[apt.Resolved], Path]] = {
    "kernel": lambda resolved: kernel.get(resolved).vmlinuz,
    "vmlinux": lambda resolved: kernel.get(resolved).vmlinux,
    "modules": lambda resolved: kernel.get(resolved).modules,
    "rootfs": lambda resolved: rootfs.get(kernel.get(resolved)),
    "testmodules": testmodules.get,
    "certs": lambda resolved: keys.certificates(kernel.get(resolved)),
    "headers": toolchain.headers,
}
NAMES = tuple(_MAKERS)


@dataclass(frozen=True, slots=True)
class Parts:
    """What one machine is made of."""

    kernel: Kernel
    disk: Path
    testmodules: Path
    certs: Path


def parts(suite: str) -> Parts:
    """A machine's parts, built first if the cache lacks them.

    Args:
        suite: of Debian, ``SUITE+bcc``, ``SUITE+systemd``, ``override`` or ``nobpf``.
    """
    if suite in smallkernel.GUEST_FRAGMENTS:
        its_kernel, modules, certs = smallkernel.get_for_guest(suite)
        disk = rootfs.get(its_kernel, headers=() if suite == OVERRIDE else None)
        return Parts(its_kernel, disk, modules, certs)
    name, mark, what = suite.partition("+")
    resolved = apt.resolve(name, DKMS_PACKAGES)
    its_kernel = kernel.get(resolved)
    headers = toolchain.all_headers(resolved) if mark + what == BCC else None
    more = rootfs.SYSTEMD_PACKAGES if mark + what == SYSTEMD else ()
    disk = rootfs.get(its_kernel, headers=headers, more=more)
    return Parts(its_kernel, disk, testmodules.get(resolved), keys.certificates(its_kernel))


def path(what: str, suite: str) -> Path:
    """One part's path, built first if the cache lacks it."""
    return _MAKERS[what](apt.resolve(suite, DKMS_PACKAGES))


def build(suite: str, *, refresh: bool = False) -> dict[str, Path]:
    """All parts for one kernel.

    Args:
        suite: Debian suite.
        refresh: ask the mirrors for newer versions first.
    """
    resolved = apt.resolve(suite, DKMS_PACKAGES, refresh=refresh)
    if refresh:
        rootfs.get(kernel.get(resolved), refresh=True)
    return {name: make(resolved) for name, make in _MAKERS.items()}
