# SPDX-License-Identifier: Apache-2.0
"""Trusted dm-verity digests and tables of devices: what is taken, and what is refused with its line."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodgate.errors import ConfigError, NodeError
from kmodgate.node.devicemapper import parse_table_status
from kmodgate.node.verity import (
    HEADER,
    MAX_BYTES,
    TargetLine,
    UntrustedDeviceError,
    parse_trusted_digests,
    trusted_root_digest,
)

ONE = bytes(range(32))
TWO = bytes(range(100, 164))
HEX = ONE.hex().encode()
TABLE = f"1 7:0 7:1 4096 4096 1024 0 sha256 {ONE.hex()} 00ff"


def parse(data: bytes) -> frozenset[bytes]:
    return parse_trusted_digests(data, "file")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEX], {ONE}),
        ([HEX.upper()], {ONE}),
        ([HEX, HEX], {ONE}),
        ([HEX, TWO.hex().encode()], {ONE, TWO}),
        ([bytes(48).hex().encode()], {bytes(48)}),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n \t\r\n\v\f"])
def test_digests_are_read(lines: list[bytes], expected: set[bytes], end: bytes) -> None:
    assert parse(b"\n".join([HEADER, *lines]) + end) == expected


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"", 1, "the first line"),
        (b"\n", 1, "the first line"),
        (HEX, 1, "the first line"),
        (b" " + HEADER + b"\n" + HEX, 1, "the first line"),
        (b"\n" + HEADER + b"\n" + HEX, 1, "the first line"),
        (HEADER + b" \n" + HEX, 1, "the first line"),
        (HEADER + b"\r\n" + HEX, 1, "the first line"),
        (HEADER + b"S\n" + HEX, 1, "the first line"),
        (HEADER.lower() + b"\n" + HEX, 1, "the first line"),
        (HEADER, 1, "no digest"),
        (HEADER + b"\n", 1, "no digest"),
        (HEADER + b"\n\n" + HEX, 2, "blank"),
        (HEADER + b"\n" + HEX + b"\n\n" + HEX, 3, "blank"),
        (HEADER + b"\n" + HEX + b"\n# more\n" + HEX, 3, "no digest: hexadecimal"),
        (HEADER + b"\n" + HEX + b" # mine\n" + HEX, 2, "no digest: hexadecimal"),
        (HEADER + b"\n " + HEX, 2, "no digest: hexadecimal"),
        (HEADER + b"\n0x" + HEX, 2, "no digest: hexadecimal"),
        (HEADER + b"\n" + HEX + b"\0\n", 2, "no digest: hexadecimal"),
        (HEADER + b"\n" + "٣".encode() * 32, 2, "no digest: hexadecimal"),
        (HEADER + b"\n" + HEX[:-1], 2, "63 hexadecimal digits"),
        (HEADER + b"\n" + HEX[:40], 2, "40 hexadecimal digits"),
        (HEADER + b"\n" + HEX + b"00", 2, "66 hexadecimal digits"),
    ],
)
def test_anything_else_is_refused_with_its_line(data: bytes, line: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        parse(data)
    assert refused.value.line == line
    assert str(refused.value).startswith(f"file:{line}: ")
    assert str(refused.value).isprintable()


def test_no_longer_file_than_loadpin_reads() -> None:
    data = HEADER + b"\n" + HEX
    assert parse(data + b"\n" * (MAX_BYTES - len(data))) == {ONE}
    with pytest.raises(ConfigError, match="4096 bytes"):
        parse(data + b"\n" * (MAX_BYTES + 1 - len(data)))


SIZES = st.sampled_from((32, 48, 64))
DIGESTS = SIZES.flatmap(lambda size: st.binary(min_size=size, max_size=size))


@given(st.sets(DIGESTS, min_size=1, max_size=20))
def test_what_was_written_is_read(digests: set[bytes]) -> None:
    data = b"\n".join([HEADER, *(digest.hex().encode() for digest in digests)]) + b"\n"
    assert parse(data) == digests


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=200))
def test_a_changed_file_is_refused_or_means_what_it_says(noise: bytes, place: int) -> None:
    good = b"\n".join([HEADER, HEX, TWO.hex().encode()])
    data = good[:place] + noise + good[place + len(noise) :]
    with suppress(ConfigError):
        found = parse(data)
        lines = data.rstrip().split(b"\n")
        assert lines[0] == HEADER
        assert {digest.hex().encode() for digest in found} == {line.lower() for line in lines[1:]}


def verity(words: str) -> list[TargetLine]:
    return [TargetLine("verity", words)]


@pytest.mark.parametrize(
    "words",
    [
        TABLE,
        TABLE.replace("00ff", "-"),
        f"{TABLE} 1 restart_on_corruption",
        f"{TABLE} 2 panic_on_corruption ignore_zero_blocks",
        f"{TABLE} 9 check_at_most_once use_fec_from_device 7:2 fec_blocks 9 fec_start 0 fec_roots 2",
        f"{TABLE} 3 try_verify_in_tasklet root_hash_sig_key_desc key",
        TABLE.replace(ONE.hex(), ONE.hex().upper()),
    ],
)
def test_a_device_with_a_trusted_digest(words: str) -> None:
    assert trusted_root_digest(verity(words), frozenset({ONE})) == ONE
    with pytest.raises(UntrustedDeviceError, match="not among the trusted"):
        trusted_root_digest(verity(words), frozenset())
    with pytest.raises(UntrustedDeviceError, match="not among the trusted"):
        trusted_root_digest(verity(words), frozenset({TWO, ONE[:-1], ONE + b"\0"}))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([], "0 targets"),
        (verity(TABLE) * 2, "2 targets"),
        ([TargetLine("linear", "7:0 0")], "'linear', not verity"),
        ([TargetLine("verity\n", TABLE)], "not verity"),
        (verity(""), "none of a dm-verity device"),
        (verity(TABLE.rsplit(" ", 1)[0]), "none of a dm-verity device"),
        (verity(f"2{TABLE[1:]}"), "none of a dm-verity device"),
        (verity(TABLE.replace("sha256", "sha\u0662")), "none of a dm-verity device"),
        (verity(TABLE.replace(ONE.hex(), "-")), "no root digest"),
        (verity(TABLE.replace(ONE.hex(), ONE.hex()[1:])), "no root digest"),
        (verity(f"{TABLE} 1 ignore_corruption"), "ignore_corruption"),
        (verity(f"{TABLE} 2 restart_on_corruption ignore_corruption"), "ignore_corruption"),
        (verity(f"{TABLE} 1 ignore_everything"), "ignore_everything"),
        (verity(f"{TABLE} 2 panic_on_corruption"), "number of options"),
        (verity(f"{TABLE} 0 panic_on_corruption"), "number of options"),
        (verity(f"{TABLE} one panic_on_corruption"), "number of options"),
        (verity(f"{TABLE} 1 fec_roots"), "lacks its value"),
        (verity(" ".join([*TABLE.split()[:9], "ignore_corruption"])), "no salt"),
    ],
)
def test_every_other_device_is_not_trusted(table: list[TargetLine], words: str) -> None:
    with pytest.raises(UntrustedDeviceError, match=words) as refused:
        trusted_root_digest(table, frozenset({ONE}))
    assert str(refused.value).isprintable()


@given(
    st.lists(st.sampled_from((*TABLE.split(), "1", "ignore_corruption", "", "restart_on_corruption", "é")))
)
def test_no_other_words_are_taken_for_a_trusted_table(words: list[str]) -> None:
    with suppress(UntrustedDeviceError):
        assert trusted_root_digest(verity(" ".join(words)), frozenset({ONE})) == ONE
        assert "ignore_corruption" not in words


def answer(
    *targets: tuple[bytes, bytes], flags: int = 1 << 5, start: int = 312, count: int | None = None
) -> bytes:
    """What DM_TABLE_STATUS writes."""
    data = b""
    for kind, words in targets:
        entry = struct.pack("=QQiI16s", 0, 8, 0, 0, kind) + words + b"\0"
        entry += bytes(-len(entry) % 8)
        offset = len(data) + len(entry)
        data += entry[:20] + struct.pack("=I", offset) + entry[24:]
    head = struct.pack(
        "=3I2IIiII4xQ128s129s7x",
        4, 47, 0, 312 + len(data), start, len(targets) if count is None else count, 1, flags, 0, 0, b"x", b"",
    )  # fmt: skip
    return head + data


def test_targets_in_a_circle_are_no_table() -> None:
    data = bytearray(answer((b"verity", b"x"), count=0xFFFFFFFF))
    struct.pack_into("=I", data, 312 + 20, 0)
    with pytest.raises(NodeError, match="makes no sense"):
        parse_table_status(bytes(data), "253:0")


def test_tables_as_the_device_mapper_gives_them() -> None:
    data = answer((b"verity", TABLE.encode()), (b"linear", b"7:0 0"))
    assert parse_table_status(data + bytes(100), "253:0") == (
        TargetLine("verity", TABLE),
        TargetLine("linear", "7:0 0"),
    )
    assert parse_table_status(answer(), "253:0") == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "makes no sense"),
        (bytes(311), "makes no sense"),
        (answer((b"verity", b"x"), flags=0), "no live table"),
        (answer((b"verity", b"x"), flags=0x120), "too long"),
        (answer((b"verity", b"x"), count=2), "makes no sense"),
        (answer((b"verity", b"x"), start=0), "makes no sense"),
        (answer((b"verity", b"x"), start=1 << 30), "makes no sense"),
        (answer((b"verity", b"y" * 8))[:-8], "makes no sense"),
    ],
)
def test_answers_that_make_no_sense(data: bytes, words: str) -> None:
    with pytest.raises(NodeError, match=words):
        parse_table_status(data, "253:0")


@given(st.binary(max_size=100), st.integers(min_value=0, max_value=400))
def test_a_damaged_answer_ends_in_one_error(noise: bytes, place: int) -> None:
    data = answer((b"verity", TABLE.encode()))
    with suppress(NodeError):
        parse_table_status(data[:place] + noise + data[place + len(noise) :], "253:0")
