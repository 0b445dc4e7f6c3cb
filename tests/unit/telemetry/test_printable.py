# SPDX-License-Identifier: Apache-2.0
"""Escaping: nothing that does not print gets through, and nothing is lost on the way."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.telemetry.text import printable

ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def unescape(text: str) -> bytes:
    """The way back, as docs/events.md describes it."""

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code == "\\":
            return "\\"
        point = int(code[1:], 16)
        if code[0] == "x" and point >= 0x80:
            return chr(0xDC00 + point)
        return chr(point)

    return os.fsencode(ESCAPE.sub(character, text))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("/lib/modules/ok.ko", "/lib/modules/ok.ko"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("two\nlines\r", r"two\x0alines\x0d"),
        ("nul\x00del\x7f", r"nul\x00del\x7f"),
        ("csi \x9b1m", r"csi \u009b1m"),
        ("\u202egnp.ko", r"\u202egnp.ko"),
        ("a\u2028b\u2029c\u0085d", r"a\u2028b\u2029c\u0085d"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("isolate \u2066x\u2069", r"isolate \u2066x\u2069"),
        ("tag \U000e0041", r"tag \U000e0041"),
        ("nbsp\u00a0", r"nbsp\u00a0"),
        ("dev-disk\\x2duuid", r"dev-disk\\x2duuid"),
        ("Müller 鍵", "Müller 鍵"),
        (b"caf\xe9.ko", r"caf\xe9.ko"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_known_tricks(raw: str | bytes, expected: str) -> None:
    assert printable(raw) == expected


@given(st.binary(max_size=80))
def test_any_bytes_print_and_come_back(raw: bytes) -> None:
    escaped = printable(raw)
    assert escaped.isprintable()
    assert unescape(escaped) == raw


@given(st.text(alphabet=st.characters(), max_size=200), st.integers(0, 60))
def test_limit_holds_and_says_what_is_missing(text: str, limit: int) -> None:
    escaped = printable(text, limit)
    assert escaped.isprintable()
    kept, mark, missing = escaped.rpartition("\\+")
    if mark and missing.isdigit():
        assert len(kept) <= limit
        assert len(printable(text, 10**6)) > limit
        assert int(missing) <= len(text)
        assert printable(text[: len(text) - int(missing)], 10**6) == kept
    else:
        assert len(escaped) <= limit


def test_an_escape_is_never_cut() -> None:
    assert printable("ab\x1bcd", 4) == r"ab\+3"
    assert printable("ab\x1bcd", 6) == r"ab\x1b\+2"
