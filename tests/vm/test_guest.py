# SPDX-License-Identifier: Apache-2.0
"""Boots each kernel once, runs tests/vm/guest inside, then looks at what it brought back.

KMODGATE_TEST_KERNEL names the Debian suites whose kernels boot, with blanks between them.
KMODGATE_TEST_GUEST is ``all`` for every file, or names some. The results stay in build/vm;
``python -m tests.vm.matrix`` makes one table of them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.vm import kernels, matrix
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts, loadpinlab
from vmtool.lab import run_in_guest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

SUITES = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm trixie").split()
GUEST = "/src/tests/vm/guest"
# Attacks, crowds and many restarts: a quarter of an hour for each kernel. `make test-attacks` runs them.
LONG = (
    "test_attack_*",
    "test_hardened*",
    "test_holds*",
    "test_loadpin*",
    "test_off_switches*",
    "test_survival*",
)
CHOSEN = os.environ.get("KMODGATE_TEST_GUEST", "")
STORM = "KMODGATE_STORM_ATTEMPTS"
INSIDE = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", GUEST]


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def share(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("share")
    if os.geteuid() == 0:  # the guest's own kernel, for the tests that take it apart
        shutil.copy(artifacts.path("kernel", suite), path / "vmlinuz")
        disk, _ = loadpinlab.disk(loadpinlab.modules_of_debian(suite))
        (path / "pin.img").write_bytes(disk)
    return path


@pytest.fixture(scope="module")
def status(suite: str, share: Path) -> int:
    """Exit status of the tests inside the guest; their output is shown."""
    need_qemu("test-vm")
    results = [matrix.RESULTS / f"{suite}.{end}" for end in ("xml", "json")]
    for path in results:
        path.unlink(missing_ok=True)
    if CHOSEN.endswith(".py"):
        what = ["-s", *(f"{GUEST}/{name}" for name in CHOSEN.split()), f"{GUEST}/test_the_end.py"]
    else:
        what = [GUEST, *(f"--ignore-glob={GUEST}/{pattern}" for pattern in LONG if CHOSEN != "all")]
    settings = [f"{STORM}={os.environ[STORM]}"] if STORM in os.environ else []
    command = ["env", *settings, *INSIDE, "-rs", "--durations", "5", "--junit-xml", "/share/junit.xml", *what]
    append = kernels.of_suite(suite).append
    try:
        with alive():
            return run_in_guest(command, suite=suite, share=share, live=True, timeout=2700, append=append)
    finally:
        matrix.RESULTS.mkdir(parents=True, exist_ok=True)
        for path, name in zip(results, ("junit.xml", "kernel.json"), strict=True):
            if (share / name).exists():
                shutil.copy(share / name, path)


def test_everything_inside_the_guest_passed(status: int) -> None:
    assert status == 0


def test_only_the_table_leaves_tests_out(status: int, suite: str) -> None:
    assert status == 0
    cases = matrix.read_cases((matrix.RESULTS / f"{suite}.xml").read_text())
    if CHOSEN.endswith(".py"):
        assert {f"{case.name.partition('::')[0]}.py" for case in cases} >= set(CHOSEN.split())
    else:
        assert len(cases) > 60
    words = kernels.WORDS - kernels.of_suite(suite).capabilities
    assert {case.result for case in cases} <= {"pass", *(f"lacks {word}" for word in words)}


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
