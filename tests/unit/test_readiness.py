# SPDX-License-Identifier: Apache-2.0
"""Since when the node is as the policy asks: the moment of the last change, seen by a probe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kmodgate import readiness as module
from kmodgate.hooks.bpf import ProbeResult
from kmodgate.model import Backend as Rung
from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.node import NodePaths
from kmodgate.readiness import Readiness
from kmodgate.telemetry.status import AgentStatus


class Backend:
    root_pinned = True
    backend = Rung.BPF_LSM

    def probe(self) -> ProbeResult:
        return ProbeResult(errno=0, first_hook=True, signature=True, ended=True)


def test_since_is_the_last_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, problem = [1000.0], [None, None, "dead", "dead another way", None]
    monkeypatch.setattr(time, "time", lambda: now[0])
    found = iter(problem)
    monkeypatch.setattr(module, "probe_problem", lambda *_, **__: next(found))
    readiness = Readiness(AgentStatus(), NodePaths(proc=tmp_path, sys=tmp_path))
    assert readiness.since is None
    policy = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
    backend: Any = Backend()
    moments = list[float | None]()
    for _ in problem:
        readiness.probe(backend, policy)
        moments.append(readiness.since)
        now[0] += 10
    assert moments == [1000, 1000, 1020, 1020, 1040]
