# SPDX-License-Identifier: Apache-2.0
"""How much ``kmodgate scan`` costs over the work that cannot be saved.

For each kernel given, in interleaved rounds and with the files in the page cache:

* baseline: what must be done to every file, by as many forked processes as the scan has:
  reading and ``hashlib.sha256`` for plain modules, ``lzma.decompress`` alone for ``.ko.xz``;
* verify: the scan with the kernel's certificate given, from start to exit, JSON included;
* scan: the same with the certificate taken from the kernel image, as on a node;
* xz: ``xargs -P xz -dc``, for ``.ko.xz``.

Wall-clock times mean little on a busy machine, so CPU time (user and system, of all processes)
stands beside them; the least of all rounds counts. Memory is the largest sum of the
proportional set sizes of all processes of a scan.

Usage: ``bench_scan.py [--jobs N] [--rounds N] DIRECTORY VMLINUZ CERTIFICATE [DIRECTORY …]``
where DIRECTORY is ``…/lib/modules/RELEASE``.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 24
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one run: on the clock, and of CPU."""

    wall: float
    cpu: float


@contextmanager
def root_with(modules: Path, image: Path) -> Iterator[Path]:
    """A root file system around a directory of modules: hard links, and a copy of the image."""
    with tempfile.TemporaryDirectory(dir=modules.parents[3], prefix="bench-root-") as name:
        root = Path(name)
        (root / "boot").mkdir()
        shutil.copy(image, root / f"boot/vmlinuz-{modules.name}")
        shutil.copytree(modules, root / "lib/modules" / modules.name, copy_function=os.link, symlinks=True)
        yield root


def hash_all(names: Sequence[str]) -> None:
    """The floor for plain modules."""
    for name in names:
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123  # the cheapest way to read
            hashlib.sha256(file.read()).digest()


def decompress_all(names: Sequence[str]) -> None:
    """The floor for compressed modules."""
    for name in names:
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123
            lzma.decompress(file.read())


def measured(work: Callable[[], None]) -> Cost:
    """Run something that waits for all of its children."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - start, cpu)


def baseline(names: Sequence[str], jobs: int) -> Callable[[], None]:
    """The floor, in forked processes; the heaviest files first."""
    ordered = sorted(names, key=os.path.getsize, reverse=True)
    work = decompress_all if names[0].endswith(".xz") else hash_all
    chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]

    def run() -> None:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
            for _ in pool.map(work, chunks):
                pass

    return run


def scan(root: Path, jobs: int, *options: str) -> list[str]:
    """The command line of a scan that must accept everything."""
    program = [sys.executable, "-m", "kmodgate", "scan", "--root", str(root)]
    return [*program, "--output", "json", "--jobs", str(jobs), *options]


def process(arguments: Sequence[str], stdin: bytes = b"") -> Callable[[], None]:
    """A process from start to exit."""

    def run() -> None:
        subprocess.run(arguments, input=stdin, stdout=subprocess.DEVNULL, check=True)

    return run


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))
    except OSError:
        return


def pss(pid: int) -> int:
    """KiB that a process takes, shared pages by their share; 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def peak(arguments: Sequence[str]) -> int:
    """The largest sum of proportional set sizes, in KiB, of all processes of one run."""
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as child:
        most = 0
        while child.poll() is None:
            most = max(most, sum(map(pss, descendants(child.pid))))
            time.sleep(SAMPLE_SECONDS)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}")
    return most


def compare(modules: Path, image: Path, certificate: Path, jobs: int, rounds: int) -> None:
    """Print the comparison for one kernel."""
    names = sorted(str(path) for path in modules.rglob("*.ko*"))
    if not names:
        raise SystemExit(f"no modules below {modules}")
    with root_with(modules, image) as root:
        in_place, away = root / f"boot/vmlinuz-{modules.name}", root / "boot/away"
        with_image = scan(root, jobs)
        with_trust = scan(root, jobs, "--trust", str(certificate))
        contenders = {"baseline": baseline(names, jobs), "scan": process(with_image)}
        if names[0].endswith(".xz"):
            xz = ["xargs", "-0", "-n", str(CHUNK), "-P", str(jobs), "xz", "-dc"]
            contenders["xz -dc"] = process(xz, "\0".join(names).encode())
        costs: dict[str, list[Cost]] = {}
        for _ in range(rounds + 1):  # the first round warms the page cache
            for name, work in contenders.items():
                costs.setdefault(name, []).append(measured(work))
            in_place.rename(away)
            costs.setdefault("verify", []).append(measured(process(with_trust)))
            away.rename(in_place)
        memory = peak(with_image)
    size = sum(os.path.getsize(name) for name in names)  # noqa: PTH202
    print(f"{modules.name}: {len(names)} files, {size >> 20} MiB; {jobs} processes, best of {rounds} rounds")
    best = {
        name: Cost(min(cost.wall for cost in all_[1:]), min(cost.cpu for cost in all_[1:]))
        for name, all_ in costs.items()
    }
    for name, cost in best.items():
        print(
            f"  {name:10} {cost.wall:6.2f} s  {cost.wall / best['baseline'].wall:5.2f} x   "
            f"CPU {cost.cpu:6.2f} s  {cost.cpu / best['baseline'].cpu:5.2f} x"
        )
    print(f"  memory of scan, all processes: {memory >> 10} MiB")


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description="Cost of kmodgate scan over its floor.")
    parser.add_argument("kernels", nargs="+", type=Path, metavar="DIRECTORY VMLINUZ CERTIFICATE")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if len(options.kernels) % 3:
        parser.error("give three paths for each kernel")
    for start in range(0, len(options.kernels), 3):
        modules, image, certificate = options.kernels[start : start + 3]
        compare(modules, image, certificate, options.jobs, options.rounds)


if __name__ == "__main__":
    main()
