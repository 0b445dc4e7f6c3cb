# SPDX-License-Identifier: Apache-2.0
"""Who may read over HTTP: passwords, and the TLS that a server offers.

A password is checked with bcrypt once and remembered as a keyed digest, so that a scrape does not pay for it.
Wrong ones are checked one after another with a pause in between: guessing takes no more than a
fraction of one processor, and holds up nobody who is known.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from kmodgate.errors import InputError

MAX_HEADER: Final = 1024
MAX_PASSWORD: Final = 72
"""Bytes that bcrypt looks at; a longer password would match by its beginning."""

_PAUSE: Final = 0.2  # seconds after a wrong password
_PATIENCE: Final = 2.0  # seconds that a request waits for its turn
_REMEMBERED: Final = 64


class Access(Protocol):
    """What the HTTP server asks at each connection."""

    def context(self) -> ssl.SSLContext | None:
        """The TLS to offer; None for plain HTTP."""

    def admits(self, authorization: str | None) -> bool:
        """Whether this ``Authorization`` header, or none, may read everything."""


class Passwords:
    """The users of HTTP basic authentication.

    Args:
        users: bcrypt hash of each user's password; empty: everybody may read.
        pause: seconds after a wrong password.
    """

    def __init__(self, users: Mapping[str, str], *, pause: float = _PAUSE) -> None:
        self._users = {user: hashed.encode() for user, hashed in users.items()}
        self._pause = pause
        self._key = os.urandom(32)
        self._known: set[bytes] = set()
        self._turn = threading.Lock()

    def admits(self, authorization: str | None) -> bool:
        """Whether the header names a user and its password."""
        if not self._users:
            return True
        given = _credentials(authorization)
        if given is None:
            return False
        user, password = given
        mark = hmac.digest(self._key, user.encode() + b"\0" + password, hashlib.sha256)
        if mark in self._known:
            return True
        if not self._turn.acquire(timeout=_PATIENCE):
            return False
        try:
            if self._right(user, password):
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known.add(mark)
                return True
            time.sleep(self._pause)
        finally:
            self._turn.release()
        return False

    def _right(self, user: str, password: bytes) -> bool:
        import bcrypt  # noqa: PLC0415  # only a server with passwords needs it

        # An unknown user takes as long as a known one.
        hashed = self._users.get(user) or next(iter(self._users.values()))
        return bcrypt.checkpw(password, hashed) and user in self._users


def _credentials(authorization: str | None) -> tuple[str, bytes] | None:
    """User and password of a header (RFC 7617); None where it is something else."""
    if authorization is None or len(authorization) > MAX_HEADER:
        return None
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(value.strip(), validate=True)
        user, colon, password = decoded.partition(b":")
        name = user.decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    if not colon or not password or b"\0" in password or len(password) > MAX_PASSWORD:
        return None
    return name, password


def server_context(
    certificate: Path, key: Path, *, client_ca: Path | None, client_required: bool, only_tls13: bool
) -> ssl.SSLContext:
    """The TLS of a server with these files.

    Raises:
        InputError: one of them cannot be read or does not go with the others; it is named.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if only_tls13 else ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # A password would be asked for on the terminal: an agent has none.
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{certificate}, {key}: cannot be used as certificate and key ({_why(error)}); name a PEM "
            "certificate and the unencrypted PEM key that belongs to it"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{client_ca}: no certificates to verify clients with ({_why(error)}); name a PEM file"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)
