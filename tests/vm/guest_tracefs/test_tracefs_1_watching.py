# SPDX-License-Identifier: Apache-2.0
"""The tracefs rung sees every load, judges it by the policy, loses none, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

from kmodgate.hooks.capabilities import CAPABILITIES
from kmodgate.model import Backend

TRACING = Path("/sys/kernel/tracing")
INSTANCES = TRACING / "instances"
ATTEMPTS = int(os.environ.get("KMODGATE_TEST_TRACED", "3000"))
RATE = 1000
OBSERVE = lab.config(lab.ENFORCE, cannotEnforce="observe")
WITH_CERTIFICATES = json.dumps(
    json.loads(OBSERVE)
    | {
        "kmodgate": json.loads(OBSERVE)["kmodgate"]
        | {"trust": {"certificates": [str(lab.CERTS / "operator.pem")]}}
    }
)


KCONFIG = Path("/proc/config.gz")
MAY_FORCE = not KCONFIG.exists() or b"CONFIG_MODULE_FORCE_LOAD=y" in gzip.decompress(KCONFIG.read_bytes())
"""Debian's kernels have it and no such file; our small ones have the file."""


def global_buffer() -> dict[str, str]:
    """What anybody could have changed of it, but for its size."""
    names = ("events/enable", "set_event", "trace_clock", "current_tracer", "tracing_on")
    return {name: (TRACING / name).read_text() for name in names}


def global_size() -> int:
    """KiB for each CPU; until the first tracer of all comes, what the kernel promises it."""
    text = (TRACING / "buffer_size_kb").read_text()
    return max(int(number) for number in re.findall(r"[0-9]+", text))


BEFORE = (global_buffer(), global_size())


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Agent]:
    agent = lab.Agent(tmp_path_factory.mktemp("agent"), extra=("--log-all", "--backend", "tracefs"))
    agent.start(WITH_CERTIFICATES)
    yield agent
    agent.stop()


