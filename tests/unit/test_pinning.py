# SPDX-License-Identifier: Apache-2.0
"""The pins while mounts come and go, on a /proc and /sys of our own and a kernel that is made up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodgate import pinning
from kmodgate.errors import HookError, NodeError
from kmodgate.hooks.abi import PINS
from kmodgate.hooks.superblocks import Superblock
from kmodgate.node import NodePaths
from kmodgate.node.mounts import mount_id_of
from kmodgate.node.verity import TargetLine
from kmodgate.pinning import PinKeeper, PinState

TRUSTED, OTHER = bytes(32), bytes(range(32))
ROOT = Superblock(0xFFFF0001, 254 << 20 | 1)
VERITY = (253, 7)


def table_of(digest: bytes, options: str = "") -> tuple[TargetLine, ...]:
    return (TargetLine("verity", f"1 7:0 7:1 4096 4096 1 0 sha256 {digest.hex()} -{options}"),)


class Kernel:
    """Superblocks by the directory that a descriptor leads to, and what is pinned."""

    def __init__(self) -> None:
        self.superblocks: dict[str, Superblock] = {}
        self.pinned: set[Superblock] = set()
        self.root: Superblock | None = ROOT
        self.tables: dict[tuple[int, int], tuple[TargetLine, ...]] = {}
        self.asked = 0

    def identify(self, fd: int) -> Superblock:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        if path not in self.superblocks:
            raise HookError("the file system cannot be identified")
        return self.superblocks[path]

    def pin(self, superblock: Superblock) -> None:
        self.pinned.add(superblock)

    def unpin(self, superblock: Superblock) -> None:
        self.pinned.discard(superblock)

    def is_pinned(self, superblock: Superblock) -> bool:
        return superblock in self.pinned

    def live_table(self, _paths: NodePaths, major: int, minor: int) -> tuple[TargetLine, ...]:
        self.asked += 1
        if (major, minor) not in self.tables:
            raise NodeError("the table cannot be read")
        return self.tables[major, minor]


class Node:
    """One mount of a dm-verity device, at ROOT/mnt, where ROOT is the root of process 1."""

    def __init__(self, folder: Path) -> None:
        self.paths = NodePaths(proc=folder / "proc", sys=folder / "sys", dev=folder / "dev")
        self.kernel = Kernel()
        self.states: list[PinState] = []
        self.root = folder / "root"
        (self.root / "mnt").mkdir(parents=True)
        (self.paths.proc / "1").mkdir(parents=True)
        (self.paths.proc / "1/root").symlink_to(self.root)
        self.kernel.superblocks[str(self.root)] = ROOT
        self.keeper = PinKeeper(self.kernel, self.paths, self.states.append, tables=self.kernel.live_table)
        self.mount(VERITY, Superblock(0xFFFF0002, VERITY[0] << 20 | VERITY[1]))
        self.kernel.tables[VERITY] = table_of(TRUSTED)

    def mount(self, device: tuple[int, int], superblock: Superblock, *, mount_id: int | None = None) -> None:
        """The real directory's mount id, or another one where something lies above the mount."""
        own = mount_id_of(self.root / "mnt") if mount_id is None else mount_id
        major, minor = device
        (self.paths.proc / "1/mountinfo").write_text(
            f"1 0 254:1 / / rw - ext4 /dev/vda1 rw\n{own} 1 {major}:{minor} / /mnt ro - ext4 /dev/dm-7 ro\n"
            f"99 1 0:40 / /mnt ro - tmpfs none ro\n"
        )
        (self.paths.sys / f"dev/block/{major}:{minor}/dm").mkdir(parents=True, exist_ok=True)
        self.kernel.superblocks[str(self.root / "mnt")] = superblock

    @property
    def pinned(self) -> set[Superblock]:
        return self.kernel.pinned


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    before = descriptors()
    yield made
    made.keeper.close()
    assert descriptors() <= before  # no descriptor holds a mount


def test_nothing_is_pinned_without_a_digest(node: Node) -> None:
    node.keeper.look()
    assert node.pinned == set()
    assert node.kernel.asked == 0
    assert node.states == [PinState(root_current=True, verity=0)]


def test_a_trusted_device_is_pinned_until_its_digest_is_not(node: Node) -> None:
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.pinned == {Superblock(0xFFFF0002, 253 << 20 | 7)}
    assert node.states[-1] == PinState(root_current=True, verity=1)
    node.keeper.set_digests(frozenset({OTHER}))
    assert node.pinned == set()  # at once, without a look
    node.keeper.look()
    assert node.states[-1].verity == 0


