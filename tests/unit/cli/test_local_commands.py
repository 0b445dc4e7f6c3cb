# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status`` and ``kmodgate events``, as processes, at the socket of an agent's outlets."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.unit.local.conftest import BASE
from tests.vectors.generate import make_identity

from kmodgate.config import parse
from kmodgate.local.client import MAX_LINE
from kmodgate.local.place import Listening
from kmodgate.model import (
    Api,
    Backend,
    By,
    EffectivePolicy,
    Mode,
    Origin,
    Policy,
    Reason,
    Signer,
    Verdict,
)
from kmodgate.node import NodePaths
from kmodgate.outlets import Outlets
from kmodgate.readiness import Readiness
from kmodgate.report import report
from kmodgate.settings import Settings
from kmodgate.signature import TrustStore
from kmodgate.signature.trust import load_certificates
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.metrics import LoadedSignature
from kmodgate.telemetry.status import AgentStatus, TrustAnchorValidity
from kmodgate.workload import Pod

STATUS_SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("kmodgate.local").joinpath("status.schema.json").read_text())
)
EVENT_SCHEMA = jsonschema.Draft202012Validator(
    json.loads(files("kmodgate.telemetry").joinpath("event.schema.json").read_text())
)
HOSTILE = "\x1b[31mred\x07\n\u202eevil\\"


class Counters:
    """What a backend would count."""

    def loads(self) -> list[tuple[Verdict, Reason, Api, By, int]]:
        return [
            (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.FINIT_MODULE, By.KERNEL, 40),
            (Verdict.ALLOW, Reason.TRUSTED_SIGNATURE, Api.INIT_MODULE, By.KERNEL, 2),
            (Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, 3),
            (Verdict.DENY, Reason.REVOKED, Api.FINIT_MODULE, By.KMODGATE, 0),
        ]

    def lost(self) -> dict[str, int]:
        return {"event_ring": 5, "question_ring": 0}


class Node:
    """An agent without a kernel: all that ``status`` reports, and the socket."""

    def __init__(self, directory: Path, stream: Any) -> None:
        identity = make_identity("operator")
        (anchor,) = load_certificates(identity.pem, "/etc/kmodgate/operator.pem")
        config = parse(
            b"linuxNodeConfig:\n  kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}\nkmodgate: {}\n",
            source="/etc/kmodgate/node.yaml",
        )
        policy = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
        self.settings = Settings(config, policy, TrustStore((anchor,)), b"")
        self.status = AgentStatus()
        self.status.set_policy(policy)
        self.status.set_backend(Backend.BPF_LSM)
        self.status.reload_succeeded(time.time())
        self.status.set_gap(enforcement=0.0, agent=3.25)
        self.status.set_loaded_modules({LoadedSignature.TRUSTED_SIGNATURE: 70, LoadedSignature.UNSIGNED: 1})
        self.status.set_trust_anchors([TrustAnchorValidity(anchor.fingerprint, anchor.not_after)])
        for name in ("proc", "sys"):
            (directory / name).mkdir()
        self.readiness = Readiness(self.status, NodePaths(proc=directory / "proc", sys=directory / "sys"))
        self.readiness.problem, self.readiness.since = None, time.time() - 3700
        self.metrics = AgentMetrics(self.status, process=False)
        self.metrics.attach(Counters())  # type: ignore[arg-type]  # the part that a report reads
        self.outlets = Outlets(stream, node="node-a")
        self.metrics.attach_event_log(self.outlets.log, self.outlets.counts)
        self.path = directory / "run/agent.sock"

    def report(self) -> dict[str, Any]:
        return report(self.settings, self.status, self.readiness, self.metrics, self.outlets)

    def tell(self, **values: Any) -> None:
        self.outlets.log.write(replace(BASE, **{"time": datetime.now(UTC), **values}))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Path("/dev/null").open("wb") as null:
        node = Node(tmp_path, null)
        with node.outlets:
            node.outlets.serve(node.report, lambda: Listening(node.path))
            yield node


