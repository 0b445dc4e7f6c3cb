# SPDX-License-Identifier: Apache-2.0
"""What the tool raises on purpose; the command line prints it as one line."""

from __future__ import annotations

from pathlib import Path


class VmToolError(Exception):
    """Something that the user can put right; the message says how."""


class MissingTool(VmToolError):  # noqa: N818  # read as a statement: "missing tool"
    """A program of the host that is not installed."""


class VmDied(VmToolError):  # noqa: N818  # read as a statement: "the VM died"
    """The machine ended without a status from the command.

    Attributes:
        reason: one line: panic, timeout, hang at boot, or QEMU's own failure.
        log: the console log.
        tail: its last lines.
        stdout: what the command had written when the machine died.
        stderr: the same for standard error.
    """

    def __init__(self, reason: str, log: Path, tail: str, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(f"{reason}; console log: {log}")
        self.reason = reason
        self.log = log
        self.tail = tail
        self.stdout = stdout
        self.stderr = stderr
