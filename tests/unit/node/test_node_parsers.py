# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodgate.errors import KmodgateError, NodeError
from kmodgate.node import CgroupHierarchy
from kmodgate.node.kconfig import parse_kconfig
from kmodgate.node.kernel import Preemption, parse_cpu_list, parse_flag, parse_preemption
from kmodgate.node.keyrings import parse_keys
from kmodgate.node.modules import parse_modules
from kmodgate.node.mounts import cgroup_hierarchy, parse_mount_id, parse_mountinfo, unescape
from kmodgate.node.security import Lockdown, parse_lockdown, parse_lsm_list

PARSERS: list[Callable[[str], object]] = [
    parse_mountinfo,
    parse_mount_id,
    parse_cpu_list,
    parse_keys,
    parse_modules,
    parse_lsm_list,
    parse_lockdown,
    parse_kconfig,
    parse_preemption,
    unescape,
    lambda text: parse_flag(text, "x"),
]
# Pieces of real files, put together at random, come further than random text.
PIECES = st.sampled_from(
    (
        *(
            " ",
            "\n",
            "-",
            ",",
            ":",
            "(",
            ")",
            "[",
            "]",
            "=",
            "0",
            "27",
            "254:1",
            "/",
            "\\040",
            "\\777",
            "rw",
            "ext4",
        ),
        *("mnt_id:\t", "0-3", "99999999999999999999", "13e59e0e I--Q--- ", "1 perm 0c030000 ", "0 65534 "),
        *("keyring ", "asymmetri ", "X509.rsa", "loop 32768 0 - Live 0x0", "(OE)", "CONFIG_", "is not set"),
        *("PREEMPT_DYNAMIC", "٣", "\x85", "\u2028", "\r"),
    )
)


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=60, deadline=None)
@given(text=st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
def test_no_text_raises_anything_but_our_errors(parser: Callable[[str], object], text: str) -> None:
    with suppress(KmodgateError):
        parser(text)


@settings(max_examples=60, deadline=None)
@given(point=st.text(st.characters(codec="ascii"), min_size=1, max_size=20))
def test_escaped_mount_points_come_back(point: str) -> None:
    # What show_mountinfo() escapes: seq_path(…, " \t\n\\").
    escaped = "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in point)
    (mount,) = parse_mountinfo(f"1 2 3:4 / {escaped} rw - ext4 /dev/vda rw")
    assert mount.mount_point == point


@pytest.mark.parametrize("optional", ["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "])
def test_optional_fields_of_mountinfo(optional: str) -> None:
    (mount,) = parse_mountinfo(
        f"36 35 98:0 /mnt1 /mnt2 ro,noatime {optional}- ext3 /dev/root rw,errors=continue\n"
    )
    assert (mount.mount_id, mount.parent_id, mount.major, mount.minor) == (36, 35, 98, 0)
    assert (mount.root, mount.mount_point, mount.options) == ("/mnt1", "/mnt2", ("ro", "noatime"))
    assert (mount.fs_type, mount.source) == ("ext3", "/dev/root")
    assert mount.super_options == ("rw", "errors=continue")


@pytest.mark.parametrize(
    "line",
    ["x", "1 2 3:4 / / rw", "1 2 3:4 / / rw - ext4 dev", "a 2 3:4 / / rw - a b c", "1 2 3 / / rw - a b c"],
)
def test_lines_that_are_no_mounts(line: str) -> None:
    with pytest.raises(NodeError, match="line 2"):
        parse_mountinfo(f"1 2 3:4 / / rw - ext4 dev rw\n{line}\n")


def test_an_empty_source_is_a_source() -> None:
    (mount,) = parse_mountinfo("1 2 0:4 / /x rw - tmpfs  rw")
    assert mount.source == ""


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([("cgroup2", "/sys/fs/cgroup")], CgroupHierarchy.V2),
        ([("cgroup2", "/sys/fs/cgroup"), ("cgroup", "/mnt/old")], CgroupHierarchy.V2),
        ([("cgroup", "/sys/fs/cgroup/cpu")], CgroupHierarchy.V1),
        ([("cgroup", "/sys/fs/cgroup/cpu"), ("cgroup2", "/sys/fs/cgroup/unified")], CgroupHierarchy.HYBRID),
        ([("cgroup2", "/run/cgroup")], CgroupHierarchy.V2),
        ([("ext4", "/")], None),
    ],
)
def test_cgroup_hierarchies(mounts: list[tuple[str, str]], expected: CgroupHierarchy | None) -> None:
    text = "".join(f"1 2 3:4 / {point} rw - {kind} x rw\n" for kind, point in mounts)
    assert cgroup_hierarchy(parse_mountinfo(text)) == expected


