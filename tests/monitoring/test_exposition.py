# SPDX-License-Identifier: Apache-2.0
"""What an agent serves, before Prometheus' own linter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from prometheus_client import generate_latest
from tests.monitoring.fleet import BUILT_IN, UNSIGNED, Node
from tests.rules.parts import debian_program


def test_promtool_has_nothing_to_say() -> None:
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        node = Node("synthetic-gpu-000", "gpu", None, nowhere)
        node.load(BUILT_IN)
        node.load(UNSIGNED, hold=5_000_000)
        exposed = generate_latest(node.metrics.registry)
        node.log.close()
    done = subprocess.run(
        [debian_program("promtool"), "check", "metrics"], input=exposed, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
