# SPDX-License-Identifier: Apache-2.0
"""What counts as pinned beside the root, and what becomes of the root.

tests/vm/test_loadpin.py compares loads one by one with the real LoadPin; here are the agent's part
in it, its metrics, and the root of process 1 itself.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab, mapper

DISK = Path("/share/pin.img")
VERITY = "kmodgate_pinned_verity_filesystems"
CURRENT = "kmodgate_pinned_root_current"


@pytest.fixture(scope="module")
def files() -> Iterator[mapper.Image]:
    mapper.command("modprobe", "-a", "loop", "dm-verity")
    with mapper.image(DISK, Path("/tmp/pinned")) as image:
        yield image


def pinned(files: mapper.Image, policy: str = lab.DO_NOT_ENFORCE, **ours: Any) -> str:
    """A config with LoadPin on, and the image's root digest trusted."""
    return lab.config(policy, loadPin="on", loadPinTrustedVerityDigests=str(files.digests), **ours)


def load(path: Path) -> str:
    """What finit_module says; a module that got in is taken out again."""
    outcome = lab.finit(path)
    lab.unload("dummy")
    return outcome.result


def settled(path: Path, wanted: str) -> str:
    """The same, once it is what it should be: the agent looks once a second."""
    end = time.monotonic() + 30
    while (found := load(path)) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_a_trusted_file_system_counts_from_mount_to_unmount(agent: lab.Agent, files: mapper.Image) -> None:
    agent.configure(pinned(files))
    with mapper.verity(files, "one") as device:
        with mapper.mounted(device, files.folder / "one") as point:
            assert settled(point / "good.ko", "ok") == "ok"
            agent.mark()
            assert load(point / "unsigned.ko") == "ok"
            event = agent.next_event()
            assert (event["verdict"], event["reason"]) == ("allow", "pinned_root")
            assert event["file_system"] == "ext4"
            assert lab.metrics()[VERITY] == 1
            # The same file from where it was copied to: the file system counts, not the bytes.
            assert load(files.folder / "good.ko") == "EPERM"
            held = (point / "good.ko").open("rb")
            mapper.command("umount", "-l", point)
            with held:
                assert lab.finit_fd(held.fileno()).ok
                lab.unload("dummy")
            mapper.command("mount", "-t", "ext4", "-o", "ro", device, point)
            assert settled(point / "good.ko", "ok") == "ok"
        agent.wait_for(lambda: lab.metrics()[VERITY] == 0, "end of the pin")
    # The address and the device number of what was pinned may be used again now.
    with (
        mapper.loop(files.folder / "plain.img") as plain,
        mapper.mounted(plain, files.folder / "one") as point,
    ):
        assert load(point / "good.ko") == "EPERM"
    assert "its root digest" in agent.log()


def test_a_digest_that_is_taken_back_ends_the_pin_at_once(agent: lab.Agent, files: mapper.Image) -> None:
    agent.configure(pinned(files))
    with mapper.verity(files, "two") as device, mapper.mounted(device, files.folder / "two") as point:
        assert settled(point / "good.ko", "ok") == "ok"
        agent.configure(lab.config(lab.DO_NOT_ENFORCE, loadPin="on"))
        assert load(point / "good.ko") == "EPERM"
        agent.configure(pinned(files))
        assert settled(point / "good.ko", "ok") == "ok"
        # A list that cannot be used leaves the last good one in force.
        before = agent.log().count("config not reloaded")
        (files.folder / "broken").write_text("# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS\nnone\n")
        agent.rewrite(pinned(files).replace(str(files.digests), str(files.folder / "broken")))
        agent.wait_for(lambda: agent.log().count("config not reloaded") > before, "refusal")
        assert "broken:2: " in agent.log()
        assert load(point / "good.ko") == "ok"


def test_a_device_that_lets_changed_blocks_pass_does_not_count(agent: lab.Agent, files: mapper.Image) -> None:
    agent.configure(pinned(files))
    with (
        mapper.verity(files, "lax", option="ignore_corruption") as device,
        mapper.mounted(device, files.folder / "lax") as point,
    ):
        agent.wait_for(lambda: "ignore_corruption" in agent.log(), "refusal of the device")
        assert load(point / "good.ko") == "EPERM"
        assert lab.metrics()[VERITY] == 0


def test_a_block_that_was_changed_cannot_be_loaded(agent: lab.Agent, files: mapper.Image) -> None:
    """The digest covers all of the device: a module changed beneath it is an I/O error."""
    agent.configure(pinned(files))
    data = (files.folder / "verity.img").read_bytes()
    good = (files.folder / "good.ko").read_bytes()
    at = data.index(good[:4096])
    changed = mapper.Image(files.folder / "changed")
    changed.folder.mkdir()
    for name in ("verity.table", "verity.hash"):
        (changed.folder / name).write_bytes((files.folder / name).read_bytes())
    (changed.folder / "verity.img").write_bytes(data[: at + 100] + b"\xff" + data[at + 101 :])
    with mapper.verity(changed, "three") as device, mapper.mounted(device, changed.folder / "three") as point:
        agent.wait_for(lambda: lab.metrics()[VERITY] == 1, "pin")
        assert load(point / "good.ko") == errno.errorcode[errno.EIO]


def test_under_enforce_it_is_exempt_as_the_root_is(agent: lab.Agent, files: mapper.Image) -> None:
    with mapper.verity(files, "four") as device, mapper.mounted(device, files.folder / "four") as point:
        agent.configure(pinned(files, lab.ENFORCE, pinnedRootExempt=True))
        assert settled(point / "unsigned.ko", "ok") == "ok"
        agent.configure(pinned(files, lab.ENFORCE))
        assert load(point / "unsigned.ko") == "EKEYREJECTED"


def test_the_root_is_told_as_it_is(agent: lab.Agent) -> None:
    del agent
    metrics = lab.metrics()
    (info,) = [name for name in metrics if name.startswith("kmodgate_pinned_root_info{")]
    assert 'protection="writable"' in info
    assert 'fstype="ext4"' in info
    assert metrics[CURRENT] == 1


def test_another_root_is_noticed_and_not_trusted(agent: lab.Agent, work: Path) -> None:
    agent.configure(lab.config(lab.DO_NOT_ENFORCE, loadPin="on"))
    own = Path("/root/switch.ko")
    own.write_bytes((work / "kmgtest.unsigned.ko").read_bytes())

    def tried(path: Path) -> str:
        outcome = lab.finit(path)
        lab.unload("kmgtest")
        return outcome.result

    assert tried(own) == "ok"
    with mapper.another_root(Path("/mnt/other")) as old:
        agent.wait_for(lambda: lab.metrics()[CURRENT] == 0, "notice of another root")
        assert "process 1 has another root" in agent.log()
        new = Path("/switch.ko")
        new.write_bytes(own.read_bytes())
        assert tried(new) == "EPERM"
        # The pin is on the file system, wherever it is mounted now.
        assert tried(own) == "ok"
        assert tried(old / own.relative_to("/")) == "ok"
        assert lab.get("/readyz")[0] == 200
    agent.wait_for(lambda: lab.metrics()[CURRENT] == 1, "notice of the old root")
    assert "back on the pinned root" in agent.log()
    assert tried(own) == "ok"
