# SPDX-License-Identifier: Apache-2.0
"""What differs between the kernels that the guest's tests run on: one table, no skips in between."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a loader meets on Debian's kernel of one series.

    Attributes:
        decompresses: what the kernel unpacks by itself with ``MODULE_INIT_COMPRESSED_FILE``
            (``/sys/module/compression``); None where it does not.
        without_decompression: what that flag meets there, by Python's name (EOPNOTSUPP is the
            same number); None where it is known.
        shares_loads: tasks that load one inode at once get the first one's result (since 6.5).
    """

    decompresses: str | None
    without_decompression: str | None
    shares_loads: bool


KERNELS: Final[Mapping[str, Kernel]] = {
    "6.1": Kernel(decompresses=None, without_decompression="ENOTSUP", shares_loads=False),
    "6.12": Kernel(decompresses="xz", without_decompression=None, shares_loads=True),
    "7.2": Kernel(decompresses="xz", without_decompression=None, shares_loads=True),
}


def this() -> Kernel:
    """The row of the running kernel.

    Raises:
        LookupError: nobody has said yet what to expect of it.
    """
    series = ".".join(platform.release().split(".")[:2])
    try:
        return KERNELS[series]
    except KeyError as error:
        message = f"nothing is known of Linux {series}: add a row to tests/vm/kernels.py"
        raise LookupError(message) from error