def command(*arguments: str | Path, path: Path | None = None) -> list[str]:
    where = [] if path is None else ["--socket", str(path)]
    return [sys.executable, "-m", "kmodgate", *map(str, arguments), *where]


def run(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, path=path), capture_output=True, text=True, check=False, timeout=60
    )


@contextmanager
def following(node: Node, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        command("events", "--follow", *arguments, path=node.path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def followed(node: Node) -> bool:
    server = node.outlets._server
    assert server is not None
    return any(client.follows for client in server._clients)


# --- status ------------------------------------------------------------------------------------


def test_status_as_json(node: Node) -> None:
    for _ in range(12):
        node.tell(module=HOSTILE, comm=HOSTILE, signer=Signer(issuer=HOSTILE))
    done = run("status", "--output", "json", path=node.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    status = json.loads(done.stdout)
    STATUS_SCHEMA.validate(status)
    assert len(status["denials"]) == 10
    for event in status["denials"]:
        EVENT_SCHEMA.validate(event)
    assert status["denials"][0]["sequence"] == 12
    assert status["policy"]["policy"] == "ENFORCE_SIGNED_MODULES"
    assert status["source"]["policy"] == "/etc/kmodgate/node.yaml:2"
    assert status["loads"] == [
        {"verdict": "allow", "reason": "trusted_signature", "by": "kernel", "count": 42},
        {"verdict": "deny", "reason": "unsigned", "by": "kmodgate", "count": 3},
    ]
    assert status["events"]["lost"]["event_ring"] == 5
    assert status["events"]["remembered"] == 12
    assert status["trust"]["anchors"][0]["fingerprint"] == node.settings.trust.anchors[0].fingerprint
    STATUS_SCHEMA.check_schema(STATUS_SCHEMA.schema)


def test_status_for_people(node: Node) -> None:
    node.tell(
        verdict=Verdict.WOULD_DENY,
        module="driver",
        signer=Signer(issuer="CN=Vendor", serial="1"),
        pod=Pod("uid-1", "drivers", "loader-0"),
    )
    node.tell(module=None, path=f"/tmp/{HOSTILE}.ko", container_id="c" * 64)
    done = run("status", path=node.path)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "enforcing ENFORCE_SIGNED_MODULES since " in text
    assert "(1 h 1 min)" in text
    for part in (
        "/etc/kmodgate/node.yaml:2",
        "LoadPin not for modules",
        "bpf-lsm",
        "the kernel's keyrings and 1 configured certificate(s)",
        "70 trusted_signature, 1 unsigned",
        "5 event_ring",
        "stdout: 2 sent",
        "CN=Vendor",
        "drivers/loader-0",
        "container cccccccccccc",
        "insmod[4711]",
        r"\x1b[31mred\x07\x0a\u202eevil\\.ko",
        "/etc/kmodgate/operator.pem",
    ):
        assert part in text
    assert "\x1b" not in text
    assert all(line.isprintable() for line in text.splitlines())


def test_status_of_an_agent_that_does_not_enforce(node: Node) -> None:
    node.readiness.problem = f"the hooks are dead {HOSTILE}"
    node.status.reload_failed("node.yaml:3: unknown key 'mod'")
    done = run("status", path=node.path)
    assert done.returncode == 1
    assert r"NOT ENFORCING ENFORCE_SIGNED_MODULES: the hooks are dead \x1b[31m" in done.stdout
    assert "the last one cannot be used: node.yaml:3: unknown key 'mod'" in done.stdout
    done = run("status", "--output", "json", path=node.path)
    assert done.returncode == 1
    status = json.loads(done.stdout)
    STATUS_SCHEMA.validate(status)
    assert status["as_asked"] is False
    assert status["config"]["error"] == "node.yaml:3: unknown key 'mod'"


def test_audit_is_what_the_policy_asks(node: Node) -> None:
    node.settings = replace(node.settings, policy=replace(node.settings.policy, mode=Mode.AUDIT))
    done = run("status", path=node.path)
    assert done.returncode == 0
    assert "auditing ENFORCE_SIGNED_MODULES since" in done.stdout


def test_a_report_before_anything_is_known() -> None:
    """What the setters have not set yet is null, and the schema knows it."""
    with Path("/dev/null").open("wb") as null, Outlets(null) as outlets:
        config = parse(b"kmodgate: {}\n", source="node.yaml")
        policy = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)
        status = AgentStatus()
        found = report(
            Settings(config, policy, TrustStore(), b""),
            status,
            Readiness(status, NodePaths()),
            AgentMetrics(status, process=False),
            outlets,
        )
    STATUS_SCHEMA.validate(json.loads(json.dumps(found)))
    assert found["problem"] == "starting"


# --- no agent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "events"])
def test_no_agent(tmp_path: Path, name: str) -> None:
    missing = run(name, path=tmp_path / "agent.sock")
    assert missing.returncode == 3
    assert missing.stderr.startswith(f"kmodgate: error: {tmp_path}/agent.sock: no agent runs on this node")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "agent.sock"))
    gone = run(name, path=tmp_path / "agent.sock")
    assert gone.returncode == 3
    assert "the agent that made this socket runs no more" in gone.stderr
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path, Path("/" + "x" * 200)):
        done = run(name, path=path)
        assert done.returncode == 3
        assert done.stderr.startswith("kmodgate: error: ")
        assert (missing.stdout, gone.stdout, done.stdout) == ("", "", "")
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
def test_not_root(node: Node) -> None:
    """From within a process of another user: neither the directory nor the socket lets it in."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from kmodgate.local.client import ask_status, NoAgentError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: ask_status(Path(sys.argv[1]))\n"
        "except NoAgentError as error: print(error)"
    )
    for directory in list(node.path.parents)[1:4]:
        directory.chmod(0o755)
    node.path.parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program, node.path], capture_output=True, text=True, check=False
    )
    assert "only root may ask the agent; use sudo" in done.stdout, done.stderr


@contextmanager
def impostor(path: Path, answer: bytes, *, hold: bool = False) -> Iterator[None]:
    """Something that listens there and is no agent."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                try:
                    connection.sendall(answer)
                except OSError:
                    return
                if hold:
                    done.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        done.set()
        thread.join()


