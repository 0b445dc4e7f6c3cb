# SPDX-License-Identifier: Apache-2.0
"""What each rung of the ladder can do: one table, for ``doctor``, the docs and the tests in guests.

Fields are those of a ``module_load`` event (docs/events.md). One that a rung cannot know is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from kmodgate.model import Backend

CALLER: Final = ("pid", "ppid", "comm", "exe", "uid", "workload")
FILE: Final = ("origin", "path", "file_system", "device", "inode", "size")
BYTES: Final = ("sha256", "signer", "signature_status", "signature_detail", "trusted_by")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """One rung.

    Attributes:
        refuses: it can refuse a load by itself.
        certificates: configured certificates can admit a module.
        revocations: what is revoked can be refused.
        load_pin: it refuses what lies outside the pinned root.
        pinned_root_exempt: it can exempt the pinned root from signatures.
        compat: calls of 32-bit programs are seen as attempts; without, only what got in is noticed.
        outlives_agent: what it enforces goes on without the agent, and its counts too.
        exact: every attempt is counted; False where the kernel may skip a program or a record.
        unknown: fields that are always null.
        fleeting: fields that are null where the caller had gone before the agent looked.
        unasked: fields that can be null for a load that the rung refuses by itself, or would: nobody has
            read it.
    """

    refuses: bool
    certificates: bool
    revocations: bool
    load_pin: bool
    pinned_root_exempt: bool
    compat: bool
    outlives_agent: bool
    exact: bool
    unknown: tuple[str, ...] = ()
    fleeting: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


_ALL: Final = Capabilities(
    refuses=True,
    certificates=True,
    revocations=True,
    load_pin=True,
    pinned_root_exempt=True,
    compat=True,
    outlives_agent=True,
    exact=True,
)

CAPABILITIES: Final[Mapping[Backend, Capabilities]] = MappingProxyType(
    {
        Backend.BPF_LSM: _ALL,
        Backend.BPF_FMOD_RET: replace(_ALL, exact=False),
        Backend.BPF_LSM_BASIC: replace(
            _ALL,
            certificates=False,
            revocations=False,
            unknown=("sha256", "signer"),
            unasked=("module", "signature_detail", "size"),
        ),
        # Where the kernel allows a kprobe to refuse (docs/adr/0016); elsewhere it watches.
        Backend.BCC: replace(
            _ALL,
            outlives_agent=False,
            exact=False,
            unknown=("sha256", "signer"),
            unasked=("signature_detail",),
        ),
        Backend.TRACEFS: Capabilities(
            refuses=False,
            certificates=False,
            revocations=False,
            load_pin=False,
            pinned_root_exempt=False,
            compat=False,
            outlives_agent=False,
            exact=False,
            fleeting=(*CALLER, *FILE, *BYTES),
        ),
    }
)
"""By rung."""

_QUESTIONS: Final = (
    ("refuses a load by itself", "refuses"),
    ("LoadPin", "load_pin"),
    ("`trust.certificates` admit", "certificates"),
    ("revocations", "revocations"),
    ("`pinnedRootExempt`", "pinned_root_exempt"),
    ("sees attempts of 32-bit callers", "compat"),
    ("goes on without the agent, counts too", "outlives_agent"),
    ("counts every attempt", "exact"),
)


def page() -> str:
    """docs/capabilities.md, which a test compares with this."""
    backends = list(CAPABILITIES)
    rows = [
        "| | " + " | ".join(f"`{backend}`" for backend in backends) + " |",
        "|---|" + "---|" * len(backends),
    ]
    for text, name in _QUESTIONS:
        answers = ("yes" if getattr(CAPABILITIES[backend], name) else "no" for backend in backends)
        rows.append(f"| {text} | {' | '.join(answers)} |")
    for text, name in (
        ("always null in events", "unknown"),
        ("null once the caller is gone", "fleeting"),
        ("can be null where it refuses or would, and a better backend knows", "unasked"),
    ):
        fields = (getattr(CAPABILITIES[backend], name) for backend in backends)
        words = (", ".join(f"`{field}`" for field in some) or "nothing" for some in fields)
        rows.append(f"| {text} | {' | '.join(words)} |")
    return _PAGE.format(table="\n".join(rows))


_PAGE: Final = """\
# What each backend can do

Made by `python -m kmodgate.hooks.capabilities`, from the table that `kmodgate doctor` and the tests in
guests read. What a backend that refuses nothing leaves to the kernel is
[here](operations.md#nodes-without-bpf-tracefs). `bcc` refuses where the kernel lets a kprobe
do so, and watches elsewhere; what is weaker there is in [adr/0016](adr/0016-what-a-kprobe-can-refuse.md).

{table}
"""

if __name__ == "__main__":
    print(page(), end="")
