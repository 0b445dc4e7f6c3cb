# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the world: metrics, the event log, diagnostics, health.

Nothing here decides anything, and nothing here can hold a decision up: counts are read
from the kernel when somebody scrapes, and lines are written by a thread of their own.
This file imports nothing, so that the event log does not load the Prometheus client.
"""
