# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status --watch``: look after look, until somebody ends it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from kmodgate.cli import local, terminal
from kmodgate.cli.status_text import Loads, counted, page
from kmodgate.local.client import NoAgentError

if TYPE_CHECKING:
    from kmodgate.cli.terminal import Part

Report = Mapping[str, Any]


def watch(ask: Callable[[], Report], interval: float, tell: Callable[[Report], None] | None) -> NoReturn:
    """Look every ``interval`` seconds and show what was found.

    On a terminal an agent that is away, as at an upgrade, leaves the last page with a word about it, and
    is asked again. Everything else ends: a pipe's reader must not take silence for peace.

    Args:
        ask: for the agent's report.
        interval: seconds from one look to the next.
        tell: writes a report; None for a page for people.

    Raises:
        NoAgentError: there is none at the first look, or, in a pipe, at a later one.
        KeyboardInterrupt: Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if tell is None and terminal.can_redraw(sys.stdout):
        _draw(ask, interval)
    first: Loads | None = None
    due = time.monotonic()
    while True:
        status = ask()
        if tell is not None:
            tell(status)
        else:
            if first is not None:
                sys.stdout.write("\n")
            first = counted(status) if first is None else first
            terminal.show_page([_when(interval), *page(status, first)])
            sys.stdout.flush()
        due = _wait(due, interval)


def _draw(ask: Callable[[], Report], interval: float) -> NoReturn:
    status = ask()
    first, away, due = counted(status), None, time.monotonic()
    with terminal.screen() as draw:
        while True:
            head: list[Part] = [_when(interval)]
            if away is not None:
                head.append(local.shown(f"no answer, the last one is below: {away}", terminal.BAD))
            draw([*head, *page(status, first)])
            due = _wait(due, interval)
            try:
                status, away = ask(), None
            except NoAgentError as error:
                away = error


def _when(interval: float) -> Part:
    now = datetime.now(UTC).isoformat()
    return local.shown(f"{local.moment(now)}, every {interval:g} s; Ctrl-C ends", terminal.FAINT)


def _wait(due: float, interval: float) -> float:
    """Sleep until the next look is due; looks that were missed are left out."""
    due = max(due + interval, time.monotonic())
    time.sleep(max(0.0, due - time.monotonic()))
    return due


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End as by the signal, but give the terminal back first."""
    del frame
    sys.exit(128 + number)
