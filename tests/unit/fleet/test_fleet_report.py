# SPDX-License-Identifier: Apache-2.0
"""The go/no-go page from counts and event logs: what follows from what, and what does not."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.errors import InputError
from kmodgate.fleet.counts import NodeCounts, checked_selector
from kmodgate.fleet.details import MAX_GROUPS, MAX_LINE, Details, What
from kmodgate.fleet.formats import COLUMNS, write_csv, write_json
from kmodgate.fleet.report import Answer, Report, make_report

START, END = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 8, tzinfo=UTC)


def node(name: str = "n1", pool: str = "gpu", **changes: Any) -> NodeCounts:
    values: dict[str, Any] = {"policy": "ENFORCE_SIGNED_MODULES", "mode": "audit", "coverage": 1.0}
    return NodeCounts(name, pool, **{**values, **changes})


def refused(count: int, reason: str = "unsigned", verdict: str = "would_deny") -> Counter[tuple[str, str]]:
    return Counter({(verdict, reason): count})


def event(sequence: int = 1, **changes: Any) -> bytes:
    record = {
        "event": "module_load",
        "schema": 1,
        "sequence": sequence,
        "time": "2026-03-04T05:06:07.000089Z",
        "node": "n1",
        "pool": "gpu",
        "verdict": "would_deny",
        "reason": "unsigned",
        "module": "vendor",
        "path": "/run/vendor.ko",
        "sha256": "ab" * 32,
        "signer": None,
        "workload": "pod",
        "pod": {
            "uid": "u",
            "namespace": "drivers",
            "name": f"loader-{sequence}",
            "image": "registry.example/loader:1",
            "owner": {"kind": "DaemonSet", "name": "loader"},
        },
    }
    return json.dumps({**record, **changes}).encode() + b"\n"


def read(*lines: bytes) -> Details:
    details = Details()
    details.read(lines, START, END)
    return details


def report(*nodes: NodeCounts, details: Details | None = None) -> Report:
    return make_report(nodes, details or read(), minimum_coverage=0.9)


def test_a_pool_that_was_looked_at_and_refused_nothing_is_a_go() -> None:
    made = report(node(), node("n2"))
    assert [(pool.name, pool.answer, pool.why) for pool in made.pools] == [("gpu", Answer.GO, ())]
    assert made.go
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("changes", "answer", "says"),
    [
        ({"refused": refused(3)}, Answer.NO_GO, "3 load(s) would have been refused"),
        ({"loaded_refused": 2}, Answer.NO_GO, "2 module(s) that are loaded now would be refused"),
        ({"loaded_unknown": 1}, Answer.UNCLEAR, "of 1 loaded module(s) it is not known"),
        ({"policy": None, "mode": None}, Answer.UNCLEAR, "1 node(s) were seen and are not now: n2"),
        ({"policy": "POLICY_UNSPECIFIED"}, Answer.UNCLEAR, "do not judge by ENFORCE_SIGNED_MODULES"),
        ({"policy": "POLICY_UNSPECIFIED", "mode": "enforce"}, Answer.UNCLEAR, "do not judge"),
        ({"coverage": 0.89}, Answer.UNCLEAR, "less than 90% of the time: n2"),
    ],
)
def test_one_node_is_enough_to_stop_its_pool(changes: dict[str, Any], answer: Answer, says: str) -> None:
    made = report(node(), node("n2", **changes), node("n3", "cpu"))
    assert [(pool.name, pool.answer) for pool in made.pools] == [("cpu", Answer.GO), ("gpu", answer)]
    assert says in made.pools[1].why[0]
    assert not made.go


def test_what_speaks_against_it_goes_before_what_is_not_known() -> None:
    made = report(node(refused=refused(1), coverage=0.1))
    assert made.pools[0].answer is Answer.NO_GO
    assert len(made.pools[0].why) == 2


def test_a_pool_that_enforces_already() -> None:
    made = report(node(mode="enforce", refused=refused(5, verdict="deny"), coverage=0.2))
    assert made.pools[0].answer is Answer.ENFORCED
    assert [(line.what.verdict, line.count) for line in made.pools[0].refusals] == [("deny", 5)]
    assert made.go
    assert report(node(mode="enforce"), node("n2")).pools[0].answer is Answer.GO


def test_no_node_at_all_is_no_go() -> None:
    assert not report().go


def test_counts_and_events_are_brought_together() -> None:
    details = read(event(1), event(2), event(3, module="other", pod=None, workload="host"))
    made = report(node(refused=refused(5)), details=details)
    lines = [(r.what.module, r.count, r.pods, r.counted_only) for r in made.pools[0].refusals]
    assert lines == [
        ("vendor", 2, ("drivers/DaemonSet/loader",), False),
        ("other", 1, ("(host)",), False),
        ("", 2, (), True),
    ]


def test_events_alone_are_enough_to_stop_a_pool() -> None:
    made = report(node(), details=read(event()))
    assert made.pools[0].answer is Answer.NO_GO


def test_the_same_event_twice_counts_once() -> None:
    details = read(event(1), event(1), event(2), event(1, node="n2"))
    assert [who.count for who in details.groups.values()] == [3]


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "allow"},
        {"reason": "outside_pinned_root"},
        {"reason": "no_file"},
        {"time": "2026-02-28T23:59:59.000000Z"},
        {"time": "2026-03-08T00:00:01.000000Z"},
        {"time": "2026-03-04T05:06:07"},
        {"time": None},
    ],
)
def test_what_is_no_refusal_by_enforce_within_the_window_does_not_count(changes: dict[str, Any]) -> None:
    details = read(event(1, **changes))
    assert not details.groups
    assert details.others == 0


def test_lines_as_kubectl_prefixes_them() -> None:
    """``kubectl logs --prefix``, which ``--all-pods`` sets."""
    found = read(
        b"[pod/kmodgate-x7k2p/agent] " + event(), b"[pod/kmodgate-x7k2p/agent] not ours\n", b"[pod/\n"
    )
    assert [who.count for who in found.groups.values()] == [1]
    assert found.others == 2


def test_a_signer_is_told_by_the_best_name_there_is() -> None:
    signer = {"issuer": "CN=CA", "serial": "1", "skid": "ab", "subject": None}
    (what,) = read(event(signer=signer)).groups
    assert what == What("gpu", "would_deny", "unsigned", "vendor", "CN=CA", "ab" * 32)


def test_a_loaded_module_belongs_to_the_pool_of_its_node() -> None:
    inventory = {"event": "module_inventory", "outcome": "refused", "signature": "unsigned"}
    details = read(event(1, **inventory), event(2, **{**inventory, "outcome": "unknown"}))
    made = report(node(loaded_refused=1), details=details)
    assert [(r.what.verdict, r.what.reason, r.count) for r in made.pools[0].refusals] == [
        ("loaded", "unsigned", 1)
    ]


def test_what_belongs_nowhere_is_said() -> None:
    made = report(node(), details=read(event(pool="unheard-of")))
    assert made.pools[0].answer is Answer.GO
    assert made.warnings == ("1 event(s) are of nodes or pools that Prometheus does not know",)


def test_what_is_missing_is_said() -> None:
    suppressed = {"event": "suppressed", "schema": 1, "time": "2026-03-04T05:06:07Z", "count": 40}
    details = read(json.dumps(suppressed).encode(), b"Starting agent\n", b"{}\n", b"\n")
    made = report(node(untold=7), details=details)
    assert made.warnings == (
        "40 event(s) were left out of the logs or lost; the counts have them",
        "2 line(s) of the event logs are no events of kmodgate",
    )
    (warning,) = make_report([node()], Details(), minimum_coverage=0.9).warnings
    assert "no event log was given" in warning


def test_logs_are_bounded() -> None:
    details = read(*(event(number, module=f"m{number}") for number in range(MAX_GROUPS + 5)))
    assert len(details.groups) == MAX_GROUPS
    assert details.left_out == 5
    assert read(b"x" * (MAX_LINE + 1)).others == 1
    assert read(b"[" * 100_000).others == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(json.loads(event()))), JSON))
def test_no_event_does_any_harm(changes: dict[str, Any]) -> None:
    details = read(event(**changes))
    made = report(node(), details=details)
    stream = io.StringIO()
    write_json(made, stream, start="a", end="b")
    write_csv(made, stream)
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))


def test_json() -> None:
    stream = io.StringIO()
    write_json(report(node(refused=refused(1)), details=read(event())), stream, start="s", end="e")
    document = json.loads(stream.getvalue())
    assert document["go"] is False
    assert document["pools"] == [
        {
            "pool": "gpu",
            "answer": "no_go",
            "why": ["1 load(s) would have been refused"],
            "nodes": [
                {
                    "node": "n1",
                    "policy": "ENFORCE_SIGNED_MODULES",
                    "mode": "audit",
                    "coverage": 1.0,
                    "loaded_refused": 0,
                    "loaded_unknown": 0,
                }
            ],
            "counted": [{"verdict": "would_deny", "reason": "unsigned", "count": 1}],
            "refusals": [
                {
                    "verdict": "would_deny",
                    "reason": "unsigned",
                    "module": "vendor",
                    "signer": None,
                    "sha256": "ab" * 32,
                    "count": 1,
                    "counted_only": False,
                    "nodes": ["n1"],
                    "pods": ["drivers/DaemonSet/loader"],
                    "images": ["registry.example/loader:1"],
                }
            ],
        }
    ]


def test_csv_is_harmless_in_a_spreadsheet() -> None:
    stream = io.StringIO()
    made = report(node(), node("n2", "cpu"), details=read(event(module='=HYPERLINK("x")')))
    write_csv(made, stream)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["pool"], row["answer"], row["module"], row["count"]) for row in rows] == [
        ("cpu", "go", "", ""),
        ("gpu", "no_go", '\'=HYPERLINK("x")', "1"),
    ]


def test_selectors() -> None:
    assert checked_selector("") == ""
    assert checked_selector('cluster="eu",job=~"kmod.*"') == 'cluster="eu",job=~"kmod.*"'
    for text in ('x="1"} or vector(1) or up{', "x", 'x="a\nb"', 'x="1",', 'x="\\""'):
        with pytest.raises(InputError, match="--selector"):
            checked_selector(text)
