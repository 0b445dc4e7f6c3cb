# SPDX-License-Identifier: Apache-2.0
r"""Hostile strings made printable.

This module does no I/O. A path, a ``comm`` or a certificate's subject is chosen by whoever
loads the module. It may hold terminal escapes, line separators, right-to-left overrides,
or bytes that are no text at all. JSON's own escapes are not enough: they are undone by the
first ``jq -r``. So the *value* is escaped, and stays harmless wherever it is printed.

The escaping is reversible. A backslash always starts an escape::

    \\            a backslash
    \xNN          a byte below 0x80 that does not print, or a byte that is not UTF-8
    \uNNNN        another character that does not print (C1, bidi, separators, private, …)
    \UNNNNNNNN    the same beyond U+FFFF
    \+N           at the end: N characters more were left out
"""

from __future__ import annotations

from typing import Final

DEFAULT_LIMIT: Final = 512
"""Characters of an escaped string, but for the mark of what was left out."""

PATH_LIMIT: Final = 4096
"""The same for paths: PATH_MAX, include/uapi/linux/limits.h."""

_ASCII_END: Final = 0x80
_BMP_END: Final = 0x10000
# os.fsdecode turns byte 0xNN into U+DCNN (PEP 383).
_BYTE_FIRST: Final = 0xDC80
_BYTE_LAST: Final = 0xDCFF


def printable(text: str | bytes, limit: int = DEFAULT_LIMIT) -> str:
    r"""Escape everything that does not print.

    Args:
        text: bytes are taken as UTF-8; what is not comes out as ``\xNN``.
        limit: how many characters the result may have, the final mark not counted.

    Returns:
        A string of which every character prints (``str.isprintable``). An escape is never
        cut in two.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if len(text) <= limit and text.isprintable() and "\\" not in text:
        return text
    parts: list[str] = []
    room = limit
    for position, character in enumerate(text):
        part = _escape(character)
        if len(part) > room:
            parts.append(f"\\+{len(text) - position}")
            break
        room -= len(part)
        parts.append(part)
    return "".join(parts)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    point = ord(character)
    if point < _ASCII_END:
        return f"\\x{point:02x}"
    if _BYTE_FIRST <= point <= _BYTE_LAST:
        return f"\\x{point - 0xDC00:02x}"
    if point < _BMP_END:
        return f"\\u{point:04x}"
    return f"\\U{point:08x}"
