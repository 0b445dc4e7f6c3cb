# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of a rung of the ladder: the protocol that every backend has.

``bpf.BpfBackend`` is the model; its docstrings say what each part means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol, Self

from kmodgate.model import Api, Backend, By, Decision, KernelHistogram, Reason, Verdict, Verification

from . import abi
from .bpf import ProbeResult
from .superblocks import Superblock

# ruff: noqa: D102  # each is described where it is done


class Source(Protocol):
    """Something that the agent's loop waits for."""

    def fileno(self) -> int: ...


class PinTable(Protocol):
    """Which file systems count as pinned (``superblocks.Superblocks``)."""

    def identify(self, fd: int) -> Superblock: ...

    @property
    def root(self) -> Superblock | None: ...

    def pin(self, superblock: Superblock) -> None: ...

    def unpin(self, superblock: Superblock) -> None: ...

    def is_pinned(self, superblock: Superblock) -> bool: ...


class RungBackend(Protocol):
    """One rung at work. A context manager; leaving it lets go of what does not outlive the agent."""

    timings: dict[str, float]

    @property
    def backend(self) -> Backend: ...

    @property
    def adopted(self) -> bool: ...

    @property
    def last_seen(self) -> float | None: ...

    @property
    def pinned(self) -> bool: ...

    @property
    def root_pinned(self) -> bool: ...

    @property
    def superblocks(self) -> PinTable: ...

    @property
    def event_ring(self) -> Source: ...

    @property
    def trust_generation(self) -> int: ...

    # Life.

    def __enter__(self) -> Self: ...

    def __exit__(self, *_exc: object) -> None: ...

    def load(self) -> None: ...

    def attach(self) -> None: ...

    def settle(self) -> None: ...

    def probe(self) -> ProbeResult: ...

    def pin_links(self) -> list[str]: ...

    def program_fds(self) -> list[int]: ...

    def link_fds(self) -> list[int]: ...

    def detach(self) -> None: ...

    def forget(self) -> None: ...

    # What the agent says.

    def introduce(self, root_fd: int) -> tuple[int, int]: ...

    def configure(
        self,
        *,
        hold_seconds: float,
        max_size: int,
        wait_asleep: bool,
        wait_limit: int,
        sig_enforce: bool,
        lockdown: bool,
    ) -> None: ...

    def set_policy(self, table: tuple[Decision, ...]) -> int: ...

    def set_quiet(self, quiet: bool) -> None: ...

    def heartbeat(self) -> None: ...

    def stop_heartbeat(self) -> None: ...

    def trust_is(self, key: int) -> None: ...

    def forget_answers(self) -> None: ...

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None: ...

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None: ...

    def done(self, question: int) -> None: ...

    # What it tells the agent.

    def rings(self) -> tuple[Source, ...]: ...

    def questions(self) -> Iterator[abi.Question]: ...

    def events(self) -> Iterator[abi.Event]: ...

    def drain(self) -> Iterator[abi.Event]: ...

    # What it counts (``telemetry.collector.KernelCounters``).

    def loads(self) -> Iterator[tuple[Verdict, Reason, Api, By, int]]: ...

    def histogram(self, name: Literal["decision", "hold"]) -> KernelHistogram: ...

    def attempts(self) -> int: ...

    def undecided(self) -> int: ...

    def loaded_unseen(self) -> int: ...

    def misses(self) -> int: ...

    def lost(self) -> Mapping[str, int]: ...

    def errors(self) -> Mapping[str, int]: ...
