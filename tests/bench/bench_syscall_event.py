# SPDX-License-Identifier: Apache-2.0
"""What one enabled trace event of a system call costs every other system call, on this machine.

An instance of tracefs is made in a mount namespace of its own, its two events are those of
``swapon(2)``, which nobody calls meanwhile, and it is removed in the end. The kernel does the same
work for them as for those of ``finit_module`` and ``init_module``. Needs root and clang.

    unshare -m python3 tests/bench/bench_syscall_event.py
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("getppid.c")
EVENTS = ("sys_enter_swapon", "sys_exit_swapon")
INTERLEAVED = 5


def main() -> None:
    """Print nanoseconds without the events, with them, and the difference."""
    with tempfile.TemporaryDirectory() as name:
        program, tracing = Path(name) / "getppid", Path(name) / "tracing"
        subprocess.run(["clang", "-O2", "-o", program, SOURCE], check=True)
        tracing.mkdir()
        subprocess.run(["mount", "-t", "tracefs", "tracefs", tracing], check=True)
        own = tracing / f"instances/kmodgate-bench-{os.getpid()}"
        own.mkdir()
        try:
            alone, watched = [], []
            for _ in range(INTERLEAVED):
                switch(own, "0")
                alone.append(measure(program))
                switch(own, "1")
                watched.append(measure(program))
        finally:
            switch(own, "0")
            own.rmdir()
            subprocess.run(["umount", tracing], check=True)
    print(f"getppid: {min(alone):.0f} ns alone, {min(watched):.0f} ns while a system call is traced")


def switch(own: Path, value: str) -> None:
    """Both events on or off."""
    for event in EVENTS:
        (own / "events/syscalls" / event / "enable").write_text(value)


def measure(program: Path) -> float:
    """Nanoseconds of a call."""
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    main()
