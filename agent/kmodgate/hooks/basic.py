# SPDX-License-Identifier: Apache-2.0
"""The ``bpf-lsm-basic`` rung: ``bpf/kmodgate_basic.bpf.c``, for kernels without ``bpf_loop``.

LoadPin and the kernel's keyrings decide. The programs take no digest, so they put no question to
the agent and look at none of its answers; ``rungs.refusals`` says which policies that excludes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import ClassVar

from kmodgate.model import Backend, Verification

from . import abi, libbpf
from .bpf import BpfBackend


class BasicBackend(BpfBackend):
    """Programs, maps and counters of the basic object."""

    backend: ClassVar[Backend] = Backend.BPF_LSM_BASIC
    object_name: ClassVar[str] = "kmodgate_basic.bpf.o"
    required: ClassVar[tuple[str, ...]] = ("mod_verify_sig",)

    def _open_maps(self) -> None:
        """No questions, no answers; and the map that ``kmg_introduce`` answers in."""
        self._open_tables()
        self._introduction = abi.Introduction.from_buffer(
            self._shared("introduction", ctypes.sizeof(abi.Introduction))
        )

    def _identify(self, who: abi.Introduction) -> int:
        """A raw tracepoint program can be run on 5.10 and takes no argument: it uses a map."""
        self._introduction.fd = who.fd
        result = self._object.programs["kmg_introduce"].test_run()
        for name in ("device", "superblock", "task"):
            setattr(who, name, getattr(self._introduction, name))
        return result

    def rings(self) -> tuple[libbpf.RingBuffer, ...]:
        """There are events only."""
        return (self.event_ring,)

    def questions(self) -> Iterator[abi.Question]:
        """None are asked."""
        return iter(())

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """Nobody would look it up."""

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        """Nobody would ask."""

    def done(self, question: int) -> None:
        """Nobody waits."""
