# SPDX-License-Identifier: Apache-2.0
"""One decompressed module file: taken apart and digested once, whoever asks how often.

This module parses no message and decides nothing. A scan opens many files before it verifies any
of them. So a file can let go of its payload, once every digest that will be asked for is known:
what is left is a few kilobytes. Whoever asks for more then gets an error, never another answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kmodgate.errors import SignatureError
from kmodgate.model import SignatureStatus

from .kernel.keys import digest_of
from .trailer import AppendedSignature, BytesLike, split


class SignedFile:
    """A module file's bytes, or what is left of them.

    Args:
        data: the whole file: payload, message, trailer. Never copied.
    """

    __slots__ = ("_cms", "_data", "_digests", "_parts", "_problem", "_sha256")

    def __init__(self, data: BytesLike) -> None:
        self._data: BytesLike | None = data
        self._parts: AppendedSignature | None = None
        self._cms: bytes | None = None
        self._problem: tuple[SignatureStatus, str, str] | None = None
        self._digests: dict[str, bytes] = {}
        self._sha256: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return len(self._cms or b"") if self._data is None else len(self._data)

    def cms(self) -> bytes:
        """The DER of the PKCS#7 message.

        Raises:
            SignatureError: what ``trailer.split`` finds.
        """
        if self._cms is None:
            self._cms = self._split().cms
        return self._cms

    def payload(self) -> memoryview:
        """What the signature covers.

        Raises:
            SignatureError: what ``trailer.split`` finds.
        """
        return self._split().payload

    def digest(self, name: str) -> bytes:
        """The payload's digest, by the kernel's name.

        Raises:
            Refusal: ENOPKG for a digest that cannot be computed here.
            SignatureError: what ``trailer.split`` finds.
        """
        found = self._digests.get(name)
        if found is None:
            if name == "sha256":
                found = self._digest_both(self._split())
            else:
                found = self._digests[name] = digest_of(name, self.payload())
        return found

    def sha256(self) -> bytes:
        """SHA-256 of the whole file."""
        if self._sha256 is None:
            whole = self._whole()
            try:
                self._digest_both(self._split())
            except SignatureError:
                self._sha256 = hashlib.sha256(whole).digest()
        assert self._sha256 is not None  # noqa: S101  # both branches set it
        return self._sha256

    def let_go(self, digests: Iterable[str]) -> None:
        """Forget the payload, after these digests of it and the whole file's were computed.

        Raises:
            Refusal: ENOPKG for a digest that cannot be computed here; nothing is forgotten.
        """
        try:
            self.cms()
            for name in digests:
                self.digest(name)
        except SignatureError:
            pass  # no signature, no payload; cms() tells it again
        self.sha256()
        self._data = self._parts = None

    def _digest_both(self, parts: AppendedSignature) -> bytes:
        """The payload's SHA-256; the file's is what its state leads on to."""
        state = hashlib.sha256(parts.payload)
        found = self._digests["sha256"] = state.digest()
        state.update(parts.tail)
        self._sha256 = state.digest()
        return found

    def _split(self) -> AppendedSignature:
        if self._problem is not None:
            raise SignatureError(*self._problem)
        if self._parts is None:
            try:
                self._parts = split(self._whole())
            except SignatureError as error:
                # Not the error itself: with its traceback it would hold this file in a circle.
                self._problem = (error.status, error.errno_name, error.detail)
                raise
        return self._parts

    def _whole(self) -> BytesLike:
        if self._data is None:
            raise RuntimeError("asked for bytes of a module that were let go")
        return self._data
