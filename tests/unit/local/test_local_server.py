# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the socket, with clients that are slow, many, rude or gone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from tests.unit.local.conftest import Desk

from kmodgate.local import server as module
from kmodgate.local.protocol import MAX_REQUEST, Ask, Filter, Request
from kmodgate.model import Reason, Verdict
from kmodgate.telemetry.flood import FloodLimit, Rate

SCHEMA = json.loads(files("kmodgate.telemetry").joinpath("event.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
STATUS = Request(Ask.STATUS).encode()
EVENTS = Request(Ask.EVENTS).encode()
FOLLOW = Request(Ask.EVENTS, follow=True).encode()
Make = Callable[..., Desk]


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Follower:
    """A client that follows, line by line."""

    def __init__(self, client: socket.socket, question: bytes = FOLLOW) -> None:
        client.sendall(question)
        self.file = client.makefile("rb")
        self.head = self.next()

    def next(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self.file.readline())
        return line


def test_status(desk: Desk) -> None:
    desk.status = lambda: {"as_asked": False, "problem": "é"}
    assert desk.ask(STATUS) == [
        {"kmodgate": 1, "answer": "status", "status": {"as_asked": False, "problem": "é"}}
    ]


def test_a_report_that_fails_is_no_end(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    reports: dict[str, dict[str, object]] = {}
    desk.status = lambda: reports["x"]
    (line,) = desk.ask(STATUS)
    assert (line["answer"], line["error"]) == ("error", "the report cannot be made; the agent's log says why")
    assert "KeyError" in caplog.text
    desk.status = dict
    assert desk.ask(STATUS)[0]["answer"] == "status"


def test_the_remembered_events_as_the_log_told_them(desk: Desk) -> None:
    for _ in range(200):
        desk.tell()
    head, *events, end = desk.ask(EVENTS)
    assert head == {
        "kmodgate": 1,
        "answer": "events",
        "kept": 200,
        "forgotten": 0,
        "oldest": "2026-03-04T05:06:07.000000Z",
    }
    assert end == {"kmodgate": 1, "answer": "end", "stopping": False}
    assert [event["sequence"] for event in events] == list(range(1, 201))
    for event in events:
        VALIDATOR.validate(event)


def test_large_events_come_in_small_pieces(desk: Desk) -> None:
    """A client has some 64 KiB waiting for it, not 64 events of 20 KiB each."""
    for _ in range(40):
        desk.tell(path="/" + "\U000e0001" * 1000, exe="\x80" * 4000)
    sizes = list[int]()
    refill = desk.server._refill

    def counted(client: Any, now: float) -> bool:
        more = refill(client, now)
        sizes.append(len(client.out))
        return more

    desk.server._refill = counted  # type: ignore[method-assign]  # looked at, not changed
    assert len(desk.ask(EVENTS)) == 42
    assert max(sizes) < (64 << 10) + (32 << 10)


def test_none_yet(desk: Desk) -> None:
    assert [line["answer"] for line in desk.ask(EVENTS)] == ["events", "end"]


def test_a_client_may_half_close_as_socat_does(desk: Desk) -> None:
    desk.tell()
    assert len(desk.ask(EVENTS, half_close=True)) == 3
    assert len(desk.ask(STATUS, half_close=True)) == 1


def test_a_question_may_come_byte_by_byte(desk: Desk) -> None:
    with desk.connect() as client:
        for byte in STATUS:
            client.send(bytes([byte]))
            time.sleep(0.001)
        assert b'"status"' in client.recv(1000)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(Ask.EVENTS, last=2), [6, 7]),
        (Request(Ask.EVENTS, last=0), []),
        (Request(Ask.EVENTS, since="2026-03-04T05:06:11.000000Z"), [5, 6, 7]),
        (Request(Ask.EVENTS, wanted=Filter(reasons=("revoked",))), [2, 5]),
        (Request(Ask.EVENTS, last=1, wanted=Filter(reasons=("revoked",))), [5]),
        (Request(Ask.EVENTS, wanted=Filter(verdicts=("would_deny",), modules=("ev*",))), [4]),
    ],
)
def test_a_part_of_them(desk: Desk, request_: Request, expected: list[int]) -> None:
    for number in range(1, 8):
        desk.tell(
            reason=Reason.REVOKED if number in {2, 5} else Reason.UNSIGNED,
            verdict=Verdict.WOULD_DENY if number == 4 else Verdict.DENY,
        )
    assert [line["sequence"] for line in desk.ask(request_.encode())[1:-1]] == expected


