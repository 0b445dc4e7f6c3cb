# SPDX-License-Identifier: Apache-2.0
"""What the watchdog concludes from two looks, and what it does about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodgate.errors import HookError
from kmodgate.node import NodePaths
from kmodgate.safeguard.watchdog import Judgement, Sight, Watchdog, judge
from kmodgate.telemetry.metrics import OffSwitch

ON, OFF, ABSENT = Sight(ftrace=True), Sight(ftrace=False), Sight()


@pytest.mark.parametrize(
    ("now", "before", "enforce", "wanted"),
    [
        (ON, None, True, Judgement()),
        (ON, ON, True, Judgement()),
        (ABSENT, ON, True, Judgement()),
        (ABSENT, None, True, Judgement()),
        # Seen at 1 before: touched, whatever the policy.
        (OFF, ON, False, Judgement((OffSwitch.FTRACE,), enable_ftrace=True)),
        (OFF, ON, True, Judgement((OffSwitch.FTRACE,), enable_ftrace=True)),
        # Never seen at 1: the node's own choice, unless it is to enforce.
        (OFF, None, False, Judgement()),
        (OFF, None, True, Judgement((OffSwitch.FTRACE,), enable_ftrace=True)),
        # It could not be put back: the same event is told once, the attempt made again.
        (OFF, OFF, True, Judgement(enable_ftrace=True)),
        (OFF, OFF, False, Judgement()),
    ],
)
def test_ftrace(now: Sight, before: Sight | None, enforce: bool, wanted: Judgement) -> None:
    assert judge(now, before, enforce=enforce) == wanted


@pytest.mark.parametrize(
    ("now", "before", "events"),
    [
        (None, None, ()),
        (True, True, ()),
        (False, True, (OffSwitch.BPFFS,)),
        (False, False, ()),
        (True, False, ()),
        (None, True, ()),
    ],
)
def test_bpf_file_system(now: bool | None, before: bool | None, events: tuple[OffSwitch, ...]) -> None:
    assert judge(Sight(bpffs=now), Sight(bpffs=before), enforce=True).events == events


def test_both_at_once() -> None:
    found = judge(Sight(ftrace=False, bpffs=False), Sight(ftrace=True, bpffs=True), enforce=False)
    assert found.events == (OffSwitch.FTRACE, OffSwitch.BPFFS)


class World:
    """A /proc with the switch, a directory with pins, and what was counted."""

    def __init__(self, root: Path) -> None:
        self.switch = root / "sys/kernel/ftrace_enabled"
        self.switch.parent.mkdir(parents=True)
        self.switch.write_text("1\n")
        self.pins = root / "bpf/kmodgate"
        self.pins.parent.mkdir()
        self.missing: list[str] = []
        self.failing = False
        self.events: list[OffSwitch] = []
        self.watchdog = Watchdog(
            self.events.append, pins=self.pins, repin=self.repin, paths=NodePaths(proc=root)
        )

    def repin(self) -> list[str]:
        if self.failing:
            raise HookError("no BPF file system")
        missing, self.missing = self.missing, []
        return missing

    def look(self, *, enforce: bool = True) -> None:
        self.watchdog.look(enforce=enforce)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_switch_is_set_back_and_counted_each_time(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.look()
    assert world.events == []
    for times in (1, 2):
        world.switch.write_text("0\n")
        world.look(enforce=False)
        assert world.switch.read_text() == "1\n"
        assert world.events == [OffSwitch.FTRACE] * times
        world.look()
        assert len(world.events) == times
    assert "an off switch was touched: kernel.ftrace_enabled" in caplog.text


def test_a_switch_that_was_never_on_is_left_in_audit_mode(world: World) -> None:
    world.switch.write_text("0\n")
    world.look(enforce=False)
    assert world.switch.read_text() == "0\n"
    assert world.events == []
    world.look(enforce=True)  # now the policy enforces
    assert world.switch.read_text() == "1\n"


def test_a_switch_that_cannot_be_written_is_told_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.look()
    world.switch.write_text("0\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        for _ in range(3):
            world.look()
    assert world.events == [OffSwitch.FTRACE]
    assert caplog.text.count("cannot be set to 1") == 1
    world.look()
    assert world.switch.read_text() == "1\n"
    assert world.events == [OffSwitch.FTRACE]


def test_pins_that_had_to_be_made_anew_are_counted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.look()
    world.missing = ["kmg_guard_umount", "control"]
    world.look()
    assert world.events == [OffSwitch.PINS]
    assert "kmg_guard_umount, control" in caplog.text
    world.look()
    assert world.events == [OffSwitch.PINS]


def test_pins_that_cannot_be_made_are_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.failing = True
    for _ in range(3):
        world.look()
    assert caplog.text.count("cannot be made anew") == 1
    world.failing = False
    world.look()
    world.failing = True
    world.look()
    assert caplog.text.count("cannot be made anew") == 2


def test_a_file_system_that_went_away_is_counted_once(world: World, tmp_path: Path) -> None:
    world.look()
    world.pins.parent.rename(tmp_path / "away")
    world.look()
    world.look()
    assert world.events == [OffSwitch.BPFFS]
    (tmp_path / "away").rename(world.pins.parent)
    world.look()
    assert world.events == [OffSwitch.BPFFS]
    world.pins.parent.rename(tmp_path / "away")
    world.look()
    assert world.events == [OffSwitch.BPFFS] * 2


def test_a_kernel_without_the_switch_has_nothing_to_watch(world: World) -> None:
    world.switch.unlink()
    world.look()
    assert world.events == []
    assert not world.switch.exists()
