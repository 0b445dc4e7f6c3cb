# SPDX-License-Identifier: Apache-2.0
"""Diagnostics: one line a message, whatever is in it."""

from __future__ import annotations

import json
import logging
import os
import re

from kmodgate.telemetry import log as diagnostics
from kmodgate.telemetry.lines import Loss


def written(form: diagnostics.Form, *, level: str = "info") -> list[str]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as r:
        with os.fdopen(writer, "wb") as stream:
            handler = diagnostics.configure(stream, level=level, form=form)
            logger = logging.getLogger("kmodgate.agent")
            logger.debug("hidden")
            logger.warning("file %s is odd", "a\nb\x1b[31m\u202e")
            try:
                raise ValueError("bad\nvalue")  # noqa: TRY301  # the test needs a traceback
            except ValueError:
                logger.exception("it broke")
            logger.info("wrong %d", "arguments")
            handler.close()
        return r.read().decode().splitlines()


def test_text_lines() -> None:
    first, second, third = written(diagnostics.Form.TEXT)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z WARNING kmodgate\.agent: "
        r"file a\\x0ab\\x1b\[31m\\u202e is odd",
        first,
    )
    assert "it broke [ValueError: bad\\x0avalue; at written (test_diagnostics.py:" in second
    assert "could not be formatted" in third


def test_json_lines() -> None:
    first, second, _ = written(diagnostics.Form.JSON)
    assert json.loads(first) | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "kmodgate.agent",
        "message": "file a\\x0ab\\x1b[31m\\u202e is odd",
    }
    assert json.loads(second)["error"].startswith("ValueError: bad\\x0avalue; at ")


def test_level_and_replacement() -> None:
    assert len(written(diagnostics.Form.TEXT, level="debug")) == 4
    assert len(written(diagnostics.Form.TEXT, level="error")) == 1
    assert len(logging.getLogger(diagnostics.ROOT).handlers) == 1


def test_lost_lines_are_stated() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as r:
        with os.fdopen(writer, "wb") as stream:
            handler = diagnostics.LineHandler(stream, interval=3600)
            handler._writer._lost[Loss.QUEUE_FULL] = 3
            handler.close()
        assert r.read().decode().endswith("WARNING kmodgate.log: 3 lines were lost\n")