def test_followers_get_what_comes(desk: Desk) -> None:
    desk.tell()
    with desk.connect() as one, desk.connect() as two:
        followers = [Follower(one), Follower(two)]
        for follower in followers:
            assert follower.next()["sequence"] == 1
        for number in range(2, 100):
            desk.tell()
            for follower in followers:
                assert follower.next()["sequence"] == number


def test_a_follower_hears_that_the_agent_stops(make_desk: Make) -> None:
    desk = make_desk()
    with desk.connect() as client:
        follower = Follower(client)
        desk.tell()
        assert follower.next()["sequence"] == 1
        desk.server.stop()
        assert follower.next() == {"kmodgate": 1, "answer": "end", "stopping": True}
        assert follower.file.read() == b""
    assert not desk.path.exists()


def test_a_slow_reader_is_told_what_it_missed(make_desk: Make) -> None:
    desk = make_desk(max_events=50)
    with desk.connect() as client:
        follower = Follower(client)
        for _ in range(5000):
            desk.tell()
        got, missing = list[int](), 0
        while 5000 not in got:
            line = follower.next()
            if line["event"] == "suppressed":
                VALIDATOR.validate(line)
                (part,) = line["missing"]
                assert part["cause"] == "slow_reader"
                missing += line["count"]
            else:
                got.append(line["sequence"])
        assert got == sorted(set(got))
        assert len(got) + missing == 5000
        assert missing > 0


def test_a_follower_is_told_what_the_flood_limit_left_out(
    make_desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 0.05)
    desk = make_desk(flood=FloodLimit(Rate(0.0, 1), Rate(9.0, 9)))
    desk.tell()
    desk.tell()  # left out before anybody looked: not this reader's loss
    with desk.connect() as client:
        follower = Follower(client)
        assert follower.next()["sequence"] == 1
        desk.tell()
        line = follower.next()
        VALIDATOR.validate(line)
        assert line["missing"] == [{"cause": "flood", "verdict": "deny", "reason": "unsigned", "count": 1}]


def test_nobody_waits_for_clients_that_do_not_read(desk: Desk) -> None:
    """Eight followers that never read, and an agent that tells ten thousand events meanwhile."""
    clients = []
    for _ in range(8):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(desk.path))
        client.sendall(FOLLOW)
        clients.append(client)
    longest = 0.0
    for _ in range(10_000):
        start = time.perf_counter()
        desk.tell()
        longest = max(longest, time.perf_counter() - start)
    assert longest < 2.0  # a turn of the scheduler on a busy machine, not a wait
    assert desk.ask(STATUS)[0]["answer"] == "status"
    for client in clients:
        client.close()


def test_a_client_that_is_killed_leaves_nothing(desk: Desk) -> None:
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode())\n"
        "s.recv(10); print(flush=True)\n"
        "while True: s.recv(10)"
    )
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", program, desk.path, FOLLOW.decode()], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        assert len(desk.server._clients) == 1
        desk.tell()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        wait_for(lambda: not desk.server._clients)
    desk.tell()
    assert len(desk.ask(EVENTS)) == 6


def test_too_many_followers_leave_room_for_status(make_desk: Make) -> None:
    desk = make_desk(max_followers=2)
    with desk.connect() as one, desk.connect() as two:
        for client in (one, two):
            assert Follower(client).head["answer"] == "events"
        (line,) = desk.ask(FOLLOW)
        assert line["error"] == "too many clients; close one, or try again later"
        assert desk.ask(STATUS)[0]["answer"] == "status"


