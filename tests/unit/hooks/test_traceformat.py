# SPDX-License-Identifier: Apache-2.0
"""Trace records: what the kernel writes is read back, and nothing else gets further than an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.hooks import tracing

from kmodgate.errors import HookError
from kmodgate.hooks.traceformat import MAX_STRING, PageLayout, parse_format, parse_header_page, parse_page

LAYOUT = PageLayout(commit=8, commit_size=8, data=16, size=16 + tracing.DATA)
LOAD = parse_format(tracing.FORMATS["module/module_load"], "module_load", ("name", "taints"))


def test_a_format_file_says_where_fields_lie() -> None:
    form = parse_format(tracing.FORMATS["syscalls/sys_enter_finit_module"], "finit", ("fd", "flags"))
    record = tracing.enter_finit(4711, 9, 4)
    assert form.id == 301
    assert (form.number(record, "common_pid"), form.number(record, "fd")) == (4711, 9)
    assert form.number(record, "flags") == 4
    ended = parse_format(tracing.FORMATS["syscalls/sys_exit_finit_module"], "exit", ("ret",))
    assert ended.number(tracing.exit_finit(1, -129), "ret") == -129


def test_a_dynamic_text_is_found_and_ends_at_its_nul() -> None:
    record = tracing.module_load(1, b"kmgtest\0 and more", 0x3000)
    assert LOAD.text(record, "name") == b"kmgtest"
    assert LOAD.number(record, "taints") == 0x3000


def test_a_long_text_is_cut() -> None:
    assert len(LOAD.text(tracing.module_load(1, b"a" * (MAX_STRING + 9), 0), "name")) == MAX_STRING


@pytest.mark.parametrize("place", [0xFFFF_FFFF, 16 << 16 | 20, 1 << 16 | 0xFFFF, 400 << 16 | 16])
def test_a_text_outside_its_record_is_an_error(place: int) -> None:
    record = tracing.head(305, 1) + struct.pack("=II", 0, place) + b"abc\0"
    with pytest.raises(HookError, match="ends before its field"):
        LOAD.text(record, "name")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no ID"),
        ("ID: 7\n", "has no field common_type, common_pid, fd"),
        ("ID: 7\n" + tracing.COMMON, "has no field fd"),
        ("ID: 7\n\tfield:int fd;\toffset:-1;\tsize:4;\n", "makes no sense"),
        ("ID: 7\n\tfield:;\toffset:1;\tsize:4;\n", "makes no sense"),
        ("ID: 7\n" + "\tfield:int a;\toffset:1;\tsize:4;\tsigned:1;\n" * 300, "no field"),
        (
            "ID: 7\n" + "".join(f"\tfield:int a{n};\toffset:1;\tsize:4;\tsigned:1;\n" for n in range(300)),
            "sense",
        ),
    ],
)
def test_another_format_is_an_error(text: str, words: str) -> None:
    with pytest.raises(HookError, match=words):
        parse_format(text, "finit", ("fd",))


def test_the_header_page_is_read() -> None:
    assert parse_header_page(tracing.HEADER_PAGE) == LAYOUT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("commit", "omit"),
        ("timestamp;\toffset:0", "timestamp;\toffset:8"),
        ("commit;\toffset:8;\tsize:8", "commit;\toffset:8;\tsize:3"),
        ("commit;\toffset:8", "commit;\toffset:12"),
        (f"size:{tracing.DATA}", "size:0"),
        (f"size:{tracing.DATA}", "size:999999"),
        ("data;\toffset:16", "data;\toffset:999999"),
    ],
)
def test_another_header_page_is_an_error(old: str, new: str) -> None:
    with pytest.raises(HookError, match="header_page"):
        parse_header_page(tracing.HEADER_PAGE.replace(old, new, 1))


def test_records_of_every_kind() -> None:
    found = parse_page(
        tracing.page(
            [
                tracing.event(b"abcd", 5),
                struct.pack("=II", 7 << 5 | 30, 1),  # 2^27 + 7 ns later
                tracing.event(b"efgh", 1, long=True),
                struct.pack("=II", 3 << 5 | 29, 8) + b"gone",  # taken back
                struct.pack("=II", 9 << 5 | 31, 2),  # an absolute time
                tracing.event(b"ijklmnop", 1),
                struct.pack("=I", 29),  # the rest is nothing
                b"\xff" * 12,
            ],
            1000,
        ),
        LAYOUT,
    )
    assert found.lost == 0
    later = 1005 + (1 << 27) + 7 + 1
    assert found.records == [(1005, b"abcd"), (later, b"efgh"), ((2 << 27) + 9 + 1, b"ijklmnop")]


def test_an_absolute_time_keeps_the_bits_of_the_page_above_it() -> None:
    stamp = 5 << 59 | 77
    found = parse_page(
        tracing.page([struct.pack("=II", 9 << 5 | 31, 2), tracing.event(b"abcd")], stamp), LAYOUT
    )
    assert found.records == [((5 << 59) + (2 << 27) + 9, b"abcd")]


@pytest.mark.parametrize("lost", [0, 1, 12345, None])
def test_overwritten_records_are_counted(lost: int | None) -> None:
    assert parse_page(tracing.page([tracing.event(b"abcd")], 1, lost=lost), LAYOUT).lost == lost


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        struct.pack("=QQ", 1, 5000) + bytes(tracing.DATA),
        tracing.page([struct.pack("=I", 28)], 1),  # 112 bytes that are not there
        tracing.page([struct.pack("=I", 0)], 1),  # no length
        tracing.page([struct.pack("=II", 0, 0)], 1),
        tracing.page([struct.pack("=II", 0, 1 << 31)], 1),
        tracing.page([struct.pack("=II", 1 << 5 | 29, 4096)], 1),
    ],
)
def test_a_broken_page_is_an_error(data: bytes) -> None:
    with pytest.raises(HookError):
        parse_page(data, LAYOUT)


@settings(deadline=None)  # a busy machine takes its time
@given(
    st.lists(
        st.tuples(st.binary(min_size=4, max_size=300), st.integers(0, 2**27 - 1), st.booleans()), max_size=12
    )
)
def test_what_is_written_is_read(events: list[tuple[bytes, int, bool]]) -> None:
    """A reader that knows only the kernel's layout gets each record and its time."""
    data = [(text[: len(text) // 4 * 4], delta, long) for text, delta, long in events]
    found = parse_page(tracing.page([tracing.event(t, d, long=n) for t, d, n in data], 99), LAYOUT)
    times = 99
    expected = []
    for text, delta, _ in data:
        times += delta
        expected.append((times, text))
    assert found.records == expected


@settings(deadline=None)  # a busy machine takes its time
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_no_bytes_of_a_page_do_harm(data: bytes, commit: int) -> None:
    """Anything is records or an error, and records are no more than the bytes."""
    try:
        found = parse_page(struct.pack("=QQ", 7, commit) + data, LAYOUT)
    except HookError:
        return
    assert sum(len(record) for _, record in found.records) <= len(data)


@settings(deadline=None)  # a busy machine takes its time
@given(st.binary(max_size=120))
def test_no_bytes_of_a_record_do_harm(record: bytes) -> None:
    try:
        assert len(LOAD.text(record, "name")) <= len(record)
        assert LOAD.number(record, "taints") >= 0
    except HookError:
        return


@settings(deadline=None)  # a busy machine takes its time
@given(st.text(alphabet=st.sampled_from("\tfield:;offsetsizsgned \n0123456789abIDchar[]_*"), max_size=300))
def test_no_format_file_does_harm(text: str) -> None:
    try:
        form = parse_format(text, "any")
    except HookError:
        return
    assert {"common_type", "common_pid"} <= form.fields.keys()
