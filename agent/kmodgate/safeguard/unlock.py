# SPDX-License-Identifier: Apache-2.0
"""The one-time token that lifts the guard for a while: ``kmodgate unlock``.

The config holds the token's SHA-256 only. ``TokenGate`` decides and does no I/O;
``UnlockSocket`` is the UNIX datagram socket on which the command hands the token over.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kmodgate.errors import HookError

SOCKET: Final = Path("/run/kmodgate/unlock.sock")
MAX_TOKEN: Final = 1024  # bytes
MAX_SECONDS: Final = 600
DEFAULT_SECONDS: Final = 60
_PAUSE: Final = 10.0  # seconds after a wrong token in which none is looked at
_MAX_MESSAGE: Final = 8192


class Answer(StrEnum):
    """What became of a token."""

    LIFTED = "lifted"
    WRONG = "wrong"
    USED = "used"
    PAUSED = "paused"
    NO_TOKEN = "no_token"  # noqa: S105  # a word, not a secret
    MALFORMED = "malformed"


class TokenGate:
    """Decides on tokens.

    Args:
        wanted: SHA-256 of the token; None for no token.
        used: SHA-256 of the last token that was used, on this node since it booted.
    """

    def __init__(self, wanted: bytes | None, used: bytes) -> None:
        self._wanted = wanted
        self._used = used
        self._paused_until = float("-inf")

    def judge(self, token: bytes, now: float) -> Answer:
        """Whether the token lifts the guard; ``LIFTED`` once only. ``now`` never goes back."""
        if self._wanted is None:
            return Answer.NO_TOKEN
        if now < self._paused_until:
            return Answer.PAUSED
        digest = hashlib.sha256(token).digest()
        if not hmac.compare_digest(digest, self._wanted):
            self._paused_until = now + _PAUSE
            return Answer.WRONG
        if hmac.compare_digest(digest, self._used):
            return Answer.USED
        self._used = digest
        return Answer.LIFTED

    @property
    def used(self) -> bytes:
        """SHA-256 of the last token that was used."""
        return self._used


@dataclass(frozen=True, slots=True)
class Request:
    """What the command sends."""

    token: bytes
    seconds: int

    def encode(self) -> bytes:
        """As a datagram."""
        return json.dumps({"token": self.token.hex(), "seconds": self.seconds}).encode()

    @classmethod
    def decode(cls, message: bytes) -> Request:
        """From a datagram. Raises ValueError."""
        document = json.loads(message)
        if not isinstance(document, dict) or document.keys() != {"token", "seconds"}:
            raise ValueError("not the keys of a request")
        token, seconds = document["token"], document["seconds"]
        if not isinstance(token, str) or type(seconds) is not int:
            raise ValueError("not the types of a request")
        if not 1 <= seconds <= MAX_SECONDS or len(token) > 2 * MAX_TOKEN:
            raise ValueError("out of range")
        return cls(bytes.fromhex(token), seconds)


class UnlockSocket:
    """The agent's end. Only root can reach it.

    Args:
        answer: decides on a request.
        path: of the socket; its directory is made for root alone.
    """

    def __init__(self, answer: Callable[[Request], Answer], path: Path = SOCKET) -> None:
        self._answer = answer
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            self._socket.close()
            raise HookError(f"{path}: {error.strerror}") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Readable when a request waits."""
        return self._socket.fileno()

    def receive(self) -> None:
        """Answer one request."""
        try:
            message, sender = self._socket.recvfrom(_MAX_MESSAGE)
        except OSError:
            return
        try:
            answer = self._answer(Request.decode(message))
        except (ValueError, RecursionError):
            answer = Answer.MALFORMED
        if sender:
            with contextlib.suppress(OSError):  # it did not wait for the answer
                self._socket.sendto(answer.encode(), sender)

    def close(self) -> None:
        """Remove the socket."""
        self._path.unlink(missing_ok=True)
        self._socket.close()


def ask(request: Request, path: Path = SOCKET, wait: float = 10.0) -> Answer:
    """The command's end.

    Raises:
        HookError: no agent with `hardened: true` listens, or it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(wait)
        try:
            client.bind("")  # an address of the kernel's choice, to be answered at
            client.connect(str(path))
            client.send(request.encode())
            return Answer(client.recv(64).decode())
        except TimeoutError:
            raise HookError(f"{path}: the agent did not answer within {wait:g} s") from None
        except OSError as error:
            raise HookError(
                f"{path}: {error.strerror}; is an agent with hardened: true running here, and is this root?"
            ) from error
