# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kmodgate.config import load
from kmodgate.config.tree import MAX_BYTES
from kmodgate.errors import ConfigError


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("kmodgate: {trust: {certificates: [keys/a.pem]}}")
    config = load(path)
    assert config.source == str(path)
    assert config.trust.certificates == (tmp_path / "keys/a.pem",)


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("kmodgate:\n  mod: audit\n")
    with pytest.raises(ConfigError, match=f"^{path}:2: unknown key 'mod' in kmodgate; did you mean mode"):
        load(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, words in {
            "absent": "no such file",
            ".": "is a directory",
            "fifo": "is no regular file",
            "socket": "is no regular file",
            "loop": "loop of symbolic links",
            "x" * 300: "too long",
            "a\0b": "NUL",
        }.items():
            with pytest.raises(ConfigError, match=words):
                load(tmp_path / name)
    with pytest.raises(ConfigError, match="is no regular file"):
        load(Path("/dev/zero"))


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES * 1000)
    with pytest.raises(ConfigError, match="larger than"):
        load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("kmodgate: {}")
    path.chmod(0)
    with pytest.raises(ConfigError, match="make it readable"):
        load(path)
