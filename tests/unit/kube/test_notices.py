# SPDX-License-Identifier: Apache-2.0
"""Kubernetes events and the node condition: few, counted, bounded, never waited for. The server is a mock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.kube.conftest import Eventually
from tests.unit.kube.mock_apiserver import Handler, MockApiServer

from kmodgate.kube.api import Api
from kmodgate.kube.notices import MAX_PENDING, NodeCondition, Notice, Notices, Outcome

EVENTS = "/api/v1/namespaces/drivers/events"


class Clock:
    """Goes on by itself at the pace of the real one, and ahead when told to."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def notice(name: str = "loader-0", message: str = "refused", **changes: Any) -> Notice:
    values = {"kind": "Pod", "namespace": "drivers", "name": name, "uid": f"uid-{name}", "reason": "Denied"}
    return Notice(**{**values, "message": message, **changes})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notices(server: MockApiServer, clock: Clock) -> Iterator[Notices]:
    api = Api(server.place)
    made = Notices(api, "node-a", now=clock, wall=lambda: datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))
    yield made
    api.close()
    made.close(20)


def test_a_refusal_is_an_event_of_its_pod(
    server: MockApiServer, notices: Notices, eventually: Eventually
) -> None:
    notices.start()
    notices.tell(notice(container="loader"))
    eventually(lambda: notices.counts()[Outcome.SENT] == 1)
    ((path, _, body),) = server.asked("POST")
    assert path == EVENTS
    assert body is not None
    name = body["metadata"].pop("name")
    assert name.startswith("loader-0.")
    assert body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "drivers"},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "drivers",
            "name": "loader-0",
            "uid": "uid-loader-0",
            "fieldPath": "spec.containers{loader}",
        },
        "type": "Warning",
        "reason": "Denied",
        "message": "refused",
        "count": 1,
        "firstTimestamp": "2026-03-04T05:06:07Z",
        "lastTimestamp": "2026-03-04T05:06:07Z",
        "source": {"component": "kmodgate", "host": "node-a"},
        "reportingComponent": "kmodgate",
        "reportingInstance": "node-a",
    }


def test_what_is_alike_is_one_event_with_a_count(
    server: MockApiServer, notices: Notices, clock: Clock, eventually: Eventually
) -> None:
    notices.start()
    notices.tell(notice())
    eventually(lambda: notices.counts()[Outcome.SENT] == 1)
    for number in range(1000):
        notices.tell(notice(message=f"again {number}"))
    assert not server.asked("PATCH"), "not at once"
    clock.ahead += 11
    notices.tell(notice(message="the last"))
    eventually(lambda: len(server.asked("PATCH")) == 1)
    ((path, _, body),) = server.asked("PATCH")
    name = (server.asked("POST")[0][2] or {})["metadata"]["name"]
    assert path == f"{EVENTS}/{name}"
    assert body is not None
    assert (body["count"], body["message"]) == (1002, "the last")


def test_an_event_that_was_deleted_is_made_anew(
    server: MockApiServer, notices: Notices, clock: Clock, eventually: Eventually
) -> None:
    notices.start()
    notices.tell(notice())
    eventually(lambda: notices.counts()[Outcome.SENT] == 1)
    server.faults["PATCH"] = [lambda handler: handler.send_status(404, "not found")]
    clock.ahead += 11
    notices.tell(notice())
    eventually(lambda: len(server.asked("POST")) == 2)


def test_a_flood_of_different_ones_is_slowed_down_and_bounded(
    notices: Notices, eventually: Eventually
) -> None:
    for number in range(MAX_PENDING + 100):
        notices.tell(notice(f"p{number}"))
    assert notices.counts()[Outcome.DROPPED] == 100
    notices.start()
    eventually(lambda: notices.counts()[Outcome.SENT] >= 25)
    threading.Event().wait(0.5)
    assert notices.counts()[Outcome.SENT] <= 30


def test_a_server_that_is_away_costs_nothing_but_time(
    server: MockApiServer, notices: Notices, clock: Clock, eventually: Eventually
) -> None:
    server.faults["POST"] = [lambda handler: handler.send_status(503, "down")] * 2
    notices.start()
    notices.tell(notice())
    eventually(lambda: len(server.asked("POST")) == 1)
    for _ in range(5):
        notices.tell(notice())

    def sent() -> bool:
        clock.ahead += 0.5
        notices.tell(notice("other"))
        return notices.counts()[Outcome.SENT] >= 1

    eventually(sent)
    first = next(body for _, _, body in server.asked("POST")[2:] if body and body["count"] == 6)
    assert first["involvedObject"]["name"] == "loader-0"


