# SPDX-License-Identifier: Apache-2.0
"""How many loads may wait at once."""

from __future__ import annotations

import pytest

from kmodgate.loop import wait_limit


@pytest.mark.parametrize(("cpus", "limit"), [(1, 4), (2, 1), (3, 2), (9, 8), (256, 8)])
def test_one_cpu_is_left_to_the_agent(cpus: int, limit: int) -> None:
    assert wait_limit(cpus) == limit
