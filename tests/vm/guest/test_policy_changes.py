# SPDX-License-Identifier: Apache-2.0
"""LoadPin, audit, live changes of the config, and the agent's own life."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.vm import kernels, lab


def test_loadpin_decides_by_file_system(agent: lab.Agent, work: Path) -> None:
    agent.configure(lab.config(lab.DO_NOT_ENFORCE))
    agent.mark()
    # The pinned root, unsigned or not.
    local = Path("/root/kmgtest-pinned.ko")
    local.write_bytes((work / "kmgtest.unsigned.ko").read_bytes())
    assert lab.finit(local).ok
    assert agent.next_event()["reason"] == "pinned_root"
    lab.unload("kmgtest")
    # Anywhere else, trusted or not.
    assert lab.finit(work / "kmgtest.operator.ko").result == "EPERM"
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["errno"]) == ("deny", "outside_pinned_root", "EPERM")
    # Without a file.
    assert lab.init(lab.in_tree("dummy").read_bytes()).result == "EPERM"
    assert agent.next_event()["reason"] == "no_file"
    assert not lab.is_loaded("dummy")
    status, said = lab.insmod(work / "kmgtest.operator.ko")
    assert status == 1
    assert said.endswith("Operation not permitted")
    agent.mark()


def test_a_bind_mount_of_the_root_is_the_root_and_an_overlay_of_it_is_not(
    agent: lab.Agent, work: Path
) -> None:
    agent.configure(lab.config(lab.DO_NOT_ENFORCE))
    bound = work / "bound"
    bound.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", "/root", bound], check=True)
    try:
        Path("/root/bound.ko").write_bytes((work / "kmgtest.unsigned.ko").read_bytes())
        assert lab.finit(bound / "bound.ko").ok
        lab.unload("kmgtest")
    finally:
        subprocess.run(["umount", bound], check=True)
    options = f"lowerdir=/root,upperdir={work}/u,workdir={work}/w"
    for name in ("u", "w", "m"):
        (work / name).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, work / "m"], check=True)
    try:
        assert lab.finit(work / "m/bound.ko").result == "EPERM"
    finally:
        subprocess.run(["umount", work / "m"], check=True)
    agent.mark()


def test_without_loadpin_nothing_is_restricted(agent: lab.Agent, work: Path) -> None:
    agent.configure(lab.config(lab.DO_NOT_ENFORCE, loadPin="off"))
    agent.mark()
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"]) == ("allow", "not_restricted")


def test_audit_lets_in_and_says_what_enforcing_would_do(agent: lab.Agent, work: Path) -> None:
    agent.configure(lab.config(lab.ENFORCE, mode="audit"))
    agent.mark()
    assert lab.finit(work / "kmgtest.stranger.ko").ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["errno"], event["result"]) == (
        "would_deny",
        "untrusted_signer",
        "EKEYREJECTED",
        "ok",
    )
    assert lab.metrics()["kmodgate_enforcing"] == 0
    lab.unload("kmgtest")
    agent.configure(lab.config(lab.DO_NOT_ENFORCE, mode="audit"))
    agent.mark()
    assert lab.finit(work / "kmgtest.unsigned.ko").ok
    event = agent.next_event()
    assert (event["verdict"], event["reason"], event["errno"]) == (
        "would_deny",
        "outside_pinned_root",
        "EPERM",
    )


def test_a_policy_flips_under_loads_and_each_load_sees_one_policy_whole(agent: lab.Agent, work: Path) -> None:
    """Unsigned from tmpfs: EKEYREJECTED by ENFORCE, EPERM by LoadPin, never anything else."""
    unsigned = work / "kmgtest.unsigned.ko"
    agent.until_known(refused=unsigned)
    results: dict[str, int] = {}
    earlier = len(agent.events())
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            outcome = lab.finit(unsigned).result
            results[outcome] = results.get(outcome, 0) + 1

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            agent.configure(lab.config(lab.DO_NOT_ENFORCE))
            time.sleep(0.3)
            agent.configure(lab.config(lab.ENFORCE))
            time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(results) == {"EKEYREJECTED", "EPERM"}
    agent.wait_for(lambda: lab.get("/readyz")[0] == 200, "readiness")
    pairs = {(e["errno"], e["reason"]) for e in agent.events()[earlier:] if e["path"] == str(unsigned)}
    assert pairs <= {("EKEYREJECTED", "unsigned"), ("EPERM", "outside_pinned_root")}
    agent.mark()


@pytest.mark.parametrize(
    "text",
    ["linuxNodeConfig: [", "nonsense: 1\n", "kmodgate: {mode: maybe}\n", ""],
)
def test_a_config_that_cannot_be_used_changes_nothing(agent: lab.Agent, work: Path, text: str) -> None:
    failures = agent.log().count("not reloaded")
    agent.rewrite(text)
    agent.wait_for(lambda: agent.log().count("not reloaded") > failures, "refusal")
    assert lab.metrics()["kmodgate_config_last_reload_successful"] == 0
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert lab.get("/readyz")[0] == 200
    agent.configure(lab.config(lab.ENFORCE))
    assert lab.metrics()["kmodgate_config_last_reload_successful"] == 1
    agent.mark()


@pytest.mark.needs("digests")
def test_other_certificates_void_what_was_known(agent: lab.Agent, work: Path) -> None:
    assert lab.finit(work / "kmgtest.operator.ko").ok
    lab.unload("kmgtest")
    only_ec = {"trust": {"certificates": [str(lab.CERTS / "operator-ec.pem")]}}
    agent.configure(lab.config(lab.ENFORCE, **only_ec))
    assert lab.finit(work / "kmgtest.operator.ko").result == "EKEYREJECTED"
    assert lab.finit(work / "kmgtest.operator-ec.ko").ok
    lab.unload("kmgtest")
    agent.configure(lab.config(lab.ENFORCE))
    assert lab.finit(work / "kmgtest.operator.ko").ok
    agent.mark()


def test_sighup_reads_the_config_again(agent: lab.Agent) -> None:
    count = agent.log().count("config reloaded")
    os.kill(agent.pid, signal.SIGHUP)
    agent.wait_for(lambda: agent.log().count("config reloaded") > count, "reload")


def test_the_off_switch_is_taken_or_refused_as_the_table_says(agent: lab.Agent, work: Path) -> None:
    switch = Path("/proc/sys/kernel/ftrace_enabled")
    if "off-switch" in kernels.this().capabilities:
        switch.write_text("0")
        switch.write_text("1")
        agent.wait_for(lambda: lab.get("/readyz")[0] == 200, "readiness", 15)
    else:
        with pytest.raises(OSError, match="busy") as caught:
            switch.write_text("0")
        assert caught.value.errno == errno.EBUSY
    assert lab.metrics()["kmodgate_enforcing"] == 1
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    agent.mark()
