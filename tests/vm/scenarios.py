# SPDX-License-Identifier: Apache-2.0
"""One behavioural suite for every rung: loads, what each policy says of them, and what a rung does about it.

The only table of expectations: ``SCENARIOS`` is the policy's, ``STANCES`` the rung's. What a rung
cannot know of a load is in ``kmodgate.hooks.capabilities``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from tests.vm import lab

from kmodgate.model import Backend


class Stance(Enum):
    """What becomes of a load that the policy denies."""

    REFUSES = "the rung refuses it"
    KERNEL = "the kernel refuses it, told to by a switch"
    WATCHES = "it goes on and is told as would_deny: audit"
    CANNOT = "the config is refused"


POLICIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "audit signatures": {"policy": lab.ENFORCE, "mode": "audit", "trust": {}},
    "audit LoadPin": {"policy": lab.DO_NOT_ENFORCE, "loadPin": "on", "mode": "audit", "trust": {}},
    "nothing": {"policy": lab.DO_NOT_ENFORCE, "loadPin": "off", "trust": {}},
    "LoadPin": {"policy": lab.DO_NOT_ENFORCE, "loadPin": "on", "trust": {}},
    "signatures": {"policy": lab.ENFORCE, "trust": {}},
}
"""In this order: ``module.sig_enforce``, which the last one may set, stays set until the next boot."""

_AUDIT: Final = dict.fromkeys(("audit signatures", "audit LoadPin", "nothing"), Stance.WATCHES)
_REFUSES: Final = {**_AUDIT, "LoadPin": Stance.REFUSES, "signatures": Stance.REFUSES}
STANCES: Final[Mapping[str, Mapping[Backend, Mapping[str, Stance]]]] = {
    # Debian's kernel: no LoadPin of its own, no function whose errors may be injected.
    "bookworm+bcc": {
        Backend.BPF_LSM: _REFUSES,
        Backend.BPF_FMOD_RET: _REFUSES,
        Backend.BPF_LSM_BASIC: _REFUSES,
        Backend.BCC: {**_AUDIT, "LoadPin": Stance.CANNOT, "signatures": Stance.CANNOT},
        Backend.TRACEFS: {**_AUDIT, "LoadPin": Stance.CANNOT, "signatures": Stance.KERNEL},
    },
    # The kernel's keyrings speak after a kprobe has decided. Trace events of system calls are not built in.
    "override": {
        Backend.BCC: {**_AUDIT, "LoadPin": Stance.REFUSES, "signatures": Stance.CANNOT},
    },
    "nobpf": {
        Backend.TRACEFS: {**_AUDIT, "LoadPin": Stance.KERNEL, "signatures": Stance.KERNEL},
    },
}
"""By guest (``vmtool.artifacts.parts``): what each of its rungs does under each policy; best rung first."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load, and what the policies say of it.

    Attributes:
        name: of the scenario.
        load: does it, with the folder of test modules; a file's descriptor is given, and stays open.
        path: the file, None for memory.
        denied: by policy: the reason and errno where it denies the load.
        allowed: by policy: the reason where it lets it in.
        by_kernel: whatever the policy: the reason and errno with which the kernel refuses it by itself.
    """

    name: str
    path: Callable[[Path], Path] | None
    load: Callable[[Path, int], lab.Loaded]
    denied: Mapping[str, tuple[str, str]]
    allowed: Mapping[str, str]
    by_kernel: tuple[str, str] | None = None


def _file(_folder: Path, descriptor: int) -> lab.Loaded:
    return lab.finit_fd(descriptor)


_KEPT: Final[dict[str, bytes]] = {}
"""Images in the caller's memory, which a rung that watches reads when the call is over."""


def _memory(name: str) -> Callable[[Path, int], lab.Loaded]:
    def load(folder: Path, _descriptor: int) -> lab.Loaded:
        return lab.init(_KEPT.setdefault(name, (folder / name).read_bytes()))

    return load


def _unsigned(reason: str, errno: str = "EKEYREJECTED") -> dict[str, tuple[str, str]]:
    return dict.fromkeys(("audit signatures", "signatures"), (reason, errno))


def _pinned(reason: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(("audit LoadPin", "LoadPin"), (reason, "EPERM"))


_FREE: Final = {"nothing": "not_restricted"}
_TRUSTED: Final = dict.fromkeys(("audit signatures", "signatures"), "trusted_signature")
_ROOT: Final = dict.fromkeys(("audit LoadPin", "LoadPin"), "pinned_root")


def _on_tmpfs(name: str) -> Callable[[Path], Path]:
    return lambda folder: folder / name


SCENARIOS: Final = (
    Scenario(
        "a module of the kernel's own, on the pinned root",
        lambda _folder: lab.in_tree("dummy"),
        _file,
        denied={},
        allowed={**_FREE, **_TRUSTED, **_ROOT},
    ),
    Scenario(
        "an unsigned module on another file system",
        _on_tmpfs("kmgtest.unsigned.ko"),
        _file,
        denied={**_unsigned("unsigned"), **_pinned("outside_pinned_root")},
        allowed=_FREE,
    ),
    Scenario(
        "an unsigned module on the pinned root",
        lambda _folder: Path("/root/kmgtest.unsigned.ko"),
        _file,
        denied=_unsigned("unsigned"),
        allowed={**_FREE, **_ROOT},
    ),
    Scenario(
        "an unsigned module from memory",
        None,
        _memory("kmgtest.unsigned.ko"),
        denied={**_unsigned("unsigned"), **_pinned("no_file")},
        allowed=_FREE,
    ),
    Scenario(
        "a stranger's module",
        _on_tmpfs("kmgtest.stranger.ko"),
        _file,
        denied={**_unsigned("untrusted_signer"), **_pinned("outside_pinned_root")},
        allowed=_FREE,
    ),
    Scenario(
        "a module of the kernel's own with a byte changed",
        _on_tmpfs("dummy.tampered.ko"),
        _file,
        denied={**_unsigned("bad_signature"), **_pinned("outside_pinned_root")},
        allowed=_FREE,
        by_kernel=("bad_signature", "EKEYREJECTED"),
    ),
)

INSTEAD: Final[Mapping[tuple[Backend, str], Mapping[str, str]]] = {
    # Under sig_enforce the kernel has one number for both, and the agent does not have its certificates.
    (Backend.TRACEFS, "signatures"): {"bad_signature": "untrusted_signer"},
}
"""Reasons that a rung cannot tell from others under a policy."""

VOLATILE: Final = frozenset({"sequence", "time", "hold_us", "decision_us"})
"""Fields that differ from load to load on one rung."""
