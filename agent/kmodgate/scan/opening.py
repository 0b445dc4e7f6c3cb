# SPDX-License-Identifier: Apache-2.0
"""Module files read, decompressed and digested, before anybody says what is trusted.

Opening and judging take turns by the dozen and not by the file: after a decompression nothing of
what verifies is left in the processor's caches. And a root can be opened while the images of
its kernels are still being read for their certificates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kmodgate.errors import ModuleFormatError
from kmodgate.fsutil import FileReadError, file_error
from kmodgate.inspection import OpenModule, open_module
from kmodgate.model import SignatureReport, SignatureStatus
from kmodgate.signature import KernelProfile, let_go

from .plan import Part
from .records import Outcome, ScannedFile
from .root import Root

_UNREADABLE = SignatureStatus.UNREADABLE
# Bytes of messages that may be held for judging later.
_HELD = 16 << 20
_GROUP = 48


@dataclass(frozen=True, slots=True)
class Opened:
    """One file that was read and is to be judged.

    Attributes:
        path: from the root.
        part: where it belongs.
        device: ``st_dev`` of what it lies on.
        module: what was read.
    """

    path: str
    part: Part
    device: int
    module: OpenModule


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker takes at once.

    Attributes:
        opened: files to judge, and such that could not be read.
        parts: files to open and judge.
    """

    opened: tuple[Opened | ScannedFile, ...] = ()
    parts: tuple[Part, ...] = ()


def open_files(root: Root, parts: Sequence[Part], max_size: int) -> Iterator[Opened | ScannedFile]:
    """Open files, one by one; those that cannot be read are judged with that."""
    for part in parts:
        try:
            fd = root.open_folder(part.folder)
        except OSError as error:
            problem = file_error(part.folder, error)
            for name in part.names:
                yield unreadable(_join(part.folder, name), part, problem)
            continue
        try:
            for name in part.names:
                yield _open_one(root, fd, part, name, max_size)
        finally:
            os.close(fd)


def _open_one(root: Root, folder: int, part: Part, name: str, max_size: int) -> Opened | ScannedFile:
    path = _join(part.folder, name)
    try:
        raw, device = root.read(path, max_size, folder=folder)
        module = open_module(raw, max_size=max_size)
    except (FileReadError, ModuleFormatError) as error:
        return unreadable(path, part, error)
    # While the bytes are still in the processor's caches; every verdict comes with it.
    module.file.sha256()
    return Opened(path, part, device, module)


def open_ahead(
    root: Root,
    chunks: Sequence[tuple[Part, ...]],
    profiles: Mapping[str | None, KernelProfile],
    max_size: int,
    until: Callable[[], bool],
) -> tuple[Work, ...]:
    """Open files until something else is done, and put all of the chunks into work.

    Args:
        root: where they are.
        chunks: of the plan.
        profiles: that files will be judged by, by release.
        max_size: bytes of a module after decompression.
        until: asked before each chunk.

    Returns:
        What is left to open, then what is left to judge.
    """
    opened: list[Opened | ScannedFile] = []
    again: list[Part] = []
    held = position = 0
    for chunk in chunks:
        if until() or held > _HELD:
            break
        position += 1
        for one in open_files(root, chunk, max_size):
            if isinstance(one, Opened):
                if not let_go(one.module.file, profiles[one.part.release]):
                    name = one.path.rpartition("/")[2]
                    again.append(replace(one.part, names=(name,)))  # too large to be kept
                    continue
                held += one.module.file.size
            opened.append(one)
    closed = (*chunks[position:], *((part,) for part in again))
    groups = (tuple(opened[start : start + _GROUP]) for start in range(0, len(opened), _GROUP))
    return (*(Work(parts=parts) for parts in closed), *(Work(opened=group) for group in groups))


def unreadable(path: str, part: Part, error: FileReadError | ModuleFormatError) -> ScannedFile:
    """What is said of a file that could not be read."""
    problem = error.problem if isinstance(error, FileReadError) else str(error)
    return ScannedFile(
        path,
        part.release,
        part.place,
        Outcome.UNREADABLE,
        _UNREADABLE.value,
        error.errno_name,
        SignatureReport(_UNREADABLE, error.errno_name, detail=problem),
    )


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