@pytest.mark.parametrize("name", ["status", "events"])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "ended before it had answered"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not one JSON object a line"),
        (b'{"event": "module_load"}\n', "answers something else than asked"),
        (b'{"kmodgate": 2, "answer": "status"}\n', "speaks another protocol (2)"),
        (b'{"kmodgate": 1, "answer": "error", "error": "no \\u001b[2J"}\n', "refuses: no \\x1b[2J"),
        (b"x" * (MAX_LINE + (1 << 18)), "sends a line without an end"),
    ],
)
def test_an_answer_of_something_else(tmp_path: Path, name: str, answer: bytes, says: str) -> None:
    path = tmp_path / "agent.sock"
    with impostor(path, answer):
        done = run(name, path=path)
    assert done.returncode == 3
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_a_report_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with impostor(path, b'{"kmodgate": 1, "answer": "status", "status": {"schema": 2}}\n'):
        done = run("status", path=path)
    assert done.returncode == 3
    assert "this agent's report is of another version" in done.stderr


def test_an_agent_that_does_not_answer(tmp_path: Path) -> None:
    from kmodgate.local.client import NoAgentError, ask_status  # noqa: PLC0415  # in this process, for its bound

    path = tmp_path / "agent.sock"
    with impostor(path, b"{", hold=True), pytest.raises(NoAgentError, match="the agent does not answer"):
        ask_status(path, wait=0.2)


# --- events ------------------------------------------------------------------------------------


