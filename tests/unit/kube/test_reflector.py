# SPDX-License-Identifier: Apache-2.0
"""The copy follows the API server through everything that happens to a watch. The server is a mock."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.unit.kube.conftest import Eventually
from tests.unit.kube.mock_apiserver import Handler, MockApiServer

from kmodgate.kube.api import Api, Json
from kmodgate.kube.reflector import Reflector

PODS = "/api/v1/pods"


class Copy:
    """A sink."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.seen: list[str] = []

    def replaced(self, objects: list[Json]) -> None:
        self.names = {item["metadata"]["name"] for item in objects}

    def changed(self, item: Json) -> None:
        self.seen.append(item["metadata"]["name"])
        self.names.add(item["metadata"]["name"])

    def deleted(self, item: Json) -> None:
        self.names.discard(item["metadata"]["name"])


def pod(name: str, **spec: object) -> Json:
    return {"metadata": {"name": name}, "spec": spec}


@pytest.fixture
def copy() -> Copy:
    return Copy()


@pytest.fixture
def reflector(server: MockApiServer, copy: Copy) -> Iterator[Reflector]:
    api = Api(server.place, max_body=20_000, max_line=10_000)
    made = Reflector(api, PODS, "spec.nodeName=node-a", copy, spread=lambda: 0.0)
    yield made
    api.close()
    made.stop(20)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kmodgate-watch")]


def test_list_then_watch(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    server.put(PODS, pod("a"))
    reflector.start()
    eventually(lambda: copy.names == {"a"} and server.watches)
    server.put(PODS, pod("b"))
    server.delete(PODS, "a")
    eventually(lambda: copy.names == {"b"})
    assert reflector.problem is None
    (_, listed, _), (_, watched, _) = server.asked("GET")
    assert listed == {"fieldSelector": "spec.nodeName=node-a", "resourceVersion": "0"}
    assert watched["fieldSelector"] == "spec.nodeName=node-a"
    assert watched["allowWatchBookmarks"] == "true"
    assert watched["resourceVersion"] == "101"


def test_one_object_needs_no_list(server: MockApiServer, copy: Copy, eventually: Eventually) -> None:
    server.put(PODS, pod("a"))
    api = Api(server.place)
    reflector = Reflector(api, PODS, "metadata.name=a", copy, single=True, spread=lambda: 0.0)
    server.faults["watch"] = [
        lambda _handler: False,
        lambda handler: handler.send_status(410, "Expired"),
        lambda _handler: False,
    ]
    reflector.start()
    eventually(lambda: copy.names == {"a"})
    with server.changed:
        server.closing = True
        server.changed.notify_all()
    eventually(lambda: len(server.asked("GET", watch=True)) >= 2)
    server.closing = False
    eventually(lambda: len(server.asked("GET", watch=True)) >= 3)
    versions = [query["resourceVersion"] for _, query, _ in server.asked("GET", watch=True)]
    assert versions[:3] == ["0", "101", "0"]
    assert not server.asked("GET", watch=False)
    api.close()
    reflector.stop(20)


def test_a_lost_watch_goes_on_where_it_was(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    server.put(PODS, pod("a"))

    def cut(handler: Handler) -> bool:
        handler.start_stream()
        handler.chunk(
            b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"150"}}}\n'
            b'{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"160"}}}\n{"type'
        )
        handler.close_connection = True
        return True

    server.faults["watch"] = [cut]
    server.version = 200
    reflector.start()
    eventually(lambda: len(server.asked("GET", watch=True)) == 2)
    assert len(server.asked("GET", watch=False)) == 1, "no new list"
    assert server.asked("GET", watch=True)[1][1]["resourceVersion"] == "160"
    assert copy.names == {"a", "b"}
    server.put(PODS, pod("c"))
    eventually(lambda: copy.names == {"a", "b", "c"})


