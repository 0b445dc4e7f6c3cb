# SPDX-License-Identifier: Apache-2.0
"""Prometheus' web config file: TLS, client certificates and passwords of an HTTP server. Pure.

The keys and their meaning are those of Prometheus' own servers and exporters
(https://prometheus.io/docs/prometheus/latest/configuration/https/). What this server does not do is an error
that says so, not a key that is passed over: a file that promises more than is kept would be worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from . import scalars
from .problems import report
from .section import Key, RequiredKey, Section, flag, section, word
from .tree import read

MAX_USERS: Final = 50
# A check of cost 14 takes about a second of one processor.
MIN_COST, MAX_COST = 4, 14

_USER = re.compile(r"[\x21-\x39\x3b-\x7e]{1,64}", re.ASCII)  # RFC 7617: no colon
_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}", re.ASCII)


class ClientAuth(StrEnum):
    """``client_auth_type``, in the words of Go's ``crypto/tls``."""

    NONE = "NoClientCert"
    REQUEST = "RequestClientCert"
    REQUIRE_ANY = "RequireAnyClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE = "RequireAndVerifyClientCert"


class TlsVersion(StrEnum):
    """``min_version`` and ``max_version``."""

    TLS10 = "TLS10"
    TLS11 = "TLS11"
    TLS12 = "TLS12"
    TLS13 = "TLS13"


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a web config file says.

    Attributes:
        certificate: path of the server's certificate chain, or None for plain HTTP.
        key: path of its key.
        client_ca: path of the certificates that sign clients', or None.
        client_required: a client without a certificate is turned away.
        only_tls13: TLS 1.2 is turned away.
        users: bcrypt hash of each user's password; empty for no passwords.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_required: bool = False
    only_tls13: bool = False
    users: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is named here."""
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def _client_auth(value: object) -> ClientAuth:
    kind = word(ClientAuth)(value)
    if kind in {ClientAuth.REQUEST, ClientAuth.REQUIRE_ANY}:
        raise ValueError(
            f"{kind} takes any certificate without looking who signed it, which this server does not do; "
            f"write {ClientAuth.REQUIRE} or {ClientAuth.VERIFY_IF_GIVEN}"
        )
    return kind


def _min_version(value: object) -> TlsVersion:
    version = word(TlsVersion)(value)
    if version in {TlsVersion.TLS10, TlsVersion.TLS11}:
        raise ValueError(f"{version} is broken and not offered here; write {TlsVersion.TLS12}")
    return version


def _max_version(value: object) -> TlsVersion:
    version = word(TlsVersion)(value)
    if version is not TlsVersion.TLS13:
        raise ValueError(f"only {TlsVersion.TLS13} is possible here; leave it out")
    return version


def _unsupported(name: str, why: str) -> Key[None]:
    def refuse(value: object) -> None:
        del value
        raise ValueError(f"{why}; leave it out")

    return Key(name, refuse)


def _users(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError("must map at least one user to the bcrypt hash of a password; or leave it out")
    if len(value) > MAX_USERS:
        raise ValueError(f"has more than {MAX_USERS} users; shorten it")
    for user, hashed in value.items():
        if not _USER.fullmatch(user):
            raise ValueError(
                f"{scalars.shown(user)} is no user name; use up to 64 ASCII characters but for ':'"
            )
        match = _BCRYPT.fullmatch(hashed) if isinstance(hashed, str) else None
        # The value is not shown: it may be a password that somebody forgot to hash.
        if match is None:
            raise ValueError(f"user {user}: no bcrypt hash; make one with `htpasswd -nBC 10 {user}`")
        if not MIN_COST <= int(match[1]) <= MAX_COST:
            raise ValueError(
                f"user {user}: bcrypt's cost is {int(match[1])}, and {MIN_COST} to {MAX_COST} are possible; "
                f"make another hash with `htpasswd -nBC 10 {user}`"
            )
    return value


class TlsServer(Section):
    """``tls_server_config``."""

    cert_file = RequiredKey("cert_file", scalars.path)
    key_file = RequiredKey("key_file", scalars.path)
    client_auth_type = Key("client_auth_type", _client_auth)
    client_ca_file = Key("client_ca_file", scalars.path)
    min_version = Key("min_version", _min_version)
    max_version = Key("max_version", _max_version)
    client_allowed_sans = _unsupported(
        "client_allowed_sans", "names in client certificates are not looked at"
    )
    cipher_suites = _unsupported("cipher_suites", "the TLS library's own choice of ciphers is used")
    prefer_server_cipher_suites = Key("prefer_server_cipher_suites", flag)
    curve_preferences = _unsupported("curve_preferences", "the TLS library's own choice of curves is used")

    def check(self) -> None:
        """A CA and a client that must show its signature go together."""
        verifies = self.client_auth_type in {ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE}
        if verifies and self.client_ca_file is None:
            raise ValueError(f"client_auth_type {self.client_auth_type} needs client_ca_file; add it")
        if self.client_ca_file is not None and not verifies:
            raise ValueError(
                f"client_ca_file has no effect without client_auth_type; write {ClientAuth.REQUIRE}, "
                "or leave it out"
            )


class HttpServer(Section):
    """``http_server_config``."""

    http2 = Key("http2", flag)
    headers = _unsupported("headers", "no headers can be added here")


class WebDocument(Section):
    """The whole file."""

    tls_server_config = section("tls_server_config", TlsServer)
    http_server_config = section("http_server_config", HttpServer)
    basic_auth_users = Key("basic_auth_users", _users)


def parse_web(data: bytes, *, source: str, directory: Path = Path()) -> WebConfig:
    """Read a web config file.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        directory: what relative paths in it are relative to.

    Raises:
        ConfigError: with the line of the first problem; ``ConfigProblems`` for several.
    """
    document = read(data, source=source)
    try:
        model = WebDocument.read(document.data)
    except ValueError as error:
        raise report(error, document, source, WebDocument) from None
    tls, users = model.tls_server_config, MappingProxyType(model.basic_auth_users or {})
    if tls is None:
        return WebConfig(users=users)
    return WebConfig(
        certificate=directory / tls.cert_file,
        key=directory / tls.key_file,
        client_ca=None if tls.client_ca_file is None else directory / tls.client_ca_file,
        client_required=tls.client_auth_type is ClientAuth.REQUIRE,
        only_tls13=tls.min_version is TlsVersion.TLS13,
        users=users,
    )
