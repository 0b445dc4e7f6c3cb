# SPDX-License-Identifier: Apache-2.0
"""What the programs know of digests: answers by digest, and questions that are over. Twin: ``bpf/ask.h``."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from typing import Final

from kmodgate.model import Verification

from . import abi, libbpf

_TRUSTED_MAX: Final = 8192
_REFUSED_MAX: Final = 4096


class KnownDigests:
    """The part of a backend that takes answers. Any thread may call it."""

    _control: abi.Control
    _answers: libbpf.Map
    _done: libbpf.Map
    _files: libbpf.Map

    def __init__(self) -> None:
        self._answered: OrderedDict[bytes, bool] = OrderedDict()
        self._refused: OrderedDict[bytes, bool] = OrderedDict()
        self._answer_lock = threading.Lock()

    def trust_is(self, key: int) -> None:
        """Say which anchors answers are made with; answers of an earlier agent with others are void.

        Args:
            key: a number of 64 bits that differs whenever an answer may differ.
        """
        if self._control.trust_key != key:
            # Void first: a crash in between only voids them twice.
            self.forget_answers()
            self._control.trust_key = key

    def _remember_answers(self) -> None:
        """Take up the answers of an earlier agent, as far as they still count."""
        # Read whole first: the kernel begins anew behind an element that was deleted.
        for digest, value in list(self._answers.items(abi.DIGEST_LEN, ctypes.sizeof(abi.Answer))):
            answer = abi.Answer.from_buffer_copy(value)
            if answer.trust_generation != self._control.trust_generation:
                self._answers.delete(digest)
            elif Verification.TRUSTED in {answer.verification, answer.contents}:
                self._answered[digest] = True
            else:
                self._refused[digest] = True

    def forget_answers(self) -> None:
        """Make every stored answer void at once: the trust anchors changed."""
        with self._answer_lock:
            self._control.trust_generation += 1
            for known in (self._answered, self._refused):
                for digest in known:
                    self._answers.delete(digest)
                known.clear()

    @property
    def trust_generation(self) -> int:
        """Generation that an answer must carry to count; note it before verifying."""
        return int(self._control.trust_generation)

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """Store what verification found for a digest (32 bytes, SHA-256).

        ``contents`` is what it found for what a compressed file unpacks to.

        Trusted digests are kept apart from refused ones, so that a storm of refused modules
        evicts none of them. Raises HookError when the map is full or gone.
        """
        known, limit = (
            (self._answered, _TRUSTED_MAX)
            if Verification.TRUSTED in {verification, contents}
            else (self._refused, _REFUSED_MAX)
        )
        answer = abi.Answer(trust_generation=trust_generation, verification=verification, contents=contents)
        other = self._refused if known is self._answered else self._answered
        with self._answer_lock:
            if trust_generation != self._control.trust_generation:
                return  # verified against anchors that are gone
            other.pop(digest, None)
            known.pop(digest, None)
            while len(known) >= limit:
                oldest, _ = known.popitem(last=False)
                self._answers.delete(oldest)
            self._answers.update(digest, bytes(answer))
            known[digest] = True

    def done(self, question: int) -> None:
        """End the wait for a question. After ``answer``, never before it."""
        self._done.update(question.to_bytes(8, "little"), (1).to_bytes(4, "little"))

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        """Tell the programs that a file's digest has been answered: they need not ask early.

        A hint. A file that no longer has these bytes is asked about late, when its digest
        turns out to be unknown. Any thread may call this.
        """
        major, minor = device
        file = abi.File(inode=inode, size=size, device=(major << 20 | minor) & 0xFFFFFFFF)
        self._files.update(bytes(file), trust_generation.to_bytes(8, "little"))