def test_gone_means_a_new_list(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    server.put(PODS, pod("a"))

    def gone(handler: Handler) -> bool:
        server.delete(PODS, "a")
        server.put(PODS, pod("b"))
        handler.start_stream()
        handler.chunk(b'{"type":"ERROR","object":{"code":410,"message":"too old resource version"}}\n')
        handler.chunk(b"")
        return True

    server.faults["watch"] = [gone]
    reflector.start()
    eventually(lambda: copy.names == {"b"})
    assert len(server.asked("GET", watch=False)) == 2
    eventually(lambda: reflector.problem is None)


def test_gone_as_the_answer_itself(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    server.faults["watch"] = [lambda handler: handler.send_status(410, "Expired")] * 2
    server.put(PODS, pod("a"))
    reflector.start()
    eventually(lambda: server.watches and reflector.problem is None)
    assert len(server.asked("GET", watch=False)) == 3
    assert copy.names == {"a"}


def test_an_absent_server_leaves_what_was_seen(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    server.put(PODS, pod("a"))
    reflector.start()
    eventually(lambda: server.watches)
    server.faults["watch"] = [lambda handler: handler.send_status(503, "down")] * 3
    with server.changed:
        server.closing = True
        server.changed.notify_all()
    eventually(lambda: reflector.problem is not None and "503" in reflector.problem)
    assert copy.names == {"a"}
    server.closing = False
    eventually(lambda: reflector.problem is None)


@pytest.mark.parametrize(
    "fault", [b"{}", b'{"items":[1],"metadata":{"resourceVersion":"1"}}', b'{"items":7}']
)
def test_a_list_that_is_none_is_asked_again(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually, fault: bytes
) -> None:
    def answer(handler: Handler) -> bool:
        handler.send(200, fault)
        return True

    server.faults["list"] = [answer, answer]  # the cache's, and in pages
    server.put(PODS, pod("a"))
    reflector.start()
    eventually(lambda: copy.names == {"a"})


def test_an_empty_list_of_go() -> None:
    from kmodgate.kube.reflector import _items  # noqa: PLC0415

    assert _items({"items": None}) == []


def test_a_list_that_is_too_large_is_read_in_pages(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    for index in range(30):
        server.put(PODS, pod(f"p{index}", filler="x" * 1000))

    def page(handler: Handler) -> bool:
        _, _, query, _ = server.requests[-1]
        assert query["limit"] == "10"
        start = int(query.get("continue", "0"))
        items = list(server.objects[PODS].values())[start : start + 10]
        more = {"continue": str(start + 10)} if start + 10 < 30 else {}
        import json  # noqa: PLC0415

        handler.send(
            200, json.dumps({"metadata": {"resourceVersion": "130", **more}, "items": items}).encode()
        )
        return True

    server.faults["list"] = [lambda _handler: False, page, page, page]
    reflector.start()
    eventually(lambda: len(copy.names) == 30 and server.watches)


def test_a_huge_object_costs_a_new_list(
    server: MockApiServer, reflector: Reflector, copy: Copy, eventually: Eventually
) -> None:
    reflector.start()
    eventually(lambda: server.watches)
    server.put(PODS, pod("huge", filler="x" * 15_000))
    eventually(lambda: copy.names == {"huge"})
    assert copy.seen == [], "it did not come by the watch"


def test_a_sink_that_fails_is_no_end(server: MockApiServer, eventually: Eventually) -> None:
    class Failing(Copy):
        failed = False

        def replaced(self, objects: list[Json]) -> None:
            if not self.failed:
                self.failed = True
                raise RecursionError
            super().replaced(objects)

    copy = Failing()
    server.put(PODS, pod("a"))
    api = Api(server.place)
    reflector = Reflector(api, PODS, "x=y", copy, spread=lambda: 0.0)
    reflector.start()
    eventually(lambda: copy.names == {"a"})
    api.close()
    reflector.stop(20)


def test_a_server_that_ends_each_watch_at_once_is_not_asked_without_end(
    server: MockApiServer, reflector: Reflector, eventually: Eventually
) -> None:
    def end(handler: Handler) -> bool:
        handler.start_stream()
        handler.chunk(b"")
        return True

    server.faults["watch"] = [end] * 1000
    reflector.start()
    eventually(lambda: len(server.asked("GET", watch=True)) >= 4)
    times = len(server.asked("GET", watch=True))
    threading.Event().wait(1.0)
    assert len(server.asked("GET", watch=True)) - times <= 2


def test_what_moved_is_said(server: MockApiServer, eventually: Eventually) -> None:
    moves: list[str | None] = []
    api = Api(server.place)
    made: list[Reflector] = []
    made.append(Reflector(api, PODS, "x=y", Copy(), moved=lambda: moves.append(made[0].problem)))
    made[0].start()
    eventually(lambda: moves == [None])
    api.close()
    made[0].stop(20)
