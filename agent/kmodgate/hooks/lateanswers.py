# SPDX-License-Identifier: Apache-2.0
"""What the agent's workers find, by the question that they answer. For rungs that judge afterwards."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from kmodgate.model import Verification

_ANSWERS_MAX: Final = 4_096


@dataclass(slots=True)
class Found:
    """What the agent says of the bytes of one question."""

    digest: bytes = b""
    verification: Verification | None = None
    contents: Verification = Verification.NOT_YET
    device: tuple[int, int] | None = None
    inode: int = 0
    size: int = 0


class Doorbell:
    """Wakes the agent's loop from any thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable after ``ring``."""
        return self._descriptor

    def ring(self) -> None:
        """Wake whoever waits."""
        os.eventfd_write(self._descriptor, 1)

    def answer(self) -> None:
        """It was heard."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


class LateAnswers:
    """The part of a backend that takes answers. Any thread may call it; one worker answers one question.

    Attributes:
        event_ring: rung when a question is over.
    """

    def __init__(self) -> None:
        self.event_ring: Final = Doorbell()
        self._trust_generation = 1
        self._by_question: OrderedDict[int, Found] = OrderedDict()
        self._answer_lock = threading.Lock()
        self._of_thread = threading.local()

    def trust_is(self, key: int) -> None:
        """No answer outlives this process."""

    def forget_answers(self) -> None:
        """What was verified with other anchors is void."""
        with self._answer_lock:
            self._trust_generation += 1
            self._by_question.clear()

    @property
    def trust_generation(self) -> int:
        """Generation that an answer must carry to count."""
        return self._trust_generation

    def _finding(self) -> Found:
        """What this thread has found since it was done with its last question."""
        found: Found | None = getattr(self._of_thread, "found", None)
        if found is None:
            found = self._of_thread.found = Found()
        return found

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        """Note what was found for this thread's question; the last call is about the whole file."""
        if trust_generation == self._trust_generation:
            found = self._finding()
            found.digest, found.verification, found.contents = digest, verification, contents

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        """Note whose bytes they were."""
        del trust_generation
        found = self._finding()
        found.device, found.inode, found.size = device, inode, size

    def done(self, question: int) -> None:
        """The question is over, answered or not."""
        found = self._finding()
        self._of_thread.found = None
        with self._answer_lock:
            self._by_question[question] = found
            while len(self._by_question) > _ANSWERS_MAX:
                self._by_question.popitem(last=False)
        self.event_ring.ring()

    def take(self, question: int) -> Found | None:
        """What became of a question, once; None while nobody is done with it."""
        with self._answer_lock:
            return self._by_question.pop(question, None)
