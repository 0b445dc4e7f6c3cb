# SPDX-License-Identifier: Apache-2.0
"""What a test cannot do without: loud where it is missing."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(message: str) -> NoReturn:
    """Skip, and say what to type; where CI is, that everything must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def need(present: object, message: str) -> None:
    """Go on only where there is what the message asks for."""
    if not present:
        unavailable(message)
