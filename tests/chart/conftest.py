# SPDX-License-Identifier: Apache-2.0
"""Helm for the chart's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.chart.helm import PACKAGES, VALUES, Helm, HelmError, binary


@pytest.fixture(scope="session", params=sorted(PACKAGES), ids=lambda major: f"helm{major}")
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each Helm in turn."""
    return _there(request.param)


@pytest.fixture(scope="session")
def newest() -> Helm:
    """The newest Helm, for what does not depend on it."""
    return _there(max(PACKAGES))


@pytest.fixture(params=VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def values(request: pytest.FixtureRequest) -> Path:
    """Each file of values in helm/kmodgate/ci."""
    path: Path = request.param
    return path


def _there(major: int) -> Helm:
    try:
        binary(major)
    except HelmError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    return Helm(major)
