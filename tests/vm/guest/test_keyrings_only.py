# SPDX-License-Identifier: Apache-2.0
"""The rung bpf-lsm-basic: what it refuses to promise, on any kernel, and how it works on its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

OPERATOR = str(lab.CERTS / "operator.pem")
ON_THE_RUNG = pytest.mark.needs("the-basic-rung")


def document(policy: str = lab.ENFORCE, **trust: Any) -> str:
    """A config that listens elsewhere than the session's agent."""
    return json.dumps(
        {
            "linuxNodeConfig": {"kernelModuleLoading": {"policy": policy}},
            "kmodgate": {"trust": trust, "listen": "127.0.0.1:0"},
        }
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (document(certificates=[OPERATOR]), "remove them and have the kernel trust the keys"),
        (document(certificates=[OPERATOR], kernelKeyrings=False), "set trust.kernelKeyrings to true"),
        (document(revokedCertificates=[OPERATOR]), "nothing can be revoked"),
        (document(lab.DO_NOT_ENFORCE, revokedCertificates=[OPERATOR]), "nothing can be revoked"),
    ],
    ids=["certificates", "keyrings", "revocations", "revocations-loadpin"],
)
def test_what_needs_a_digest_is_an_error_at_start(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    done = subprocess.run(
        ["kmodgate", "run", "--config", path, "--backend", "bpf-lsm-basic"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert "backend bpf-lsm-basic takes no digest" in last
    assert words in last
    assert "Traceback" not in done.stderr


@ON_THE_RUNG
def test_what_needs_a_digest_changes_nothing_at_reload(agent: lab.Agent, work: Path) -> None:
    before = agent.log().count("not reloaded")
    agent.rewrite(lab.config(lab.ENFORCE, trust={"certificates": [OPERATOR]}))
    agent.wait_for(lambda: agent.log().count("not reloaded") > before, "refusal")
    assert "takes no digest" in agent.log()
    assert lab.get("/readyz")[0] == 200
    assert lab.finit(work / "kmgtest.operator.ko").result == "EKEYREJECTED"
    agent.configure(lab.config(lab.ENFORCE))
    agent.mark()


@ON_THE_RUNG
def test_the_doctor_says_no_to_such_a_config(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(document(certificates=[OPERATOR]))
    done = subprocess.run(
        ["kmodgate", "doctor", "--config", path, "--output", "json"],
        check=False,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["answer"]) == (1, "no")
    assert "trust.certificates cannot admit anything" in found["because"][0]


@ON_THE_RUNG
def test_nothing_waits_for_an_agent_that_stands_still(agent: lab.Agent, work: Path) -> None:
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        assert lab.finit(lab.in_tree("dummy")).ok
        outcome = lab.finit(work / "kmgtest.stranger.ko")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert outcome.result == "EKEYREJECTED"
    assert outcome.micros < 1_000_000
    assert agent.next_event()["by"] == "kernel"
    event = agent.next_event()
    assert (event["reason"], event["hold_us"]) == ("untrusted_signer", 0)


@ON_THE_RUNG
def test_a_digest_is_not_claimed(agent: lab.Agent, work: Path) -> None:
    lab.finit(work / "kmgtest.stranger.ko")
    event = agent.next_event()
    assert (event["sha256"], event["signer"]) == (None, None)
    assert event["path"] == str(work / "kmgtest.stranger.ko")
