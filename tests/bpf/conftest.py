# SPDX-License-Identifier: Apache-2.0
"""Where the compiled objects lie, and when a test may not run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def unavailable(reason: str) -> None:
    """Skip loudly; where everything must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def agent_object() -> Path:
    path = ROOT / "agent/kmodgate/hooks/kmodgate.bpf.o"
    if not path.exists():
        unavailable("the BPF object is not built; run: make bpf")
    return path


@pytest.fixture(scope="session")
def test_object() -> Path:
    path = ROOT / "build/test.bpf.o"
    if not path.exists():
        unavailable("the BPF test object is not built; run: make test-bpf")
    if os.geteuid() != 0:
        unavailable("BPF test-runs need root; run: sudo make test-bpf")
    return path
