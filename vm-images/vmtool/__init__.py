# SPDX-License-Identifier: Apache-2.0
"""Virtual machines for kmodgate's tests: Debian kernels and a small guest under QEMU.

From a test::

    import vmtool
    done = vmtool.run(["uname", "-r"], suite="bookworm", timeout=120)
    assert done.status == 0

``run`` raises ``VmDied`` when the machine, not the command, failed.
"""

from __future__ import annotations

from .errors import MissingTool, VmDied, VmToolError
from .runner import Completed, Options, run

__all__ = ["Completed", "MissingTool", "Options", "VmDied", "VmToolError", "run"]
