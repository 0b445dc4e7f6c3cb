# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodgate.config.watch import ConfigWatcher, Debounce, hops


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "node.yaml").write_text("kmodgate: {}")
    return folder


@pytest.fixture
def watcher(folder: Path) -> Iterator[ConfigWatcher]:
    with ConfigWatcher([folder / "node.yaml"]) as watcher:
        yield watcher


def readable(watcher: ConfigWatcher) -> bool:
    return bool(select.select([watcher], [], [], 0)[0])


def test_quiet_without_edits(watcher: ConfigWatcher, folder: Path) -> None:
    (folder / "node.yaml").read_text()
    assert not readable(watcher)
    assert watcher.drain() is False


def test_a_plain_write(watcher: ConfigWatcher, folder: Path) -> None:
    (folder / "node.yaml").write_text("kmodgate: {mode: audit}")
    assert readable(watcher)
    assert watcher.drain() is True
    assert watcher.drain() is False


def test_an_editor_renames_over_it(watcher: ConfigWatcher, folder: Path) -> None:
    for _ in range(2):
        (folder / ".node.yaml.swp").write_text("x")
        assert watcher.drain() is False
        (folder / ".node.yaml.swp").rename(folder / "node.yaml")
        assert watcher.drain() is True


def test_removed_and_made_again(watcher: ConfigWatcher, folder: Path) -> None:
    (folder / "node.yaml").unlink()
    assert watcher.drain() is True
    (folder / "node.yaml").write_text("x")
    assert watcher.drain() is True


def test_neighbours_do_not_matter(watcher: ConfigWatcher, folder: Path) -> None:
    (folder / "other.yaml").write_text("x")
    assert watcher.drain() is False


def config_map(folder: Path, version: str, text: str) -> None:
    """As the kubelet's atomic writer does it."""
    data = folder / f"..{version}"
    data.mkdir()
    (data / "node.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(data.name)
    old = (folder / "..data").resolve() if (folder / "..data").is_symlink() else None
    (folder / "..data_tmp").rename(folder / "..data")
    if old is not None:
        shutil.rmtree(old)


def test_a_config_map_volume_swaps_its_data(tmp_path: Path) -> None:
    config_map(tmp_path, "1", "one")
    (tmp_path / "node.yaml").symlink_to("..data/node.yaml")
    with ConfigWatcher([tmp_path / "node.yaml"]) as watcher:
        for version in ("2", "3", "4"):
            config_map(tmp_path, version, version)
            assert watcher.drain() is True
            assert (tmp_path / "node.yaml").read_text() == version
            assert watcher.drain() is False


def test_a_link_to_a_file_elsewhere(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(folder / "node.yaml")
    with ConfigWatcher([tmp_path / "link.yaml"]) as watcher:
        (folder / "node.yaml").write_text("x")
        assert watcher.drain() is True


def test_a_directory_that_comes_later(tmp_path: Path) -> None:
    with ConfigWatcher([tmp_path / "a/b/node.yaml"]) as watcher:
        (tmp_path / "a").mkdir()
        assert watcher.drain() is True
        (tmp_path / "a/b").mkdir()
        assert watcher.drain() is True
        (tmp_path / "a/b/node.yaml").write_text("x")
        assert watcher.drain() is True
        shutil.rmtree(tmp_path / "a")
        assert watcher.drain() is True
        (tmp_path / "a").mkdir()
        assert watcher.drain() is True


def test_the_set_of_files_can_change(watcher: ConfigWatcher, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "keys").mkdir()
    watcher.watch([tmp_path / "keys/a.pem"])
    (folder / "node.yaml").write_text("x")
    assert watcher.drain() is False
    (tmp_path / "keys/a.pem").write_text("x")
    assert watcher.drain() is True


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with ConfigWatcher([tmp_path / "a"]) as watcher:
        (tmp_path / "b").unlink()
        assert watcher.drain() is True


def test_hops_name_what_can_change_the_way(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/f").touch()
    (tmp_path / "now").symlink_to("v1")
    assert hops(tmp_path / "now/f") == [(tmp_path, "now"), (tmp_path / "v1", "f")]
    assert hops(tmp_path / "none/f") == [(tmp_path, "none")]


def test_debounce_waits_until_edits_have_settled() -> None:
    debounce = Debounce(settle=0.1, longest=1.0)
    assert debounce.wait(0) is None
    assert not debounce.due(0)
    debounce.notice(10.0)
    assert debounce.wait(10.0) == pytest.approx(0.1)
    debounce.notice(10.05)
    assert not debounce.due(10.1)
    assert debounce.due(10.2)
    assert not debounce.due(10.3)


def test_debounce_is_not_put_off_for_ever() -> None:
    debounce = Debounce(settle=0.1, longest=1.0)
    for tick in range(200):
        now = tick * 0.01
        debounce.notice(now)
        if debounce.due(now):
            break
    assert now == pytest.approx(1.0)
