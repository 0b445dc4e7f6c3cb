# SPDX-License-Identifier: Apache-2.0
"""The configuration that the kernel was built with, where the node keeps it.

Sources: ``/proc/config.gz`` (``kernel/configs.c``), ``/boot/config-RELEASE`` (a habit of
distributions).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from .paths import MAX_BYTES, NodePaths, read_bytes

_SET = re.compile(r"^CONFIG_([A-Z0-9a-z_]+)=(.*)$", re.MULTILINE | re.ASCII)
_NOT_SET = re.compile(r"^# CONFIG_([A-Z0-9a-z_]+) is not set$", re.MULTILINE | re.ASCII)
_GZIP = 16 + zlib.MAX_WBITS


def parse_kconfig(text: str) -> Mapping[str, str]:
    """Options without ``CONFIG_``; ``"n"`` for those that are named as not set. Never raises."""
    options = dict.fromkeys(_NOT_SET.findall(text), "n")
    options.update((name, value.strip().strip('"')) for name, value in _SET.findall(text))
    return MappingProxyType(options)


def read_kconfig(paths: NodePaths, release: str | None) -> Mapping[str, str] | None:
    """The running kernel's options, or None when the node does not tell.

    An option that the answer leaves out is not built (``n``): its menu is off.
    """
    data = read_bytes(paths.proc / "config.gz")
    text = None if data is None else _inflate(data)
    if text is None and release is not None and "/" not in release:
        data = read_bytes(paths.boot / f"config-{release}")
        text = None if data is None else data.decode("utf-8", "replace")
    options = parse_kconfig(text or "")
    return options or None


def _inflate(data: bytes) -> str | None:
    try:
        inflated = zlib.decompressobj(_GZIP).decompress(data, MAX_BYTES)
    except zlib.error:
        return None
    return inflated.decode("utf-8", "replace")
