# SPDX-License-Identifier: Apache-2.0
"""Boots the VM once and runs tests/vm/guest inside it, then looks at what it brought back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from vmtool import VmDied, VmToolError, artifacts, loadpinlab
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm")
GUEST = "/src/tests/vm/guest"
INSIDE = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("share")
    if os.geteuid() == 0:  # the guest's own kernel, for the tests that take it apart
        shutil.copy(artifacts.path("kernel", SUITE), path / "vmlinuz")
        disk, _ = loadpinlab.disk(loadpinlab.modules_of_debian(SUITE))
        (path / "pin.img").write_bytes(disk)
    return path


@pytest.fixture(scope="module")
def status(share: Path) -> int:
    """Exit status of the tests inside the guest; their output is shown."""
    if shutil.which("qemu-system-x86_64") is None:
        message = "QEMU is missing; run: sudo make deps"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    if os.geteuid() != 0:
        message = "building the guest's disk needs root; run: sudo make test-vm"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    try:
        return run_in_guest(
            [*INSIDE, "--durations", "5", GUEST], suite=SUITE, share=share, live=True, timeout=1200
        )
    except VmDied as error:
        pytest.fail(f"the machine died: {error}\n{error.tail}")
    except VmToolError as error:
        pytest.fail(str(error))


def test_everything_inside_the_guest_passed(status: int) -> None:
    assert status == 0


def test_the_metrics_of_the_real_run_parse(status: int, share: Path) -> None:
    assert status == 0
    text = (share / "metrics.txt").read_text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    loads = families["kmodgate_module_loads"].samples
    denied = sum(sample.value for sample in loads if sample.labels["verdict"] == "deny")
    assert denied > 0
    assert families["kmodgate_enforcing"].samples[0].value == 1


def test_the_agent_wrote_no_traceback(status: int, share: Path) -> None:
    assert status == 0
    assert "Traceback" not in (share / "agent.log").read_text()
