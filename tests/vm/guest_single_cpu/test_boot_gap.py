# SPDX-License-Identifier: Apache-2.0
"""Modules that were loaded before the agent: found, verified, exported, told. First by its name."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

MODULES = Path("/lib/modules") / platform.release()
UPDATES = MODULES / "updates"
IMAGE = Path("/boot") / f"vmlinuz-{platform.release()}"


@pytest.fixture(scope="module")
def early(work: Path) -> Iterator[None]:
    """What a boot without an agent may have loaded, each kind with its file where modprobe looks."""
    UPDATES.mkdir(exist_ok=True)
    shutil.copy("/share/vmlinuz", IMAGE)
    subprocess.run(["modprobe", "videodev"], check=True)
    shutil.copy(work / "v4l2loopback.operator.ko", UPDATES / "v4l2loopback.ko")
    assert lab.finit(UPDATES / "v4l2loopback.ko").ok
    shutil.copy(work / "kmgtest.unsigned.ko", UPDATES / "kmgtest.ko")
    assert lab.init((work / "kmgtest.unsigned.ko").read_bytes()).ok
    assert lab.finit(lab.in_tree("dummy"), lab.IGNORE_VERMAGIC).ok  # its signature does not count so
    assert lab.finit(lab.in_tree("ifb")).ok
    yield
    for name in ("v4l2loopback", "kmgtest", "dummy", "ifb"):
        lab.unload(name)
    shutil.rmtree(UPDATES)
    IMAGE.unlink()


def loaded() -> dict[str, float]:
    prefix = "kmodgate_loaded_modules{signature="
    samples = {n: v for n, v in lab.metrics().items() if n.startswith(prefix)}
    return {name.removeprefix(prefix).strip('"}'): value for name, value in samples.items()}


def records(agent: lab.Agent) -> dict[str, dict[str, Any]]:
    lines = (agent.config_path.parent / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {one["module"]: one for one in found if one["event"] == "module_inventory"}


def test_the_boot_gap_is_inventoried(early: None, tmp_path: Path) -> None:
    del early
    total = len(Path("/proc/modules").read_text().splitlines())
    with lab.running(tmp_path, lab.config(lab.ENFORCE)) as agent:
        agent.wait_for(lambda: bool(loaded()) and not loaded()["not_verified"], "inventory", 300)
        counts = loaded()
        assert sum(counts.values()) == total
        assert {word: counts[word] for word in ("unsigned", "file_differs", "no_file")} == {
            "unsigned": 1,
            "file_differs": 1,
            "no_file": 0,
        }
        assert counts["trusted_signature"] == total - 2
        agent.wait_for(lambda: len(records(agent)) == 2, "records", 30)
        told = records(agent)
        assert {name: (one["signature"], one["outcome"]) for name, one in told.items()} == {
            "kmgtest": ("unsigned", "refused"),
            "dummy": ("file_differs", "unknown"),
        }
        assert told["kmgtest"]["path"] == str(UPDATES / "kmgtest.ko")
        assert told["kmgtest"]["errno"] == "EKEYREJECTED"
        assert told["kmgtest"]["taints"] == "OE"
        assert told["dummy"]["trusted_at_load"] is False
        log = agent.log()
        assert log.index("ready: ") < log.index("modules are loaded: ")
        assert "would have refused 1; of 1 it cannot be known" in log

        # Unloads are seen without a question to anybody.
        lab.unload("dummy")
        agent.wait_for(lambda: sum(loaded().values()) == total - 1, "the unload", 30)
        assert loaded()["file_differs"] == 0
        # What comes later is counted as well: by the kernel's word at once.
        assert lab.finit(lab.in_tree("dummy")).ok
        agent.wait_for(lambda: loaded()["trusted_signature"] == total - 1, "the load", 30)
        print(f"\nagent after the inventory: {agent.resident_kib()} KiB resident")
        assert agent.resident_kib() <= 60 * 1024
        assert "Traceback" not in log


def test_the_process_that_verifies_is_small_and_ends(early: None) -> None:
    """With a kernel image to unpack, as a module that the kernel does not vouch for is loaded."""
    del early
    request = {
        "root": "/proc/1/root",
        "certificates": [str(lab.CERTS / "operator.pem")],
        "revoked": [],
        "revoked_certificates": [],
        "kernel_keyrings": True,
        "require_validity": False,
        "max_size": 64 << 20,
        "pinned_root_exempt": False,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kmodgate.scan.inventory"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=True,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    found = {one["name"]: one["signature"] for one in json.loads(done.stdout)["modules"]}
    print(f"\ninventory of {len(found)} modules: peak {peak} KiB")
    assert found["v4l2loopback"] == "trusted_signature"
    assert peak < 256 * 1024
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0  # only the process stepped back
