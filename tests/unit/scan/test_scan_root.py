# SPDX-License-Identifier: Apache-2.0
"""Root file systems that somebody else made: loops, links out, devices, depth, odd names."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.errors import InputError
from kmodgate.fsutil import FileReadError
from kmodgate.scan.root import MAX_DEPTH, Folder, Root

LIMIT = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """``root`` is scanned; ``outside`` must stay out of reach."""
    (tmp_path / "root/usr/lib/modules/6.1/kernel").mkdir(parents=True)
    (tmp_path / "root/usr/lib/modules/6.1/kernel/a.ko").write_bytes(b"inside")
    (tmp_path / "root/lib").symlink_to("usr/lib")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.ko").write_bytes(b"outside")
    return tmp_path


def read(lab: Path, path: str) -> bytes:
    with Root(lab / "root") as root:
        return root.read(path, LIMIT)[0]


def walk(lab: Path, path: str = "/lib/modules") -> dict[str, Folder]:
    with Root(lab / "root") as root:
        return {folder.path: folder for folder in root.walk(path)}


def test_links_are_followed_inside(lab: Path) -> None:
    (lab / "root/absolute").symlink_to("/usr/lib/modules")
    (lab / "root/file.ko").symlink_to("absolute/6.1/kernel/../kernel/./a.ko")
    assert read(lab, "/lib/modules/6.1/kernel/a.ko") == b"inside"
    assert read(lab, "/file.ko") == b"inside"
    assert read(lab, "//absolute/6.1//kernel/a.ko") == b"inside"


@pytest.mark.parametrize(
    "target",
    [
        "../outside/secret.ko",
        "../../../../../../../../{lab}/outside/secret.ko",
        "/../{lab}/outside/secret.ko",
        "{lab}/outside/secret.ko",
        "usr/../../outside/secret.ko",
        "/proc/self/root/{lab}/outside/secret.ko",
    ],
)
def test_no_link_leads_out(lab: Path, target: str) -> None:
    (lab / "root/x.ko").symlink_to(target.format(lab=lab))
    with pytest.raises(FileReadError):
        read(lab, "/x.ko")


def test_paths_do_not_lead_out_either(lab: Path) -> None:
    for path in ("/../outside/secret.ko", "../outside/secret.ko", f"{lab}/outside/secret.ko"):
        with pytest.raises(FileReadError):
            read(lab, path)
    assert read(lab, "/../../usr/lib/modules/6.1/kernel/a.ko") == b"inside"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "usr", "lib", "modules", "loop", "out", "a.ko"]), max_size=9))
def test_no_path_at_all_reads_from_outside(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    lab = tmp_path_factory.mktemp("lab")
    (lab / "root/usr/lib/modules").mkdir(parents=True)
    (lab / "root/lib").symlink_to("usr/lib")
    (lab / "root/loop").symlink_to("/loop/usr")
    (lab / "root/out").symlink_to(str(lab))
    (lab / "a.ko").write_bytes(b"outside")
    (lab / "root/usr/a.ko").write_bytes(b"inside")
    with Root(lab / "root") as root:
        with suppress(FileReadError):
            assert root.read("/".join(parts), LIMIT)[0] == b"inside"
        assert root.kind("/".join(parts)) in {"file", "directory", None}


def test_loops_end(lab: Path) -> None:
    (lab / "root/one.ko").symlink_to("two.ko")
    (lab / "root/two.ko").symlink_to("one.ko")
    (lab / "root/self").symlink_to("self/self")
    (lab / "root/usr/lib/modules/6.1/kernel/up").symlink_to("../..")
    for path in ("/one.ko", "/self", "/self/x"):
        with pytest.raises(FileReadError) as caught:
            read(lab, path)
        assert caught.value.errno_name == "ELOOP"
    assert set(walk(lab)) == {"/lib/modules/6.1/kernel"}


def test_linked_directories_are_not_walked_and_linked_files_are(lab: Path) -> None:
    (lab / "root/usr/lib/modules/6.1/build").symlink_to("/usr/src")
    (lab / "root/usr/lib/modules/6.1/weak-updates").mkdir()
    (lab / "root/usr/lib/modules/6.1/weak-updates/a.ko").symlink_to("/lib/modules/6.1/kernel/a.ko")
    found = walk(lab)
    assert found["/lib/modules/6.1/weak-updates"].names == ("a.ko",)
    assert len(found) == 2
    assert read(lab, "/lib/modules/6.1/weak-updates/a.ko") == b"inside"


def test_what_is_no_file_is_named_and_never_opened(lab: Path) -> None:
    kernel = lab / "root/usr/lib/modules/6.1/kernel"
    os.mkfifo(kernel / "fifo.ko")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(kernel / "socket.ko.xz"))
    (kernel / "fifo.txt").symlink_to("fifo.ko")
    (kernel / "link.ko").symlink_to("fifo.ko")
    found = walk(lab)
    odd = {path for path, folder in found.items() if folder.problem is not None}
    assert odd == {"/lib/modules/6.1/kernel/fifo.ko", "/lib/modules/6.1/kernel/socket.ko.xz"}
    assert "neither a regular file nor a link" in str(found["/lib/modules/6.1/kernel/fifo.ko"].problem)
    with pytest.raises(FileReadError, match="is a FIFO"):
        read(lab, "/lib/modules/6.1/kernel/link.ko")


def test_names_that_are_no_text(lab: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b[2J.ko")
    (lab / "root/usr/lib/modules/6.1/kernel" / name).write_bytes(b"odd")
    assert name in walk(lab)["/lib/modules/6.1/kernel"].names
    assert read(lab, f"/lib/modules/6.1/kernel/{name}") == b"odd"


def test_depth_is_bounded_and_said(lab: Path) -> None:
    deep = lab / "root/deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(MAX_DEPTH + 20):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    (problem,) = (folder.problem for folder in walk(lab, "/deep").values())
    assert problem is not None
    assert problem.errno_name == "ELOOP"
    assert f"more than {MAX_DEPTH} directories deep" in str(problem)


def test_huge_and_growing_files_are_not_read(lab: Path) -> None:
    with (lab / "root/huge.ko").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileReadError) as caught:
        read(lab, "/huge.ko")
    assert caught.value.errno_name == "EFBIG"


def test_directories_and_files_that_may_not_be_read(lab: Path) -> None:
    closed = lab / "root/usr/lib/modules/6.1/extra"
    closed.mkdir(mode=0)
    (lab / "root/usr/lib/modules/6.1/kernel/a.ko").chmod(0)
    user = os.geteuid()
    with Root(lab / "root") as root:
        if user == 0:  # nothing is closed to root
            os.seteuid(65534)
        try:
            found = {folder.path: folder for folder in root.walk("/lib/modules")}
            with pytest.raises(FileReadError) as caught:
                root.read("/lib/modules/6.1/kernel/a.ko", LIMIT)
        finally:
            os.seteuid(user)
    closed.chmod(0o700)
    problem = found["/lib/modules/6.1/extra"].problem
    assert problem is not None
    assert problem.errno_name == caught.value.errno_name == "EACCES"


def test_what_is_not_there(lab: Path) -> None:
    (problem,) = (folder.problem for folder in walk(lab, "/nowhere").values())
    assert problem is not None
    assert problem.errno_name == "ENOENT"
    with Root(lab / "root") as root:
        assert root.folders_in("/nowhere") == ()
        assert root.identity("/nowhere") is None
        assert root.kind("/a\0b") is None
        with pytest.raises(FileReadError):
            root.read("/a\0b", LIMIT)
        assert root.identity("/lib") == root.identity("/usr/lib")
        assert not root.is_own


@pytest.mark.parametrize("name", ["missing", "file", "a\0b"])
def test_a_root_must_be_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="give the directory that a root file system is mounted on"):
        Root(f"{tmp_path}/{name}")


def test_descriptors_are_given_back(lab: Path) -> None:
    (lab / "root/self").symlink_to("self/self")
    before = len(list(Path("/proc/self/fd").iterdir()))
    test_paths_do_not_lead_out_either(lab)
    walk(lab)
    walk(lab, "/nowhere")
    with Root(lab / "root") as root:
        root.kind("/self")
        root.kind("/lib/modules/../../lib/modules/6.1/kernel/a.ko")
        next(root.walk("/lib/modules")).path  # noqa: B018  # left half-way
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_but_files_is_opened_where_a_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo.ko").symlink_to("fifo")
    (tmp_path / "file").write_bytes(b"bytes")
    (tmp_path / "to-file.ko").symlink_to("/file")
    opened: list[int] = []
    really = os.open

    def spy(path: str, flags: int, *rest: int, **named: int) -> int:
        fd = really(path, flags, *rest, **named)
        if not flags & os.O_PATH:
            opened.append(stat.S_IFMT(os.fstat(fd).st_mode))
        return fd

    with Root(tmp_path) as root:
        monkeypatch.setattr(os, "open", spy)
        with pytest.raises(FileReadError, match="is a FIFO"):
            root.read("/to-fifo.ko", 100)
        assert root.read("/to-file.ko", 100)[0] == b"bytes"
    assert opened == [stat.S_IFREG]
