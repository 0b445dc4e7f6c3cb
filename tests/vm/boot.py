# SPDX-License-Identifier: Apache-2.0
"""What every test that boots a guest does: ask for QEMU and root, and fail when the machine dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.need import need
from vmtool import VmDied, VmToolError


def need_qemu(target: str) -> None:
    """QEMU, and root to build the guest's disk.

    Args:
        target: of the Makefile, for the message.
    """
    need(shutil.which("qemu-system-x86_64"), "QEMU is missing; run: sudo make deps")
    need(os.geteuid() == 0, f"building the guest's disk needs root; run: sudo make {target}")


@contextmanager
def alive() -> Iterator[None]:
    """A machine that dies or cannot be started fails the test; the failure shows the console's end."""
    try:
        yield
    except VmDied as error:
        pytest.fail(f"the machine died: {error}\n{error.tail}")
    except VmToolError as error:
        pytest.fail(str(error))
