# SPDX-License-Identifier: Apache-2.0
"""The X.509 certificates inside an uncompressed kernel, and what the kernel uses each for.

This module reads no files, parses no certificate further than its outline and verifies nothing. A
certificate that lies in a kernel is no trust anchor for that alone: the kernel also carries those
of its self tests, of the wireless regulatory database, and those that it revokes.

Which are anchors is not guessed. ``certs/system_certificates.S`` puts the list of certificates, at a
multiple of eight, and after it (and after the room for CONFIG_SYSTEM_EXTRA_CERTIFICATE) two longs side
by side: the length of the list, and the length of its beginning that is the build's own module
key (since 5.13; before it, only the first). ``certs/revocation_certificates.S`` does the same with one
long. Certificates without such a long are told apart by name, or not at all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from kmodgate.errors import ImageError

# [0] EXPLICIT INTEGER 2, then the tag of the serial number: the rarest bytes of a v3 certificate.
_VERSION_3 = b"\xa0\x03\x02\x01\x02\x02"
_SEQUENCE, _INTEGER, _BIT_STRING, _VERSION = 0x30, 0x02, 0x03, 0xA0
_SHORT, _LENGTHS = 0x80, {0x81: 1, 0x82: 2}
# Room for an ML-DSA-87 key and signature; a longer one is none.
_MAX_CERTIFICATE: Final = 16384
# From the list's end to its length: CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE, 4096 by default.
_MAX_EXTRA: Final = 1 << 16
_ALIGNMENT = 8
_OUTER = (_SEQUENCE, _SEQUENCE, _BIT_STRING)
_TBS = (_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE)


class Use(StrEnum):
    """What the kernel does with a certificate; the first two are trusted for modules."""

    MODULE_KEY = "module_key"
    """The build's own key, which signs the modules of that build."""
    TRUSTED = "trusted"
    """Another of ``.builtin_trusted_keys``."""
    REVOKED = "revoked"
    """In ``.blacklist``."""
    SELF_TEST = "self_test"
    """For the test of the signature code at boot (``crypto/asymmetric_keys/selftest*.c``)."""
    REGULATORY = "regulatory"
    """For the wireless regulatory database (``net/wireless/certs``)."""
    UNKNOWN = "unknown"
    """Nothing in the image says what for."""


ANCHORS: Final = frozenset({Use.MODULE_KEY, Use.TRUSTED})

# Texts in the names of those certificates that the kernel's source brings with it.
_BY_NAME: Final[tuple[tuple[bytes, Use], ...]] = (
    (b"self-testing key", Use.SELF_TEST),
    (b"\x0c\x08sforshee", Use.REGULATORY),
    (b"\x0c\x04wens", Use.REGULATORY),
    (b"benh@debian.org", Use.REGULATORY),
    (b"romain.perier@gmail.com", Use.REGULATORY),
)


# blacklist.c since 5.13, as is the second long; fixes for 5.10 brought the former alone.
_REVOCATIONS = b"Loading compiled-in revocation X.509 certificates"


@dataclass(frozen=True, slots=True)
class Embedded:
    """One certificate in a kernel.

    Attributes:
        offset: of its first byte.
        der: the certificate.
        use: what the kernel uses it for.
    """

    offset: int
    der: bytes
    use: Use


@dataclass(frozen=True, slots=True)
class _Span:
    start: int
    end: int


def find(kernel: bytes) -> tuple[Embedded, ...]:
    """All certificates of an uncompressed kernel, in the order of their places.

    Args:
        kernel: an ELF file, or the flat ``Image`` of arm64 and riscv (``kernelimage.extract``).
    """
    runs = list(_runs(kernel))
    uses: dict[_Span, Use] = {}
    for run in runs:
        uses |= _by_two_longs(kernel, run)
    # Without a second long the kernel is older than 5.13, unless fixes brought revocations to it.
    alone = Use.REVOKED if uses else Use.UNKNOWN if _REVOCATIONS in kernel else Use.TRUSTED
    found: list[Embedded] = []
    for run in runs:
        counted = set(_by_one_long(kernel, run))
        for span in run:
            use = uses.get(span) or _by_name(kernel, span) or (alone if span in counted else Use.UNKNOWN)
            found.append(Embedded(span.start, kernel[span.start : span.end], use))
    return tuple(found)


def certificates(kernel: bytes) -> tuple[bytes, ...]:
    """The certificates of ``.builtin_trusted_keys``: the DER of each, in their order.

    Raises:
        ImageError: there are certificates, and it cannot be told which ones are anchors.
    """
    found = find(kernel)
    trusted = tuple(dict.fromkeys(one.der for one in found if one.use in ANCHORS))
    if not trusted and any(one.use is Use.UNKNOWN for one in found):
        raise ImageError("its list of trusted certificates was not found; their use cannot be told")
    return trusted


