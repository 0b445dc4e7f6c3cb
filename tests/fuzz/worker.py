# SPDX-License-Identifier: Apache-2.0
"""One target under libFuzzer, in a process of its own: ``python -m tests.fuzz.worker TARGET ARGS…``.

``atheris`` must instrument a module while it is imported, so the target is imported last.
"""

from __future__ import annotations

import importlib
import random
import resource
import sys
import time
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from .targets import Target

INSTRUMENTED = ("kmodgate", "yaml")
MAX_SECONDS = 1.0
SETTLED = 500  # inputs after which imports and caches no longer make the process grow


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Watch:
    """Runs a target and holds it to its time and memory."""

    def __init__(self, target: Target, finding: type[Exception]) -> None:
        self._check = target.check
        self._memory = target.memory
        self._finding = finding
        self._runs = 0
        self._limit = 0

    def __call__(self, data: bytes) -> None:
        """One input."""
        start = time.thread_time()
        self._check(data)
        seconds = time.thread_time() - start
        if seconds > MAX_SECONDS:
            raise self._finding(f"took {seconds:.1f} s of CPU")
        self._runs += 1
        if self._runs == SETTLED:
            self._limit = peak_memory() + self._memory
        elif self._runs > SETTLED and peak_memory() > self._limit:
            raise self._finding(f"the process grew to {peak_memory() >> 20} MiB")


def main() -> None:
    """Fuzz until libFuzzer's own arguments end it."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        targets = importlib.import_module("tests.fuzz.targets")
    target: Target = targets.TARGETS[name]
    options = {}
    if target.mutator is not None:
        mutate = target.mutator(lambda data, size: bytes(atheris.Mutate(data, size)))

        def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
            return mutate(data, random.Random(seed))[:max_size]

        options["custom_mutator"] = custom_mutator
    arguments.append(f"-max_len={target.max_length}")
    atheris.Setup([sys.argv[0], *arguments], Watch(target, targets.BrokenPromiseError), **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
