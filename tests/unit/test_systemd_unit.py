# SPDX-License-Identifier: Apache-2.0
"""The unit in docs/examples, as systemd itself reads it: no unknown key, and no cycle in a boot with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kmodgate.local.place import SOCKET

UNIT = Path(__file__).parents[2] / "docs/examples/kmodgate.service"


def verify(directory: Path, text: str) -> str:
    """What systemd says of a boot to multi-user.target with this unit enabled; empty when nothing."""
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is missing; run: sudo make deps"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    unit = directory / "kmodgate.service"
    # Where it is installed is the operator's business; that something can be run is not looked at.
    unit.write_text(text.replace("/opt/kmodgate/bin/kmodgate", "/bin/true"))
    wants = directory / "sysinit.target.wants"
    wants.mkdir()
    (wants / unit.name).symlink_to(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "kmodgate.service", "multi-user.target"],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = done.stdout + done.stderr
    assert said or done.returncode == 0
    return "\n".join(line for line in said.splitlines() if "kmodgate" in line or "cycle" in line)


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    assert not verify(tmp_path, UNIT.read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\nType=notify", "\nTyp=notify"),
        ("After=systemd-remount-fs.service", "After=systemd-remount-fs.service systemd-sysctl.service"),
        ("After=systemd-remount-fs.service", "After=sysinit.target"),
    ],
    ids=["unknown key", "sysctl comes after modules", "sysinit.target"],
)
def test_systemd_would_have_said(tmp_path: Path, old: str, new: str) -> None:
    text = UNIT.read_text()
    assert text.count(old) == 1
    assert verify(tmp_path, text.replace(old, new))


def test_the_unit_waits_for_the_readiness_that_the_agent_tells() -> None:
    lines = UNIT.read_text().splitlines()
    assert "Type=notify" in lines
    before = " ".join(line for line in lines if line.startswith("Before="))
    assert "systemd-modules-load.service" in before
    assert "DefaultDependencies=no" in lines
    assert not any(line.startswith(("ProtectKernelModules", "PrivateTmp")) for line in lines)


def test_the_socket_has_a_directory_of_roots_alone() -> None:
    """ProtectSystem=strict makes /run read-only but for this."""
    lines = UNIT.read_text().splitlines()
    assert {"RuntimeDirectory=kmodgate", "RuntimeDirectoryMode=0700"} <= set(lines)
    assert str(SOCKET.parent) == "/run/kmodgate"
