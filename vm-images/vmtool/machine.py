# SPDX-License-Identifier: Apache-2.0
"""The machine as QEMU's arguments: pure, so that tests can read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OUT_PORT = "kmodgate.out"
ERR_PORT = "kmodgate.err"
STATUS_PORT = "kmodgate.status"


@dataclass(frozen=True, slots=True)
class Share:
    """A folder of the host in the guest.

    Attributes:
        host: the folder.
        guest: where it is mounted.
        writable: the guest may write; such shares are never cached by the guest.
    """

    host: Path
    guest: str
    writable: bool = False

    @property
    def options(self) -> str:
        """9p mount options. ``mmap``: no caching, but shared mappings work."""
        return "rw,cache=mmap" if self.writable else "ro,cache=loose"


@dataclass(frozen=True, slots=True)
class Machine:
    """One virtual machine.

    Attributes:
        kernel: bzImage or ELF (PVH).
        disk: ext4 image; writes go to a throw-away layer.
        accel: ``kvm`` or ``tcg``.
        memory: MiB.
        append: more kernel arguments.
        readonly_root: the block device and the mount are read-only.
        icount: guest time follows instructions (TCG, one CPU): figures repeat.
        in_turn: emulated processors run one after another on one thread of the host, see ``accelerator``.
        network: user-mode network with a virtio card.
        forward: with it, ports of the host's loopback that lead to ports of the guest.
    """

    kernel: Path
    initrd: Path
    disk: Path | None
    console: Path
    accel: str = "tcg"
    smp: int = 2
    memory: int = 1024
    append: str = ""
    readonly_root: bool = False
    icount: bool = False
    in_turn: bool = False
    network: bool = False
    forward: Mapping[int, int] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)


def escape(value: str | Path) -> str:
    """A value inside a QEMU option: a comma is written twice."""
    return str(value).replace(",", ",,")


# A CPU that has been stuck in the kernel for two minutes ends the machine with the stacks of all CPUs, long
# before the time limit does. Two minutes, because a busy host may take a CPU away for some seconds.
_STUCK = ("watchdog_thresh=60", "softlockup_panic=1", "softlockup_all_cpu_backtrace=1")


def kernel_arguments(machine: Machine) -> str:
    """The kernel command line. ``panic=-1`` with ``-no-reboot`` turns a panic into QEMU's exit."""
    words = ["console=ttyS0", "quiet", "panic=-1", "oops=panic", "nmi_watchdog=0", *_STUCK]
    if machine.readonly_root:
        words.append("kmodgate.root=ro")
    if machine.network:
        words.append("kmodgate.net=1")
    return " ".join([*words, machine.append]).strip()


def accelerator(machine: Machine) -> list[str]:
    """Arguments for accelerator and processor.

    Emulated processors that run at the same time can miss that one of them has changed the kernel's code: the
    breakpoint of ``text_poke_bp()`` stays in QEMU's translation after it is gone from memory, and the
    processor that meets it traps for ever (QEMU 7.2, seen in ``syscall_trace_enter`` some seconds after two
    processes made system calls and a third switched a trace event of one on and off). Where the code
    of every system call is changed, processors therefore take turns.
    """
    if machine.accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if machine.icount:
        # One instruction a nanosecond. With shift=auto the rate would follow the host's clock.
        return ["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0,sleep=off"]
    return ["-accel", f"tcg,thread={'single' if machine.in_turn else 'multi'}", "-cpu", "max"]


def arguments(machine: Machine, ports: Mapping[str, int] | None = None) -> list[str]:
    """QEMU's argument list.

    Args:
        machine: what to run.
        ports: port name -> inherited descriptor of a connected socket; None gives an
            interactive console on QEMU's own terminal.
    """
    argv = ["qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    argv += ["-machine", "pc,hpet=off", *accelerator(machine)]
    argv += ["-smp", str(1 if machine.icount else machine.smp), "-m", f"{machine.memory}M"]
    argv += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd)]
    argv += ["-append", kernel_arguments(machine)]
    argv += ["-chardev", f"file,id=console,path={escape(machine.console)}", "-serial", "chardev:console"]
    if machine.disk is not None:
        # A read-only disk needs no layer, and QEMU refuses the two together.
        how = "readonly=on" if machine.readonly_root else "snapshot=on"
        argv += ["-drive", f"file={escape(machine.disk)},format=raw,if=none,id=root,{how}"]
        argv += ["-device", "virtio-blk-pci,drive=root"]
    argv += ["-device", "virtio-serial-pci"]
    if ports is None:
        argv += ["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]
    else:
        for number, (name, descriptor) in enumerate(ports.items()):
            argv += ["-chardev", f"socket,id=port{number},fd={descriptor}"]
            argv += ["-device", f"virtserialport,chardev=port{number},name={name}"]
    for tag, share in machine.shares.items():
        readonly = "" if share.writable else ",readonly=on"
        argv += [
            "-virtfs",
            f"local,path={escape(share.host)},mount_tag={tag},security_model=none,multidevs=remap{readonly}",
        ]
    ports_in = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in machine.forward.items())
    argv += ["-nic", f"user,model=virtio-net-pci{ports_in}"] if machine.network else ["-nic", "none"]
    return argv
