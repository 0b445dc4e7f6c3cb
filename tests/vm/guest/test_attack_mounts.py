# SPDX-License-Identifier: Apache-2.0
"""Attacks with mounts: other file systems, others' file systems, other namespaces, mounts that move."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.vm import attack, fusefs, lab
from tests.vm.attack import REFUSED, in_child, libc, run
from tests.vm.rawcalls import checked

_BIND, _MOVE, _PRIVATE_RECURSIVE, _DETACH = 0x1000, 0x2000, 0x40000 | 0x4000, 2
_NEWNS, _NEWUSER, _NEWPID = 0x20000, 0x10000000, 0x20000000
_IMAGE_SIZE = 8 << 20


def mount(source: Path | str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    names = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode())
    checked(libc.mount(*names), f"mount {source} on {target}")


def unmount(target: Path) -> None:
    checked(libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


@contextmanager
def mounted(
    source: Path | str, target: Path, kind: str = "", flags: int = 0, options: str = ""
) -> Iterator[Path]:
    if not target.is_file():
        target.mkdir(exist_ok=True)
    mount(source, target, kind, flags, options)
    try:
        yield target
    finally:
        unmount(target)


@contextmanager
def overlaid(directory: Path, lower: Path) -> Iterator[Path]:
    for name in ("upper", "work"):
        (directory / name).mkdir()
    options = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work"
    with mounted("overlay", directory / "merged", "overlay", options=options) as merged:
        yield merged


@contextmanager
def looped(image: Path, target: Path, data: bytes) -> Iterator[Path]:
    """An ext4 image that holds one file, mounted from a loop device; the file."""
    content = target.with_suffix(".content")
    content.mkdir()
    (content / "module.ko").write_bytes(data)
    with image.open("wb") as file:
        file.truncate(_IMAGE_SIZE)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", content, image)
    target.mkdir()
    run("mount", "-o", "loop,ro", image, target)
    try:
        yield target / "module.ko"
    finally:
        run("umount", target)


# A file system that cannot deny writes


def test_an_honest_fuse_file_system_is_as_good_as_any(watch: attack.Watch) -> None:
    good = watch.signer.fresh()
    pest = attack.pest_of(good)
    with fusefs.mounted(watch.directory / "pest", len(pest), fusefs.whole(pest)) as file:
        assert lab.finit(file).result == REFUSED
    with fusefs.mounted(watch.directory / "good", len(good), fusefs.whole(good)) as file:
        assert lab.finit(file).ok


@pytest.mark.needs("digests")
def test_a_fuse_server_gives_the_agent_other_bytes_than_the_kernel(watch: attack.Watch) -> None:
    """The strongest form of "swapped between two reads": each reader always gets its own file."""
    good = watch.signer.fresh()
    pest = attack.pest_of(good)
    loader = threading.get_native_id()
    readers: set[int] = set()

    def two_faced(reader: int, offset: int, size: int) -> bytes:
        readers.add(reader)
        return (pest if reader == loader else good)[offset : offset + size]

    with fusefs.mounted(watch.directory / "m", len(good), two_faced) as file:
        for _ in range(5):
            assert lab.finit(file).result == REFUSED
    assert loader in readers
    assert len(readers) > 1, "the agent never looked, so nothing was tried"


def test_a_fuse_server_gives_other_bytes_at_every_read(watch: attack.Watch) -> None:
    good = watch.signer.fresh()
    faces = [good, attack.pest_of(good)]
    turn = 0

    def turning(_reader: int, offset: int, size: int) -> bytes:
        nonlocal turn
        turn += 1
        return faces[turn % 3 == 0][offset : offset + size]

    with fusefs.mounted(watch.directory / "m", len(good), turning) as file:
        attack.until_seen(lambda: lab.finit(file), {"ok", REFUSED})


def test_a_fuse_file_that_is_shorter_than_it_says(watch: attack.Watch) -> None:
    """The kernel gives up before any verdict: an attempt, and undecided."""
    good = watch.signer.fresh()
    with fusefs.mounted(watch.directory / "m", len(good) + 4096, fusefs.whole(good)) as file:
        assert lab.finit(file).result == "EIO"
    assert watch.moves()["undecided"] == 1


@pytest.mark.needs("digests")
def test_fuse_files_that_never_answer_do_not_stop_the_agent(watch: attack.Watch) -> None:
    """More of them than it has workers; each load ends in time, and soon others are answered again."""
    good = watch.signer.fresh()
    results: list[lab.Loaded] = []

    def load(file: Path) -> None:
        own = threading.get_native_id()
        loaders.add(own)
        results.append(lab.finit(file))

    loaders: set[int] = set()

    def for_loaders_only(reader: int, offset: int, size: int) -> bytes | None:
        return good[offset : offset + size] if reader in loaders else fusefs.HANG

    with ExitStack() as stack:
        files = [
            stack.enter_context(fusefs.mounted(watch.directory / f"m{n}", len(good), for_loaders_only))
            for n in range(6)
        ]
        threads = [threading.Thread(target=load, args=(file,)) for file in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [outcome.result for outcome in results] == [REFUSED] * len(files)
        # holdTimeout is 2 s here; two CPUs spin for six loads, one after the other.
        assert max(outcome.micros for outcome in results) < 20_000_000
        assert lab.finit(lab.in_tree("dummy")).ok
        deadline = time.monotonic() + 60
        while not lab.finit(watch.signer.fresh_file(watch.directory)).ok:
            assert time.monotonic() < deadline, watch.agent.log()


def test_an_overlay_whose_upper_file_is_written_beneath(watch: attack.Watch) -> None:
    """The write goes to another inode than the one whose writers the kernel shuts out."""
    lower = watch.directory / "lower"
    lower.mkdir()
    with overlaid(watch.directory, lower) as merged:
        path = merged / "module.ko"
        path.write_bytes(watch.signer.fresh())
        place, good, pest = attack.pest_byte(path.read_bytes())
        beneath = os.open(watch.directory / "upper/module.ko", os.O_RDWR)

        def write() -> None:
            for byte in (pest, good):
                os.pwrite(beneath, byte, place)
                time.sleep(0.001)

        with attack.meanwhile(write):
            attack.until_seen(lambda: lab.finit(path), {"ok", REFUSED})
        os.close(beneath)


def test_a_loop_image_that_is_changed_beneath(watch: attack.Watch) -> None:
    data = watch.signer.fresh()
    place, good, pest = attack.pest_byte(data)
    image = watch.directory / "image"
    with looped(image, watch.directory / "m", data) as path:
        block = place // 1024 * 1024
        at = image.read_bytes().index(data[block : block + 1024]) + place - block
        backing = os.open(image, os.O_RDWR)
        caches = Path("/proc/sys/vm/drop_caches")

        def change() -> None:
            for byte in (pest, good):
                os.pwrite(backing, byte, at)
                caches.write_text("1")

        fd = os.open(path, os.O_RDONLY)
        with attack.meanwhile(change):
            attack.until_seen(lambda: lab.finit_fd(fd), {"ok", REFUSED})
        os.close(fd)
        os.close(backing)


# Mounts that move


def test_a_file_that_another_is_mounted_over(watch: attack.Watch) -> None:
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()
    fd = os.open(pest, os.O_RDONLY)
    with mounted(good, pest, flags=_BIND):
        assert lab.finit_fd(fd).result == REFUSED  # opened before
        assert lab.finit(pest).ok  # what lies there now
        lab.unload(attack.GOOD)
    os.close(fd)

    def cover_and_uncover() -> None:
        with mounted(pest, good, flags=_BIND):
            time.sleep(0.002)
        time.sleep(0.002)

    with attack.meanwhile(cover_and_uncover):
        attack.until_seen(lambda: lab.finit(good), {"ok", REFUSED})


# Namespaces


def unshared(flags: int, act: Callable[[], lab.Loaded]) -> Callable[[], lab.Loaded]:
    """In namespaces of its own; a PID namespace begins with the next child."""

    def enter() -> lab.Loaded:
        checked(libc.unshare(flags), "unshare")
        return lab.Loaded(in_child(act), 0) if flags & _NEWPID else act()

    return enter


def rooted_in(directory: Path, name: str) -> Callable[[], lab.Loaded]:
    """In a mount namespace whose root is another file system, without the old one and without /proc."""

    def load() -> lab.Loaded:
        mount("", Path("/"), flags=_PRIVATE_RECURSIVE)
        mount("tmpfs", directory, "tmpfs")
        (directory / name).write_bytes(bytes_of[name])
        (directory / "old").mkdir()
        checked(libc.pivot_root(os.fsencode(directory), os.fsencode(directory / "old")), "pivot_root")
        os.chdir("/")
        unmount(Path("/old"))
        return lab.finit(f"/{name}")

    bytes_of = {name: (directory / name).read_bytes()}
    return unshared(_NEWNS, load)


def covered_root(directory: Path, name: str) -> Callable[[], lab.Loaded]:
    """A file system mounted on "/": two lines in mountinfo have that place."""

    def load() -> lab.Loaded:
        mount("", Path("/"), flags=_PRIVATE_RECURSIVE)
        mount("tmpfs", directory, "tmpfs")
        (directory / name).write_bytes(data)
        mount(directory, Path("/"), flags=_MOVE)
        # A path begins at the process's root, which lies beneath; its ".." leads to the top.
        return lab.finit(f"/../{name}")

    data = (directory / name).read_bytes()
    return unshared(_NEWNS, load)


@pytest.mark.parametrize("kind", ["mount", "pid", "root"])
def test_other_namespaces_change_nothing(watch: attack.Watch, kind: str) -> None:
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()

    def load(path: Path) -> str:
        if kind == "root":
            return in_child(rooted_in(watch.directory, path.name))
        flags = _NEWNS | (_NEWPID if kind == "pid" else 0)
        return in_child(unshared(flags, lambda: lab.finit(path)))

    assert load(pest) == REFUSED
    assert load(good) == "ok"


def test_root_in_a_user_namespace_is_not_root(watch: attack.Watch) -> None:
    good = watch.signer.fresh_file(watch.directory)
    before = watch.moves()
    assert in_child(unshared(_NEWUSER, lambda: lab.finit(good))) == "EPERM"
    after = watch.moves()
    assert after["attempts"] == before["attempts"]
    assert after["refused_early"] == before["refused_early"] + 1


# LoadPin: only the pinned root's superblock counts


@contextmanager
def root_again(target: Path) -> Iterator[Path]:
    """The root's device mounted a second time: the same superblock."""
    mountinfo = Path("/proc/self/mountinfo").read_text().splitlines()
    fields = next(line.split() for line in mountinfo if line.split()[4] == "/")
    device = Path("/dev") / Path(f"/sys/dev/block/{fields[2]}").resolve().name
    with mounted(device, target, fields[fields.index("-") + 1]) as again:
        yield again


