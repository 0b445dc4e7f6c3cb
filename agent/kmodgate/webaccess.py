# SPDX-License-Identifier: Apache-2.0
"""The web config file of the HTTP server: read at start, and again whenever its files change.

Prometheus' own servers read theirs anew at each request, so that certificates can be renewed under
them. Here the files' times are looked at when somebody connects, at most once a second; a change that
cannot be used is told, and the last good state stays.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config import ListenAddress
from .config.web import WebConfig, parse_web
from .errors import KmodgateError
from .fsutil import read_regular_file
from .telemetry.access import Passwords, server_context
from .telemetry.collector import AgentMetrics
from .telemetry.http import Check, TelemetryServer

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 1 << 20
_LOOK: Final = 1.0  # seconds between two looks at the files

Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _State:
    """What is in force, and the files as they were when it was read."""

    config: WebConfig
    context: ssl.SSLContext | None
    passwords: Passwords


class WebAccess:
    """The access rules of one web config file (``telemetry.access.Access``).

    Args:
        path: of the file.
        now: seconds on a clock that never goes back.

    Raises:
        KmodgateError: the file, or one that it names, cannot be used.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._state = _read(path)
        self._stamp = self._stamped()
        self._looked = now()

    def context(self) -> ssl.SSLContext | None:
        """The TLS to offer now."""
        self._look()
        return self._state.context

    def admits(self, authorization: str | None) -> bool:
        """Whether this header may read everything."""
        return self._state.passwords.admits(authorization)

    def _look(self) -> None:
        with self._lock:
            if self._now() - self._looked < _LOOK:
                return
            self._looked = self._now()
            stamp = self._stamped()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                state = _read(self._path)
            except KmodgateError as error:
                log.error("web config not reloaded, the last good one stays: %s", error)
                return
            self._state = state
            log.info("web config reloaded")

    def _stamped(self) -> Stamp:
        return tuple(_stamp(path) for path in (self._path, *self._state.config.files))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _read(path: Path) -> _State:
    data = read_regular_file(path, _MAX_BYTES)
    config = parse_web(data, source=str(path), directory=path.parent)
    context = None
    if config.certificate is not None and config.key is not None:
        context = server_context(
            config.certificate,
            config.key,
            client_ca=config.client_ca,
            client_required=config.client_required,
            only_tls13=config.only_tls13,
        )
    return _State(config, context, Passwords(config.users))


def open_server(
    listen: ListenAddress,
    web_config: Path | None,
    *,
    metrics: AgentMetrics,
    healthy: Check,
    ready: Check,
) -> TelemetryServer:
    """The HTTP server that the config asks for, not started yet.

    Raises:
        KmodgateError: the address cannot be had, or the web config cannot be used.
    """
    access = None if web_config is None else WebAccess(web_config)
    return TelemetryServer(
        listen.host, listen.port, registry=metrics.registry, healthy=healthy, ready=ready, access=access
    )
