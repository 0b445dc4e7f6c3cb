# SPDX-License-Identifier: Apache-2.0
"""kmodgate: decides which kernel modules a Linux node may load."""

__version__ = "0.1.0"
