# SPDX-License-Identifier: Apache-2.0
"""The newest kernel of a mounted image: its build config, and the type information inside it.

What only a running kernel shows stays unknown: sysctls, keyrings, the kernel command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from kmodgate.errors import KmodgateError, NodeError
from kmodgate.modfile import kernelimage
from kmodgate.node import NodeFacts, NodePaths, read_facts
from kmodgate.node.bpf import find_btf, names_in_btf
from kmodgate.node.kconfig import parse_kconfig
from kmodgate.node.security import KernelLoadPin, ModuleSignatures
from kmodgate.scan.root import Root

from .ladder import ASKED
from .seen import Seen

_MAX_CONFIG: Final = 4 << 20
_MAX_IMAGE: Final = 256 << 20
_MODULES: Final = ("/lib/modules", "/usr/lib/modules")


def look_at_image(root: Root, now: datetime) -> Seen:
    """Look at the newest kernel below ``root``.

    Raises:
        NodeError: no kernel's build config is there.
    """
    kernels = _kernels_of(root)
    if not kernels:
        raise NodeError(
            f"{root.path}: neither a running node (no proc) nor an image with a kernel's build config "
            "(boot/config-RELEASE or lib/modules/RELEASE/config); mount the image there"
        )
    releases = sorted(kernels, key=_version_key, reverse=True)
    release = releases[0]
    kconfig = kernels[release]
    return Seen(
        live=False,
        facts=_facts_of(root, release, kconfig),
        now=now,
        kernels=tuple(releases),
        kconfig=kconfig,
        functions=_functions_of(root, release),
        headers=any(root.kind(f"{folder}/{release}/build") == "directory" for folder in _MODULES),
        no_tracefs=None,
    )


def _kernels_of(root: Root) -> dict[str, Mapping[str, str]]:
    """Release to build config, of every kernel whose config the image holds."""
    places = [(name.removeprefix("config-"), f"/boot/{name}") for name in _names_in(root, "/boot")]
    for modules in _MODULES:
        places += [(release, f"{modules}/{release}/config") for release in root.folders_in(modules)]
    found = {}
    for release, path in places:
        if root.kind(path) == "file":
            data, _ = root.read(path, _MAX_CONFIG)
            config = parse_kconfig(data.decode("utf-8", "replace"))
            if config:
                found[release] = config
    return found


def _names_in(root: Root, folder: str) -> list[str]:
    try:
        fd = root.open_folder(folder)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith("config-"))
    finally:
        os.close(fd)


def _functions_of(root: Root, release: str) -> frozenset[str] | None:
    """Which of the names asked for the kernel's type information has; None where it was not found."""
    places = (f"/boot/vmlinuz-{release}", *(f"{folder}/{release}/vmlinuz" for folder in _MODULES))
    path = next((place for place in places if root.kind(place) == "file"), None)
    if path is None:
        return None
    try:
        kernel = kernelimage.extract(root.read(path, _MAX_IMAGE)[0])
    except KmodgateError:
        return None
    btf = find_btf(kernel)
    return None if btf is None else names_in_btf(btf, ASKED)


def _version_key(release: str) -> list[tuple[int, str]]:
    """Sorts 6.12 after 6.9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", release)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _facts_of(root: Root, release: str, kconfig: Mapping[str, str]) -> NodeFacts:
    """What a build config says of the kernel that will run; the rest is not known."""
    lsms = tuple(kconfig.get("LSM", "").split(","))
    if kconfig.get("BPF_LSM") != "y":
        lsms = tuple(name for name in lsms if name != "bpf")
    top = Path(root.path)
    return replace(
        read_facts(NodePaths(proc=top / "proc", sys=top / "sys", boot=top / "boot")),
        release=release,
        btf=kconfig.get("DEBUG_INFO_BTF") == "y",
        lsms=lsms,
        signatures=ModuleSignatures(
            built=kconfig.get("MODULE_SIG") == "y",
            enforced=True if kconfig.get("MODULE_SIG_FORCE") == "y" else None,
        ),
        load_pin=KernelLoadPin(enforced=None, excludes_modules=False),
        modules_built=kconfig.get("MODULES") == "y",
    )
