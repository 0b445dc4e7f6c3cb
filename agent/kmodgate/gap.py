# SPDX-License-Identifier: Apache-2.0
"""How long a node went without enforcement, or without an agent, before this one came.

Programs outlive their agent, and their control map says when it was last alive. Where they were
taken away on purpose a note under /run says when; without either, nothing watched since boot.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import KmodgateError
from .fsutil import read_regular_file, replace_file

log = logging.getLogger(__name__)

STATE: Final = Path("/run/kmodgate")
_NOTE: Final = "detached"
_NOTE_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Gap:
    """What lay before this agent.

    Attributes:
        enforcement: seconds in which no program of ours was attached; 0 when they were taken over.
        agent: seconds since an earlier agent was last alive, or since the programs were detached or
            the node was booted.
    """

    enforcement: float
    agent: float


def now() -> float:
    """Seconds since boot, suspended time included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def note_detached(state: Path = STATE) -> None:
    """Remember that programs were detached now. /run is empty after a boot, and so is this."""
    try:
        state.mkdir(mode=0o700, exist_ok=True)
        replace_file(state / _NOTE, f"{now():.3f}\n".encode())
    except (OSError, KmodgateError) as error:
        log.warning("the time of detaching cannot be noted: %s", error)


def gap_before(*, adopted: bool, last_seen: float | None, at: float, state: Path = STATE) -> Gap:
    """The gap that ends at ``at``.

    Args:
        adopted: programs of an earlier agent were in force.
        last_seen: when that agent was last alive, seconds since boot.
        at: now, seconds since boot.
        state: where the note lies.
    """
    since = last_seen if adopted and last_seen is not None else _detached(state) or 0.0
    away = max(0.0, at - since)
    return Gap(0.0 if adopted else away, away)


def _detached(state: Path) -> float | None:
    try:
        return float(read_regular_file(state / _NOTE, _NOTE_BYTES))
    except (KmodgateError, ValueError):
        return None
