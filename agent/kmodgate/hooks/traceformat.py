# SPDX-License-Identifier: Apache-2.0
"""The binary records of a tracefs instance: format files, ring-buffer pages, the fields of a record.

Bytes in, values out; files are read elsewhere. Where a field lies is taken from the kernel's own
format files and never assumed. What is in a record may come from a hostile module or process, so
every offset and length is checked against the record, and a record that does not fit is an error.

Sources: ``kernel/trace/ring_buffer.c`` (``struct buffer_data_page``, ``struct ring_buffer_event``),
``events/header_page``, ``events/SYSTEM/EVENT/format``.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kmodgate.errors import HookError

MAX_STRING: Final = 4096
"""Bytes of the longest text that is taken from a record; the rest is cut off."""

_FORMAT_BYTES: Final = 64 << 10
_MAX_FIELDS: Final = 256
_MAX_PAGE: Final = 512 << 10
_ORDER: Final[Literal["little", "big"]] = sys.byteorder
_FIELD: Final = re.compile(
    r"\tfield:(?P<declaration>[^;\n]{1,200});\toffset:(?P<offset>[0-9]{1,6});\tsize:(?P<size>[0-9]{1,6});"
    r"(?:\tsigned:(?P<signed>[01]);)?",
    re.ASCII,
)
_ID: Final = re.compile(r"^ID: ([0-9]{1,5})$", re.MULTILINE | re.ASCII)
_NAME: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\[[^\]]{0,40}\])?$", re.ASCII)

# struct ring_buffer_event: type_len:5, time_delta:27.
_TYPE_BITS: Final = 5
_DELTA_BITS: Final = 27
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_WORD: Final = 4
_COMMIT_SIZE: Final = (1 << 30) - 1
_MISSED: Final = 1 << 31
_MISSED_STORED: Final = 1 << 30
_STAMP_BITS: Final = 59
"""An absolute time has so many bits; the ones above are those of the page's own time."""


class Field(NamedTuple):
    """Where a field of a record lies.

    Attributes:
        dynamic: the field holds place and length of its bytes (``__data_loc``).
    """

    offset: int
    size: int
    signed: bool
    dynamic: bool


@dataclass(frozen=True, slots=True)
class EventFormat:
    """One event's format file.

    Attributes:
        id: number that its records begin with.
        fields: by name, the common ones included.
    """

    id: int
    fields: Mapping[str, Field]

    def number(self, record: bytes, name: str) -> int:
        """A number of a record. Raises HookError when the record is too short, or has no such field."""
        field = self._field(name)
        return int.from_bytes(_part(record, field.offset, field.size), _ORDER, signed=field.signed)

    def text(self, record: bytes, name: str) -> bytes:
        """A text field up to its first NUL, ``MAX_STRING`` bytes at most. Raises HookError."""
        field = self._field(name)
        if not field.dynamic:
            data = _part(record, field.offset, min(field.size, MAX_STRING))
        else:
            place = int.from_bytes(_part(record, field.offset, field.size), _ORDER)
            data = _part(record, place & 0xFFFF, min(place >> 16, MAX_STRING))
        return data.partition(b"\0")[0]

    def _field(self, name: str) -> Field:
        try:
            return self.fields[name]
        except KeyError:
            raise HookError(f"trace event {self.id} has no field {name}; report this as a bug") from None


def _part(record: bytes, offset: int, size: int) -> bytes:
    part = record[offset : offset + size]
    if len(part) != size:
        raise HookError(f"a trace record of {len(record)} bytes ends before its field at {offset}")
    return part


def parse_format(text: str, name: str, needed: tuple[str, ...] = ()) -> EventFormat:
    """One ``events/SYSTEM/EVENT/format``.

    Args:
        text: the file.
        name: of the event, for errors.
        needed: fields that it must have.

    Raises:
        HookError: it has another form, or lacks a field.
    """
    number = _ID.search(text[:_FORMAT_BYTES])
    if number is None:
        raise HookError(f"the format of trace event {name} has no ID; report this as a bug")
    fields = _fields(text, name)
    missing = [field for field in ("common_type", "common_pid", *needed) if field not in fields]
    if missing:
        raise HookError(f"the format of trace event {name} has no field {', '.join(missing)}")
    return EventFormat(int(number[1]), fields)


