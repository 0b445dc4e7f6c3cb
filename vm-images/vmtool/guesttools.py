# SPDX-License-Identifier: Apache-2.0
"""Small static programs for the guest's tests, where Python would be too slow or in the way."""

from __future__ import annotations

from pathlib import Path

from . import cache
from .host import IMAGES, run

SOURCES = (IMAGES / "guest" / "storm.c",)


def get() -> Path:
    """The folder of programs, each named as its source without ``.c``."""

    def build(target: Path) -> None:
        target.mkdir()
        for source in SOURCES:
            run(
                ["clang", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", target / source.stem, source]
            )

    return cache.entry(f"guesttools-{cache.digest(SOURCES)}", build)
