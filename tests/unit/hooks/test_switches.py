# SPDX-License-Identifier: Apache-2.0
"""The kernel's own switches: set when the policy asks, and said when they are not."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from kmodgate.hooks.switches import KernelSwitches
from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.node import NodePaths
from kmodgate.rungs import NodeCan

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
PINNED = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
FREE = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)


@pytest.fixture
def node(tmp_path: Path) -> NodePaths:
    paths = NodePaths(proc=tmp_path / "proc", sys=tmp_path / "sys")
    (paths.sys / "module/module/parameters").mkdir(parents=True)
    (paths.proc / "sys/kernel/loadpin").mkdir(parents=True)
    signatures(paths).write_text("N\n")
    load_pin(paths).write_text("0\n")
    return paths


def signatures(paths: NodePaths) -> Path:
    return paths.sys / "module/module/parameters/sig_enforce"


def load_pin(paths: NodePaths) -> Path:
    return paths.proc / "sys/kernel/loadpin/enforce"


def test_signatures_are_enforced_by_the_kernel(node: NodePaths, caplog: pytest.LogCaptureFixture) -> None:
    switches = KernelSwitches(node)
    assert switches.apply(ENFORCE) == ()
    assert signatures(node).read_text().startswith("1")
    assert load_pin(node).read_text() == "0\n"
    assert switches.set_here == ("module.sig_enforce",)
    assert caplog.text.count("module.sig_enforce is 1 from now on") == 1
    assert switches.apply(ENFORCE) == ()
    assert caplog.text.count("from now on") == 1
    assert switches.restore() == "module.sig_enforce stays 1 until the next boot"


def test_what_the_kernel_cannot_unset_is_said_once(node: NodePaths, caplog: pytest.LogCaptureFixture) -> None:
    switches = KernelSwitches(node)
    switches.apply(ENFORCE)
    for _ in range(3):
        assert switches.apply(FREE) == ()
    assert caplog.text.count("stays 1 until the next boot") == 1


def test_load_pin_goes_both_ways(node: NodePaths) -> None:
    switches = KernelSwitches(node)
    assert switches.apply(PINNED) == ()
    assert load_pin(node).read_text().startswith("1")
    assert signatures(node).read_text() == "N\n"
    load_pin(node).write_text("0\n")  # by somebody
    assert switches.apply(PINNED) == ()
    assert load_pin(node).read_text().startswith("1")
    assert switches.apply(FREE) == ()
    assert load_pin(node).read_text().startswith("0")
    switches.apply(PINNED)
    assert switches.restore() == ""
    assert load_pin(node).read_text().startswith("0")


def test_what_was_on_already_stays_on(node: NodePaths) -> None:
    load_pin(node).write_text("1\n")
    signatures(node).write_text("Y\n")
    switches = KernelSwitches(node)
    assert switches.apply(PINNED) == switches.apply(ENFORCE) == ()
    assert switches.set_here == ()
    assert switches.restore() == ""
    assert load_pin(node).read_text() == "1\n"


@pytest.mark.parametrize("policy", [ENFORCE, PINNED])
def test_audit_sets_nothing(node: NodePaths, policy: EffectivePolicy) -> None:
    assert KernelSwitches(node).apply(replace(policy, mode=Mode.AUDIT)) == ()
    assert (signatures(node).read_text(), load_pin(node).read_text()) == ("N\n", "0\n")


def test_a_switch_that_is_missing_is_said_with_a_remedy(node: NodePaths) -> None:
    signatures(node).unlink()
    load_pin(node).unlink()
    (said,) = KernelSwitches(node).apply(ENFORCE)
    assert "CONFIG_MODULE_SIG=y" in said
    (said,) = KernelSwitches(node).apply(PINNED)
    assert "CONFIG_SECURITY_LOADPIN" in said


def test_a_switch_that_does_not_move_is_said(node: NodePaths) -> None:
    """A sysctl may take a write and stay as it is; a link to nowhere stands for one here."""
    signatures(node).unlink()
    signatures(node).symlink_to("/dev/null")
    (said,) = KernelSwitches(node).apply(ENFORCE)
    assert "module.sig_enforce cannot be set (the write changed nothing)" in said


# --- LoadPin pins what is loaded from first ------------------------------------------------


class Kernel:
    """What a kernel with LoadPin does with a file that is offered to it; stands in for finit_module."""

    def __init__(self, node: NodePaths, *, pinned: bool | None = None) -> None:
        self.switch = load_pin(node)
        self.pins_root = pinned
        self.offered: list[str] = []

    def __call__(self, descriptor: int) -> int:
        self.offered.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if self.pins_root is None:
            self.pins_root = True
            self.switch.write_text("0\n")  # before 6.3 it is not there until then
        return errno.ENOEXEC if self.pins_root or self.switch.read_text().startswith("0") else errno.EPERM


@pytest.fixture
def rooted(node: NodePaths) -> NodePaths:
    (node.proc / "1/root/etc").mkdir(parents=True)
    (node.proc / "1/root/etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (node.sys / "kernel/security").mkdir(parents=True)
    (node.sys / "kernel/security/lsm").write_text("capability,loadpin")
    return node


def test_the_nodes_root_is_pinned_before_the_switch_is_set(rooted: NodePaths) -> None:
    load_pin(rooted).unlink()
    kernel = Kernel(rooted)
    switches = KernelSwitches(rooted, kernel)
    assert switches.offer().no_load_pin == ""
    assert kernel.offered == []  # looking pins nothing
    assert switches.apply(PINNED) == ()
    assert (load_pin(rooted).read_text()[0], set(kernel.offered)) == ("1", {"passwd"})
    count = len(kernel.offered)
    assert switches.apply(PINNED) == ()
    assert len(kernel.offered) == count  # asked once
    assert switches.restore() == ""
    assert load_pin(rooted).read_text().startswith("0")


def test_a_root_that_the_kernel_has_not_pinned_is_said(rooted: NodePaths) -> None:
    switches = KernelSwitches(rooted, Kernel(rooted, pinned=False))
    for _ in range(2):
        (said,) = switches.apply(PINNED)
        assert "has pinned another file system than the node's root" in said
        assert load_pin(rooted).read_text().startswith("0")  # or the root's own modules would not load
    assert switches.apply(FREE) == ()
    assert load_pin(rooted).read_text().startswith("0")


def test_under_lockdown_that_cannot_be_told(rooted: NodePaths) -> None:
    (rooted.sys / "kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    assert KernelSwitches(rooted, Kernel(rooted, pinned=False)).apply(PINNED) == ()


def test_without_a_switch_and_with_load_pin_the_boot_has_to_do_it(rooted: NodePaths) -> None:
    load_pin(rooted).unlink()
    (said,) = KernelSwitches(rooted, lambda _descriptor: errno.ENOEXEC).apply(PINNED)
    assert "boot with loadpin.enforce=1" in said


def test_what_the_kernel_has_no_switch_for_is_known_beforehand(node: NodePaths) -> None:
    assert KernelSwitches(node).offer() == NodeCan()
    signatures(node).unlink()
    load_pin(node).unlink()
    found = KernelSwitches(node).offer()
    assert "CONFIG_MODULE_SIG" in found.no_sig_enforce
    assert "CONFIG_SECURITY_LOADPIN" in found.no_load_pin


def test_nothing_but_a_text_of_the_root_is_offered(rooted: NodePaths) -> None:
    """No link to elsewhere, no empty file: on a kernel they would load, or pin something else."""
    passwd = rooted.proc / "1/root/etc/passwd"
    passwd.write_text("")
    (rooted.proc / "1/root/etc/hostname").symlink_to("/proc/version")
    kernel = Kernel(rooted, pinned=True)
    assert KernelSwitches(rooted, kernel).apply(PINNED) == ()
    assert kernel.offered == []
