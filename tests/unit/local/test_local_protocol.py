# SPDX-License-Identifier: Apache-2.0
"""The lines on the agent's socket: whatever bytes come, an answer or a ProtocolError, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.local.protocol import (
    MAX_MODULES,
    MAX_PATTERN,
    MAX_REQUEST,
    REASONS,
    VERDICTS,
    Answer,
    Ask,
    Filter,
    ProtocolError,
    Request,
    answer,
    read_answer,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["kmodgate", "ask", "follow", "since", "last", "verdict", "reason", "module", "x"])
documents = st.dictionaries(keys, json_values | st.sampled_from(["events", "status", 1]), max_size=9)
requests = st.builds(
    Request,
    st.just(Ask.EVENTS),
    st.booleans(),
    st.none() | st.datetimes().map(lambda t: t.isoformat(timespec="microseconds") + "Z"),
    st.none() | st.integers(0, 1 << 20),
    st.builds(
        Filter,
        st.lists(st.sampled_from(VERDICTS), max_size=3).map(tuple),
        st.lists(st.sampled_from(REASONS), max_size=6).map(tuple),
        st.lists(
            st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()), max_size=MAX_MODULES
        ).map(tuple),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=MAX_REQUEST) | documents.map(lambda d: json.dumps(d).encode()))
def test_any_line_is_a_question_or_refused(line: bytes) -> None:
    problem = None
    try:
        request = Request.decode(line)
    except ProtocolError as error:
        problem = str(error)
    else:
        assert Request.decode(request.encode().rstrip(b"\n")) == request
    assert problem is None or (problem and "\n" not in problem)


@settings(max_examples=200, deadline=None)
@given(requests)
def test_a_question_survives_the_way(request_: Request) -> None:
    line = request_.encode()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Request.decode(line[:-1]) == request_


def test_the_longest_question_that_the_command_can_ask_fits() -> None:
    longest = Request(
        Ask.EVENTS,
        follow=True,
        since="2026-01-02T03:04:05.000000Z",
        last=1 << 20,
        wanted=Filter(VERDICTS, REASONS, ("x" * MAX_PATTERN,) * MAX_MODULES),
    )
    assert len(longest.encode()) <= MAX_REQUEST


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000) | documents.map(lambda d: json.dumps(d).encode()))
def test_any_answer_is_understood_or_refused(line: bytes) -> None:
    try:
        found = read_answer(line)
    except ProtocolError:
        pass
    else:
        assert found is None or isinstance(found[0], Answer)


def test_answers_survive_the_way() -> None:
    assert read_answer(answer(Answer.EVENTS, kept=3)) == (Answer.EVENTS, {"kept": 3})
    assert read_answer(b'{"event": "module_load"}') is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "one JSON object"),
        (b"[1]", "one JSON object"),
        (b"\xff\xfe", "one JSON object"),
        (b"[" * MAX_REQUEST, "one JSON object"),
        (b'{"a":' * 800, "one JSON object"),
        (b'{"kmodgate": NaN}', "no JSON"),
        (b'{"kmodgate": 1, "kmodgate": 1, "ask": "status"}', "twice"),
        (b"{}", "lacks"),
        (b'{"kmodgate": true, "ask": "status"}', "lacks"),
        (b'{"kmodgate": 2, "ask": "status"}', "speaks protocol 1, not 2"),
        (b'{"kmodgate": 1}', "'ask'"),
        (b'{"kmodgate": 1, "ask": ["status"]}', "'ask'"),
        (b'{"kmodgate": 1, "ask": "stop"}', "'ask'"),
        (b'{"kmodgate": 1, "ask": "status", "follow": true}', "unknown key 'follow'"),
        (b'{"kmodgate": 1, "ask": "events", "colour": 1}', "unknown key 'colour'"),
        (b'{"kmodgate": 1, "ask": "events", "follow": 1}', "'follow'"),
        (b'{"kmodgate": 1, "ask": "events", "since": "yesterday"}', "'since'"),
        (b'{"kmodgate": 1, "ask": "events", "since": 12}', "'since'"),
        (b'{"kmodgate": 1, "ask": "events", "last": -1}', "'last'"),
        (b'{"kmodgate": 1, "ask": "events", "last": true}', "'last'"),
        (b'{"kmodgate": 1, "ask": "events", "verdict": "deny"}', "'verdict'"),
        (b'{"kmodgate": 1, "ask": "events", "verdict": [["deny"]]}', "'verdict'"),
        (b'{"kmodgate": 1, "ask": "events", "verdict": ["maybe"]}', "'verdict'"),
        (b'{"kmodgate": 1, "ask": "events", "reason": ["because"]}', "'reason'"),
        (b'{"kmodgate": 1, "ask": "events", "module": [""]}', "'module'"),
        (b'{"kmodgate": 1, "ask": "events", "module": ["a\\u001b"]}', "'module'"),
        (b'{"kmodgate": 1, "ask": "events", "module": [7]}', "'module'"),
    ],
)
def test_what_is_wrong_is_said(line: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says.replace("'", ".")):
        Request.decode(line)


@pytest.mark.parametrize(
    "line", [b"{}", b'{"kmodgate": 2, "answer": "status"}', b'{"kmodgate": 1, "answer": "x"}', b"3"]
)
def test_an_answer_of_something_else(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_answer(line)


DENIAL: dict[str, Any] = {
    "event": "module_load",
    "verdict": "deny",
    "reason": "unsigned",
    "module": None,
    "path": "/tmp/my-driver.ko.xz",
}


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (Filter(), True),
        (Filter(verdicts=("deny",)), True),
        (Filter(verdicts=("allow",)), False),
        (Filter(verdicts=("allow", "deny"), reasons=("unsigned",)), True),
        (Filter(reasons=("revoked",)), False),
        (Filter(modules=("my_driver",)), True),
        (Filter(modules=("my-driver",)), True),
        (Filter(modules=("other", "my?dri*")), True),
        (Filter(modules=("driver",)), False),
        (Filter(modules=("[m]y-driver",)), True),
    ],
)
def test_filters(wanted: Filter, *, passes: bool) -> None:
    assert wanted.wants(DENIAL) is passes


def test_what_says_that_events_are_missing_passes_every_filter() -> None:
    assert Filter(("deny",), ("revoked",), ("x",)).wants({"event": "suppressed"})


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=MAX_PATTERN), st.text(max_size=200))
def test_a_pattern_ends_in_good_time(pattern: str, path: str) -> None:
    Filter(modules=("*a" * 20, pattern)).wants({**DENIAL, "module": "a" * 512, "path": path})
