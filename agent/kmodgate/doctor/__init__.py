# SPDX-License-Identifier: Apache-2.0
"""What a node can do: looked at, judged, and put into lines with remedies.

``look`` reads the node and attaches nothing; ``ladder`` judges each backend, ``checks`` each
property. The judging is pure. What was not seen is ``unknown``, never assumed to be fine.
"""

from __future__ import annotations

from .checks import checks
from .ladder import Rung, rungs
from .line import Check, State
from .look import look
from .report import Answer, Diagnosis, diagnose
from .seen import Purpose, Seen

__all__ = [
    "Answer",
    "Check",
    "Diagnosis",
    "Purpose",
    "Rung",
    "Seen",
    "State",
    "checks",
    "diagnose",
    "look",
    "rungs",
]