def hold(path: Path, then: Callable[[], dict[str, Any]], flags: int = 0) -> tuple[str, dict[str, Any]]:
    """Load a file, keep its descriptor until the event is there: a caller that can be looked at."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return lab.finit_fd(fd, flags).result, then()
    finally:
        os.close(fd)


def test_it_watches_and_claims_no_more(agent: lab.Agent) -> None:
    samples = lab.metrics()
    assert samples['kmodgate_backend_info{backend="tracefs"}'] == 1
    assert samples["kmodgate_enforcing"] == 0
    assert "not enforced, only observed" in agent.log()
    assert Path("/sys/module/module/parameters/sig_enforce").read_text().strip() == "N"
    (own,) = INSTANCES.iterdir()
    assert own.name.startswith(f"kmodgate-{agent.pid}-")


def test_the_global_buffer_is_nobodys_business(agent: lab.Agent) -> None:
    assert agent.process is not None
    was, promised = BEFORE
    assert global_buffer() == was
    assert global_size() >= promised


@pytest.mark.parametrize(
    ("name", "verdict", "reason", "status"),
    [
        ("kmgtest.unsigned.ko", "would_deny", "unsigned", "unsigned"),
        ("kmgtest.operator.ko", "allow", "trusted_signature", "trusted_signature"),
        ("kmgtest.stranger.ko", "would_deny", "untrusted_signer", "untrusted_signer"),
    ],
)
def test_what_got_in_is_told_with_the_policys_verdict(
    agent: lab.Agent, work: Path, name: str, verdict: str, reason: str, status: str
) -> None:
    agent.mark()
    result, event = hold(work / name, lambda: agent.next_event(60))
    assert result == "ok"
    assert (event["verdict"], event["reason"], event["by"]) == (verdict, reason, "kmodgate")
    assert (event["result"], event["mode"], event["api"]) == ("ok", "enforce", "finit_module")
    assert event["signature_status"] == status
    assert (event["module"], event["path"]) == ("kmgtest", str(work / name))
    assert (event["origin"], event["file_system"]) == ("other_filesystem", "tmpfs")
    assert event["size"] == (work / name).stat().st_size
    assert event["inode"] == (work / name).stat().st_ino
    assert (event["pid"], event["comm"][:6], event["uid"]) == (os.getpid(), "python", 0)
    assert event["exe"] == str(Path("/proc/self/exe").readlink())
    assert len(event["sha256"]) == 64


def test_memory_is_looked_at_too(agent: lab.Agent, work: Path) -> None:
    agent.mark()
    data = (work / "kmgtest.unsigned.ko").read_bytes()
    assert lab.init(data).ok
    event = agent.next_event(60)
    assert (event["api"], event["origin"], event["size"]) == ("init_module", "memory", len(data))
    assert (event["verdict"], event["reason"]) == ("would_deny", "unsigned")


def test_what_the_kernels_keyrings_trust_is_its_own_word(agent: lab.Agent) -> None:
    agent.mark()
    assert lab.finit(lab.in_tree("dummy")).ok
    event = agent.next_event(60)
    assert (event["verdict"], event["reason"], event["by"]) == ("allow", "trusted_signature", "kernel")
    assert event["trusted_by"] == "kernel keyrings"


def test_flags_that_make_a_module_unsigned(agent: lab.Agent, work: Path) -> None:
    agent.mark()
    result, event = hold(work / "kmgtest.operator.ko", lambda: agent.next_event(60), lab.IGNORE_VERMAGIC)
    assert result == ("ok" if MAY_FORCE else "ENOEXEC")
    assert (event["verdict"], event["reason"]) == ("would_deny", "unsigned")


def test_a_tampered_module_is_the_kernels_refusal(agent: lab.Agent, work: Path) -> None:
    bad = work / "kmgtest.tampered-intree.ko"
    bad.write_bytes(lab.flip_payload_byte(lab.in_tree("dummy").read_bytes()))
    agent.mark()
    result, event = hold(bad, lambda: agent.next_event(60))
    assert result == "EKEYREJECTED"
    assert (event["verdict"], event["by"], event["errno"]) == ("deny", "kernel", "EKEYREJECTED")
    assert event["reason"] == "bad_signature"


def test_the_schema_is_every_rungs_and_what_may_be_null_is_in_the_table(agent: lab.Agent, work: Path) -> None:
    """A caller that has gone before anybody looks leaves what it leaves, and no more than the table says."""
    agent.mark()
    child = "import sys; from tests.vm import lab; print(lab.finit(sys.argv[1]).result)"
    subprocess.run([sys.executable, "-c", child, work / "kmgtest.unsigned.ko"], check=True, cwd="/src")
    gone = agent.next_event(60)
    able = CAPABILITIES[Backend.TRACEFS]
    schema = json.loads(
        Path(lab.__file__).parents[2].joinpath("agent/kmodgate/telemetry/event.schema.json").read_text()
    )
    assert set(gone) == set(schema["$defs"]["module_load"]["required"])
    always = {"errno", "node", "pool", "container_id", "pod", "kernel_request"}
    null = {key for key, value in gone.items() if value is None}
    assert null <= {*able.unknown, *able.fleeting, *always}
    assert gone["verdict"] == "would_deny"
    assert gone["reason"] in {"unsigned", "unreadable"}


def test_a_caller_without_the_right_is_no_attempt(agent: lab.Agent) -> None:
    before = lab.metrics()
    code = "import os; from tests.vm import lab; os.setuid(65534); print(lab.init(bytes(128)).result)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/src"
    )
    assert done.stdout.strip() == "EPERM"
    early = 'kmodgate_kernel_errors_total{kind="refused_early"}'
    attempts = "kmodgate_module_load_attempts_total"
    agent.wait_for(lambda: lab.metrics()[early] > before[early], "count", 30)
    assert lab.metrics()[attempts] == before[attempts]


LOADER = textwrap.dedent(
    """
    import os, sys, time
    from tests.vm import lab
    cpu, count, rate = map(int, sys.argv[1:])
    os.sched_setaffinity(0, {cpu})
    image, began = bytes(128), time.monotonic()
    for number in range(count):
        assert lab.init(image).result in ("ENOEXEC", "EKEYREJECTED")
        ahead = began + number / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    print(time.monotonic() - began)
    """
)


def storm(attempts: int) -> float:
    """Load attempts on both CPUs, so many a second together; how many there were a second."""
    command = [sys.executable, "-c", LOADER]
    loaders = [
        subprocess.Popen(
            [*command, str(cpu), str(attempts // 2), str(RATE // 2)], cwd="/src", stdout=subprocess.PIPE
        )
        for cpu in (0, 1)
    ]
    seconds = [float(loader.communicate(timeout=300)[0]) for loader in loaders]
    return attempts / max(seconds)


def test_no_attempt_is_lost_at_a_thousand_a_second(agent: lab.Agent) -> None:
    before = lab.metrics()
    rate = storm(ATTEMPTS)
    name = "kmodgate_module_load_attempts_total"
    agent.wait_for(lambda: lab.metrics()[name] - before[name] >= ATTEMPTS, "all attempts", 120)
    after = lab.metrics()
    assert after[name] - before[name] == ATTEMPTS
    for kind in ("event_ring", "question_ring"):
        assert after[f'kmodgate_events_lost_total{{kind="{kind}"}}'] == 0
    assert (
        lab.counted(after)
        - lab.counted(before)
        + (after["kmodgate_module_loads_undecided_total"] - before["kmodgate_module_loads_undecided_total"])
        == ATTEMPTS
    )
    assert after['kmodgate_kernel_errors_total{kind="abandoned"}'] == 0
    Path("/share/storm.json").write_text(json.dumps({"attempts": ATTEMPTS, "rate": round(rate)}))


def test_what_a_system_call_costs_more(agent: lab.Agent) -> None:
    """A system call event slows them all; stated in docs/performance.md, and measured here."""

    def nanoseconds() -> float:
        began = time.perf_counter()
        for _ in range(100_000):
            os.getppid()
        return (time.perf_counter() - began) * 1e4

    watched = min(nanoseconds() for _ in range(5))
    agent.stop()
    alone = min(nanoseconds() for _ in range(5))
    agent.start(WITH_CERTIFICATES)
    Path("/share/syscall.json").write_text(json.dumps({"watched_ns": watched, "alone_ns": alone}))
    assert watched < alone * 3


def test_a_killed_agent_leaves_an_instance_until_the_next_one(agent: lab.Agent) -> None:
    agent.kill()
    (left,) = INSTANCES.iterdir()
    agent.start(WITH_CERTIFICATES)
    (own,) = INSTANCES.iterdir()
    assert own.name != left.name
    assert "removed 1 trace instance" in agent.log()


def test_two_agents_are_one_too_many(agent: lab.Agent, tmp_path: Path) -> None:
    assert agent.process is not None
    path = tmp_path / "node.yaml"
    path.write_text(WITH_CERTIFICATES.replace(f":{lab.PORT}", ":0"))
    done = subprocess.run(
        ["kmodgate", "run", "--config", path, "--backend", "tracefs"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3
    assert f"another agent runs on this node (process {agent.pid}" in done.stderr
    assert len(list(INSTANCES.iterdir())) == 1


def test_a_switched_off_instance_is_switched_on(agent: lab.Agent) -> None:
    (own,) = INSTANCES.iterdir()
    (own / "events/enable").write_text("0")
    agent.wait_for(lambda: "is on again" in agent.log(), "notice", 30)
    agent.mark()
    assert lab.finit(lab.in_tree("dummy")).ok
    assert agent.next_event(60)["by"] == "kernel"


def test_a_clean_end_leaves_nothing(agent: lab.Agent) -> None:
    assert agent.stop() == 0
    assert list(INSTANCES.iterdir()) == []
    assert "nobody watches this node any more" in agent.log()
