# SPDX-License-Identifier: Apache-2.0
"""One tree of errors: whatever kmodgate raises on purpose is a ``KmodgateError``.

Each class knows the exit code of a command that ends with it (0 fine, 1 the answer is
no, 2 usage or bad input, 3 cannot run here). A message names the file, the place and
the remedy in one line; the caller prints it without a traceback.
"""

from __future__ import annotations

from typing import ClassVar

from .model import SignatureStatus


class KmodgateError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 3


class ConfigError(KmodgateError):
    """A node config that cannot be used.

    Args:
        message: what is wrong, and what to write instead.
        source: name of the file.
        line: 1-based line in it, or None when no line can be named.
    """

    exit_code = 2

    def __init__(self, message: str, *, source: str = "", line: int | None = None) -> None:
        place = source if line is None else f"{source}:{line}"
        super().__init__(f"{place}: {message}" if place else message)
        self.message = message
        self.source = source
        self.line = line


class InputError(KmodgateError):
    """A file or argument that cannot be used (unreadable, wrong kind, too large)."""

    exit_code = 2


class ModuleFormatError(KmodgateError):
    """A module file whose container (compression, ELF) cannot be read.

    Args:
        message: what was found, and where.
        errno_name: what ``finit_module(2)`` would answer, for example ``"ENOEXEC"``.
    """

    exit_code = 2

    def __init__(self, message: str, errno_name: str = "ENOEXEC") -> None:
        super().__init__(message)
        self.errno_name = errno_name


class ImageError(InputError):
    """A kernel image that cannot be taken apart; the caller adds the file's name."""


class SignatureError(KmodgateError):
    """A module whose signature does not make it trusted.

    Args:
        status: which of the closed set.
        errno_name: what the kernel answers under ``sig_enforce``.
        detail: one sentence for people.
    """

    exit_code = 1

    def __init__(self, status: SignatureStatus, errno_name: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.errno_name = errno_name
        self.detail = detail


class HookError(KmodgateError):
    """A hook that cannot be loaded, attached or read on this kernel."""


class NodeError(KmodgateError):
    """A node that cannot do what the policy asks of it."""
