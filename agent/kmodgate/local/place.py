# SPDX-License-Identifier: Apache-2.0
"""Where the socket lies, and how it gets there.

The directory must be a real one that only its owner, root, can write to: otherwise somebody else
could put a socket of his own there and answer for the agent. The new socket is made under
another name and renamed, so that it is there whole, with its mode, from the first moment; a
socket that an earlier agent left is replaced in the same step. Everything happens relative to
the open directory, so that no link on the way matters in between.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Final

from kmodgate.errors import NodeError

SOCKET: Final = Path("/run/kmodgate/agent.sock")
_BACKLOG: Final = 16


class Listening:
    """A socket that listens at a path. ``close`` removes it, unless another agent has replaced it.

    Args:
        path: of the socket; its directory is made for root alone if it is not there.

    Raises:
        NodeError: it cannot be made there; the message says why.
    """

    def __init__(self, path: Path = SOCKET) -> None:
        self.path = path
        self._directory = _open_directory(path)
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            self._identity = self._place()
        except OSError as error:
            self.socket.close()
            os.close(self._directory)
            raise NodeError(f"{path}: {(error.strerror or 'cannot be made').lower()}") from error
        except NodeError:
            self.socket.close()
            os.close(self._directory)
            raise

    def _place(self) -> tuple[int, int]:
        name, fresh = self.path.name, f".{self.path.name}.new"
        for present in (name, fresh):
            self._refuse_other_files(present)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=self._directory)
        # bind(2) knows no directory descriptors; a name of this length fits into sun_path.
        self.socket.bind(f"/proc/self/fd/{self._directory}/{fresh}")
        os.chmod(fresh, 0o600, dir_fd=self._directory)
        self.socket.listen(_BACKLOG)
        status = os.stat(fresh, dir_fd=self._directory, follow_symlinks=False)
        os.rename(fresh, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        return status.st_dev, status.st_ino

    def _refuse_other_files(self, name: str) -> None:
        try:
            mode = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise NodeError(f"{self.path.with_name(name)}: is there and is no socket; remove it")

    def close(self) -> None:
        """Listen no more, and leave nothing behind."""
        self.socket.close()
        with contextlib.suppress(OSError):
            status = os.stat(self.path.name, dir_fd=self._directory, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self.path.name, dir_fd=self._directory)
        os.close(self._directory)


def _open_directory(path: Path) -> int:
    """The socket's directory, made if need be, checked once it is open."""
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NodeError(f"{directory}: {(error.strerror or 'cannot be used').lower()}") from error
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(fd)
        raise NodeError(
            f"{directory}: others may write there, and could answer in the agent's place; "
            f"type: chown root {directory} && chmod 700 {directory}"
        )
    return fd
