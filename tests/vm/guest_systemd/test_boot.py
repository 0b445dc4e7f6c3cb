# SPDX-License-Identifier: Apache-2.0
"""A node that systemd boots with the unit of docs/examples: early, in time, confined, and for good."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import time
from pathlib import Path

from tests.vm import lab
from tests.vm.guest_systemd import units
from tests.vm.guest_systemd.units import AGENT, moment, show, systemctl, until

CONFIG = Path("/etc/kmodgate/node.yaml")
EARLY = (Path("/lib/modules") / platform.release() / "updates/kmgtest.ko").resolve()
REFUSED = "EKEYREJECTED"
CAPABILITIES = {"bpf": 39, "perfmon": 38, "sys_module": 16, "sys_ptrace": 19, "dac_read_search": 2}


def ready() -> bool:
    return lab.get("/readyz")[0] == 200


def main_pid() -> int:
    return int(show(AGENT)["MainPID"])


def test_it_enforced_before_systemd_loaded_any_module() -> None:
    state = show(AGENT)
    assert (state["ActiveState"], state["Result"], state["NRestarts"]) == ("active", "success", "0")
    enforcing = moment(AGENT, "ActiveEnter")
    begun = moment(AGENT, "InactiveExit")
    assert 0 < begun < enforcing
    assert enforcing <= moment("systemd-modules-load.service", "ExecMainStart")
    assert enforcing <= moment("systemd-udev-trigger.service", "ExecMainStart")
    print(f"\nunit from start to enforcing: {(enforcing - begun) / 1e6:.1f} s (emulated)")


def test_what_systemd_loads_at_boot_is_judged() -> None:
    assert not lab.is_loaded("kmgtest")
    assert lab.is_loaded("dummy")
    assert show("systemd-modules-load.service")["Result"] == "exit-code"
    (refused,) = [event for event in units.events() if event["path"] == str(EARLY)]
    assert (refused["verdict"], refused["reason"], refused["result"]) == ("deny", "unsigned", REFUSED)
    assert refused["comm"] == "systemd-modules"  # the kernel keeps 15 characters


def test_it_is_confined_as_the_unit_says() -> None:
    status = Path(f"/proc/{main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    wanted = sum(1 << number for number in CAPABILITIES.values())
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == wanted
    assert fields["NoNewPrivs"].strip() == "1"
    mounts = Path(f"/proc/{main_pid()}/mountinfo").read_text().splitlines()
    (root,) = [line for line in mounts if line.split()[4] == "/"]
    assert "ro" in root.split()[5].split(",")


def test_it_verifies_and_refuses_within_its_confinement(work: Path) -> None:
    assert lab.finit(work / "kmgtest.operator.ko").ok
    lab.unload("kmgtest")
    assert lab.init((work / "kmgtest.operator-skid.ko").read_bytes()).ok
    lab.unload("kmgtest")
    assert lab.finit(work / "kmgtest.unsigned.ko").result == REFUSED
    # A file of somebody else's, which only DAC_READ_SEARCH opens.
    private = work / "private.ko"
    private.write_bytes((work / "kmgtest.operator-skid.ko").read_bytes())
    private.chmod(0o600)
    os.chown(private, 1000, 1000)
    assert lab.finit(private).ok


def test_status_asks_the_socket_in_its_runtime_directory() -> None:
    done = subprocess.run(["kmodgate", "status"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ENFORCE_SIGNED_MODULES" in done.stdout
    assert Path("/run/kmodgate").stat().st_mode & 0o777 == 0o700


def test_reload_takes_the_edited_config(work: Path) -> None:
    usual = CONFIG.read_text()
    reloads = units.journal().count("config reloaded")
    CONFIG.write_text(usual.replace('"holdTimeout"', '"mode": "audit", "holdTimeout"'))
    assert systemctl("reload", AGENT).returncode == 0
    until(lambda: units.journal().count("config reloaded") > reloads, "reload")
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    lab.unload("kmgtest")
    reloads = units.journal().count("config reloaded")
    CONFIG.write_text(usual)
    assert systemctl("reload", AGENT).returncode == 0
    until(lambda: units.journal().count("config reloaded") > reloads, "reload")
    assert lab.finit(work / "kmgtest.unsigned.ko").result == REFUSED


def test_a_killed_agent_comes_back_and_was_never_missed(work: Path) -> None:
    before = main_pid()
    os.kill(before, signal.SIGKILL)
    until(lambda: show(AGENT)["ActiveState"] != "active", "end of the agent", 30)
    assert lab.finit(work / "kmgtest.unsigned.ko").result == REFUSED
    until(lambda: show(AGENT)["ActiveState"] == "active" and ready(), "agent that is back")
    assert main_pid() not in {0, before}
    assert show(AGENT)["NRestarts"] == "1"
    assert lab.metrics()["kmodgate_enforcement_gap_seconds"] == 0


def test_stop_is_clean_and_leaves_enforcement(work: Path) -> None:
    began = time.monotonic()
    assert systemctl("stop", AGENT).returncode == 0
    assert time.monotonic() - began < 20  # TimeoutStopSec
    assert show(AGENT)["Result"] == "success"
    assert lab.finit(work / "kmgtest.unsigned.ko").result == REFUSED
    assert systemctl("start", AGENT).returncode == 0
    assert ready()  # Type=notify: start returns when it enforces
    assert lab.metrics()["kmodgate_enforcement_gap_seconds"] == 0


def test_nothing_went_wrong_unsaid() -> None:
    text = units.journal()
    assert "Traceback" not in text
    assert [line for line in text.splitlines() if " ERROR " in line] == []
