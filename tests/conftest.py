# SPDX-License-Identifier: Apache-2.0
"""Lets tests import shared test code as ``tests.…``, however pytest was started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
