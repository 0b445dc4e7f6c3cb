# SPDX-License-Identifier: Apache-2.0
"""Everywhere that events go, wired: the log on stdout, the sinks of the config, the socket.

The agent's loop hands an event to the log and goes on. Behind it stand queues that never wait:
one for stdout, one for each sink, and the last events for whoever asks over the socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from .config import EventSinks, FileSinkConfig, OtlpSinkConfig
from .errors import KmodgateError
from .local.place import Listening
from .local.recent import Recent
from .local.server import LocalServer
from .telemetry.events import EventLog
from .telemetry.filesink import FileTarget
from .telemetry.lines import Loss, Stream
from .telemetry.sink import Sink, SinkCounts, Target
from .telemetry.sinkmetrics import EventSink

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 2.0
"""That all sinks together have at the end."""

SinkConfig = FileSinkConfig | OtlpSinkConfig


class Outlets:
    """The ways out of one agent. A context manager; leaving it writes what waits, within bounds.

    Args:
        stream: stdout.
        node: Kubernetes name of the node.
        log_all: tell routine loads too.
        close_seconds: that all sinks together have at the end.

    Attributes:
        node: as given.
        started: Unix time at which they were made, with the agent.
        log: where the agent's loop puts events.
        recent: the last of them.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        node: str | None = None,
        log_all: bool = False,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self.node = node
        self.started = time.time()
        self._close_seconds = close_seconds
        self.recent = Recent()
        self.log = EventLog(stream, node=node, log_all=log_all)
        self.log.tap(self.recent.put)
        self.log.tap(self._put)
        self._lock = threading.Lock()
        self._sinks: dict[EventSink, tuple[SinkConfig, Sink]] = {}
        self._running: tuple[Sink, ...] = ()
        self._ending: list[tuple[EventSink, Sink]] = []
        self._ended: dict[EventSink, SinkCounts] = {}
        self._server: LocalServer | None = None

    def _put(self, record: Mapping[str, object], line: bytes) -> None:
        for sink in self._running:
            sink.put(record, line)

    def configure(self, wanted: EventSinks) -> None:
        """Have these sinks, from now on; those that stay the same are left alone. Never waits."""
        configs: dict[EventSink, SinkConfig | None] = {
            EventSink.FILE: wanted.file,
            EventSink.OTLP: wanted.otlp,
        }
        with self._lock:
            for name, config in configs.items():
                present = self._sinks.get(name)
                if present is not None and present[0] == config:
                    continue
                if present is not None:
                    present[1].stop(self._close_seconds)
                    self._ending.append((name, present[1]))
                    del self._sinks[name]
                if config is not None:
                    sink = Sink(name.value, self._target(config), statements=self.log.missing_events())
                    self._sinks[name] = (config, sink)
                    log.info("event sink %s: %s", name, _where(config))
            self._running = tuple(sink for _, sink in self._sinks.values())
            for name, sink in [pair for pair in self._ending if pair[1].over]:
                self._ended[name] = _sum([sink.counts(), *filter(None, [self._ended.get(name)])])
                self._ending.remove((name, sink))

    def _target(self, config: SinkConfig) -> Target:
        if isinstance(config, FileSinkConfig):
            return FileTarget(config.path, max_size=config.max_size, max_files=config.max_files)
        from .telemetry.otlpsink import OtlpEndpoint, OtlpTarget  # noqa: PLC0415  # few nodes need it

        endpoint = OtlpEndpoint(
            config.host,
            config.port,
            config.path,
            config.tls,
            config.ca_certificate,
            config.bearer_token_file,
            config.timeout,
            config.client_certificate,
            config.client_key,
        )
        return OtlpTarget(endpoint, node=self.node)

    def reopen(self) -> None:
        """SIGHUP: files may have been renamed, certificates renewed."""
        for sink in self._running:
            sink.reopen()

    def counts(self) -> Mapping[EventSink, SinkCounts]:
        """What became of the events of each sink, those before the last reload too."""
        with self._lock:
            parts = [(name, sink.counts()) for name, (_, sink) in self._sinks.items()]
            parts += [(name, sink.counts()) for name, sink in self._ending]
            parts += self._ended.items()
        counts = {EventSink.STDOUT: SinkCounts(self.log.written(), self.log.lost())}
        for name in EventSink:
            own = [found for sink, found in parts if sink is name]
            if own:
                counts[name] = _sum(own)
        return counts

    def serve(
        self,
        status: Callable[[], Mapping[str, object]],
        listen: Callable[[], Listening] = Listening,
    ) -> None:
        """Answer ``kmodgate status`` and ``kmodgate events``, once. An agent that cannot still enforces."""
        if self._server is not None:
            return
        try:
            listening = listen()
        except KmodgateError as error:
            log.error("no `kmodgate status` and `kmodgate events` on this node: %s", error)
            return
        self._server = LocalServer(
            listening, status=status, recent=self.recent, missing=self.log.missing_events
        )
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()
        running, self._running = self._running, ()
        for sink in running:
            sink.stop(self._close_seconds)  # all of them, then wait: the bound is for all together
        for sink in (*running, *(sink for _, sink in self._ending)):
            sink.join()
        self.log.close(self._close_seconds)


def _sum(parts: Sequence[SinkCounts]) -> SinkCounts:
    return SinkCounts(
        sum(part.sent for part in parts),
        {cause: sum(part.dropped[cause] for part in parts) for cause in Loss},
    )


def _where(config: SinkConfig) -> str:
    return str(config.path) if isinstance(config, FileSinkConfig) else config.endpoint
