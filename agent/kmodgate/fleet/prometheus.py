# SPDX-License-Identifier: Apache-2.0
"""Instant queries to Prometheus's HTTP API, or to whatever speaks it. It reads, and nothing else."""

from __future__ import annotations

import http.client
import json
import math
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from kmodgate import __version__
from kmodgate.errors import InputError, NodeError
from kmodgate.fsutil import read_regular_file

MAX_BODY: Final = 256 << 20
_MAX_TOKEN: Final = 64 << 10
_MAX_AUTHORITY: Final = 4 << 20
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_OK: Final = 200


class PrometheusError(NodeError):
    """Prometheus could not be asked, or did not answer the question."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an answer and its value."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """One server.

    Args:
        url: ``http://HOST:PORT`` or ``https://…``, with a path in front of ``/api`` if it has one.
        token: file with a bearer token, or None.
        authority: file with the certificates that are trusted; None for the system's.
        timeout: seconds for each query.

    Raises:
        InputError: the URL or a file is none.
    """

    def __init__(
        self, url: str, *, token: Path | None = None, authority: Path | None = None, timeout: float = 60.0
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"{url!a} is no URL: {error}; write http://HOST:PORT") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise InputError(f"{url!a} is no URL of a Prometheus server; write http://HOST:PORT")
        if (
            token is not None
            and parts.scheme != "https"
            and parts.hostname not in {"127.0.0.1", "::1", "localhost"}
        ):
            raise InputError("a token is not sent over plain http; use https")
        self._shown = f"{parts.scheme}://{parts.hostname}{'' if port is None else f':{port}'}"
        self._path = f"{parts.path.rstrip('/')}/api/v1/query"
        self._token = "" if token is None else _read_token(token)
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = _context(authority)
            self._connection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)

    def query(self, expression: str, at: float) -> list[Sample]:
        """The series of an instant vector at a Unix time. NaN values are left out.

        Raises:
            PrometheusError: no answer, or none that makes sense.
        """
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
            "User-Agent": f"kmodgate/{__version__}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        body = urlencode({"query": expression, "time": f"{at:.3f}"})
        try:
            self._connection.request("POST", self._path, body, headers)
            response = self._connection.getresponse()
            data = response.read(MAX_BODY + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            what = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise PrometheusError(f"{self._shown} cannot be asked: {what}; check --prometheus") from None
        if len(data) > MAX_BODY:
            self._connection.close()
            raise PrometheusError(
                f"{self._shown}: an answer of more than {MAX_BODY} bytes; narrow --selector"
            )
        return self._samples(response.status, data)

    def _samples(self, status: int, data: bytes) -> list[Sample]:
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            raise PrometheusError(f"{self._shown} answers {status} and no JSON; is it Prometheus?") from None
        if not isinstance(answer, dict) or answer.get("status") != "success" or status != _OK:
            said = answer.get("error") if isinstance(answer, dict) else None
            raise PrometheusError(f"{self._shown} answers {status}: {str(said)[:300]!a}")
        try:
            if answer["data"]["resultType"] != "vector":
                raise ValueError  # noqa: TRY301  # the same as any other shape
            found = [_sample(item) for item in answer["data"]["result"]]
        except (KeyError, TypeError, ValueError, IndexError):
            raise PrometheusError(f"{self._shown}: the answer is no vector; is it Prometheus?") from None
        return [sample for sample in found if not math.isnan(sample.value)]


def _context(authority: Path | None) -> ssl.SSLContext:
    if authority is None:
        return ssl.create_default_context()
    text = read_regular_file(authority, _MAX_AUTHORITY)
    try:
        return ssl.create_default_context(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise InputError(f"{authority}: holds no certificates in PEM; name the authority's file") from None


def _read_token(path: Path) -> str:
    token = read_regular_file(path, _MAX_TOKEN).strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise InputError(f"{path}: holds no token; write the token alone")
    return token.decode("ascii")


def _sample(item: Any) -> Sample:
    labels = item["metric"]
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in labels.items()):
        raise ValueError
    return Sample(dict(labels), float(item["value"][1]))
