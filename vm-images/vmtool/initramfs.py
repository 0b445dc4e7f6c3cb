# SPDX-License-Identifier: Apache-2.0
"""A small initramfs: busybox, the modules that find the root device, one script.

The archive is written here (newc format, ``Documentation/driver-api/early-userspace/
buffer-format.rst``), uncompressed: under emulation unpacking costs more than loading.
"""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import VmToolError
from .host import find

# What the machine needs before its root is there, and 9p and the ports right after.
# A name that this kernel has built in, or has not at all, is left out.
WANTED = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "virtio_console", "9pnet_virtio", "9p")
REQUIRED = frozenset({"virtio_blk", "ext4", "virtio_console", "9p"})


@dataclass(frozen=True, slots=True)
class Node:
    """One member of the archive: path without a leading slash, mode with its type bits, data."""

    path: str
    mode: int
    data: bytes = b""


def newc(nodes: Iterable[Node]) -> bytes:
    """The archive in the newc format, all owned by root, with time stamps of zero."""
    out = bytearray()

    def member(ino: int, node: Node) -> None:
        name = node.path.encode() + b"\0"
        fields = (ino, node.mode, 0, 0, 1, 0, len(node.data), 0, 0, 0, 0, len(name), 0)
        out.extend(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(node.data)
        out.extend(b"\0" * (-len(out) % 4))

    for number, node in enumerate(nodes, start=1):
        member(number, node)
    member(0, Node("TRAILER!!!", 0))
    return bytes(out)


def module_name(path: str) -> str:
    """``kernel/fs/9p/9p.ko.xz`` → ``9p``; dashes become underscores as in the kernel."""
    return re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths in the order to load them, each after what it needs.

    Args:
        modules_dep: text of ``modules.dep``.
        wanted: module names; those not in the text are left out.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name: Mapping[str, str] = {module_name(path): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        if path in order:
            return
        for dependency in needs.get(path, ()):
            add(dependency)
        order.append(path)

    for name in wanted:
        if name.replace("-", "_") in by_name:
            add(by_name[name.replace("-", "_")])
    return order


def plain(path: Path) -> bytes:
    """A module file's bytes, decompressed: busybox's insmod cannot."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run([find("zstd"), "-d", "-c"], input=data, capture_output=True, check=True).stdout
    return data


def build(modules: Path, init: Path) -> bytes:
    """The archive for the kernel whose ``/lib/modules/RELEASE`` is ``modules``.

    Raises:
        VmToolError: the kernel lacks a driver that the machine cannot do without.
    """
    order = load_order((modules / "modules.dep").read_text(), WANTED)
    builtin = {module_name(line) for line in (modules / "modules.builtin").read_text().splitlines()}
    missing = REQUIRED - {module_name(path) for path in order} - builtin
    if missing:
        raise VmToolError(f"the kernel in {modules} has no {', '.join(sorted(missing))}")
    folder, program, text = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    nodes = [Node(name, folder) for name in ("bin", "proc", "sys", "dev", "m", "newroot")]
    nodes.append(Node("bin/busybox", program, Path(find("busybox")).read_bytes()))
    nodes.append(Node("init", program, init.read_bytes()))
    names = []
    for number, path in enumerate(order):
        name = f"m/{number:02}-{module_name(path)}.ko"
        nodes.append(Node(name, text, plain(modules / path)))
        names.append(name)
    nodes.append(Node("modules.order", text, "".join(f"/{name}\n" for name in names).encode()))
    return newc(nodes)
