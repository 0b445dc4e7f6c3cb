# SPDX-License-Identifier: Apache-2.0
"""What differs between the kernels that the guest's tests run on: one table, no skips in between.

Used outside the guest (which kernel to boot, and how) and inside (what to expect of it). What a
kernel shows of itself is asked in the guest, and must be what the table says (test_kernel.py).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BPF_LSM = "bpf-lsm"
BPF_LSM_BASIC = "bpf-lsm-basic"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a loader meets on Debian's kernel of one series.

    Attributes:
        suite: of Debian, whose kernel it is.
        rung: where kmodgate stands on it.
        decompresses: what the kernel unpacks by itself with ``MODULE_INIT_COMPRESSED_FILE``
            (``/sys/module/compression``, since 5.17); None where it does not.
        without_decompression: what that flag meets there, by Python's name (EOPNOTSUPP is the
            same number); None where it is known.
        shares_loads: tasks that load one inode at once get the first one's result (since 6.5).
        packed: its modules lie compressed in ``/lib/modules``.
        ecdsa: its keyrings can verify ECDSA (since 5.13).
        chooses_preemption: how it preempts can be changed at run time (``CONFIG_PREEMPT_DYNAMIC``, 5.12).
        off_switch: while programs are attached, ``kernel.ftrace_enabled=0`` is taken, and silences
            them; an older kernel answers EBUSY.
        append: what its command line needs.
    """

    suite: str
    rung: str
    decompresses: str | None
    without_decompression: str | None
    shares_loads: bool
    packed: bool
    ecdsa: bool
    chooses_preemption: bool
    off_switch: bool
    append: str = ""

    @property
    def capabilities(self) -> frozenset[str]:
        """The words of ``@pytest.mark.needs``."""
        found = {
            "digests": self.rung == BPF_LSM,
            "the-basic-rung": self.rung == BPF_LSM_BASIC,
            "hardening": self.rung == BPF_LSM,
            "decompression": self.decompresses is not None,
            "shared-loads": self.shares_loads,
            "packed-modules": self.packed,
            "ecdsa": self.ecdsa,
            "preemption-modes": self.chooses_preemption,
            "off-switch": self.off_switch,
        }
        return frozenset(word for word, there in found.items() if there)


KERNELS: Final[Mapping[str, Kernel]] = {
    "5.10": Kernel(
        suite="bullseye",
        rung=BPF_LSM_BASIC,
        decompresses=None,
        without_decompression="EINVAL",
        shares_loads=False,
        packed=False,
        ecdsa=False,
        chooses_preemption=False,
        off_switch=False,
        append="lsm=lockdown,yama,apparmor,bpf",  # bpf is not in its own list
    ),
    "6.1": Kernel(
        suite="bookworm",
        rung=BPF_LSM,
        decompresses=None,
        without_decompression="ENOTSUP",
        shares_loads=False,
        packed=False,
        ecdsa=True,
        chooses_preemption=True,
        off_switch=True,
    ),
    "6.12": Kernel(
        suite="trixie",
        rung=BPF_LSM,
        decompresses="xz",
        without_decompression=None,
        shares_loads=True,
        packed=True,
        ecdsa=True,
        chooses_preemption=True,
        off_switch=True,
    ),
    "7.2": Kernel(
        suite="sid",
        rung=BPF_LSM,
        decompresses="xz",
        without_decompression=None,
        shares_loads=True,
        packed=True,
        ecdsa=True,
        chooses_preemption=True,
        off_switch=True,
    ),
}
WORDS: Final = frozenset().union(*(kernel.capabilities for kernel in KERNELS.values()))


def of_suite(suite: str) -> Kernel:
    """The row of a Debian suite. Raises LookupError."""
    for kernel in KERNELS.values():
        if kernel.suite == suite:
            return kernel
    raise LookupError(f"nothing is known of {suite}: add a row to tests/vm/kernels.py")


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


def seen(sys: Path = Path("/sys"), modules: Path = Path("/lib/modules")) -> dict[str, object]:
    """What the running kernel shows of the table's columns, asked without kmodgate's code."""
    functions = (sys / "kernel/btf/vmlinux").read_bytes()
    compression = sys / "module/compression"
    ends = {path.suffix for path in (modules / platform.release() / "kernel").rglob("*.ko*")}
    return {
        "rung": BPF_LSM if b"\0bpf_loop\0" in functions else BPF_LSM_BASIC,
        "decompresses": compression.read_text().strip() if compression.exists() else None,
        "packed": ends == {".xz"},
    }
