# SPDX-License-Identifier: Apache-2.0
"""What runs on the root that is scanned: loaded modules, listed keys, the kernel's own limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodgate.fsutil import FileReadError
from kmodgate.model import EffectivePolicy
from kmodgate.node import (
    KeyringCertificate,
    LoadedModule,
    NodePaths,
    limits,
    read_facts,
    read_keys,
    read_modules,
)
from kmodgate.node.kernel import read_release
from kmodgate.node.paths import read_word

from .loaded import match_loaded, parse_modules_dep
from .records import LoadedNow, ScannedFile
from .root import Root

_MAX_MODULES_DEP = 64 << 20
# Findings that say something about which modules the kernel lets in.
_DECISIVE = ("sig-enforce", "lockdown", "kernel-loadpin", "module-sig", "modules-")


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """The kernel that runs on the scanned root.

    Attributes:
        paths: its proc and sys.
        release: ``uname -r``.
        listed: certificates that it lists; None when it lists none to this user.
    """

    paths: NodePaths
    release: str | None
    listed: Sequence[KeyringCertificate] | None


def find_running(root: Root) -> RunningKernel | None:
    """The running kernel, when the root is this system's or has its own proc; else None.

    Another root's ``proc`` must be a mounted file system: directories and links of that name
    are part of an image, and say nothing.

    Raises:
        NodeError: ``/proc/keys`` makes no sense.
    """
    if root.is_own:
        paths = NodePaths()
    else:
        base = Path(root.path)
        paths = NodePaths(base / "proc", base / "sys", base / "boot")
        if not (_is_mounted(paths.proc, root) and _is_mounted(paths.sys, root)):
            return None
    if not (paths.proc / "modules").exists():
        return None
    keys = read_keys(paths)
    return RunningKernel(paths, read_release(paths), keys.certificates or None if keys else None)


def _is_mounted(path: Path, root: Root) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_dev != root.device


def pair_loaded(
    root: Root, running: RunningKernel, files: tuple[ScannedFile, ...]
) -> tuple[tuple[LoadedNow, ...], tuple[ScannedFile, ...]]:
    """What is loaded, each with its file; and the files, marked.

    Raises:
        NodeError: the kernel's lists make no sense.
    """
    modules = read_modules(running.paths) or ()
    base, chosen = _chosen(root, running)
    own = tuple(file for file in files if file.release == running.release)
    rest = tuple(file for file in files if file.release != running.release)
    loaded, own = match_loaded(
        modules,
        own,
        base=base,
        chosen=chosen,
        srcversions=_srcversions(running.paths, modules),
        signatures_built=read_facts(running.paths).signatures.built,
    )
    return loaded, tuple(sorted((*own, *rest), key=lambda file: file.path))


def _chosen(root: Root, running: RunningKernel) -> tuple[str, frozenset[str]]:
    """The running kernel's directory of modules, and what modprobe(8) would load from it."""
    base = f"/lib/modules/{running.release}"
    for one in (base, f"/usr{base}"):
        try:
            data, _ = root.read(f"{one}/modules.dep", _MAX_MODULES_DEP)
        except FileReadError:
            continue
        return one, parse_modules_dep(os.fsdecode(data))
    return base, frozenset()


def _srcversions(paths: NodePaths, modules: Sequence[LoadedModule]) -> dict[str, str]:
    found = (
        (module.name, read_word(paths.sys / "module" / module.name / "srcversion")) for module in modules
    )
    return {name: version for name, version in found if version is not None}


def node_notes(
    running: RunningKernel, policy: EffectivePolicy, *, certificates: bool, kernel_keyrings: bool
) -> tuple[str, ...]:
    """What the running kernel adds to the policy by itself.

    Raises:
        NodeError: a file of the kernel makes no sense.
    """
    found = limits(
        read_facts(running.paths),
        policy,
        configured_certificates=certificates,
        kernel_keyrings=kernel_keyrings,
    )
    return tuple(
        f"on this node: {finding.message}" for finding in found if finding.code.startswith(_DECISIVE)
    )
