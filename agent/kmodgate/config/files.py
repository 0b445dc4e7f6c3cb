# SPDX-License-Identifier: Apache-2.0
"""Reads a node config from disk. The only file of this package that opens one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from kmodgate.errors import ConfigError

from .parse import parse
from .tree import MAX_BYTES
from .values import NodeConfig

_REMEDY = {
    errno.ENOENT: "no such file; check the path, or mount the ConfigMap there",
    errno.ENOTDIR: "a part of the path is no directory; check the path",
    errno.EACCES: "permission denied; make it readable for this user",
    errno.EPERM: "permission denied; make it readable for this user",
    errno.ELOOP: "a loop of symbolic links; remove it",
    errno.ENAMETOOLONG: "the path is too long; shorten it",
}


def load(path: Path) -> NodeConfig:
    """Read and check a node config; relative paths in it are relative to its directory.

    Raises:
        ConfigError: the file is missing, no regular file, unreadable, or wrong inside.
    """
    return parse(read_bounded(path), source=str(path), directory=path.parent)


def read_bounded(path: Path) -> bytes:
    """The bytes of a regular file of at most 1 MiB.

    Symbolic links are followed: a ConfigMap volume is made of them. Opening neither
    waits (a FIFO, a write lease) nor touches a device.

    Raises:
        ConfigError: anything else than such a file.
    """
    source = str(path)
    try:
        _require_regular(path.stat().st_mode, source)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            # Again: the name may lead elsewhere by now.
            _require_regular(os.fstat(file.fileno()).st_mode, source)
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        what = _REMEDY.get(error.errno or 0, f"{error.strerror}; check the file")
        raise ConfigError(f"cannot be read: {what}", source=source) from None
    except ValueError:
        raise ConfigError("cannot be read: the path holds a NUL; correct it", source=ascii(source)) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES} bytes; shorten the file", source=source)
    return data


def _require_regular(mode: int, source: str) -> None:
    if stat.S_ISDIR(mode):
        raise ConfigError("is a directory; name the file in it", source=source)
    if not stat.S_ISREG(mode):
        raise ConfigError("is no regular file; name a YAML file", source=source)