def test_mount_ids() -> None:
    assert parse_mount_id("pos:\t0\nflags:\t012100000\nmnt_id:\t27\nino:\t2\n") == 27
    assert parse_mount_id("pos:\t0\n") is None
    with pytest.raises(NodeError):
        parse_mount_id("mnt_id:\t-1\n")


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3\n", 4), ("0,2-3,8", 4), ("0-999999", 1_000_000)])
def test_cpu_lists(text: str, count: int) -> None:
    assert parse_cpu_list(text) == count


@pytest.mark.parametrize("text", ["", "a", "3-1", "0,,1", "-1", "0-1-2"])
def test_no_cpu_lists(text: str) -> None:
    with pytest.raises(NodeError):
        parse_cpu_list(text)


@pytest.mark.parametrize("mode", list(Lockdown))
def test_lockdown_modes(mode: Lockdown) -> None:
    text = " ".join(f"[{word}]" if word == mode else word for word in Lockdown)
    assert parse_lockdown(text + "\n") is mode


DYNAMIC = "Linux version 6.1.0 (x) #1 SMP PREEMPT_DYNAMIC Debian"


@pytest.mark.parametrize(
    ("version", "debugfs", "cmdline", "kconfig", "expected"),
    [
        (None, None, None, None, None),
        ("Linux version 6.1.0 #1 SMP", None, None, None, Preemption.NONE_OR_VOLUNTARY),
        ("Linux version 6.1.0 #1 SMP PREEMPT Mon", None, None, None, Preemption.FULL),
        ("Linux version 6.1.0 #1 SMP PREEMPT_RT Mon", "none (full)", "preempt=none", None, Preemption.RT),
        (DYNAMIC, None, None, None, Preemption.DYNAMIC),
        (DYNAMIC, "none voluntary (full) \n", "preempt=none", None, Preemption.FULL),
        (DYNAMIC, "full (lazy)", None, None, Preemption.LAZY),
        (DYNAMIC, None, "preempt=full preempt=voluntary", None, Preemption.VOLUNTARY),
        (DYNAMIC, None, "preempt=bogus", {"PREEMPT_VOLUNTARY": "y"}, Preemption.VOLUNTARY),
        (DYNAMIC, None, None, {"PREEMPT": "y", "PREEMPT_VOLUNTARY": "n"}, Preemption.FULL),
    ],
)
def test_preemption(
    version: str | None,
    debugfs: str | None,
    cmdline: str | None,
    kconfig: dict[str, str] | None,
    expected: Preemption | None,
) -> None:
    assert parse_preemption(version, debugfs=debugfs, cmdline=cmdline, kconfig=kconfig) == expected


def test_only_some_models_leave_kernel_code_alone() -> None:
    quiet = {item for item in Preemption if not item.may_preempt_kernel}
    assert quiet == {Preemption.NONE, Preemption.VOLUNTARY, Preemption.NONE_OR_VOLUNTARY}


def test_keys_that_cannot_be_used_are_left_out() -> None:
    line = "2f1d6ad5 {flags}     1 {expiry} 1f030000     0     0 asymmetri CA: 00ff: {kind}.rsa 00ff []\n"
    assert len(parse_keys(line.format(flags="I------", expiry="perm", kind="X509")).certificates) == 1
    for flags, expiry, kind in (
        ("IR-----", "perm", "X509"),
        ("I-D----", "perm", "X509"),
        ("I-----i", "perm", "X509"),
        ("I------", "expd", "X509"),
        ("I------", "perm", "PKCS8"),
    ):
        assert parse_keys(line.format(flags=flags, expiry=expiry, kind=kind)).certificates == ()


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", ""])
def test_module_names_that_would_leave_their_directory(name: str) -> None:
    with pytest.raises(NodeError):
        parse_modules(f"{name} 1 0 - Live 0x0\n")