def test_events_in_a_pipe_are_the_lines_of_the_log(node: Node) -> None:
    for _ in range(3):
        node.tell(module=HOSTILE)
    done = run("events", path=node.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    kept = node.outlets.recent.piece(0, 10).events
    assert [line + "\n" for line in lines] == [event.line.decode() for event in kept]
    for line in lines:
        EVENT_SCHEMA.validate(json.loads(line))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [1, 2, 3, 4]),
        (["--last", "1"], [4]),
        (["--verdict", "deny"], [1, 3]),
        (["--verdict", "deny", "--verdict", "would_deny"], [1, 3, 4]),
        (["--reason", "revoked"], [3]),
        (["--module", "nvidia*"], [2, 4]),
        (["--module", "nvidia-drm"], [4]),
        (["--since", "1h"], [3, 4]),
        (["--since", "1d"], [2, 3, 4]),
        (["--since", "2020-01-01T00:00:00+01:00"], [1, 2, 3, 4]),
        (["--since", "2020-01-01T00:00:00Z", "--verdict", "allow", "--module", "other"], []),
    ],
)
def test_filters(node: Node, arguments: list[str], expected: list[int]) -> None:
    now = datetime.now(UTC)
    node.tell(time=now - timedelta(days=3))
    allowed = {"verdict": Verdict.ALLOW, "reason": Reason.FAILURE_POLICY_IGNORE, "errno": 0, "result": 0}
    node.tell(time=now - timedelta(hours=5), module="nvidia", **allowed)
    node.tell(reason=Reason.REVOKED)
    node.tell(module="nvidia_drm", verdict=Verdict.WOULD_DENY)
    done = run("events", *arguments, path=node.path)
    assert done.returncode == 0
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == expected


def test_text_for_people(node: Node) -> None:
    node.tell(module="driver", signer=Signer(subject="CN=Vendor"), pod=Pod("u", "ns", "pod-0"))
    node.tell(module=None, path=f"/tmp/{HOSTILE}.ko")
    node.tell(
        api=Api.INIT_MODULE, origin=Origin.MEMORY, module=None, path=None, verdict=Verdict.ALLOW,
        reason=Reason.FAILURE_POLICY_IGNORE, errno=0, result=0, comm=None, container_id="d" * 64,
    )  # fmt: skip
    done = run("events", "--output", "text", path=node.path)
    assert (done.returncode, done.stderr) == (0, "")
    one, two, three = done.stdout.splitlines()
    assert "deny        unsigned           driver  EKEYREJECTED  /tmp/evil.ko" in one
    assert "names signer CN=Vendor  insmod[4711] uid 0  pod ns/pod-0" in one
    assert r"\x1b[31mred\x07\x0a\u202eevil\\.ko" in two
    assert "allow       failure_policy_ignore  from memory  ok" in three
    assert "container dddddddddddd" in three
    assert done.stdout.replace("\n", "").isprintable()


def test_follow_begins_with_the_last_ten_and_goes_on(node: Node) -> None:
    for _ in range(12):
        node.tell()
    with following(node) as child:
        assert child.stdout is not None
        assert [json.loads(child.stdout.readline())["sequence"] for _ in range(10)] == list(range(3, 13))
        node.tell()
        assert json.loads(child.stdout.readline())["sequence"] == 13
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (130, b"", b"\n")  # the newline ends the terminal's ^C


def test_follow_ends_when_its_reader_does(node: Node) -> None:
    """Also while nothing comes: who reads no more waits for nothing."""
    with following(node) as child:
        wait_for(lambda: followed(node))
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(30) == 141
        assert child.stderr is not None
        assert child.stderr.read() == b""
        child.stdout = None
    wait_for(lambda: not followed(node))


def test_follow_says_that_the_agent_stopped(node: Node) -> None:
    with following(node) as child:
        wait_for(lambda: followed(node))
        assert node.outlets._server is not None
        node.outlets._server.stop()
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (3, b"")
    assert err.startswith(b"kmodgate: error: the agent has stopped")


def test_follow_says_that_the_agent_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with impostor(path, b'{"kmodgate":1,"answer":"events","kept":0,"forgotten":0}\n'):
        done = run("events", "--follow", path=path)
    assert done.returncode == 3
    assert "the agent ended before it had answered" in done.stderr


