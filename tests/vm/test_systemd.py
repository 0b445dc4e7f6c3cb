# SPDX-License-Identifier: Apache-2.0
"""Boots the VM with systemd and the unit of docs/examples, and runs tests/vm/guest_systemd inside."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm") + artifacts.SYSTEMD
GUEST = "/src/tests/vm/guest_systemd"
OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]
APPEND = (
    "kmodgate.systemd=1 systemd.firstboot=off systemd.show_status=1 systemd.journald.forward_to_console=1"
)


def node(policy: str) -> str:
    """A node config, as YAML (JSON is YAML)."""
    ours = {
        "trust": {"certificates": ["/etc/kmodgate/operator.pem"]},
        "listen": "127.0.0.1:9464",
        "holdTimeout": "2s",
    }
    return json.dumps({"linuxNodeConfig": {"kernelModuleLoading": {"policy": policy}}, "kmodgate": ours})


def boot(share: Path, config: str, command: list[str], *, start_seconds: int) -> int:
    """Exit status of a command in a guest that systemd has booted."""
    need_qemu("test-systemd")
    shutil.copy(Path(__file__).with_name("guest_systemd") / "prepare", share / "prepare")
    (share / "node.yaml").write_text(config)
    (share / "start-seconds").write_text(str(start_seconds))
    with alive():
        return run_in_guest(
            command, suite=SUITE, share=share, live=True, timeout=900, boot=420, append=APPEND
        )


def test_everything_under_systemd_passed(tmp_path: Path) -> None:
    inside = ["python3", "-m", "pytest", *OPTIONS, GUEST]
    assert boot(tmp_path, node("ENFORCE_SIGNED_MODULES"), inside, start_seconds=300) == 0


def test_an_agent_that_cannot_start_does_not_stop_the_boot(tmp_path: Path) -> None:
    assert (
        boot(tmp_path, node("ENFORCE_SOMETHING"), ["python3", f"{GUEST}/broken.py"], start_seconds=120) == 0
    )
