# SPDX-License-Identifier: Apache-2.0
"""What goes over the socket: lines of JSON, a question and its answer. Pure.

The client sends one line, ``{"kmodgate": 1, "ask": "status"}``, with further keys for
``events``. The answer's first line has the key ``kmodgate`` as well and says what follows:

``status``  the report is in that line, under ``status``.
``events``  the lines of events follow, none of which has the key ``kmodgate``, and then, unless
            they are followed for ever, a line ``end``.
``error``   nothing follows; ``error`` says what was wrong.

A change that an old client would misread gets a new number; a key more does not.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kmodgate.model import Reason, Verdict

VERSION: Final = 1
KEY: Final = "kmodgate"
MAX_REQUEST: Final = 4096
"""Bytes of a question, newline included."""
MAX_MODULES: Final = 16
MAX_PATTERN: Final = 64

VERDICTS: Final = tuple(v.label for v in Verdict if v is not Verdict.PENDING)
REASONS: Final = tuple(r.label for r in Reason)

_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)


class Ask(StrEnum):
    """What is asked for."""

    STATUS = "status"
    EVENTS = "events"


class Answer(StrEnum):
    """What the first line of an answer says, and the last one of events."""

    STATUS = "status"
    EVENTS = "events"
    END = "end"
    ERROR = "error"


class ProtocolError(ValueError):
    """A line that is not of this protocol; the message may be sent back."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted; what is empty wants all.

    Attributes:
        verdicts: words of ``VERDICTS``.
        reasons: words of ``REASONS``.
        modules: names with ``*`` and ``?``; of the module, or of its file without ``.ko…``. ``-``
            and ``_`` are the same, as for modprobe(8).
    """

    verdicts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def wants(self, record: Mapping[str, object]) -> bool:
        """Whether an event passes. What says that events are missing passes always."""
        if record.get("event") == "suppressed":
            return True
        if self.verdicts and record.get("verdict") not in self.verdicts:
            return False
        if self.reasons and record.get("reason") not in self.reasons:
            return False
        return not self.modules or any(
            fnmatch.fnmatchcase(name, _normal(pattern)) for name in _names(record) for pattern in self.modules
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A question.

    Attributes:
        ask: for what.
        follow: go on with the events to come.
        since: only events from then on, in the form of ``time`` of an event; None for all that
            are remembered.
        last: only so many of the remembered ones, the youngest; None for all.
        wanted: which events.
    """

    ask: Ask
    follow: bool = False
    since: str | None = None
    last: int | None = None
    wanted: Filter = Filter()

    def encode(self) -> bytes:
        """As a line, newline included."""
        document: dict[str, object] = {KEY: VERSION, "ask": self.ask.value}
        if self.ask is Ask.EVENTS:
            document |= {
                "follow": self.follow,
                "since": self.since,
                "last": self.last,
                "verdict": list(self.wanted.verdicts),
                "reason": list(self.wanted.reasons),
                "module": list(self.wanted.modules),
            }
        return line(document)

    @classmethod
    def decode(cls, text: bytes) -> Request:
        """From a line without its newline.

        Raises:
            ProtocolError: what is wrong with it.
        """
        document = _object(text)
        version = document.pop(KEY, None)
        if type(version) is not int:
            raise ProtocolError(f"the line lacks the protocol's number, {KEY!r}: {VERSION}")
        if version != VERSION:
            raise ProtocolError(
                f"this agent speaks protocol {VERSION}, not {version}; use the agent's own kmodgate"
            )
        asked = document.pop("ask", None)
        if asked not in tuple(Ask):
            raise ProtocolError(f"'ask' must be one of: {', '.join(Ask)}")
        if asked == Ask.STATUS:
            _no_more(document)
            return cls(Ask.STATUS)
        follow = document.pop("follow", False)
        since, last = document.pop("since", None), document.pop("last", None)
        if type(follow) is not bool:
            raise ProtocolError("'follow' must be true or false")
        if since is not None and not (isinstance(since, str) and _TIME.fullmatch(since)):
            raise ProtocolError("'since' must be a time like 2026-01-02T03:04:05.000000Z, or null")
        if last is not None and not (type(last) is int and 0 <= last <= 1 << 20):
            raise ProtocolError("'last' must be a number from 0, or null")
        wanted = Filter(
            _words(document, "verdict", VERDICTS), _words(document, "reason", REASONS), _patterns(document)
        )
        _no_more(document)
        return cls(Ask.EVENTS, follow, since, last, wanted)


def answer(kind: Answer, **more: object) -> bytes:
    """A line of the protocol itself."""
    return line({KEY: VERSION, "answer": kind.value, **more})


def read_answer(text: bytes) -> tuple[Answer, dict[str, Any]] | None:
    """A line of the protocol itself and its further keys; None for an event.

    Raises:
        ProtocolError: neither the one nor the other.
    """
    document = _object(text)
    if KEY not in document:
        if "event" not in document:
            raise ProtocolError("a line that is neither an event nor part of the protocol")
        return None
    version, kind = document.pop(KEY), document.pop("answer", None)
    if version != VERSION or kind not in tuple(Answer):
        raise ProtocolError(f"the agent speaks another protocol ({version!r:.20}); use its own kmodgate")
    return Answer(kind), document


def line(document: Mapping[str, object]) -> bytes:
    """A JSON object as one line of ASCII."""
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def _object(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ProtocolError("not one JSON object a line") from None
    except ProtocolError:
        raise
    except ValueError:
        raise ProtocolError("not one JSON object a line") from None
    if not isinstance(document, dict):
        raise ProtocolError("not one JSON object a line")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ProtocolError("a key stands twice")
    return document


def _no_number(word: str) -> float:
    raise ProtocolError(f"{word} is no JSON")


def _no_more(document: Mapping[str, Any]) -> None:
    for key in document:
        raise ProtocolError(f"unknown key {key[:40]!a}")


def _words(document: dict[str, Any], key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = document.pop(key, [])
    if not isinstance(words, list) or len(words) > len(allowed) or any(w not in allowed for w in words):
        raise ProtocolError(f"'{key}' must be a list of: {', '.join(allowed)}")
    return tuple(words)


def _patterns(document: dict[str, Any]) -> tuple[str, ...]:
    patterns = document.pop("module", [])
    if (
        not isinstance(patterns, list)
        or len(patterns) > MAX_MODULES
        or not all(isinstance(p, str) and 0 < len(p) <= MAX_PATTERN and p.isprintable() for p in patterns)
    ):
        raise ProtocolError(f"'module' must be a list of up to {MAX_MODULES} names")
    return tuple(patterns)


def _names(record: Mapping[str, object]) -> list[str]:
    names = []
    if isinstance(module := record.get("module"), str):
        names.append(_normal(module))
    if isinstance(path := record.get("path"), str):
        names.append(_normal(path.rpartition("/")[2].partition(".ko")[0]))
    return names


def _normal(name: str) -> str:
    return name.replace("-", "_")
