# SPDX-License-Identifier: Apache-2.0
"""Where the socket lies: replaced when it is stale, never through a link, for root alone."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from kmodgate.errors import NodeError
from kmodgate.local.place import Listening


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    listening = Listening(tmp_path / "run/agent.sock")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run/agent.sock").stat().st_mode) == 0o600
    assert connects(tmp_path / "run/agent.sock")
    listening.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    for name in (path, tmp_path / ".agent.sock.new"):  # one that was killed in between, too
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(name))
    assert not connects(path)
    listening = Listening(path)
    assert connects(path)
    assert [item.name for item in tmp_path.iterdir()] == ["agent.sock"]
    listening.close()


def test_an_agent_that_ends_leaves_its_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    old, new = Listening(path), Listening(path)
    old.close()
    assert connects(path)
    new.close()
    assert not path.exists()


@pytest.mark.parametrize("name", ["agent.sock", ".agent.sock.new"])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, name: str, kind: str) -> None:
    target = tmp_path / "secret"
    target.write_text("untouched")
    target.chmod(0o640)
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    if kind == "file":
        (directory / name).write_text("mine")
    elif kind == "link":
        (directory / name).symlink_to(target)
    else:
        (directory / name).mkdir()
    with pytest.raises(NodeError, match=f"{name}: is there and is no socket; remove it"):
        Listening(directory / "agent.sock")
    assert (directory / name).is_symlink() == (kind == "link")
    assert target.read_text() == "untouched"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_link_for_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to("real")
    with pytest.raises(NodeError, match="run: "):
        Listening(tmp_path / "run/agent.sock")
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(NodeError, match="could answer in the agent's place; type: chown root"):
        Listening(directory / "agent.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away, which needs root")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(NodeError, match="could answer in the agent's place"):
        Listening(directory / "agent.sock")


def test_a_long_path_is_no_matter(tmp_path: Path) -> None:
    """sun_path has 108 bytes; the socket is bound through its directory."""
    directory = tmp_path / ("d" * 120)
    listening = Listening(directory / "agent.sock")
    assert stat.S_ISSOCK((directory / "agent.sock").stat().st_mode)
    listening.close()


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(NodeError):
            Listening(tmp_path / "agent.sock")
    (tmp_path / "agent.sock").unlink()
    Listening(tmp_path / "agent.sock").close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