@pytest.mark.parametrize(
    "table",
    [
        (),
        table_of(OTHER),
        table_of(TRUSTED, " 1 ignore_corruption"),
        (TargetLine("linear", "7:0 0"),),
        table_of(TRUSTED) * 2,
        None,
    ],
)
def test_a_table_that_is_swapped_ends_the_pin(node: Node, table: tuple[TargetLine, ...] | None) -> None:
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert len(node.pinned) == 1
    if table is None:
        del node.kernel.tables[VERITY]  # the device mapper does not answer any more
    else:
        node.kernel.tables[VERITY] = table
    node.keeper.look(everywhere=False)
    assert node.pinned == set()
    node.keeper.look()
    assert node.pinned == set()
    node.kernel.tables[VERITY] = table_of(TRUSTED)
    node.keeper.look()
    assert len(node.pinned) == 1


def test_another_trusted_digest_is_another_device(node: Node) -> None:
    node.keeper.set_digests(frozenset({TRUSTED, OTHER}))
    node.keeper.look()
    node.kernel.tables[VERITY] = table_of(OTHER)
    node.keeper.look(everywhere=False)
    assert node.pinned == set()


def test_a_file_system_that_went_away_can_come_again(node: Node) -> None:
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    node.kernel.pinned.clear()  # as the programs do it
    node.mount(VERITY, Superblock(0xFFFF0009, 253 << 20 | 7))
    node.keeper.look()
    assert node.pinned == {Superblock(0xFFFF0009, 253 << 20 | 7)}


def test_what_lies_above_the_mount_is_not_taken_for_it(node: Node) -> None:
    node.mount(VERITY, Superblock(0xFFFF0003, 253 << 20 | 7), mount_id=98)
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.pinned == set()


def test_a_mount_on_another_device_than_mountinfo_says_is_not_taken(node: Node) -> None:
    node.mount(VERITY, Superblock(0xFFFF0003, 253 << 20 | 8))
    node.kernel.tables[253, 8] = table_of(TRUSTED)
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.pinned == set()


def test_no_device_is_asked_that_is_not_mapped(node: Node) -> None:
    (node.paths.sys / "dev/block/253:7/dm").rmdir()
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.kernel.asked == 0
    assert node.pinned == set()


def test_the_root_itself_is_not_pinned_twice(node: Node) -> None:
    node.kernel.root = node.kernel.superblocks[str(node.root / "mnt")]
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.pinned == set()


def test_a_full_map_is_an_error_for_the_next_one_only(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PINS == 64
    monkeypatch.setattr(pinning, "PINS", 0)
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    node.keeper.look()
    assert node.pinned == set()
    assert caplog.text.count("no more can be") == 1  # said once


def test_another_root_is_told_and_not_pinned(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.keeper.look()
    node.kernel.superblocks[str(node.root)] = Superblock(0xFFFF0005, 30)
    node.keeper.look()
    node.keeper.look()
    assert [state.root_current for state in node.states] == [True, False, False]
    assert caplog.text.count("has another root (device 0:30)") == 1
    assert node.kernel.root == ROOT
    node.kernel.superblocks[str(node.root)] = ROOT
    node.keeper.look()
    assert node.states[-1].root_current
    assert "back on the pinned root" in caplog.text


def test_the_same_address_on_another_device_is_another_root(node: Node) -> None:
    node.kernel.superblocks[str(node.root)] = Superblock(ROOT.address, ROOT.device + 1)
    node.keeper.look()
    assert not node.states[-1].root_current


def test_a_root_that_has_gone_away_is_not_current(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.kernel.root = None
    node.keeper.look()
    assert not node.states[-1].root_current
    assert "pinned root (gone)" in caplog.text


def test_a_root_that_cannot_be_seen_changes_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    (node.paths.proc / "1/root").unlink()
    node.keeper.look()
    assert node.states[-1].root_current
    assert "No such file" in caplog.text


def test_mounts_that_make_no_sense_pin_nothing(node: Node) -> None:
    (node.paths.proc / "1/mountinfo").write_text("nonsense\n")
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    assert node.pinned == set()


def test_a_look_that_hangs_ends_the_pins(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.keeper.set_digests(frozenset({TRUSTED}))
    node.keeper.look()
    node.keeper.relieve()
    assert len(node.pinned) == 1
    monkeypatch.setattr(pinning, "_STALLED", -1.0)
    node.keeper.relieve()
    assert node.pinned == set()


def test_the_thread_finds_new_digests_by_itself(node: Node) -> None:
    node.keeper.start()
    node.keeper.set_digests(frozenset({TRUSTED}))
    deadline = time.monotonic() + 30
    while not node.pinned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.pinned
    node.kernel.tables[VERITY] = table_of(OTHER)
    while node.pinned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not node.pinned  # within a second or so, and nothing woke it
    node.keeper.close()
    assert "pins" not in {thread.name for thread in threading.enumerate()}
    node.keeper = PinKeeper(node.kernel, node.paths, node.states.append)
