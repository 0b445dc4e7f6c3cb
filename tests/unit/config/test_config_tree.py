# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodgate.config import parse
from kmodgate.config.schema import Kmodgate, keys
from kmodgate.config.tree import MAX_BYTES, MAX_NODES, read
from kmodgate.errors import ConfigError


def refused(data: bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(data, source="f")
    return caught.value


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"", None, "is empty"),
        (b"# only a comment\n", None, "is empty"),
        (b"~", None, "is empty"),
        (b"a: b\na: c\n", 2, "'a' stands twice, first on line 1"),
        (b"kmodgate:\n  mode: audit\n  trust: {revoked: [], revoked: []}\n", 3, "stands twice"),
        (b"a: [\n", 2, "correct the YAML"),
        (b"a: b\n---\nc: d\n", 2, "single document"),
        (b"a:\n\tb: c\n", 2, "correct the YAML"),
        (b"a: \x01\n", 1, "does not allow"),
        (b"a: b\nc: \xff\n", 2, "not UTF-8"),
        (b"a: !!python/object:os.system x\n", 1, "is not supported"),
        (b"a: !!binary eA==\n", 1, "is not supported"),
        (b"a: !!set {x}\n", 1, "is not supported"),
        (b"a: &x {b: c}\nd: {<<: *x}\n", 2, "merge keys"),
        (b"? [a]\n: b\n", 1, "single word"),
        (b"a: *x\n", 1, "undefined alias"),
        (b"a: !!int x\n", 1, "no int"),
        (b"a: !!bool x\n", 1, "no bool"),
        (b"a: " + b"9" * 5000, 1, "no int"),
        (b"[" * 5000, 1, "nested deeper"),
        (b"a: &a [*a]\n", 1, "nested deeper"),
        (b"- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - x", 1, "nested deeper"),
        (b"[" + b"1," * (MAX_NODES + 1) + b"]", 1, "more than"),
        (b" " * (MAX_BYTES + 1), None, "larger than"),
        (b'a: "\\UFFFFFFFF"', None, "correct the YAML"),
    ],
)
def test_what_is_no_usable_yaml(data: bytes, line: int | None, words: str) -> None:
    error = refused(data)
    assert words in error.message
    assert error.line == line
    assert "\n" not in str(error)


def test_aliases_cost_what_they_expand_to() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "aliases count each time" in refused("\n".join(lines).encode()).message


def test_an_alias_is_otherwise_fine() -> None:
    assert read(b"a: &x [1, 2]\nb: *x\n", source="f").data == {"a": [1, 2], "b": [1, 2]}


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(b"\xef\xbb\xbfa: b", source="f").data == {"a": "b"}


def test_thousands_of_unknown_keys_make_a_short_report() -> None:
    error = refused(b"kmodgate:\n" + b"".join(b"  key%d: 1\n" % n for n in range(3000)))
    assert len(str(error).splitlines()) == 20


def config_or_error(data: bytes) -> str:
    """The error's text, or nothing; any other exception is a bug."""
    try:
        parse(data, source="f")
    except ConfigError as error:
        return str(error)
    return ""


WORDS = st.sampled_from(
    (
        *("kmodgate:", "linuxNodeConfig:", "config:", "kernelModuleLoading:", "policy:", "mode:", "trust:"),
        *(
            "nodePools:",
            "name:",
            "-",
            "[",
            "]",
            "{",
            "}",
            ",",
            "on",
            "ENFORCE_SIGNED_MODULES",
            "audit",
            "250ms",
        ),
        *(
            "64MiB",
            "&",
            "*",
            "&a",
            "*a",
            "!",
            "!!int",
            "!!str",
            "|",
            ">",
            '"',
            "'",
            "#",
            "<<:",
            "~",
            "0x",
            "1_",
        ),
        *("1:60", ".inf", "2001-01-01", "%YAML", "---", "...", "?", "\\U", "\\x"),
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", "\n  ", "\n    "])), max_size=25))
@example([("!!int", " "), ("1_", " ")])
def test_no_text_makes_anything_but_a_config_or_an_error(parts: list[tuple[str, str]]) -> None:
    text = config_or_error("".join(word + space for word, space in parts).encode())
    assert all(line.startswith(("f: ", "f:")) for line in text.split("\n") if text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_anything_but_a_config_or_an_error(data: bytes) -> None:
    config_or_error(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(keys(Kmodgate))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_no_value_of_ours_makes_anything_but_a_config_or_an_error(values: dict[str, object]) -> None:
    config_or_error(json.dumps({"kmodgate": values}).encode())  # JSON is YAML
