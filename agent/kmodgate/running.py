# SPDX-License-Identifier: Apache-2.0
"""The kernel profile of a running kernel: what ``node`` reads of it, as ``signature`` wants it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .node import NodePaths
from .node.crypto import read_crypto
from .node.kconfig import read_kconfig
from .node.kernel import read_release
from .signature import KernelProfile, profile_for


def profile_of(
    release: str | None, crypto: Collection[str] | None, kconfig: Mapping[str, str] | None
) -> KernelProfile:
    """The profile of a kernel from what was read of it; what is None narrows nothing.

    Args:
        release: ``uname -r``.
        crypto: names of ``/proc/crypto``.
        kconfig: build options without ``CONFIG_``.
    """
    options = {f"CONFIG_{name}": value for name, value in (kconfig or {}).items()}
    return profile_for(release or "", crypto or (), options)


def running_profile(paths: NodePaths | None = None) -> KernelProfile:
    """The profile of the kernel that ``paths`` describe, this one by default.

    Raises:
        NodeError: procfs makes no sense.
    """
    paths = NodePaths() if paths is None else paths
    release = read_release(paths)
    return profile_of(release, read_crypto(paths), read_kconfig(paths, release))
