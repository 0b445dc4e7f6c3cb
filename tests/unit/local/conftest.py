# SPDX-License-Identifier: Apache-2.0
"""An agent's socket with events of an event log behind it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kmodgate.local.place import Listening
from kmodgate.local.recent import Recent
from kmodgate.local.server import LocalServer
from kmodgate.model import Api, By, LoadEvent, Mode, Origin, Policy, Reason, Verdict
from kmodgate.telemetry.events import EventLog
from kmodgate.telemetry.flood import FloodLimit, Rate

BASE = LoadEvent(
    time=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
    verdict=Verdict.DENY,
    reason=Reason.UNSIGNED,
    by=By.KMODGATE,
    mode=Mode.ENFORCE,
    policy=Policy.ENFORCE,
    api=Api.FINIT_MODULE,
    origin=Origin.OTHER_FILESYSTEM,
    errno=129,
    result=-129,
    path="/tmp/evil.ko",
    module="evil",
    pid=4711,
    comm="insmod",
    uid=0,
)


class Desk:
    """The socket, the log behind it, and a way to talk to it by hand."""

    def __init__(self, path: Path, **limits: Any) -> None:
        self.path = path
        self._null = Path("/dev/null").open("wb")  # noqa: SIM115  # closed by close()
        generous = FloodLimit(Rate(1e9, 10**9), Rate(1e9, 10**9))
        self.flood = limits.pop("flood", generous)
        self.recent = Recent(max_events=limits.pop("max_events", 1000))
        self.log = EventLog(self._null, flood=self.flood, node="node-a", capacity=1 << 20)
        self.log.tap(self.recent.put)
        self.status: Callable[[], Mapping[str, object]] = lambda: {"as_asked": True}
        self.server = LocalServer(
            Listening(path),
            status=lambda: self.status(),  # noqa: PLW0108  # tests replace it later
            recent=self.recent,
            missing=self.log.missing_events,
            **limits,
        )
        self.server.start()
        self._told = 0

    def tell(self, **values: Any) -> int:
        """One event, a second after the one before."""
        event = replace(BASE, time=BASE.time + timedelta(seconds=self._told), **values)
        self._told += 1
        return self.log.write(event) or 0

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            yield client

    def ask(self, question: bytes, *, half_close: bool = False) -> list[dict[str, Any]]:
        """Every line of an answer that ends."""
        with self.connect() as client:
            client.sendall(question)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            text = b""
            while chunk := client.recv(1 << 16):
                text += chunk
        assert text.endswith(b"\n")
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        self.server.stop()
        self.log.close()
        self._null.close()


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**limits: Any) -> Desk:
        desks.append(Desk(tmp_path / "run/agent.sock", **limits))
        return desks[-1]

    before = _descriptors()
    yield make
    for desk in desks:
        desk.close()
    assert len(_descriptors() - before) == 0


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()
