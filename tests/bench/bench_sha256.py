# SPDX-License-Identifier: Apache-2.0
"""SHA-256 in BPF over the same C built by gcc, on this machine, nothing attached.

The kernel runs the program through ``bpf_prog_test_run``, compiled by its JIT. Rounds alternate on
one core, each measured as this thread's CPU time; the least of each counts.

Usage: ``bench_sha256.py OBJECT [--rounds N]`` (root; ``make build/test.bpf.o``)
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kmodgate.errors import HookError
from kmodgate.hooks import libbpf

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "bpf"
BYTES = 4 << 20  # of the map in tests/bpf/test.bpf.c
TARGET = 0.75
JIT = Path("/proc/sys/net/core/bpf_jit_enable")

Digest = Callable[[], bytes]


class Arguments(ctypes.Structure):
    """``struct test_sha256`` of tests/bpf/test.bpf.c."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64), ("digest", ctypes.c_uint8 * 32))


def in_bpf(path: Path, data: bytes) -> Digest:
    """The program of the test object."""
    loaded = libbpf.Object(path.read_bytes())
    loaded.load()
    loaded.map("buffer").memory(BYTES)[: len(data)] = data
    program = loaded.programs["test_sha256"]
    arguments = Arguments(length=len(data))

    def run() -> bytes:
        if program.test_run(arguments):
            sys.exit("the program could not read its buffer")
        return bytes(arguments.digest)

    return run


def in_machine_code(folder: Path, data: bytes, *flags: str) -> Digest:
    """The same header, compiled by gcc."""
    path = folder / f"sha256{len(flags)}.so"
    where = [f"-I{HEADERS}", str(HERE / "sha256_native.c"), "-o", str(path)]
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *flags, *where], check=True)
    function = ctypes.CDLL(str(path)).digest
    function.argtypes = ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p
    out = ctypes.create_string_buffer(32)

    def run() -> bytes:
        function(data, len(data), out)
        return out.raw

    return run


def main() -> None:
    """Print speeds and ratios."""
    parser = argparse.ArgumentParser(description="SHA-256 in BPF over the same C built by gcc.")
    parser.add_argument("object", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if JIT.exists() and JIT.read_text().strip() == "0":
        sys.exit(f"the kernel interprets BPF; compile it: echo 1 > {JIT}")
    data = random.Random(4).randbytes(BYTES)

    def with_hashlib() -> bytes:
        return hashlib.sha256(data).digest()

    expected = with_hashlib()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            bpf = in_bpf(options.object, data)
        except HookError as error:
            sys.exit(f"{error} (root is needed)")
        contenders = {
            "BPF (clang, the kernel's JIT)": bpf,
            "gcc -O2, the same C": in_machine_code(Path(scratch), data),
            "gcc -O2, with rotations": in_machine_code(Path(scratch), data, "-DBEST"),
            "hashlib (the machine's SHA instructions, if any)": with_hashlib,
        }
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(options.rounds):
            for name, digest in contenders.items():
                start = time.thread_time()
                found = digest()
                best[name] = min(best[name], time.thread_time() - start)
                if found != expected:
                    sys.exit(f"{name}: a wrong digest")
    speeds = {name: BYTES / seconds / 1e6 for name, seconds in best.items()}
    ours, *others = speeds.values()
    print(f"{platform.machine()}, Linux {platform.release()}; best of {options.rounds} rounds over 4 MiB\n")
    print("| SHA-256 | MB/s | BPF is, of this |\n| --- | --- | --- |")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.0f} | {ours / speed:.2f} |")
    slower = ours / max(others[:2])
    print(f"\nOf the faster of gcc's two: {slower:.2f} (target {TARGET})")


if __name__ == "__main__":
    main()
