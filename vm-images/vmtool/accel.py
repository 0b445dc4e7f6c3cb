# SPDX-License-Identifier: Apache-2.0
"""KVM or TCG: a ``/dev/kvm`` that exists may still hang the guest, so it is tried once.

The outcome is remembered for this boot of the host (``/proc/sys/kernel/random/boot_id``).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from . import cache
from .errors import VmToolError
from .host import find, say
from .kernel import Kernel
from .machine import Machine, arguments

VARIABLE = "KMODGATE_VM_ACCEL"
MARKER = b"kmodgate-vm: kernel is up"
_PROBE_SECONDS = 10.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _works(kernel: Kernel) -> bool:
    """Boot the kernel under KVM as far as its first process, within the watchdog's time."""
    with tempfile.TemporaryDirectory(prefix="kmodgate-vm-") as folder:
        log = Path(folder) / "console"
        machine = Machine(kernel.vmlinuz, kernel.initrd, None, log, accel="kvm", smp=1, memory=512)
        argv = arguments(machine, {})
        qemu = subprocess.Popen(
            [find("setpriv"), "--pdeathsig", "KILL", find(argv[0]), *argv[1:]],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + _PROBE_SECONDS
            while time.monotonic() < deadline and qemu.poll() is None:
                if log.exists() and MARKER in log.read_bytes():
                    return True
                time.sleep(0.1)
            return False
        finally:
            qemu.send_signal(signal.SIGKILL)
            qemu.wait()


def choose(kernel: Kernel) -> str:
    """``kvm`` where it works, else ``tcg``; ``$KMODGATE_VM_ACCEL`` decides if it is set.

    Raises:
        VmToolError: the variable holds something else.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted:
        if wanted not in {"kvm", "tcg"}:
            raise VmToolError(f"{VARIABLE}={wanted!r}: write kvm or tcg")
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = _BOOT_ID.read_text().strip()
    memory = cache.root() / "accel.json"
    try:
        known = json.loads(memory.read_text())
        if known["boot"] == boot and known["accel"] in {"kvm", "tcg"}:
            return str(known["accel"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    accel = "kvm" if _works(kernel) else "tcg"
    if accel == "tcg":
        say(f"/dev/kvm is there but a guest does not start within {_PROBE_SECONDS:.0f} s: using TCG")
    cache.write_atomically(memory, json.dumps({"boot": boot, "accel": accel}).encode())
    return accel
