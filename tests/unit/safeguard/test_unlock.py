# SPDX-License-Identifier: Apache-2.0
"""The one-time token: once, not too often, and only when it is the right one."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kmodgate.cli.unlock import _REFUSED as REFUSED
from kmodgate.cli.unlock import command
from kmodgate.errors import HookError
from kmodgate.safeguard.unlock import (
    MAX_SECONDS,
    MAX_TOKEN,
    Answer,
    Request,
    TokenGate,
    UnlockSocket,
    ask,
)

RIGHT = b"right"
HASH = hashlib.sha256(RIGHT).digest()
NONE = bytes(32)


def test_the_right_token_works_once() -> None:
    gate = TokenGate(HASH, NONE)
    assert gate.judge(RIGHT, 0) is Answer.LIFTED
    assert gate.used == HASH
    assert gate.judge(RIGHT, 1000) is Answer.USED


def test_a_token_that_an_earlier_agent_saw_does_not_work() -> None:
    assert TokenGate(HASH, HASH).judge(RIGHT, 0) is Answer.USED


def test_without_a_hash_nothing_works() -> None:
    gate = TokenGate(None, NONE)
    assert gate.judge(b"", 0) is Answer.NO_TOKEN
    assert gate.judge(RIGHT, 0) is Answer.NO_TOKEN


def test_after_a_wrong_token_none_is_looked_at_for_ten_seconds() -> None:
    gate = TokenGate(HASH, NONE)
    assert gate.judge(b"wrong", 100) is Answer.WRONG
    assert gate.judge(RIGHT, 109.9) is Answer.PAUSED
    assert gate.judge(RIGHT, 110) is Answer.LIFTED


def test_the_hash_is_no_token() -> None:
    gate = TokenGate(HASH, NONE)
    assert gate.judge(HASH, 0) is Answer.WRONG
    assert gate.judge(HASH.hex().encode(), 20) is Answer.WRONG


def test_a_request_survives_the_way() -> None:
    request = Request(b"\x00\xffany bytes", 60)
    assert Request.decode(request.encode()) == request


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"{",
        b'{"token": "00"}',
        b'{"token": "00", "seconds": 1, "more": 1}',
        b'{"token": "0", "seconds": 1}',
        b'{"token": "zz", "seconds": 1}',
        b'{"token": 1, "seconds": 1}',
        b'{"token": "00", "seconds": "1"}',
        b'{"token": "00", "seconds": true}',
        b'{"token": "00", "seconds": 1.5}',
        b'{"token": "00", "seconds": 0}',
        b'{"token": "00", "seconds": -1}',
        b"[" * 5000,
        json.dumps({"token": "00", "seconds": MAX_SECONDS + 1}).encode(),
        json.dumps({"token": "00" * (MAX_TOKEN + 1), "seconds": 1}).encode(),
        b"\xff\xfe",
    ],
)
def test_a_bad_request_is_refused(message: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        Request.decode(message)


class Server:
    """An agent's end, answering in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.answer = Answer.LIFTED
        self._socket = UnlockSocket(self._judge, path)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _judge(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.answer

    def _serve(self) -> None:
        while not self._end.wait(0.01):
            self._socket.receive()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "run/unlock.sock")
    yield running
    running.close()


def test_the_command_hands_the_token_over(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"  secret\n")
    done = CliRunner().invoke(
        command,
        ["--token-file", str(file), "--seconds", "7", "--socket", str(server.path)],
        standalone_mode=False,
    )
    assert done.exception is None
    assert done.return_value == 0
    assert server.requests == [Request(b"secret", 7)]
    assert "secret" not in done.output


@pytest.mark.parametrize(
    "answer", [answer for answer in Answer if answer is not Answer.LIFTED], ids=lambda answer: answer.value
)
def test_a_refusal_is_exit_code_1_and_says_why(
    server: Server, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = answer
    done = CliRunner().invoke(
        command, ["--token-file", "-", "--socket", str(server.path)], input="secret", standalone_mode=False
    )
    assert done.exception is None
    assert done.return_value == 1
    assert REFUSED[answer] in done.output + capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * (MAX_TOKEN + 1)])
def test_a_file_without_a_token_is_bad_input(server: Server, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    done = CliRunner().invoke(command, ["--token-file", str(file), "--socket", str(server.path)])
    assert done.exit_code == 1
    assert "holds no token" in str(done.exception) or "above the limit" in str(done.exception)
    assert server.requests == []


def test_garbage_gets_an_answer_and_lifts_nothing(server: Server) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.bind("")
        client.connect(str(server.path))
        client.send(b"garbage")
        assert client.recv(64) == Answer.MALFORMED.encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:  # one that waits for no answer
        client.connect(str(server.path))
        client.send(b"garbage")
    assert ask(Request(b"x", 1), server.path) is Answer.LIFTED
    assert server.requests == [Request(b"x", 1)]


def test_the_socket_is_roots_alone(server: Server) -> None:
    assert server.path.stat().st_mode & 0o777 == 0o600
    assert server.path.parent.stat().st_mode & 0o777 == 0o700


def test_without_an_agent_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="hardened: true"):
        ask(Request(b"x", 1), tmp_path / "unlock.sock")


def test_an_agent_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "unlock.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(path))
        with pytest.raises(HookError, match="did not answer"):
            ask(Request(b"x", 1), path, wait=0.2)


def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "unlock.sock"
    UnlockSocket(lambda _: Answer.WRONG, path)  # never closed
    again = UnlockSocket(lambda _: Answer.WRONG, path)
    assert path.exists()
    again.close()
    assert not path.exists()
