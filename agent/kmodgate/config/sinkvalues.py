# SPDX-License-Identifier: Apache-2.0
"""What ``kmodgate.eventSinks`` says, as frozen values. Reads nothing and checks nothing: ``sinks`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_FILE_SIZE = 16 << 20
DEFAULT_FILES = 5
DEFAULT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class FileSinkConfig:
    """``file``: where, bytes of one file, and how many older files are kept."""

    path: Path
    max_size: int = DEFAULT_FILE_SIZE
    max_files: int = DEFAULT_FILES


@dataclass(frozen=True, slots=True)
class OtlpSinkConfig:
    """``otlp``: the receiver. Paths are joined to the directory of the config file."""

    host: str
    port: int
    path: str
    tls: bool
    ca_certificate: Path | None = None
    bearer_token_file: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    client_certificate: Path | None = None
    client_key: Path | None = None

    @property
    def endpoint(self) -> str:
        """The URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class EventSinks:
    """The sinks beside stdout; None for those that are not asked for."""

    file: FileSinkConfig | None = None
    otlp: OtlpSinkConfig | None = None
