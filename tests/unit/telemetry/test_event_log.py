# SPDX-License-Identifier: Apache-2.0
"""The event log: its keys, what belongs in it, and that it never goes silent without saying so."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.model import (
    Api,
    By,
    LoadEvent,
    Mode,
    Origin,
    Policy,
    Reason,
    SignatureStatus,
    Signer,
    Verdict,
)
from kmodgate.telemetry.events import Cause, EventLog, errno_name, is_remarkable, to_json, to_record
from kmodgate.telemetry.flood import FloodLimit, LeftOut, Rate
from kmodgate.telemetry.inventory import InventoryOutcome, LoadedModuleReport, inventory_record
from kmodgate.telemetry.metrics import LoadedSignature
from kmodgate.workload import Owner, Pod, Workload

Change = Callable[..., LoadEvent]
SCHEMA = json.loads(files("kmodgate.telemetry").joinpath("event.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
DOCS = Path(__file__).parents[3] / "docs" / "events.md"


@contextmanager
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as r, os.fdopen(writer, "wb", 0) as w:
        yield r, w


def lines(reader: BinaryIO, stream: BinaryIO) -> list[dict[str, Any]]:
    stream.close()
    return [json.loads(line) for line in reader]


def test_every_key_of_a_denial(denial: LoadEvent) -> None:
    assert json.loads(to_json(denial, sequence=9)) == {
        "event": "module_load",
        "schema": 1,
        "sequence": 9,
        "time": "2026-03-04T05:06:07.000089Z",
        "node": "node-a",
        "pool": "gpu",
        "verdict": "deny",
        "reason": "untrusted_signer",
        "errno": "EKEYREJECTED",
        "by": "kmodgate",
        "mode": "enforce",
        "policy": "ENFORCE_SIGNED_MODULES",
        "api": "finit_module",
        "origin": "other_filesystem",
        "result": "EKEYREJECTED",
        "module": "evil",
        "path": "/tmp/evil.ko",  # a name in a record
        "path_truncated": False,
        "file_system": "tmpfs",
        "device": "0:42",
        "inode": 2**63 + 5,
        "size": 123456,
        "sha256": "ab" * 32,
        "signature_status": "untrusted_signer",
        "signature_detail": "signed by CN=Somebody, which is no trust anchor",
        "trusted_by": None,
        "signer": {"issuer": "CN=Somebody", "serial": "0a", "skid": "cd" * 20, "subject": None},
        "pid": 4711,
        "tid": 4712,
        "ppid": 1,
        "comm": "insmod",
        "exe": "/usr/bin/kmod",
        "uid": 0,
        "workload": "pod",
        "container_id": "c" * 64,
        "pod": {
            "uid": "0d3b1c52-0000-4000-8000-000000000001",
            "namespace": "default",
            "name": "loader-0",
            "container": "loader",
            "image": "registry.example/loader:1",
            "owner": {"kind": "StatefulSet", "name": "loader"},
            "service_account": "drivers",
        },
        "kernel_request": None,
        "hold_us": 1234,
        "decision_us": 2000,
    }


def test_time_is_utc_whatever_it_was(change: Change) -> None:
    moment = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert to_record(change(time=moment))["time"] == "2025-12-31T23:30:00.000000Z"


def test_errno_names() -> None:
    assert [errno_name(n) for n in (1, 95, 35, 11, 524)] == [
        "EPERM",
        "EOPNOTSUPP",
        "EDEADLK",
        "EAGAIN",
        "524",
    ]


hostile = st.none() | st.text(max_size=40) | st.binary(max_size=40).map(os.fsdecode)
unsigned = st.none() | st.integers(0, 2**64 - 1)
events = st.builds(
    LoadEvent,
    time=st.datetimes(timezones=st.just(UTC)),
    verdict=st.sampled_from([Verdict.ALLOW, Verdict.DENY, Verdict.WOULD_DENY]),
    reason=st.sampled_from(Reason),
    by=st.sampled_from(By),
    mode=st.sampled_from(Mode),
    policy=st.sampled_from(Policy),
    api=st.sampled_from(Api),
    origin=st.none() | st.sampled_from(Origin),
    errno=st.integers(0, 600),
    result=st.integers(-600, 0),
    path=hostile,
    file_system=hostile,
    device=st.none() | st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    inode=unsigned,
    size=unsigned,
    sha256=st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
    module=hostile,
    signer=st.none() | st.builds(Signer, hostile, hostile, hostile, hostile),
    trusted_by=hostile,
    signature_status=st.none() | st.sampled_from(SignatureStatus),
    signature_detail=hostile,
    pid=unsigned,
    comm=hostile,
    exe=hostile,
    uid=unsigned,
    container_id=hostile,
    workload=st.none() | st.sampled_from(Workload),
    pod=st.none()
    | st.builds(
        Pod,
        st.text(max_size=20),
        hostile,
        hostile,
        hostile,
        hostile,
        st.none() | st.builds(Owner, st.text(max_size=20), st.text(max_size=20)),
        hostile,
    ),
    kernel_request=hostile,
    node=hostile,
    pool=hostile,
    hold_ns=st.integers(0, 2**63),
    decision_ns=st.integers(0, 2**63),
)


@settings(max_examples=150, deadline=None)
@given(events)
def test_any_event_is_one_printable_ascii_line_of_the_schema(event: LoadEvent) -> None:
    line = to_json(event, sequence=1)
    assert line.isascii()
    assert line.isprintable()
    record = json.loads(line)
    VALIDATOR.validate(record)
    assert all(value.isprintable() for value in strings(record))


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)


def test_a_line_is_bounded_whatever_is_in_it(change: Change) -> None:
    huge = "\U000e0001" * 100_000
    event = change(
        path=huge, exe=huge, comm=huge, module=huge, signature_detail=huge, trusted_by=huge, node=huge,
        file_system=huge, container_id=huge, kernel_request=huge, pool=huge,
        pod=Pod(huge, huge, huge, huge, huge, Owner(huge, huge), huge), signer=Signer(huge, huge, huge, huge),
    )  # fmt: skip
    line = to_json(event, sequence=1)
    VALIDATOR.validate(json.loads(line))
    assert len(line) < 32_768


def test_schema_is_valid_and_knows_the_closed_sets() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    keys = SCHEMA["$defs"]["module_load"]["properties"]
    assert keys["verdict"]["enum"] == [v.label for v in Verdict if v is not Verdict.PENDING]
    assert keys["reason"]["enum"] == [r.label for r in Reason]
    assert keys["by"]["enum"] == [b.label for b in By]
    assert keys["mode"]["enum"] == list(Mode)
    assert keys["policy"]["enum"] == list(Policy)
    assert keys["api"]["enum"] == [a.label for a in Api]
    assert keys["workload"]["enum"] == [*Workload, None]
    assert keys["origin"]["enum"] == [*(o.label for o in Origin), None]
    assert keys["signature_status"]["enum"] == [*SignatureStatus, None]
    missing = SCHEMA["$defs"]["suppressed"]["properties"]["missing"]["items"]["properties"]
    assert missing["cause"]["enum"] == list(Cause)
    inventory = SCHEMA["$defs"]["module_inventory"]["properties"]
    never_told = {LoadedSignature.TRUSTED_SIGNATURE, LoadedSignature.NOT_VERIFIED}
    assert inventory["signature"]["enum"] == [word for word in LoadedSignature if word not in never_told]
    assert inventory["outcome"]["enum"] == [InventoryOutcome.REFUSED, InventoryOutcome.UNKNOWN]


def test_keys_of_record_schema_fields_and_docs_agree(denial: LoadEvent) -> None:
    record = to_record(denial)
    assert list(record) == SCHEMA["$defs"]["module_load"]["required"]
    names = {f.name.replace("_ns", "_us") for f in fields(LoadEvent)}
    assert names == set(record) - {"event", "schema", "sequence"}
    documented = DOCS.read_text()
    for section in ("module_load", "module_inventory", "suppressed"):
        for key in SCHEMA["$defs"][section]["properties"]:
            assert f"| `{key}` |" in documented, f"docs/events.md does not describe {key}"


def test_the_example_in_the_docs_is_an_event() -> None:
    blocks = DOCS.read_text().split("```json\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        VALIDATOR.validate(json.loads(block.partition("```")[0]))


INVENTORIED = LoadedModuleReport(
    "evil\x1b[2J",
    "OE",
    LoadedSignature.UNTRUSTED_SIGNER,
    InventoryOutcome.REFUSED,
    errno="EKEYREJECTED",
    trusted_at_load=False,
    path="/lib/modules/x/updates/\udcff\n" + "p" * 9000,
    sha256="ab" * 32,
    same_source=None,
    detail="d" * 9000,
    signer=Signer("CN=\u202eevil", "0a", None, None),
)


def test_an_inventory_record_is_one_printable_line_of_the_schema(denial: LoadEvent) -> None:
    with pipe() as (reader, writer):
        event_log = EventLog(writer, node="node-a")
        event_log.write(denial)
        event_log.write_record(
            lambda time, node, number: inventory_record(INVENTORIED, time=time, node=node, sequence=number)
        )
        event_log.close()
        first, second = lines(reader, writer)
    VALIDATOR.validate(second)
    assert list(second) == SCHEMA["$defs"]["module_inventory"]["required"]
    assert (first["sequence"], second["sequence"]) == (1, 2)
    assert second["module"] == "evil\\x1b[2J"
    assert all(text.isprintable() and len(text) < 4200 for text in strings(second))


ALLOW = {"verdict": Verdict.ALLOW, "errno": 0, "result": 0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, True),
        ({"verdict": Verdict.WOULD_DENY, "result": 0}, True),
        ({**ALLOW, "reason": Reason.TRUSTED_SIGNATURE, "by": By.KERNEL}, False),
        ({**ALLOW, "reason": Reason.TRUSTED_SIGNATURE, "by": By.KMODGATE}, True),
        ({**ALLOW, "reason": Reason.TRUSTED_SIGNATURE, "by": By.SHARED}, True),
        ({**ALLOW, "reason": Reason.PINNED_ROOT}, False),
        ({**ALLOW, "reason": Reason.PINNED_ROOT, "by": By.SHARED}, False),
        ({**ALLOW, "reason": Reason.NOT_RESTRICTED}, False),
        ({**ALLOW, "reason": Reason.NOT_RESTRICTED, "result": -errno.EEXIST}, False),
        ({**ALLOW, "reason": Reason.NOT_RESTRICTED, "result": -errno.EPERM}, True),
        ({**ALLOW, "reason": Reason.FAILURE_POLICY_IGNORE}, True),
        ({"verdict": Verdict.DENY, "result": 0}, True),
    ],
)
def test_what_is_remarkable(change: Change, values: dict[str, Any], *, expected: bool) -> None:
    assert is_remarkable(change(**values)) is expected


def test_routine_loads_are_told_only_on_request(change: Change) -> None:
    routine = change(**ALLOW, reason=Reason.PINNED_ROOT)
    with pipe() as (reader, stream):
        log = EventLog(stream)
        assert log.write(routine) is None
        assert log.write(change()) == 1
        log.close()
        assert [line["verdict"] for line in lines(reader, stream)] == ["deny"]
    with pipe() as (reader, stream):
        log = EventLog(stream, log_all=True)
        assert log.write(routine) == 1
        log.close()
        assert [line["verdict"] for line in lines(reader, stream)] == ["allow"]


def test_a_flood_is_cut_and_the_number_left_out_is_stated(change: Change, clock: Any) -> None:
    with pipe() as (reader, stream):
        log = EventLog(
            stream,
            node="node-a",
            flood=FloodLimit(Rate(1.0, 3), Rate(100.0, 100)),
            interval=3600,
            now=clock,
            wall=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )
        for _ in range(50):
            log.write(change())
        for _ in range(10):
            log.write(change(reason=Reason.UNSIGNED))
        clock.time += 1
        assert log.write(change()) == 61
        assert log.suppressed() == {
            LeftOut(Verdict.DENY, Reason.UNTRUSTED_SIGNER): 47,
            LeftOut(Verdict.DENY, Reason.UNSIGNED): 7,
        }
        log.close()
        told = lines(reader, stream)
    assert [line.get("sequence") for line in told] == [1, 2, 3, 51, 52, 53, 61, None]
    VALIDATOR.validate(told[-1])
    assert told[-1] == {
        "event": "suppressed",
        "schema": 1,
        "time": "2026-01-01T00:00:00.000000Z",
        "node": "node-a",
        "count": 54,
        "missing": [
            {"cause": "flood", "verdict": "deny", "reason": "unsigned", "count": 7},
            {"cause": "flood", "verdict": "deny", "reason": "untrusted_signer", "count": 47},
        ],
    }


def test_what_was_left_out_is_stated_at_each_interval_and_once(denial: LoadEvent, clock: Any) -> None:
    with pipe() as (reader, stream):
        log = EventLog(stream, flood=FloodLimit(Rate(1.0, 1), Rate(9.0, 9)), interval=0.02, now=clock)
        log.write(denial)
        log.write(denial)
        assert json.loads(reader.readline())["event"] == "module_load"
        assert json.loads(reader.readline())["count"] == 1
        log.write(denial)
        log.write(denial)
        second = json.loads(reader.readline())["count"]
        log.close()
        assert second + sum(line["count"] for line in lines(reader, stream)) == 2


def test_a_stdout_that_nobody_reads_holds_nothing_up_and_the_loss_is_stated(change: Change) -> None:
    generous = FloodLimit(Rate(1e6, 10**6), Rate(1e6, 10**6))
    with pipe() as (reader, stream):
        log = EventLog(stream, flood=generous, capacity=100, interval=0.05)
        event = change(path="/" + "p" * 3000)
        begin = time.monotonic()
        for _ in range(2000):
            log.write(event)
        assert time.monotonic() - begin < 2.0
        lost = sum(log.lost().values())
        assert lost > 1500
        told: list[dict[str, Any]] = []
        drain = threading.Thread(target=lambda: told.extend(map(json.loads, reader)))
        drain.start()  # the reader wakes up
        log.close(timeout=10)
        stream.close()
        drain.join(10)
    events = [line for line in told if line["event"] == "module_load"]
    stated = [line for line in told if line["event"] == "suppressed"]
    assert len(events) + lost == 2000
    assert sum(line["count"] for line in stated) == lost
    assert {part["cause"] for line in stated for part in line["missing"]} == {"queue_full"}
    assert [line["sequence"] for line in events] == sorted(line["sequence"] for line in events)