def _fields(text: str, name: str) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for line in text[:_FORMAT_BYTES].split("\n"):
        if not line.startswith("\tfield"):
            continue
        match = _FIELD.match(line)
        declared = None if match is None else _NAME.search(match["declaration"])
        if match is None or declared is None or len(fields) >= _MAX_FIELDS:
            raise HookError(
                f"the format of trace event {name} has a field that makes no sense: {line[:80]!a}"
            )
        fields[declared[1]] = Field(
            offset=int(match["offset"]),
            size=int(match["size"]),
            signed=match["signed"] == "1",
            dynamic=match["declaration"].startswith("__data_loc "),
        )
    return fields


@dataclass(frozen=True, slots=True)
class PageLayout:
    """How the kernel hands out a page of the ring buffer.

    Attributes:
        commit: offset of the number of bytes in use.
        commit_size: bytes of that number.
        data: offset of the first record.
        size: bytes of the whole page.
    """

    commit: int
    commit_size: int
    data: int
    size: int


def parse_header_page(text: str) -> PageLayout:
    """``events/header_page``. Raises HookError when it has another form."""
    fields = _fields(text, "header_page")
    try:
        stamp, commit, data = (fields[name] for name in ("timestamp", "commit", "data"))
    except KeyError as error:
        raise HookError(f"events/header_page has no field {error.args[0]}; report this as a bug") from None
    layout = PageLayout(commit.offset, commit.size, data.offset, data.offset + data.size)
    sensible = (
        (stamp.offset, stamp.size) == (0, 8)
        and commit.size in {4, 8}
        and stamp.size <= commit.offset
        and commit.offset + commit.size <= data.offset
        and data.offset < layout.size <= _MAX_PAGE
    )
    if not sensible:
        raise HookError("events/header_page makes no sense; report this as a bug")
    return layout


class Page(NamedTuple):
    """The records of one page.

    Attributes:
        records: ``(nanoseconds on the instance's clock, bytes)``, in the order of the page.
        lost: records that were overwritten before this page was read; None for some, of which the
            kernel does not know how many.
    """

    records: list[tuple[int, bytes]]
    lost: int | None


def parse_page(page: bytes, layout: PageLayout) -> Page:
    """One page as ``trace_pipe_raw`` gives it; its end may be left out.

    Raises:
        HookError: it has another form, or a record does not end on it.
    """
    if len(page) < layout.data:
        raise HookError(f"a trace page of {len(page)} bytes is shorter than its header")
    (stamp,) = struct.unpack_from("=Q", page)
    commit = int.from_bytes(page[layout.commit : layout.commit + layout.commit_size], _ORDER)
    size = commit & _COMMIT_SIZE
    if layout.data + size > len(page):
        raise HookError(f"a trace page of {len(page)} bytes says that it has {size} in use")
    lost: int | None = 0
    if commit & _MISSED:
        lost = None
        after = page[layout.data + size : layout.data + size + layout.commit_size]
        if commit & _MISSED_STORED and len(after) == layout.commit_size:
            lost = int.from_bytes(after, _ORDER)
    return Page(list(_records(page[layout.data : layout.data + size], stamp)), lost)


def _records(data: bytes, stamp: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _WORD <= len(data):
        head = int.from_bytes(data[at : at + _WORD], _ORDER)
        kind, delta = _head(head)
        if kind == _PADDING and not delta:
            return  # nothing up to the end of the page
        if kind in {_TIME_EXTEND, _TIME_STAMP}:
            high = int.from_bytes(_part(data, at + _WORD, _WORD), _ORDER) << _DELTA_BITS
            if kind == _TIME_EXTEND:
                stamp += high + delta
            else:
                stamp = (stamp >> _STAMP_BITS << _STAMP_BITS) | (high + delta)
            at += 2 * _WORD
            continue
        if kind == _PADDING or not kind:
            # The length stands in the first word behind, and counts that word.
            length = int.from_bytes(_part(data, at + _WORD, _WORD), _ORDER)
            begin, end = at + 2 * _WORD, at + _WORD + length
            if length < _WORD:
                raise HookError(f"a trace record says that it has {length} bytes")
        else:
            begin, end = at + _WORD, at + _WORD + kind * _WORD
        stamp += delta
        if end > len(data):
            raise HookError("a trace record does not end on its page")
        if kind != _PADDING:  # that would be one that was taken back
            yield stamp, data[begin:end]
        at = end


def _head(word: int) -> tuple[int, int]:
    """Type and time of a record; the kernel's bit fields begin at the end that comes first in memory."""
    if _ORDER == "little":
        return word & ((1 << _TYPE_BITS) - 1), word >> _TYPE_BITS
    return word >> _DELTA_BITS, word & ((1 << _DELTA_BITS) - 1)
