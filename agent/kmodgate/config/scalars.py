# SPDX-License-Identifier: Apache-2.0
"""Words with a unit or a shape: durations, sizes, addresses, labels, paths. Pure.

Every function takes what YAML made of the word and raises ``ValueError`` with a
message that ends in the remedy; the caller knows the line.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from .values import NANOSECONDS, ListenAddress, LoadPinSetting

MAX_HOLD_TIMEOUT_NS = 5 * NANOSECONDS
# The digest in the kernel takes 64 bytes a turn and at most 2^23 turns (BPF_MAX_LOOPS);
# half of that leaves room for padding and keeps a digest within seconds.
MAX_MODULE_SIZE = 256 << 20
MIN_MODULE_SIZE = 1 << 20

_BILLION = 10**9
_UNIT_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": NANOSECONDS, "m": 60 * NANOSECONDS}
_DURATION = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?(ns|us|µs|ms|s|m)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15}) ?(KiB|Ki|MiB|Mi|GiB|Gi|B)?", re.ASCII)
_SIZE_SHIFT = {"B": 0, "KiB": 10, "Ki": 10, "MiB": 20, "Mi": 20, "GiB": 30, "Gi": 30}
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", re.ASCII)
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_DNS_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_MAX_DNS_NAME = 253
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_MAX_PORT = 65535
_MAX_PATH = 4096


def hold_timeout(value: object) -> int:
    """``"250ms"``, ``"1s"``, ``"1s500ms"`` or 0, in nanoseconds, within 0 to 5 s."""
    too_long = "a load may wait 5s at most"
    return duration(value, MAX_HOLD_TIMEOUT_NS, too_long, '250ms" or "1s')


def duration(value: object, longest: int, too_long: str, example: str) -> int:
    """A duration with a unit, or 0, in nanoseconds.

    Args:
        value: what stands in the file.
        longest: nanoseconds.
        too_long: what is said of a longer one.
        example: a good one.
    """
    remedy = f'write it with a unit, like "{example}"'
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    if not isinstance(value, str):
        raise ValueError(f"must be a duration; {remedy}")  # noqa: TRY004  # see the module
    # In billionths of a nanosecond, to be exact: up to nine digits follow the point.
    total, position = 0, 0
    while match := _DURATION.match(value, position):
        total += int(match[1] + (match[2] or "").ljust(9, "0")) * _UNIT_NS[match[3]]
        position = match.end()
    if position == 0 or position != len(value):
        raise ValueError(f"{shown(value)} is no duration; {remedy}")
    if total > longest * _BILLION:
        raise ValueError(f"{shown(value)} is too long: {too_long}; {remedy}")
    return total // _BILLION


def module_size(value: object) -> int:
    """``"64MiB"``, ``"64Mi"`` or a number of bytes, within 1 MiB to 256 MiB."""
    return size_within(value, MIN_MODULE_SIZE, MAX_MODULE_SIZE, "1MiB to 256MiB")


def size_within(value: object, least: int, most: int, range_: str) -> int:
    """``"64MiB"``, ``"64Mi"`` or a number of bytes, within bounds that ``range_`` names."""
    remedy = 'write it like "64MiB"'
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError(f"must be a size; {remedy}")  # noqa: TRY004  # see the module
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is no size; {remedy} (B, KiB, MiB, GiB)")
    size = int(match[1]) << _SIZE_SHIFT[match[2] or "B"]
    if not least <= size <= most:
        raise ValueError(f"{shown(text)} is out of range {range_}; {remedy}")
    return size


def sha256(value: object) -> bytes:
    """A SHA-256 in 64 hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(
            "must be 64 hexadecimal digits in quotes: the SHA-256 of the token, not the token itself"
        )
    return bytes.fromhex(value)


def listen(value: object) -> ListenAddress:
    """``host:port``, with an IPv6 address in brackets."""
    remedy = 'write it like "127.0.0.1:9464" or "[::1]:9464"'
    if not isinstance(value, str):
        raise ValueError(f"must be host:port; {remedy}")  # noqa: TRY004  # see the module
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise ValueError(f"{shown(value)} is not host:port; {remedy}")
    ipv6, name, port = match[1], match[2], int(match[3])
    if port > _MAX_PORT:
        raise ValueError(f"port {port} is above {_MAX_PORT}; {remedy}")
    if not (_is_ipv6(ipv6) if ipv6 else _is_ipv4(name) or _is_host_name(name)):
        raise ValueError(f"{shown(ipv6 or name)} is neither an address nor a host name; {remedy}")
    return ListenAddress(ipv6 or name, port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_host_name(text: str) -> bool:
    """RFC 1123: labels of letters, digits and hyphens; digits alone would be a broken address."""
    labels = text.split(".")
    return (
        len(text) <= _MAX_DNS_NAME
        and all(_HOST_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdecimal()
    )


def load_pin(value: object) -> object:
    """``auto``, ``on``, ``off``; YAML 1.1 reads a bare ``on`` as true and ``off`` as false."""
    if value is True:
        return LoadPinSetting.ON
    if value is False:
        return LoadPinSetting.OFF
    return value


def label_key(key: str) -> str:
    """A Kubernetes label key: ``name`` or ``dns.prefix/name``."""
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or (len(prefix) <= _MAX_DNS_NAME and _DNS_NAME.fullmatch(prefix))
    if not good_prefix or not _LABEL_PART.fullmatch(name):
        raise ValueError(
            f"{shown(key)} is no Kubernetes label key; write it as `kubectl get nodes --show-labels` does"
        )
    return key


def label_value(value: object) -> str:
    """A Kubernetes label value: a string of up to 63 characters, maybe empty."""
    if not isinstance(value, str):
        raise ValueError("must be a string, as label values are; put it in quotes")  # noqa: TRY004  # see the module
    if value and not _LABEL_PART.fullmatch(value):
        raise ValueError(
            f"{shown(value)} is no Kubernetes label value; write up to 63 letters, digits, '-', '_' or '.'"
        )
    return value


def path(value: object) -> Path:
    """The path of a file, as written."""
    if not isinstance(value, str) or not value or "\0" in value or len(value) > _MAX_PATH:
        raise ValueError("must be the path of a file; write a string")
    if value.lstrip().startswith("-----BEGIN"):
        raise ValueError("holds a certificate where its path belongs; put the certificate into a file")
    return Path(value)


def directory_pattern(value: object) -> str:
    """An absolute directory, each part maybe a shell pattern, as written."""
    remedy = 'write it like "/lib/modules/*/updates"'
    if not isinstance(value, str) or not value or "\0" in value or len(value) > _MAX_PATH:
        raise ValueError(f"must be the path of a directory; {remedy}")
    parts = value.split("/")
    if parts[0] or not any(parts):
        raise ValueError(f"{shown(value)} is no absolute path below /; {remedy}")
    if ".." in parts:
        raise ValueError(f"{shown(value)} leads back up; {remedy}")
    if any("**" in part for part in parts):
        raise ValueError(f"{shown(value)}: '**' is not needed, what lies below is looked at, too; {remedy}")
    return value


def shown(value: str) -> str:
    """A word from the file, quoted, escaped and cut for a message."""
    limit = 60
    return ascii(value if len(value) <= limit else value[:limit] + "...")
