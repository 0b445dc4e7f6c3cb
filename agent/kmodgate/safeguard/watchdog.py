# SPDX-License-Identifier: Apache-2.0
"""The off switches of kmodgate's programs: looked at once a second, undone where that is possible.

What is seen is judged by ``judge``, which does no I/O; ``Watchdog`` looks, undoes and tells.
Without ``hardened: true`` this is all there is: a switch is not denied, only put back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.telemetry.metrics import OffSwitch

log = logging.getLogger(__name__)

_FTRACE: Final = "sys/kernel/ftrace_enabled"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look found.

    Attributes:
        ftrace: ``kernel.ftrace_enabled``; None where the kernel has no such switch.
        bpffs: the file system with the pins is where it was at the first look; None when
            nothing is pinned.
    """

    ftrace: bool | None = None
    bpffs: bool | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows from a look.

    Attributes:
        events: switches that were touched since the look before.
        enable_ftrace: write 1 to ``kernel.ftrace_enabled``.
    """

    events: tuple[OffSwitch, ...] = ()
    enable_ftrace: bool = False


def judge(now: Sight, before: Sight | None, *, enforce: bool) -> Judgement:
    """Compare two looks. Pure.

    Args:
        now: this look.
        before: the one before, or None for the first. Off already at the first look counts as
            touched where the policy is to be enforced, and as the node's own choice elsewhere.
        enforce: the policy in force denies loads.
    """
    events: list[OffSwitch] = []
    seen_on = before is not None and before.ftrace is True
    off = now.ftrace is False
    if off and (seen_on or (before is None and enforce)):
        events.append(OffSwitch.FTRACE)
    if before is not None and before.bpffs and now.bpffs is False:
        events.append(OffSwitch.BPFFS)
    return Judgement(tuple(events), enable_ftrace=off and (seen_on or enforce))


class Watchdog:
    """Looks at the switches, puts them back, and tells.

    Args:
        count: is told each event.
        pins: directory with the pins, right below a mount point; None when nothing is pinned.
        repin: pins what is no longer pinned and returns the names; called at each look.
        paths: where the node's file systems are mounted.
    """

    def __init__(
        self,
        count: Callable[[OffSwitch], None],
        *,
        pins: Path | None = None,
        repin: Callable[[], Sequence[str]] = lambda: (),
        paths: NodePaths | None = None,
    ) -> None:
        self._count = count
        self._pins = pins
        self._repin = repin
        self._switch: Final = (paths or NodePaths()).proc / _FTRACE
        self._device: int | None = None
        self._before: Sight | None = None
        self._unwritable = False
        self._repin_failed = False

    def look(self, *, enforce: bool) -> None:
        """Look once. What cannot be undone is told once, and tried again at each look."""
        now = self._see()
        judgement = judge(now, self._before, enforce=enforce)
        for event in judgement.events:
            self._tell(event)
        if judgement.enable_ftrace and self._enable_ftrace():
            now = replace(now, ftrace=True)
        self._before = now
        self._pin_again()

    def _see(self) -> Sight:
        try:
            ftrace = self._switch.read_bytes().strip() != b"0"
        except OSError:
            ftrace = None
        if self._pins is None:
            return Sight(ftrace)
        try:
            device: int | None = self._pins.parent.stat().st_dev
        except OSError:
            device = None
        if self._device is None:
            self._device = device
        return Sight(ftrace, device == self._device)

    def _enable_ftrace(self) -> bool:
        try:
            self._switch.write_text("1\n")
        except OSError as error:
            if not self._unwritable:
                log.critical("kernel.ftrace_enabled is 0 and cannot be set to 1: %s", error.strerror)
            self._unwritable = True
            return False
        self._unwritable = False
        log.warning("kernel.ftrace_enabled was set back to 1")
        return True

    def _pin_again(self) -> None:
        try:
            missing = self._repin()
        except HookError as error:
            if not self._repin_failed:
                log.critical("pins are gone and cannot be made anew: %s", error)
            self._repin_failed = True
            return
        self._repin_failed = False
        if missing:
            self._tell(OffSwitch.PINS, ", ".join(missing))

    def _tell(self, event: OffSwitch, detail: str = "") -> None:
        self._count(event)
        log.critical(
            "an off switch was touched: %s%s",
            _MEANING[event],
            f" ({detail})" if detail else "",
        )


_MEANING: Final = {
    OffSwitch.FTRACE: "kernel.ftrace_enabled was set to 0, and the attached programs did not run",
    OffSwitch.BPFFS: "the BPF file system with the pins was unmounted, or something was mounted over it",
    OffSwitch.PINS: "pins were removed, and were made anew",
}
