# SPDX-License-Identifier: Apache-2.0
"""What ``status`` and ``events`` have in common: the agent's socket, and words for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kmodgate.cli import terminal
from kmodgate.local.place import SOCKET

if TYPE_CHECKING:
    from rich.text import Text

VERDICT_STYLES: Final = {"deny": terminal.BAD, "would_deny": terminal.UNSURE, "allow": terminal.GOOD}
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def socket_option() -> Callable[[click.decorators.FC], click.decorators.FC]:
    """``--socket PATH``: where the agent listens."""
    return click.option(
        "--socket",
        "path",
        metavar="PATH",
        type=click.Path(path_type=Path),
        default=SOCKET,
        show_default=True,
        help="Where the agent listens.",
    )


def shown(value: object, style: str = "") -> Text:
    """A value of the agent as a cell. Its strings are escaped already; what is not is escaped here."""
    from rich.text import Text

    text = "-" if value is None else str(value)
    return Text(text if text.isprintable() else terminal.printable(text), style)


def moment(value: str | None) -> str:
    """A time of the agent, to the second."""
    return "-" if value is None else value[:19].replace("T", " ") + " UTC"


def span(seconds: float) -> str:
    """``3 h 12 min``: a length of time in its two largest units."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    parts.append(f"{left} s")
    return " ".join(parts[:2])


def signer(record: Mapping[str, Any]) -> str | None:
    """Whom the file names as its signer, in the shortest words."""
    found = record.get("signer")
    if not isinstance(found, Mapping):
        return None
    name = found.get("subject") or found.get("issuer") or found.get("skid")
    return None if name is None else str(name)


def pod(record: Mapping[str, Any]) -> str | None:
    """The pod, or else the container."""
    found = record.get("pod")
    if isinstance(found, Mapping):
        name, space = found.get("name"), found.get("namespace")
        return str(found.get("uid")) if name is None else f"{space}/{name}"
    container = record.get("container_id")
    return None if container is None else f"container {str(container)[:12]}"


def module(record: Mapping[str, Any]) -> str | None:
    """The module's name, else its file's; None for bytes from memory without a name."""
    name = record.get("module")
    if name is None and isinstance(record.get("path"), str):
        name = record["path"].rpartition("/")[2]
    return None if name is None else str(name)
