# SPDX-License-Identifier: Apache-2.0
"""The ladder on a real kernel: without type information, with a rung that breaks, with sig_enforce.

BTF is hidden by a mount over /sys/kernel/btf: the kernel has it, and nobody can read it. The order of
the tests matters: module.sig_enforce cannot be unset.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vm import kernels, lab
from tests.vm.guest_tracefs.test_tracefs_1_watching import ATTEMPTS, INSTANCES, hold, storm

SIG_ENFORCE = Path("/sys/module/module/parameters/sig_enforce")
LSM = Path("/sys/kernel/security/lsm").read_text().strip().split(",")
FTRACE = Path("/proc/sys/kernel/ftrace_enabled")
PLAIN = lab.config(lab.ENFORCE, trust={})


@contextmanager
def hidden_btf() -> Iterator[None]:
    if not Path("/sys/kernel/btf").exists():  # this kernel has none
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/kernel/btf"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "/sys/kernel/btf"], check=True)


@contextmanager
def running(directory: Path, text: str, *extra: str) -> Iterator[lab.Agent]:
    agent = lab.Agent(directory, extra=("--log-all", *extra))
    try:
        agent.start(text)
        yield agent
    finally:
        if agent.process is not None:
            agent.stop()
        subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)


def refused(directory: Path, text: str, *extra: str) -> str:
    """What an agent says that does not start."""
    path = directory / "node.yaml"
    path.write_text(text)
    done = subprocess.run(
        ["kmodgate", "run", "--config", path, *extra],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 3, done.stderr
    assert list(INSTANCES.iterdir()) == []
    return done.stderr


def test_a_policy_that_nothing_here_can_enforce_is_an_error(tmp_path: Path) -> None:
    certified = lab.config(lab.ENFORCE, trust={"certificates": [str(lab.CERTS / "operator.pem")]})
    assert "cannotEnforce: observe" in refused(tmp_path, certified, "--backend", "tracefs")
    pinned = lab.config(lab.DO_NOT_ENFORCE, loadPin="on", trust={})
    if "loadpin" not in LSM:
        assert "no LoadPin of its own" in refused(tmp_path, pinned, "--backend", "tracefs")
    assert SIG_ENFORCE.read_text().strip() == "N"


@pytest.mark.skipif("loadpin" in LSM, reason="this kernel enforces it: test_tracefs_0_loadpin.py")
def test_load_pin_is_watched_where_the_config_puts_up_with_it(tmp_path: Path, work: Path) -> None:
    text = lab.config(lab.DO_NOT_ENFORCE, loadPin="on", cannotEnforce="observe", trust={})
    with running(tmp_path, text, "--backend", "tracefs") as agent:
        assert lab.metrics()["kmodgate_enforcing"] == 0
        agent.mark()
        result, event = hold(work / "kmgtest.unsigned.ko", lambda: agent.next_event(60))
        assert (result, event["reason"]) == ("ok", "outside_pinned_root")
        assert (event["verdict"], event["errno"]) == ("would_deny", "EPERM")
        root = Path("/root/kmgtest.unsigned.ko")
        root.write_bytes((work / "kmgtest.unsigned.ko").read_bytes())
        lab.unload("kmgtest")
        result, event = hold(root, lambda: agent.next_event(60))
        assert (event["verdict"], event["reason"]) == ("allow", "pinned_root")
        lab.unload("kmgtest")
        assert lab.init((work / "kmgtest.unsigned.ko").read_bytes()).ok
        assert agent.next_event(60)["reason"] == "no_file"


def test_without_type_information_tracefs_is_chosen(tmp_path: Path, work: Path) -> None:
    with hidden_btf():
        said = subprocess.run(["kmodgate", "doctor"], check=False, capture_output=True, text=True).stdout
        line = next(line for line in said.splitlines() if line.startswith("tracefs "))
        assert line.split()[1:3] == ["yes", "yes"]
        assert "an agent would stand on tracefs" in said
        audit = lab.config(lab.ENFORCE, mode="audit", trust={})
        with running(tmp_path, audit) as agent:
            assert 'kmodgate_backend_info{backend="tracefs"}' in lab.metrics()
            assert "not on backend bpf-lsm: the kernel's type information" in agent.log()
            agent.mark()
            result, event = hold(work / "kmgtest.unsigned.ko", lambda: agent.next_event(60))
            assert (result, event["verdict"], event["mode"]) == ("ok", "would_deny", "audit")
    assert SIG_ENFORCE.read_text().strip() == "N"


@pytest.mark.skipif(not Path("/sys/kernel/btf").exists(), reason="nothing above this rung can break here")
@pytest.mark.skipif(
    not kernels.this().off_switch,
    reason="kernel.ftrace_enabled=0 is refused here while programs are attached",
)
def test_a_rung_that_breaks_is_left_for_a_lower_one(tmp_path: Path, work: Path) -> None:
    """Somebody holds kernel.ftrace_enabled at 0, faster than the agent puts it back.

    Down there the kernel enforces: sig_enforce is set from here on.
    """
    with running(tmp_path, PLAIN) as agent:
        best = [name for name in lab.metrics() if name.startswith("kmodgate_backend_info")]
        assert best == ['kmodgate_backend_info{backend="bpf-lsm"}']
        stop = threading.Event()

        def hold_it_down() -> None:
            while not stop.is_set():
                FTRACE.write_text("0")
                time.sleep(0.05)

        thread = threading.Thread(target=hold_it_down)
        thread.start()
        try:
            agent.wait_for(lambda: "going down to" in agent.log(), "downgrade", 240)
            agent.wait_for(lambda: "backend tracefs, metrics on port" in agent.log(), "lower rung", 180)
        finally:
            stop.set()
            thread.join()
            FTRACE.write_text("1")
        agent.wait_for(lambda: lab.get("/readyz")[0] == 200, "ready again", 60)
        samples = lab.metrics()
        assert samples['kmodgate_backend_info{backend="tracefs"}'] == 1
        assert samples["kmodgate_backend_downgrades_total"] == 1
        assert samples["kmodgate_enforcing"] == 1
        assert SIG_ENFORCE.read_text().strip() == "Y"
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert list(INSTANCES.iterdir()) == []


def test_the_kernel_enforces_and_every_refusal_is_told(tmp_path: Path, work: Path) -> None:
    with hidden_btf(), running(tmp_path, PLAIN) as agent:
        assert SIG_ENFORCE.read_text().strip() == "Y"
        samples = lab.metrics()
        assert (samples["kmodgate_enforcing"], lab.get("/readyz")[0]) == (1, 200)
        agent.mark()
        for name in ("kmgtest.unsigned.ko", "kmgtest.operator.ko"):
            result, event = hold(work / name, lambda: agent.next_event(60))
            assert (result, event["verdict"], event["by"]) == ("EKEYREJECTED", "deny", "kernel")
            assert event["reason"] in {"unsigned", "untrusted_signer"}
        child = "import sys; from tests.vm import lab; print(lab.finit(sys.argv[1]).result)"
        subprocess.run([sys.executable, "-c", child, work / "kmgtest.unsigned.ko"], check=True, cwd="/src")
        event = agent.next_event(60)
        assert (event["verdict"], event["by"], event["errno"]) == ("deny", "kernel", "EKEYREJECTED")
        assert event["reason"] in {"unsigned", "kernel_sig_enforce"}
        assert lab.finit(lab.in_tree("dummy")).ok
        assert agent.next_event(60)["by"] == "kernel"
        before = lab.metrics()
        storm(ATTEMPTS)
        was = lab.counted(before, verdict="deny", by="kernel")

        def denied() -> float:
            return lab.counted(lab.metrics(), verdict="deny", by="kernel") - was

        agent.wait_for(lambda: denied() >= ATTEMPTS, "all refusals", 120)
        assert denied() == ATTEMPTS
        after = lab.metrics()
        assert after['kmodgate_events_lost_total{kind="event_ring"}'] == 0
        agent.configure(lab.config(lab.DO_NOT_ENFORCE, loadPin="off", trust={}))
        assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"  # it cannot be unset
        assert agent.next_event(60)["verdict"] == "deny"
    assert list(INSTANCES.iterdir()) == []
