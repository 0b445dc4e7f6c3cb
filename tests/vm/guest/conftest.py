# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run inside the guest: one agent for the whole run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import attack, kernels, lab, matrix

if os.uname().nodename != "kmodgate-vm":  # loads modules: nowhere but in the guest
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(word): left out where kernels.py says that the kernel lacks it")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell a failure at once: the machine may not live to the end of the run."""
    if report.failed:
        print(
            f"\n{report.nodeid} ({report.when}): {report.longreprtext[-3000:]}", file=sys.stderr, flush=True
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start an agent of their own go before the one that all others share."""
    items.sort(key=lambda item: item.path.name not in {"test_docs_signing.py", "test_cluster_mode.py"})


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The one way in which a test is left out: by the table."""
    for mark in item.iter_markers("needs"):
        (word,) = mark.args
        assert word in kernels.WORDS, f"{word}: no word of tests/vm/kernels.py"
        if word not in kernels.this().capabilities:
            pytest.skip(f"{matrix.LACKS}{word}")


@pytest.fixture(scope="session")
def work() -> Path:
    """A directory on tmpfs: not the pinned root."""
    return lab.laid_out(Path("/tmp/lab"))


@pytest.fixture(scope="session")
def session_agent() -> Iterator[lab.Agent]:
    directory = Path("/tmp/agent")
    directory.mkdir(exist_ok=True)
    with lab.running(directory, lab.config(lab.ENFORCE)) as agent:
        yield agent


@pytest.fixture
def agent(session_agent: lab.Agent) -> Iterator[lab.Agent]:
    """The agent under ENFORCE, in the state that every test may count on."""
    session_agent.mark()
    yield session_agent
    for name in ("kmgtest", "kmgneeds", "v4l2loopback", "dummy"):
        lab.unload(name)
    if session_agent.config_path.read_text() != lab.config(lab.ENFORCE):
        session_agent.configure(lab.config(lab.ENFORCE))


@pytest.fixture(scope="session")
def signer(work: Path) -> attack.Signer:
    """A key that belongs to the attack tests."""
    return attack.Signer(work)


@pytest.fixture(scope="module")
def armed(session_agent: lab.Agent, signer: attack.Signer) -> Iterator[lab.Agent]:
    """The agent under ENFORCE with the attack tests' key trusted, for one file of tests."""
    # Not under attack: a node has these file systems loaded.
    subprocess.run(["modprobe", "-a", "fuse", "loop", "overlay"], check=True)
    attack.configure(session_agent, signer.config())
    yield session_agent
    attack.configure(session_agent, lab.config(lab.ENFORCE))


@pytest.fixture
def watch(armed: lab.Agent, signer: attack.Signer, work: Path) -> Iterator[attack.Watch]:
    """The invariants over one attack."""
    directory = Path(tempfile.mkdtemp(prefix="attack-", dir=work))
    watch = attack.Watch(armed, signer, directory)
    yield watch
    try:
        watch.check_modules()
        watch.check_counts()
    finally:
        for name in (attack.GOOD, attack.PEST, "kmgneeds", "dummy"):
            lab.unload(name)
    if armed.config_path.read_text() != signer.config():
        attack.configure(armed, signer.config())
    shutil.rmtree(directory, ignore_errors=True)
