# SPDX-License-Identifier: Apache-2.0
"""The part of the table of metrics (``metrics``) that is about event sinks."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from .lines import Loss
from .table import Kind, Label, Metric


class EventSink(StrEnum):
    """Where events go: the log on stdout, the sinks of ``kmodgate.eventSinks``."""

    STDOUT = "stdout"
    FILE = "file"
    OTLP = "otlp"


EVENT_SINK_SENT: Final = Metric(
    "kmodgate_event_sink_sent_total",
    Kind.COUNTER,
    "Events that a sink has taken.",
    "Stands still while `stdout` rises: that sink is broken. A sink that is not configured has no series.",
    (Label("sink", tuple(EventSink)),),
)
EVENT_SINK_DROPPED: Final = Metric(
    "kmodgate_event_sink_dropped_total",
    Kind.COUNTER,
    "Events that a sink did not get, by why.",
    "`queue_full`: it takes less than there is. `write_failed`: it refused, was away for too long, or the "
    "agent ended; the agent's log says what it answered. The other sinks have these events, and so has "
    "`kmodgate events`.",
    (Label("sink", tuple(EventSink)), Label("cause", tuple(Loss))),
)
