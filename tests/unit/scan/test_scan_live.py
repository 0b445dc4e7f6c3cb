# SPDX-License-Identifier: Apache-2.0
"""A root whose kernel runs: loaded modules, listed keys, the kernel's own limits."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.unit.scan.conftest import OLD, Lab
from tests.unit.scan.test_scan_command import SCHEMA

from kmodgate.cli import terminal
from kmodgate.cli.scan_text import write_text
from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.node import KeyringCertificate, NodePaths
from kmodgate.scan.formats import write_csv, write_json
from kmodgate.scan.kernels import read_image
from kmodgate.scan.live import RunningKernel, find_running
from kmodgate.scan.plan import make_plan
from kmodgate.scan.pool import Results
from kmodgate.scan.records import LoadedNow, Report
from kmodgate.scan.root import Root
from kmodgate.scan.session import Inputs, run

MODULES = """\
ext4 100 1 - Live 0x0
tun_device 100 0 - Live 0x0
plain 100 0 - Live 0x0 (OE)
vanished 100 0 - Live 0x0 (OE)
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    files = {
        "proc/modules": MODULES,
        "proc/sys/kernel/osrelease": f"{OLD}\n",
        "sys/module/ext4/srcversion": "0123ABCD\n",
        "sys/module/tun_device/srcversion": "OTHER\n",
        "sys/module/plain/taint": "OE\n",
        "sys/module/vanished/taint": "OE\n",
        "sys/module/module/parameters/sig_enforce": "N\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def scan(lab: Lab, world: Path, *, listed: list[KeyringCertificate] | None = None, **changes: Any) -> Report:
    inputs = Inputs(
        policy=EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False),
        certificates=(),
        revoked=(),
        revoked_certificates=(),
        kernel_keyrings=True,
        require_validity=False,
        max_size=1 << 20,
        profile=None,
        loaded=True,
        jobs=1,
        now=datetime.now(UTC),
    )
    running = RunningKernel(NodePaths(world / "proc", world / "sys", world / "boot"), OLD, listed)
    with Root(lab.root) as root:
        plan = make_plan(root, kernel="all", paths=(), running=OLD)
        images = Results(read_image(root, release) for release in plan.releases)
        progress = lambda total: terminal.progress("verifying", total)  # noqa: E731
        return run(root, plan, images, running, replace(inputs, **changes), progress)


def by_name(report: Report) -> dict[str, LoadedNow]:
    return {module.name: module for module in report.loaded or ()}


def test_loaded_modules_are_paired_with_files(lab: Lab, world: Path) -> None:
    lab.add(OLD, "updates/dkms/plain.ko.gz", None)
    lab.add(OLD, "kernel/fs/plain.ko", lab.keys[OLD])
    report = scan(lab, world)
    found = by_name(report)
    assert {name: module.file and module.file.path for name, module in found.items()} == {
        "ext4": f"/lib/modules/{OLD}/kernel/fs/ext4.ko",
        "tun_device": f"/lib/modules/{OLD}/kernel/net/tun-device.ko.xz",
        "plain": f"/lib/modules/{OLD}/updates/dkms/plain.ko.gz",
        "vanished": None,
    }
    assert [found[name].same for name in ("ext4", "tun_device", "plain", "vanished")] == [
        True,
        False,
        None,
        None,
    ]
    assert found["ext4"].trusted_at_load is True
    assert found["plain"].trusted_at_load is False
    assert report.exit_code == 1


def test_modules_dep_says_which_file_counts(lab: Lab, world: Path) -> None:
    lab.add(OLD, "updates/plain.ko", None)
    lab.add(OLD, "kernel/fs/plain.ko", lab.keys[OLD])
    (lab.modules(OLD) / "modules.dep").write_text("kernel/fs/plain.ko: kernel/fs/ext4.ko\n")
    module = by_name(scan(lab, world))["plain"]
    assert module.file is not None
    assert module.file.place == "kernel"


def test_the_running_kernels_listed_keys_make_unknown(lab: Lab, world: Path) -> None:
    lab.add(OLD, "updates/plain.ko", lab.stranger)
    assert by_name(scan(lab, world, listed=[]))["plain"].file.outcome == "refused"  # type: ignore[union-attr]
    key = KeyringCertificate("1", "stranger", "00", "rsa")
    file = by_name(scan(lab, world, listed=[key]))["plain"].file
    assert file is not None
    assert (file.outcome, file.reason, file.errno) == ("unknown", "kernel_keyring_unverified", None)


def test_formats_with_loaded_modules(lab: Lab, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab.add(OLD, "updates/dkms/plain.ko", None)
    report = scan(lab, world)
    stream = io.StringIO()
    write_json(report, stream)
    document = json.loads(stream.getvalue())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["summary"]["loaded"] == 4
    assert {"outcome": "refused", "reason": "unsigned", "modules": 1, "loaded": 1} in document["summary"][
        "by_reason"
    ]
    assert {module["module"]: module["outcome"] for module in document["loaded"]} == {
        "ext4": "accepted",
        "tun_device": "accepted",
        "plain": "refused",
        "vanished": "unknown",
    }
    stream = io.StringIO()
    write_csv(report, stream)
    assert "unknown,no_file_found,,true,vanished," in stream.getvalue()
    write_text(report)
    out = capsys.readouterr().out
    assert f"{OLD} (running)" in out
    assert "would refuse 1 module, 1 of them loaded now:" in out
    assert "loaded from another build than the file on disk, which is what was verified: tun_device" in out
    assert "vanished" in out
    assert "no_file_found: loaded from an initial RAM disk" in out


def test_the_kernels_own_strictness_is_noted(lab: Lab, world: Path) -> None:
    (world / "sys/module/module/parameters/sig_enforce").write_text("Y\n")
    report = scan(lab, world, certificates=(lab.root.parent / "operator.pem",))
    assert any("sig_enforce" in note for note in report.notes)


def test_an_image_with_directories_named_proc_and_sys_runs_nothing(lab: Lab) -> None:
    for name in ("proc", "sys"):
        (lab.root / name).mkdir()
    (lab.root / "proc/modules").write_text("evil 1 0 - Live 0x0\n")
    with Root(lab.root) as root:
        assert find_running(root) is None
    for name in ("proc", "sys"):
        (lab.root / name).rename(lab.root / f"old-{name}")
        (lab.root / name).symlink_to(f"/{name}")
    with Root(lab.root) as root:
        assert find_running(root) is None
