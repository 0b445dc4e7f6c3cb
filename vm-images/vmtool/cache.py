# SPDX-License-Identifier: Apache-2.0
"""The image cache: names keyed by inputs, one builder at a time, no half-made entry.

An entry is a file or folder ``KIND-HASH``. It is built under a temporary name in the
same folder and renamed, so whoever sees the name sees the whole. Entries are never
changed afterwards: changed inputs give another name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .host import say

_ENTRY = re.compile(r"[a-z]+-.*[0-9a-f]{16}(\.\w+)?")  # names end in a key and perhaps a suffix
_DAY = 24 * 3600.0


def root() -> Path:
    """``$KMODGATE_VM_CACHE``, else ``$XDG_CACHE_HOME/kmodgate/vm``, else ``~/.cache/…``; created."""
    own = os.environ.get("KMODGATE_VM_CACHE")
    base = (
        Path(own)
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kmodgate" / "vm"
    )
    base.mkdir(parents=True, exist_ok=True)
    return base.absolute()


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """Key over strings, bytes and the contents of files and folders (16 hex digits).

    Each part is framed by its kind and length, so no two lists of parts collide by
    concatenation. A folder counts with names, file modes and contents.
    """
    state = hashlib.sha256()

    def add(kind: str, data: bytes) -> None:
        state.update(f"{kind}{len(data)}:".encode())
        state.update(data)

    for part in parts:
        if isinstance(part, Path):
            for path in sorted(p for p in ([part] if part.is_file() else part.rglob("*")) if p.is_file()):
                if "__pycache__" in path.parts:
                    continue
                add("n", f"{path.relative_to(part.parent)} {path.stat().st_mode & 0o777:o}".encode())
                add("f", path.read_bytes())
        else:
            add("s", part.encode() if isinstance(part, str) else part)
    return state.hexdigest()[:16]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock ``name``; a second builder waits and says so."""
    folder = root() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another build holds {handle.name}; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """The entry ``name``, built now if the cache has none.

    Args:
        name: file name with the key in it.
        build: makes the entry at the path it is given, as a file or folder.
    """
    target = root() / name
    with contextlib.suppress(OSError):
        os.utime(target)  # the time of last use, for prune()
    if target.exists():
        return target
    with locked(name):
        if target.exists():
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root()))
        try:
            build(work / "entry")
            (work / "entry").rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def prune(unused_seconds: float) -> list[str]:
    """Remove entries that were not asked for since, and what broken builds left; returns their names."""
    removed = []
    for path in sorted(root().iterdir()):
        temporary = path.name.startswith(".")
        if not temporary and not _ENTRY.fullmatch(path.name):
            continue
        if time.time() - path.stat().st_mtime < (max(unused_seconds, _DAY) if temporary else unused_seconds):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that readers see the old or the new contents."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
