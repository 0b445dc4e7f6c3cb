# SPDX-License-Identifier: Apache-2.0
"""The process behind the agent's inventory: loaded modules, their files, and one word for each."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.scan.conftest import OLD, Lab

from kmodgate.model import ModuleInfo, SignatureReport, SignatureStatus
from kmodgate.node import NodePaths
from kmodgate.scan.inventory import memory_left, take, word
from kmodgate.scan.live import RunningKernel
from kmodgate.scan.records import LoadedNow, Outcome, ScannedFile
from kmodgate.scan.root import Root
from kmodgate.telemetry.metrics import LoadedSignature

TAINTS = {
    "ext4": "",
    "tun_device": "",
    "mine": "OE",
    "plain": "OE",
    "vanished": "OE",
    "rebuilt": "OE",
    "odd": "E",
}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    files = {
        "proc/modules": "".join(f"{name} 100 0 - Live 0x0\n" for name in TAINTS),
        "proc/sys/kernel/osrelease": f"{OLD}\n",
        "sys/module/rebuilt/srcversion": "ANOTHER\n",
        "sys/module/mine/srcversion": "0123ABCD\n",
        "sys/module/module/parameters/sig_enforce": "N\n",
    } | {f"sys/module/{name}/taint": f"{taint}\n" for name, taint in TAINTS.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def request(lab: Lab, **changes: Any) -> dict[str, Any]:
    return {
        "certificates": [str(lab.root.parent / "operator.pem")],
        "revoked": [],
        "revoked_certificates": [],
        "kernel_keyrings": True,
        "require_validity": False,
        "max_size": 1 << 20,
        "pinned_root_exempt": False,
        **changes,
    }


def taken(lab: Lab, world: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    running = RunningKernel(NodePaths(world / "proc", world / "sys", world / "boot"), OLD, None)
    with Root(lab.root) as root:
        found = take(root, running, request(lab, **changes), datetime.now(UTC))
    json.dumps(found)
    return {module["name"]: module for module in found["modules"]}


def test_every_kind_of_loaded_module_gets_its_word(lab: Lab, world: Path) -> None:
    lab.add(OLD, "updates/dkms/mine.ko.xz", lab.operator)
    lab.add(OLD, "updates/dkms/plain.ko", None)
    lab.add(OLD, "updates/dkms/rebuilt.ko", lab.operator)
    lab.add(OLD, "kernel/odd.ko", lab.keys[OLD])  # the kernel's own key, and yet it did not vouch
    found = taken(lab, world)
    assert {name: (one["signature"], one["outcome"]) for name, one in found.items()} == {
        "ext4": ("trusted_signature", "accepted"),
        "tun_device": ("trusted_signature", "accepted"),
        "mine": ("trusted_signature", "accepted"),
        "plain": ("unsigned", "refused"),
        "vanished": ("no_file", "unknown"),
        "rebuilt": ("file_differs", "unknown"),
        "odd": ("file_differs", "unknown"),
    }
    assert found["plain"]["errno"] == "EKEYREJECTED"
    assert found["plain"]["path"] == f"/lib/modules/{OLD}/updates/dkms/plain.ko"
    assert (found["mine"]["same_source"], found["rebuilt"]["same_source"]) == (True, False)
    assert found["mine"]["signer"]["issuer"] == found["mine"]["signer"]["subject"]
    assert found["ext4"]["trusted_at_load"] is True


def test_without_certificates_nobody_but_the_kernel_is_trusted(lab: Lab, world: Path) -> None:
    lab.add(OLD, "updates/plain.ko", lab.stranger)
    found = taken(lab, world, certificates=[])
    assert found["plain"]["signature"] == "untrusted_signer"
    assert set(found) == set(TAINTS)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 1 << 62),
        ({"memory.max": "max", "memory.current": "5"}, 1 << 62),
        ({"memory.max": "500", "memory.current": "200"}, 300),
        ({"a/b/memory.max": "70", "a/b/memory.current": "50", "memory.max": "9", "memory.current": "1"}, 20),
    ],
)
def test_memory_left(tmp_path: Path, files: dict[str, str], left: int) -> None:
    paths = NodePaths(tmp_path / "proc", tmp_path / "sys", tmp_path / "boot")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/x\n0::/a/b\n")
    for name, text in files.items():
        target = tmp_path / "sys/fs/cgroup" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")
    assert memory_left(paths) == left


def test_without_room_for_the_kernels_image_its_signer_is_not_verified(lab: Lab, world: Path) -> None:
    cgroup = world / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (cgroup / "memory.max").write_text("100000000\n")
    (cgroup / "memory.current").write_text("60000000\n")
    lab.add(OLD, "kernel/odd.ko", lab.keys[OLD])
    assert taken(lab, world)["odd"]["signature"] == "unknown"


def test_without_a_single_file_the_kernels_word_remains(lab: Lab, world: Path) -> None:
    for file in lab.modules(OLD).rglob("*.ko*"):
        file.unlink()
    found = taken(lab, world)
    assert found["ext4"]["signature"] == "trusted_signature"
    assert found["plain"]["signature"] == "no_file"


def test_where_the_kernels_keys_do_not_count_its_word_does_not_either(lab: Lab, world: Path) -> None:
    found = taken(lab, world, kernel_keyrings=False)
    assert (found["ext4"]["signature"], found["ext4"]["outcome"]) == ("untrusted_signer", "refused")


def test_a_revoked_file_is_told_even_of_a_module_that_the_kernel_vouches_for(lab: Lab, world: Path) -> None:
    file = lab.modules(OLD) / "kernel/fs/ext4.ko"
    revoked = lab.root.parent / "revoked.txt"
    revoked.write_text(f"bin:{hashlib.sha256(file.read_bytes()).hexdigest()}\n")
    found = taken(lab, world, revoked=[str(revoked)])
    assert (found["ext4"]["signature"], found["ext4"]["outcome"]) == ("revoked", "refused")


FILE = ScannedFile(
    "/lib/modules/r/updates/x.ko",
    "r",
    "updates",
    Outcome.REFUSED,
    "unsigned",
    "EKEYREJECTED",
    SignatureReport(SignatureStatus.UNSIGNED, "EKEYREJECTED", module=ModuleInfo("x", None, None, None)),
)


def loaded(**changes: Any) -> LoadedNow:
    return replace(LoadedNow("x", "E", trusted_at_load=False, file=FILE, same=None), **changes)


@pytest.mark.parametrize(
    ("module", "want"),
    [
        (loaded(), ("unsigned", Outcome.REFUSED)),
        (loaded(file=replace(FILE, outcome=Outcome.ACCEPTED)), ("unsigned", Outcome.ACCEPTED)),  # exempt
        (loaded(file=replace(FILE, outcome=Outcome.UNREADABLE)), ("unreadable", Outcome.UNKNOWN)),
        (loaded(file=replace(FILE, outcome=Outcome.UNKNOWN)), ("unknown", Outcome.UNKNOWN)),
        (loaded(trusted_at_load=None), ("unsigned", Outcome.REFUSED)),
        (loaded(trusted_at_load=None, file=None), ("no_file", Outcome.UNKNOWN)),
        (loaded(trusted_at_load=True, file=None), ("trusted_signature", Outcome.ACCEPTED)),
        (loaded(trusted_at_load=True, same=False), ("trusted_signature", Outcome.ACCEPTED)),
        (loaded(same=False), ("file_differs", Outcome.UNKNOWN)),
    ],
)
def test_word(module: LoadedNow, want: tuple[str, Outcome]) -> None:
    assert word(module, kernel_keyrings=True) == want


def test_every_word_is_a_value_of_the_metrics_label() -> None:
    for status in SignatureStatus:
        assert LoadedSignature(status.value)
    for extra in ("no_file", "file_differs", "unknown"):
        assert LoadedSignature(extra)


def test_the_process_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kmodgate.scan.inventory"],
        input=json.dumps({"root": str(tmp_path)}),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "has no proc and sys of its own" in done.stderr
    assert not done.stdout
