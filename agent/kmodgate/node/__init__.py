# SPDX-License-Identifier: Apache-2.0
"""The node as ``/proc`` and ``/sys`` describe it, read from injected roots.

``read_facts`` collects, ``capability.limits`` judges what it means for a policy. What is
absent is None; what makes no sense is a ``NodeError``. Nothing here is written.
"""

from __future__ import annotations

from .capability import Finding, Severity, limits
from .facts import NodeFacts, read_facts
from .keyrings import KernelKeys, KeyringCertificate, read_keys
from .modules import LoadedModule, read_modules
from .mounts import CgroupHierarchy, PinnedRoot, RootProtection, read_pinned_root
from .paths import NodePaths
from .security import KernelStrictness, read_strictness

__all__ = [
    "CgroupHierarchy",
    "Finding",
    "KernelKeys",
    "KernelStrictness",
    "KeyringCertificate",
    "LoadedModule",
    "NodeFacts",
    "NodePaths",
    "PinnedRoot",
    "RootProtection",
    "Severity",
    "limits",
    "read_facts",
    "read_keys",
    "read_modules",
    "read_pinned_root",
    "read_strictness",
]
