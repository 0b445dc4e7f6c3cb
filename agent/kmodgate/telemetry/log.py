# SPDX-License-Identifier: Apache-2.0
"""Diagnostics on stderr: one line each, in text or JSON, hostile strings escaped.

Events about modules do not belong here; they go to the event log on stdout. Lines are
written by a thread of their own (``lines``), because stderr of a pod is a pipe as well, and
a full one must not stop the agent.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Final

from .lines import LineWriter, Loss, Statement, Stream
from .text import printable

MESSAGE_LIMIT: Final = 2048
"""Characters of one message."""

ROOT: Final = "kmodgate"


class Form(StrEnum):
    """How a line is written."""

    TEXT = "text"
    JSON = "json"


class LineFormatter(logging.Formatter):
    """``2026-01-02T03:04:05.678901Z WARNING kmodgate.agent: message`` or the same as JSON.

    An exception is told in the same line: its type, its message, and the calls that led to
    it, innermost last.
    """

    def __init__(self, form: Form = Form.TEXT) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line without its newline."""
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        message = printable(record.getMessage(), MESSAGE_LIMIT)
        error = None
        if record.exc_info and record.exc_info[1] is not None:
            error = printable(describe_error(record.exc_info[1]), MESSAGE_LIMIT)
        if self._form is Form.TEXT:
            tail = f" [{error}]" if error else ""
            return f"{when} {record.levelname} {record.name}: {message}{tail}"
        line: dict[str, str] = {
            "time": when,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        if error:
            line["error"] = error
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


class LineHandler(logging.Handler):
    """Hands each line to a ``LineWriter`` and says how many were lost, once lines flow again."""

    def __init__(self, stream: Stream, form: Form = Form.TEXT, *, interval: float = 5.0) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(form))
        self._stated = 0
        self._writer = LineWriter(stream, interval=interval, statements=self._statement)

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits, never raises."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # a bad log call must not stop the agent
            line = f"a log call in {record.name} line {record.lineno} could not be formatted"
        self._writer.put(line.encode("utf-8", "backslashreplace") + b"\n")

    def close(self) -> None:
        """Write what waits; called by ``logging.shutdown`` as well."""
        self._writer.close()
        super().close()

    def _statement(self, lost: Mapping[Loss, int], *, final: bool) -> Statement | None:
        del final
        total = sum(lost.values())
        if total == self._stated:
            return None
        record = logging.LogRecord(
            f"{ROOT}.log", logging.WARNING, "", 0, "%d lines were lost", (total - self._stated,), None
        )

        def delivered() -> None:
            self._stated = total

        return Statement(self.format(record).encode() + b"\n", delivered)


def configure(stream: Stream, *, level: str = "info", form: Form = Form.TEXT) -> LineHandler:
    """Send what kmodgate logs to ``stream``, usually ``sys.stderr``.

    Args:
        stream: where to; only its descriptor is used.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: text or JSON.

    Returns:
        The handler; close it at the end. A second call replaces the first one's handler.
    """
    logger = logging.getLogger(ROOT)
    for old in [handler for handler in logger.handlers if isinstance(handler, LineHandler)]:
        logger.removeHandler(old)
        old.close()
    handler = LineHandler(stream, form)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return handler


def describe_error(error: BaseException) -> str:
    """``ValueError: text; at run (agent.py:12) > read (maps.py:40)``, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    calls = " > ".join(f"{f.name} ({PurePath(f.filename).name}:{f.lineno})" for f in frames)
    text = f"{type(error).__name__}: {error}"
    return f"{text}; at {calls}" if calls else text
