# SPDX-License-Identifier: Apache-2.0
"""Everything that is built for one kernel, by name: what ``vm build`` and ``vm path`` know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from . import apt, kernel, keys, rootfs, testmodules, toolchain
from .testmodules import DKMS_PACKAGES

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
