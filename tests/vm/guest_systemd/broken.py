# SPDX-License-Identifier: Apache-2.0
"""Runs in a guest whose agent cannot start: the boot goes on, says so, and enforces nothing."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import lab
from tests.vm.guest_systemd import units


def main() -> None:
    state = units.show(units.AGENT)
    assert state["ActiveState"] in {"activating", "failed"}, dict(state)
    assert units.moment("sysinit.target", "ActiveEnter") > 0
    text = units.journal()
    assert "node.yaml" in text, text
    assert "Traceback" not in text, text
    assert lab.is_loaded("kmgtest")
    print("the boot went on")


main()