def has_list(part: bytes) -> bool:
    """Whether a part of a 64-bit little-endian kernel holds a whole list of trusted certificates.

    Args:
        part: from a multiple of eight of the kernel on.
    """
    return any(_by_two_longs(part, run) for run in _runs(part))


def _contents(data: bytes, at: int, tag: int) -> tuple[int, int] | None:
    """Start and end of the contents of an element in strict DER; None when there is none."""
    if at + 2 > len(data) or data[at] != tag:
        return None
    start, length = at + 2, data[at + 1]
    if length >= _SHORT:
        size = _LENGTHS.get(length, 0)
        start += size
        length = int.from_bytes(data[at + 2 : start], "big")
        if length < (_SHORT if size == 1 else 1 << 8):
            return None
    end = start + length
    return (start, end) if end <= len(data) else None


def _walk(data: bytes, at: int, tags: Sequence[int]) -> int | None:
    """Skip elements with these tags, one after the other; None when another one stands there."""
    for tag in tags:
        inner = _contents(data, at, tag)
        if inner is None:
            return None
        at = inner[1]
    return at


def _certificate(data: bytes, at: int) -> _Span | None:
    """The certificate that begins here, by its outline (RFC 5280 section 4.1)."""
    outer = _contents(data, at, _SEQUENCE)
    if outer is None or outer[1] - at > _MAX_CERTIFICATE:
        return None
    tbs = _contents(data, outer[0], _SEQUENCE)
    if tbs is None or _walk(data, outer[0], _OUTER) != outer[1]:
        return None
    fields = tbs[0]
    if data[fields] == _VERSION:
        fields = _walk(data, fields, (_VERSION,)) or tbs[1]
    end = _walk(data, fields, _TBS)
    return None if end is None or end > tbs[1] else _Span(at, outer[1])


def _candidates(data: bytes) -> Iterator[_Span]:
    """Certificates around each place that looks like the head of one.

    The two headers before the version have lengths of one or two bytes.
    """
    position = data.find(_VERSION_3)
    while position >= 0:
        for before in (8, 7, 6):
            span = _certificate(data, position - before) if position >= before else None
            if span is not None:
                yield span
                position = span.end - 1
                break
        position = data.find(_VERSION_3, position + 1)


def _runs(data: bytes) -> Iterator[list[_Span]]:
    """Certificates that follow each other without a gap, as lists of them do."""
    end = 0
    for span in _candidates(data):
        if span.start < end:
            continue
        run = [span]
        # One without the version (v1) is found by its place alone.
        while (following := _certificate(data, run[-1].end)) is not None:
            run.append(following)
        end = run[-1].end
        yield run


def _by_two_longs(data: bytes, run: Sequence[_Span]) -> dict[_Span, Use]:
    """The list of trusted certificates, by the lengths of all of it and of the module key."""
    long = _long(data)
    first = -(-run[-1].end // _ALIGNMENT) * _ALIGNMENT
    last = min(len(data) - _ALIGNMENT - long.size, first + _MAX_EXTRA)
    for at in range(first, last + 1, _ALIGNMENT):
        members = _members(run, long.unpack_from(data, at)[0])
        if not members:
            continue
        (own,) = long.unpack_from(data, at + _ALIGNMENT)
        if own in {span.end - members[0].start for span in members}:
            border = members[0].start + own
            return {span: Use.MODULE_KEY if span.end <= border else Use.TRUSTED for span in members}
    return {}


def _by_one_long(data: bytes, run: Sequence[_Span]) -> Sequence[_Span]:
    """A list whose length stands behind it, after nothing but padding."""
    long = _long(data)
    first = -(-run[-1].end // _ALIGNMENT) * _ALIGNMENT
    if first + long.size > len(data) or any(data[run[-1].end : first]):
        return ()
    return _members(run, long.unpack_from(data, first)[0])


def _members(run: Sequence[_Span], total: int) -> Sequence[_Span]:
    """The certificates, from a multiple of eight on, that take exactly so many bytes."""
    if not 0 < total <= run[-1].end - run[0].start:
        return ()
    ends = {span.end: number for number, span in enumerate(run)}
    for number, span in enumerate(run):
        last = ends.get(span.start + total)
        if span.start % _ALIGNMENT == 0 and last is not None:
            return run[number : last + 1]
    return ()


def _by_name(data: bytes, span: _Span) -> Use | None:
    return next((use for text, use in _BY_NAME if data.find(text, span.start, span.end) >= 0), None)


def _long(data: bytes) -> struct.Struct:
    """The kernel's ``unsigned long``, from the head of the ELF file; flat images are 64-bit ones."""
    if not data.startswith(b"\x7fELF"):
        return struct.Struct("<Q")
    return struct.Struct((">" if data[5:6] == b"\2" else "<") + ("I" if data[4:5] == b"\1" else "Q"))
