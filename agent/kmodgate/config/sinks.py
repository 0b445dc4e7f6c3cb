# SPDX-License-Identifier: Apache-2.0
"""``kmodgate.eventSinks``: where events go beside stdout. Pure."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from . import scalars
from .section import Key, RequiredKey, Section, section
from .sinkvalues import (
    DEFAULT_FILE_SIZE,
    DEFAULT_FILES,
    DEFAULT_TIMEOUT,
    EventSinks,
    FileSinkConfig,
    OtlpSinkConfig,
)
from .values import NANOSECONDS

_MIN_FILE_SIZE, _MAX_FILE_SIZE = 1 << 20, 1 << 30
_MAX_FILES = 100
_MAX_TIMEOUT = 60

# No user, no query, no fragment: what is secret stands in a file of its own.
_ENDPOINT = re.compile(
    r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(/[A-Za-z0-9._~/%-]*)?", re.ASCII
)


def _file_path(value: object) -> Path:
    path = scalars.path(value)
    if not path.is_absolute() or path.name in {"", ".."}:
        raise ValueError('must be the absolute path of a file, like "/var/log/kmodgate/events.jsonl"')
    return path


def _file_size(value: object) -> int:
    return scalars.size_within(value, _MIN_FILE_SIZE, _MAX_FILE_SIZE, "1MiB to 1GiB")


def _files(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_FILES:
        raise ValueError(f"must be a number from 1 to {_MAX_FILES}")
    return value


def _timeout(value: object) -> float:
    nanoseconds = scalars.duration(value, _MAX_TIMEOUT * NANOSECONDS, f"at most {_MAX_TIMEOUT}s", "10s")
    if nanoseconds == 0:
        raise ValueError('must not be 0; write it with a unit, like "10s"')
    return nanoseconds / NANOSECONDS


def _endpoint(value: object) -> OtlpSinkConfig:
    remedy = 'write it like "http://127.0.0.1:4318/v1/logs"'
    if not isinstance(value, str):
        raise ValueError(f"must be a URL; {remedy}")  # noqa: TRY004  # readers raise ValueError
    match = _ENDPOINT.fullmatch(value)
    if match is None:
        raise ValueError(
            f"{scalars.shown(value)} is no URL of http or https without user, query and fragment; {remedy}"
        )
    port = match[3] or ("443" if match[1] == "https" else "80")
    address = scalars.listen(f"{match[2]}:{port}")  # the same host and port, with the same mistakes
    if address.port == 0:
        raise ValueError(f"port 0 is none to send to; {remedy}")
    path = match[4] if match[4] and match[4] != "/" else "/v1/logs"
    return OtlpSinkConfig(address.host, address.port, path, match[1] == "https")


class FileSink(Section):
    """``kmodgate.eventSinks.file``."""

    path = RequiredKey("path", _file_path)
    max_size = Key("maxSize", _file_size)
    max_files = Key("maxFiles", _files)


class OtlpSink(Section):
    """``kmodgate.eventSinks.otlp``."""

    endpoint = RequiredKey("endpoint", _endpoint)
    ca_certificate = Key("caCertificate", scalars.path)
    client_certificate = Key("clientCertificate", scalars.path)
    client_key = Key("clientKey", scalars.path)
    bearer_token_file = Key("bearerTokenFile", scalars.path)
    timeout = Key("timeout", _timeout)

    def check(self) -> None:
        """No secret in clear text over a network, and no certificate that nobody looks at."""
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("clientCertificate and clientKey go together; name both files")
        if self.endpoint.tls:
            return
        if self.ca_certificate is not None:
            raise ValueError("caCertificate checks nothing over http; write https, or remove it")
        if self.client_certificate is not None:
            raise ValueError("clientCertificate is shown to nobody over http; write https, or remove it")
        if self.bearer_token_file is not None and not _is_loopback(self.endpoint.host):
            raise ValueError("would send the bearer token in clear text; write https")


class EventSinksSection(Section):
    """``kmodgate.eventSinks``."""

    file = section("file", FileSink)
    otlp = section("otlp", OtlpSink)


def build(model: EventSinksSection | None, directory: Path) -> EventSinks:
    """The values of a section; relative paths are joined to ``directory``."""
    if model is None:
        return EventSinks()
    return EventSinks(_build_file(model.file), _build_otlp(model.otlp, directory))


def _build_file(model: FileSink | None) -> FileSinkConfig | None:
    if model is None:
        return None
    return FileSinkConfig(
        model.path,
        DEFAULT_FILE_SIZE if model.max_size is None else model.max_size,
        DEFAULT_FILES if model.max_files is None else model.max_files,
    )


def _build_otlp(model: OtlpSink | None, directory: Path) -> OtlpSinkConfig | None:
    if model is None:
        return None
    where = model.endpoint
    return OtlpSinkConfig(
        where.host,
        where.port,
        where.path,
        where.tls,
        None if model.ca_certificate is None else directory / model.ca_certificate,
        None if model.bearer_token_file is None else directory / model.bearer_token_file,
        DEFAULT_TIMEOUT if model.timeout is None else model.timeout,
        None if model.client_certificate is None else directory / model.client_certificate,
        None if model.client_key is None else directory / model.client_key,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