def test_telling_never_waits_for_a_server_that_hangs(
    server: MockApiServer, notices: Notices, eventually: Eventually
) -> None:
    release = threading.Event()

    def hang(_handler: Handler) -> bool:
        release.wait(60)
        return False

    server.faults["POST"] = [hang]
    notices.start()
    notices.tell(notice())
    eventually(lambda: server.asked("POST"))
    began = time.monotonic()
    for number in range(10_000):
        notices.tell(notice(f"p{number}"))
    notices.set_condition(NodeCondition(good=True, reason="Enforcing", message="fine"))
    assert time.monotonic() - began < 5
    assert notices.counts()[Outcome.DROPPED] == 10_000 - MAX_PENDING
    release.set()


def test_missing_rights_are_said_and_counted(
    server: MockApiServer, notices: Notices, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["POST"] = [lambda handler: handler.send_status(403, "forbidden")]
    notices.start()
    notices.tell(notice())
    eventually(lambda: notices.counts()[Outcome.REFUSED] == 1)
    assert "ClusterRole" in caplog.text
    notices.tell(notice())
    eventually(lambda: notices.counts()[Outcome.SENT] == 1)


def test_the_condition_is_sent_when_it_changes(
    server: MockApiServer, notices: Notices, eventually: Eventually
) -> None:
    notices.start()
    good = NodeCondition(good=True, reason="Enforcing", message="fine")
    for _ in range(3):
        notices.set_condition(good)
    eventually(lambda: server.asked("PATCH"))
    notices.set_condition(NodeCondition(good=False, reason="NodeCannotComply", message="cgroup v1"))
    eventually(lambda: len(server.asked("PATCH")) == 2)
    paths = {path for path, _, _ in server.asked("PATCH")}
    assert paths == {"/api/v1/nodes/node-a/status"}
    told = [(body or {})["status"]["conditions"] for _, _, body in server.asked("PATCH")]
    assert [(c["type"], c["status"], c["reason"]) for (c,) in told] == [
        ("KernelModulePolicy", "True", "Enforcing"),
        ("KernelModulePolicy", "False", "NodeCannotComply"),
    ]


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_missing_right_to_the_condition_is_a_fault_only_where_it_was_asked_for(
    asked_for: bool,
    server: MockApiServer,
    notices: Notices,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    server.faults["PATCH"] = [lambda handler: handler.send_status(403, "forbidden")]
    notices.start()
    notices.set_condition(NodeCondition(good=False, reason="ConfigRefused", message="x"), asked_for=asked_for)
    eventually(lambda: caplog.records)
    (record,) = caplog.records
    assert (record.levelname, "nodeCondition" in record.message) == (
        ("WARNING", False) if asked_for else ("INFO", True)
    )


def test_long_messages_are_cut_where_a_character_ends(
    server: MockApiServer, notices: Notices, eventually: Eventually
) -> None:
    notices.start()
    notices.tell(notice(message="ö" * 5000, name="x" * 300))
    eventually(lambda: notices.counts()[Outcome.SENT] == 1)
    body = server.asked("POST")[0][2]
    assert body is not None
    assert len(body["message"].encode()) <= 1024
    assert body["message"].endswith("ö…")
    assert len(body["metadata"]["name"]) <= 253


def test_what_waits_is_sent_at_the_end(notices: Notices) -> None:
    notices.start()
    for number in range(5):
        notices.tell(notice(f"p{number}"))
    notices.close(20)
    assert notices.counts()[Outcome.SENT] == 5


def test_the_end_does_not_wait_for_a_server_that_is_away(
    server: MockApiServer, notices: Notices, eventually: Eventually
) -> None:
    server.faults["POST"] = [lambda handler: handler.send_status(500, "down")] * 100
    notices.start()
    notices.tell(notice())
    eventually(lambda: server.asked("POST"))
    began = time.monotonic()
    notices.close(20)
    assert time.monotonic() - began < 10
