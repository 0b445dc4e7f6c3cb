# SPDX-License-Identifier: Apache-2.0
"""Module files as bytes: containers and naming strings.

Pure: no file I/O, no clock, no logging. Nothing here says anything about trust.
"""

from .decompress import decompress
from .modinfo import modinfo

__all__ = ["decompress", "modinfo"]
