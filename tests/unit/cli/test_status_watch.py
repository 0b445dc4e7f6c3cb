# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status --watch`` on a terminal and in a pipe, as a process, at an agent's socket."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.test_local_commands import HOSTILE, Node, command, run

from kmodgate.local.place import Listening
from kmodgate.model import Api, By, Reason, Verdict

INTO, OUT = b"\x1b[?1049h", b"\x1b[?1049l"  # the alternate screen, xterm


class Growing:
    """Counters of a node that refuses one load more at each look."""

    def __init__(self) -> None:
        self.refused = 3

    def loads(self) -> list[tuple[Verdict, Reason, Api, By, int]]:
        self.refused += 1
        return [(Verdict.DENY, Reason.UNSIGNED, Api.FINIT_MODULE, By.KMODGATE, self.refused)]

    def lost(self) -> dict[str, int]:
        return {}


@contextmanager
def agent(directory: Path, path: Path) -> Iterator[Node]:
    directory.mkdir()
    with Path("/dev/null").open("wb") as null:
        node = Node(directory, null)
        node.path = path
        node.metrics.attach(Growing())  # type: ignore[arg-type]  # the part that a report reads
        with node.outlets:
            node.outlets.serve(node.report, lambda: Listening(path))
            yield node


@contextmanager
def watching(path: Path, *arguments: str, term: str | None = None) -> Iterator[tuple[Any, int]]:
    """The process, and the descriptor to read what it writes: a pipe, or a terminal of 100 by 30."""
    leader, follower = os.pipe() if term is None else pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": term or "xterm-256color"}
    child = subprocess.Popen(
        command("status", "--watch=0.2", *arguments, path=path),
        stdout=follower,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(follower)
    try:
        yield child, leader
    finally:
        child.kill()
        child.communicate()
        os.close(leader)


def read_until(descriptor: int, found: bytes, times: int = 1) -> bytes:
    text = b""
    deadline = time.monotonic() + 30
    while text.count(found) < times:
        assert time.monotonic() < deadline, text
        if select.select([descriptor], [], [], 0.2)[0]:
            text += os.read(descriptor, 65536)
    return text


def the_rest(descriptor: int) -> bytes:
    text = b""
    try:
        while chunk := os.read(descriptor, 65536):
            text += chunk
    except OSError:  # a terminal whose other end is closed
        pass
    return text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_terminal_is_drawn_anew_and_given_back(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with (
        agent(tmp_path / "a", tmp_path / "run.sock") as node,
        watching(node.path, term="xterm-256color") as (child, terminal),
    ):
        node.tell(module=HOSTILE, comm=HOSTILE)
        text = read_until(terminal, b"every 0.2 s; Ctrl-C ends", times=3)
        assert INTO in text
        assert OUT not in text
        child.send_signal(number)
        assert child.wait(20) == code
        text += the_rest(terminal)
        assert text.count(INTO) == text.count(OUT) == 1
        assert b"Traceback" not in text + child.stderr.read()
        assert b"+1" in text
        assert b"\x07" not in text


def test_an_agent_that_is_replaced_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run.sock"
    with agent(tmp_path / "a", path) as node:
        child_of = watching(node.path, term="xterm-256color")
        child, terminal = child_of.__enter__()
        read_until(terminal, b"Ctrl-C ends")
    try:
        text = read_until(terminal, b"no answer, the last one is below")
        assert child.poll() is None
        with agent(tmp_path / "b", path):
            while b"no answer" in text:
                read_until(terminal, b"Ctrl-C ends")
                text = read_until(terminal, b"Ctrl-C ends")
    finally:
        child_of.__exit__(None, None, None)


def test_a_pipe_gets_a_page_at_each_look_and_ends_with_the_agent(tmp_path: Path) -> None:
    with agent(tmp_path / "a", tmp_path / "run.sock") as node:
        view = watching(node.path)
        child, pipe = view.__enter__()
        text = read_until(pipe, b"Ctrl-C ends", times=3)
    try:
        text += the_rest(pipe)
        assert child.wait(20) == 3
        assert child.stderr.read().startswith(b"kmodgate: error: ")
    finally:
        view.__exit__(None, None, None)
    assert b"\x1b" not in text
    pages = text.decode().split("\n\n20")
    assert [line.split()[-2:] for line in pages[0].splitlines() if line.startswith("deny ")] == [
        ["kmodgate", "4"]
    ]
    assert [line.split()[-2:] for line in pages[2].splitlines() if line.startswith("deny ")] == [["6", "+2"]]


def test_json_is_a_line_at_each_look(tmp_path: Path) -> None:
    with (
        agent(tmp_path / "a", tmp_path / "run.sock") as node,
        watching(node.path, "--output", "json") as (child, pipe),
    ):
        lines = read_until(pipe, b"\n", times=3).splitlines()
        assert [json.loads(line)["loads"][0]["count"] for line in lines[:3]] == [4, 5, 6]
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert child.stderr.read().strip() == b""


def test_a_dumb_terminal_gets_pages(tmp_path: Path) -> None:
    with (
        agent(tmp_path / "a", tmp_path / "run.sock") as node,
        watching(node.path, term="dumb") as (_, terminal),
    ):
        assert b"\x1b[?" not in read_until(terminal, b"Ctrl-C ends", times=2)


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    with agent(tmp_path / "a", tmp_path / "run.sock") as node:
        child = subprocess.Popen(
            command("status", "--watch=0.2", path=node.path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(20) == 141
        assert child.stderr.read() == b""


def test_no_agent_at_the_first_look(tmp_path: Path) -> None:
    assert run("status", "--watch", path=tmp_path / "agent.sock").returncode == 3
    with watching(tmp_path / "agent.sock", term="xterm") as (child, terminal):
        assert child.wait(20) == 3
        assert the_rest(terminal) == b""


@pytest.mark.parametrize("value", ["0", "0.1", "nan", "inf", "1h", "3601"])
def test_an_interval_that_is_none(value: str) -> None:
    done = run("status", f"--watch={value}")
    assert done.returncode == 2
    assert "--watch" in done.stderr