def test_what_the_agent_forgot_is_said(node: Node) -> None:
    node.outlets.recent._max_events = 2
    for _ in range(5):
        node.tell()
    done = run("events", path=node.path)
    assert len(done.stdout.splitlines()) == 2
    assert "hint: 3 older events are in the agent's log only" in done.stderr
    for arguments in (["--last", "5"], ["--since", datetime.now(UTC).isoformat()]):  # not asked for
        assert run("events", *arguments, path=node.path).stderr == ""
    assert "hint: " in run("events", "--since", "1h", path=node.path).stderr


def test_what_is_missing_is_said_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    record = {
        "event": "suppressed", "schema": 1, "time": "2026-03-04T05:06:07.000000Z", "node": None, "count": 7,
        "missing": [
            {"cause": "slow_reader", "verdict": None, "reason": None, "count": 4},
            {"cause": "flood", "verdict": "deny", "reason": "unsigned", "count": 3},
        ],
    }  # fmt: skip
    EVENT_SCHEMA.validate(record)
    inventory = {
        "event": "module_inventory", "time": "2026-03-04T05:06:08.000000Z", "module": "old", "path": None,
        "signature": "no_file", "outcome": "unknown",
    }  # fmt: skip
    lines = (
        b'{"kmodgate":1,"answer":"events","kept":2,"forgotten":0}\n'
        + json.dumps(record).encode() + b"\n" + json.dumps(inventory).encode()
        + b'\n{"kmodgate":1,"answer":"end","stopping":false}\n'
    )  # fmt: skip
    with impostor(path, lines):
        done = run("events", "--output", "text", path=path)
    assert done.returncode == 0
    assert done.stdout == (
        "2026-03-04 05:06:07  7 event(s) are missing here: 4 slow_reader, 3 flood deny unsigned\n"
        "2026-03-04 05:06:08  loaded before  no_file  would be unknown  old  no file\n"
    )


def test_a_terminal_gets_colours_and_text(node: Node) -> None:
    node.tell(module=HOSTILE)
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    environment.pop("NO_COLOR", None)
    try:
        for arguments in (["events"], ["status"]):
            child = subprocess.Popen(
                command(*arguments, path=node.path), stdout=follower, stderr=follower, env=environment
            )
            text = b""
            while child.poll() is None or select.select([leader], [], [], 0.2)[0]:
                if select.select([leader], [], [], 0.2)[0]:
                    text += os.read(leader, 65536)
            assert child.returncode == 0
            assert b"deny" in text
            assert b"\x1b[1;31m" in text
            assert rb"\x1b[31mred" in text
            assert b"\x1b[31mred" not in text
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "yesterday"], "is no time; write how long ago"),
        (["--since", "2026-01-02T03:04:05"], "a time with its zone"),
        (["--since", "10 m"], "is no time"),
        (["--since", "9999999d"], "is no time"),
        (["--since", "999999d"], "is no time"),
        (["--since", "0001-01-01T00:00:00+23:00"], "is no time"),
        (["--last", "-1"], "--last"),
        (["--verdict", "maybe"], "--verdict"),
        (["--reason", "because"], "'because' is none of none, pinned_root"),
        (["--module", ""], "is no name of a module"),
        (["--module", "x" * 65], "is no name of a module"),
        (["--module", "a\x1b"], "is no name of a module"),
        ([word for number in range(17) for word in ("--module", f"m{number}")], "16 names at most"),
        (["--output", "yaml"], "--output"),
        (["now"], "unexpected extra argument"),
    ],
)
def test_bad_options(arguments: list[str], says: str) -> None:
    done = run("events", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said(node: Node) -> None:
    node.tell()
    with Path("/dev/full").open("wb") as full:
        for name in ("events", "status"):
            done = subprocess.run(
                command(name, path=node.path), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
            )
            assert done.returncode == 3
            assert b"standard output cannot be written: no space left on device" in done.stderr
