# SPDX-License-Identifier: Apache-2.0
"""What the tests of the cluster's side share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.kube.mock_apiserver import MockApiServer

Eventually = Callable[[Callable[[], object]], None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MockApiServer]:
    made = MockApiServer(tmp_path)
    yield made
    made.close()


@pytest.fixture
def eventually() -> Eventually:
    """Wait until something holds: a bound, and no fixed time."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)

    return wait