def test_only_the_pinned_root_counts_whatever_is_mounted_where(watch: attack.Watch) -> None:
    """DO_NOT_ENFORCE with LoadPin: signatures do not matter, the file system does."""
    unsigned = watch.signer.unsigned()
    pest = attack.pest_of(unsigned)
    outside = watch.directory / "outside.ko"
    outside.write_bytes(pest)
    inside = Path("/root/attack-loadpin")
    inside.mkdir()
    (inside / "module.ko").write_bytes(unsigned)
    (inside / "lower").mkdir()
    (inside / "lower/pest.ko").write_bytes(pest)
    attack.configure(watch.agent, watch.signer.config(lab.DO_NOT_ENFORCE))

    def refused(what: str, load: Callable[[], lab.Loaded]) -> None:
        assert load().result == "EPERM", what

    def allowed(what: str, load: Callable[[], lab.Loaded]) -> None:
        assert load().ok, what
        lab.unload(attack.GOOD)

    try:
        allowed("root", lambda: lab.finit(inside / "module.ko"))
        refused("tmpfs", lambda: lab.finit(outside))
        refused("memory", lambda: lab.init(pest))
        (inside / "link").symlink_to(outside)
        refused("symlink on the root to elsewhere", lambda: lab.finit(inside / "link"))
        with mounted(outside, inside / "module.ko", flags=_BIND):
            refused("bind mount over a file on the root", lambda: lab.finit(inside / "module.ko"))
        with mounted(inside, watch.directory / "bound", flags=_BIND) as bound:
            allowed("bind mount of the root", lambda: lab.finit(bound / "module.ko"))
        with root_again(watch.directory / "again") as again:
            path = again / inside.relative_to("/") / "module.ko"
            allowed("the root's device again", lambda: lab.finit(path))
        with overlaid(watch.directory, inside / "lower") as merged:
            refused("overlay, lower on the root", lambda: lab.finit(merged / "pest.ko"))
        with looped(inside / "image", watch.directory / "m", pest) as file:
            refused("loop image that lies on the root", lambda: lab.finit(file))
        with fusefs.mounted(inside / "fuse", len(pest), fusefs.whole(pest)) as file:
            refused("FUSE mounted on the root", lambda: lab.finit(file))
        for what, entered in (("root", rooted_in), ("covered", covered_root)):
            result = in_child(entered(watch.directory, outside.name))
            assert result == "EPERM", f"another root in another mount namespace: {what}"

        def cover_and_uncover() -> None:
            with mounted(outside, inside / "module.ko", flags=_BIND):
                time.sleep(0.002)
            time.sleep(0.002)

        with attack.meanwhile(cover_and_uncover):
            attack.until_seen(lambda: lab.finit(inside / "module.ko"), {"ok", "EPERM"})
    finally:
        run("rm", "-rf", "--one-file-system", inside)
