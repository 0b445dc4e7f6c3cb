# SPDX-License-Identifier: Apache-2.0
"""What is to be scanned: which kernels a root file system holds, and their module files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kmodgate.errors import InputError

from .root import Folder, Root

ALL = "all"

# modprobe(8) looks in the first; systems without links from / have the second alone.
_BASES = ("/lib/modules", "/usr/lib/modules")
_BELOW = re.compile(r"/(?:usr/)?lib/modules/+([^/]+)(?:/+(.*))?", re.DOTALL)
_COMPRESSED = (".gz", ".xz", ".zst")
# A chunk is what a worker takes at once: large enough to cost nothing, and small enough
# that none is left over at the end.
_CHUNK_FILES = 24
_CHUNK_BYTES = 8 << 20
_COMPRESSED_WEIGHT = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Module files of one directory, for one worker.

    Attributes:
        folder: the directory, from the root.
        names: files in it.
        release: the kernel that they are installed for, or that would load them; None when
            nothing tells.
        place: as in ``records.ScannedFile``.
        installed: they lie in ``lib/modules/RELEASE``.
    """

    folder: str
    names: tuple[str, ...]
    release: str | None
    place: str
    installed: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be read.

    Attributes:
        chunks: work for the workers, the heaviest first.
        files: how many module files that is.
        releases: kernels that they are for, in order.
        unreadable: what could not be entered, each with its part's place in the tree.
    """

    chunks: tuple[tuple[Part, ...], ...]
    files: int
    releases: tuple[str, ...]
    unreadable: tuple[tuple[Folder, Part], ...]


def installed_releases(root: Root) -> tuple[tuple[str, str], ...]:
    """Directories of modules: (release, path), each directory once, in order.

    ``/lib`` and ``/usr/lib`` are often the same, by a link.
    """
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for base in _BASES:
        for name in root.folders_in(base):
            path = f"{base}/{name}"
            identity = root.identity(path)
            if identity is not None:
                found.setdefault(identity, (name, path))
    return tuple(sorted(found.values()))


def make_plan(root: Root, *, kernel: str, paths: Sequence[str], running: str | None) -> Plan:
    """Find all module files.

    Args:
        root: where to look.
        kernel: a release, or ``all``.
        paths: files and directories to scan instead of ``lib/modules``, from the root;
            relative ones from the working directory when the root is ``/``.
        running: the release that runs now, when that is this root's.

    Raises:
        InputError: a kernel or path that is not there, or no module file at all.
    """
    installed = installed_releases(root)
    names = tuple(dict.fromkeys(name for name, _ in installed))
    if kernel != ALL and kernel not in names:
        there = ", ".join(names) or "none"
        raise InputError(f"--kernel {kernel}: no modules of it below {root.path}; there are: {there}")
    if paths:
        folders = [folder for path in paths for folder in _given(root, path)]
    else:
        folders = [folder for name, path in installed if kernel in {ALL, name} for folder in root.walk(path)]
    loads_into = kernel if kernel != ALL else running or (names[0] if len(names) == 1 else None)
    located = [(folder, _locate(folder, loads_into)) for folder in folders]
    files = sum(len(folder.names) for folder, _ in located)
    unreadable = tuple((folder, part) for folder, part in located if folder.problem is not None)
    if not files and not unreadable:
        where = " ".join(paths) or f"lib/modules of {root.path}"
        raise InputError(
            f"no module files (.ko, .ko.gz, .ko.xz, .ko.zst) in {where}; "
            "is the right root file system mounted there?"
        )
    return Plan(
        chunks=_chunks(located),
        files=files,
        releases=tuple(sorted({part.release for folder, part in located if part.release is not None})),
        unreadable=unreadable,
    )


def _given(root: Root, path: str) -> Iterator[Folder]:
    # Joined by hand: pathlib would take ".." away, which links give a meaning.
    path = f"{os.getcwd()}/{path}" if root.is_own and not path.startswith("/") else "/" + path.lstrip("/")  # noqa: PTH109
    kind = root.kind(path)
    if kind is None:
        raise InputError(f"{path}: no such file or directory below {root.path}")
    if kind == "directory":
        yield from root.walk(path)
    else:
        folder, _, name = path.rpartition("/")
        yield Folder(folder or "/", (name,), (0,))


def _locate(folder: Folder, loads_into: str | None) -> Part:
    match = _BELOW.fullmatch(folder.path)
    if match is None:
        return Part(folder.path, folder.names, loads_into, "", installed=False)
    below = match[2] or "."
    place = "updates/dkms" if f"{below}/".startswith("updates/dkms/") else below.partition("/")[0]
    return Part(folder.path, folder.names, match[1], place, installed=True)


def _chunks(located: Sequence[tuple[Folder, Part]]) -> tuple[tuple[Part, ...], ...]:
    """Cut the work up; heavy chunks come first, so that no worker is left with one at the end."""
    chunks: list[tuple[int, list[Part]]] = []
    weight, count, parts = 0, 0, list[Part]()
    for folder, part in located:
        names: list[str] = []
        for name, size in zip(folder.names, folder.sizes, strict=True):
            names.append(name)
            weight += size * (_COMPRESSED_WEIGHT if name.endswith(_COMPRESSED) else 1)
            count += 1
            if count == _CHUNK_FILES or weight >= _CHUNK_BYTES:
                parts.append(_with_names(part, names))
                chunks.append((weight, parts))
                names, parts, weight, count = [], [], 0, 0
        if names:
            parts.append(_with_names(part, names))
    if parts:
        chunks.append((weight, parts))
    chunks.sort(key=lambda chunk: -chunk[0])
    return tuple(tuple(parts) for _, parts in chunks)


def _with_names(part: Part, names: Sequence[str]) -> Part:
    return Part(part.folder, tuple(names), part.release, part.place, part.installed)