def test_too_many_clients_are_told(make_desk: Make) -> None:
    desk = make_desk(max_clients=1)
    with desk.connect(), desk.connect() as second:
        assert b"too many clients" in second.recv(1000)
        assert second.recv(1) == b""
    wait_for(lambda: not desk.server._clients)
    assert desk.ask(STATUS)[0]["answer"] == "status"


def test_who_asks_nothing_is_hung_up(make_desk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.1)
    desk = make_desk()
    with desk.connect() as client:
        client.sendall(STATUS[:5])
        assert client.recv(1) == b""


def test_who_does_not_take_the_answer_is_hung_up(make_desk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    desk = make_desk()
    for _ in range(1000):
        desk.tell()
    with desk.connect() as client:
        client.sendall(EVENTS)
        wait_for(lambda: bool(desk.server._clients))
        wait_for(lambda: not desk.server._clients)
        text = b""
        while chunk := client.recv(1 << 16):
            text += chunk
    assert b'"answer":"end"' not in text


def test_an_idle_server_sleeps(make_desk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither without clients, nor with one that follows and does not read, is there a busy loop."""
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 0.0)
    desk = make_desk()
    turns = list[None]()
    turn = desk.server._turn

    def counted() -> None:
        turns.append(None)
        turn()

    monkeypatch.setattr(desk.server, "_turn", counted)
    with desk.connect() as client:
        client.sendall(FOLLOW)
        for _ in range(2000):
            desk.tell()
        wait_for(lambda: any(other.out for other in desk.server._clients))
        time.sleep(0.3)
        before = len(turns)
        time.sleep(0.5)
        assert len(turns) - before <= 2


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "one question a connection"),
        (b"\n", "not one JSON object a line"),
        (b"x" * MAX_REQUEST, "4096 bytes at most"),
        (STATUS + STATUS, "one question a connection"),
        (b'{"kmodgate": 9, "ask": "status"}\n', "speaks protocol 1, not 9"),
        (b'{"kmodgate": 1, "ask": "\\u001b[2J"}\n', "'ask' must be one of"),
    ],
)
def test_what_is_no_question_is_answered_so(desk: Desk, question: bytes, says: str) -> None:
    (line,) = desk.ask(question)
    assert line["answer"] == "error"
    assert says in line["error"]


def test_noise_from_many_hands(desk: Desk) -> None:
    """Random bytes, cut questions, sudden ends, all at once; the server serves on."""

    def rude(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            with desk.connect() as client:
                client.settimeout(0.02)
                try:
                    for _ in range(chance.randint(0, 4)):
                        whole = chance.choice([STATUS, EVENTS, FOLLOW, os.urandom(50), b"\n", b"{" * 5000])
                        client.sendall(whole[: chance.randint(0, len(whole))])
                        if chance.random() < 0.5:
                            client.recv(chance.randint(1, 500))
                except OSError:
                    pass

    threads = [threading.Thread(target=rude, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        desk.tell()
        time.sleep(0.001)
    wait_for(lambda: not desk.server._clients)
    assert desk.ask(STATUS)[0]["answer"] == "status"


def test_a_mistake_over_one_client_ends_that_client_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("mistake")

    with desk.connect() as client:
        monkeypatch.setattr(desk.server, "_begin", broken)
        client.sendall(STATUS)
        assert client.recv(1) == b""
    assert "mistake" in caplog.text
    monkeypatch.undo()
    assert desk.ask(STATUS)[0]["answer"] == "status"


def test_a_stranger_is_hung_up(make_desk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second lock behind the socket's mode: whoever is neither root nor the agent's own user."""
    desk = make_desk()
    monkeypatch.setattr(
        module, "_CREDENTIALS", type("Other", (), {"size": 12, "unpack": lambda _: (1, 7, 7)})
    )
    with desk.connect() as client:
        assert client.recv(100) == b""
