# SPDX-License-Identifier: Apache-2.0
"""Detaching waits for the kernel, and owns up to what it could not end. The kernel here is a mock."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kmodgate.errors import HookError
from kmodgate.hooks import bpfcall, leaving
from kmodgate.hooks.pins import Pins


class Kernel:
    """Links 10, 11, … in the order of their pins; each lives until ``ends`` looks after it was unpinned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, ends: int) -> None:
        self.looks = 0
        self._ends = ends
        self._numbers: dict[int, int] = {}
        monkeypatch.setattr(bpfcall, "pinned", self._pinned)
        monkeypatch.setattr(bpfcall, "link_numbers", lambda handle: (self._numbers[handle], 100))
        monkeypatch.setattr(bpfcall, "link_by_id", self._by_id)
        monkeypatch.setattr(bpfcall, "program_by_id", self._by_id)
        self.paths = sorted(root.glob("abi-*/links/*/*"))

    def _pinned(self, path: Path) -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        self._numbers[handle] = 10 + self.paths.index(path)
        return handle

    def _by_id(self, number: int) -> int:
        self.looks += 1
        if self.looks > self._ends:
            raise bpfcall.BpfCallError(f"number {number}", errno.ENOENT)
        return os.open(os.devnull, os.O_RDONLY)


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    root = tmp_path / "kmodgate"
    for name in ("one", "two"):
        link = root / "abi-3-bpf-lsm/links/1" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.touch()
    return Pins(root=root)


def test_it_comes_back_when_the_last_link_has_ended(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, pins.root, ends=7)
    assert leaving.remove_all(pins) == 2
    assert kernel.looks > 7
    assert not pins.root.exists()


def test_a_link_that_somebody_holds_is_an_error(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, pins.root, ends=10**9)
    monkeypatch.setattr(leaving, "_LINKS_GONE", 0.01)
    with pytest.raises(HookError, match=r"links 10, 11 go on enforcing: another process holds them"):
        leaving.remove_all(pins)


def test_a_program_that_somebody_holds_is_none(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, pins.root, ends=0)
    monkeypatch.setattr(bpfcall, "program_by_id", lambda _number: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(leaving, "_PROGRAMS_GONE", 0.01)
    assert leaving.remove_all(pins) == 2


def test_what_is_no_link_is_removed_all_the_same(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise bpfcall.BpfCallError(f"open {path}", errno.EINVAL)

    monkeypatch.setattr(bpfcall, "pinned", refuse)
    assert leaving.remove_all(pins) == 2
