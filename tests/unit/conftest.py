# SPDX-License-Identifier: Apache-2.0
"""What no unit test may leave behind for the next one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kmodgate.telemetry.log import ROOT


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """`run` sets up the process's logger; pytest adds handlers of its own to one that does not propagate."""
    logger = logging.getLogger(ROOT)
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    for handler in [handler for handler in logger.handlers if handler not in before[2]]:
        logger.removeHandler(handler)
        handler.close()
