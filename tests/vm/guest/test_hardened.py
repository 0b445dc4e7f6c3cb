# SPDX-License-Identifier: Apache-2.0
"""``hardened: true``: every off switch is denied to root, and normal life is not."""

from __future__ import annotations

import hashlib
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab, offswitch
from tests.vm.offswitch import FTRACE, PINS, python, sh

pytestmark = pytest.mark.needs("hardening")

TOKEN = secrets.token_hex(16)
HARDENED = lab.config(lab.ENFORCE, hardened=True, hardenedToken=hashlib.sha256(TOKEN.encode()).hexdigest())
GUARD = PINS / "guard"


@pytest.fixture(scope="module")
def others() -> dict[str, set[int]]:
    """Maps, programs and links that were there before the hardened agent."""
    return {}


@pytest.fixture(scope="module")
def hardened(
    session_agent: lab.Agent, others: dict[str, set[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[lab.Agent]:
    """A hardened agent in place of the session's, which comes back afterwards."""
    session_agent.stop()
    sh("kmodgate detach")  # what is pinned would count as somebody else's
    others.update({kind: offswitch.numbers(kind) for kind in offswitch.KINDS})
    agent = lab.Agent(tmp_path_factory.mktemp("hardened"))
    try:
        agent.start(HARDENED)
        yield agent
    finally:
        if agent.process is not None:
            agent.stop()
        session_agent.start(lab.config(lab.ENFORCE))
        assert not GUARD.exists()
        assert FTRACE.write_text("1") == 1  # nothing of the guard is left


def denials(switch: str) -> float:
    return lab.metrics()[f'kmodgate_off_switch_denials_total{{switch="{switch}"}}']


def still_enforces(agent: lab.Agent, work: Path) -> None:
    assert FTRACE.read_text() == "1\n"
    assert lab.finit(work / "kmgtest.unsigned.ko").result == "EKEYREJECTED"
    assert agent.process is None or agent.process.poll() is None


def test_it_says_that_it_is_hardened(hardened: lab.Agent) -> None:
    samples = lab.metrics()
    assert samples["kmodgate_hardened"] == 1
    assert samples["kmodgate_enforcing"] == 1
    assert "hardened in" in hardened.log()
    # The guard's own trial at the start is not an attempt by others.
    assert all(denials(switch) == 0 for switch in ("ftrace_enabled", "bpffs", "pins", "bpf", "ptrace"))


def test_ftrace_cannot_be_switched_off(hardened: lab.Agent, work: Path) -> None:
    before = denials("ftrace_enabled")
    assert sh("sysctl -w kernel.ftrace_enabled=0").status != 0
    assert sh("echo 0 > /proc/sys/kernel/ftrace_enabled").status != 0
    assert offswitch.write(FTRACE, b"0") == "EPERM"
    assert denials("ftrace_enabled") == before + 3
    still_enforces(hardened, work)
    hardened.wait_for(lambda: "denied: a write to kernel.ftrace_enabled" in hardened.log(), "line in the log")


@pytest.mark.parametrize(
    "attack",
    [
        "umount /sys/fs/bpf",
        "umount -l /sys/fs/bpf",
        "umount -l /sys",  # takes /sys/fs/bpf along
        "mount -t tmpfs nothing /sys/fs/bpf",
        "mount -o remount,ro /sys/fs/bpf",
        # In another mount namespace, shared with this one: it would propagate.
        "mount --make-rshared / && unshare -m --propagation unchanged umount -l /sys/fs/bpf",
        "mount --make-rshared / && unshare -m --propagation unchanged umount -l /sys",
    ],
)
def test_the_bpf_file_system_stays_mounted(hardened: lab.Agent, work: Path, attack: str) -> None:
    before = denials("bpffs")
    try:
        done = sh(attack)
    finally:
        sh("mount --make-rprivate /")
    assert done.status != 0
    assert denials("bpffs") == before + 1
    assert list(GUARD.glob("*/kmg_guard_umount"))
    still_enforces(hardened, work)


@pytest.mark.parametrize(
    "attack",
    [
        f"rm -rf {PINS}",
        f"rm {GUARD}/*/kmg_guard_umount",
        f"mv {PINS} /sys/fs/bpf/elsewhere",
        f"mv {GUARD}/*/control {GUARD}/other",
        f"mkdir {PINS}/abi-99",
        f"ln -s /sys/fs/bpf/elsewhere {PINS}/abi-99",
        f"bpftool map create {PINS}/mine type array key 4 value 4 entries 1 name mine",
    ],
)
def test_pins_stay(hardened: lab.Agent, work: Path, attack: str) -> None:
    there = sorted(map(str, PINS.rglob("*")))
    before = denials("pins")
    assert sh(attack).status != 0
    assert denials("pins") > before
    assert sorted(map(str, PINS.rglob("*"))) == there
    still_enforces(hardened, work)


def test_nobody_gets_a_map_a_program_or_a_link(
    hardened: lab.Agent, others: dict[str, set[int]], work: Path
) -> None:
    before = denials("bpf")
    tried = 0
    for kind, known in others.items():
        ours = offswitch.numbers(kind) - known
        assert len(ours) >= 10
        for number in ours:
            if (result := offswitch.open_number(kind, number)) == "ok":
                # A section that holds type information only: no program uses it.
                assert kind == "map"
                assert offswitch.map_name(number).endswith((".bss", ".rodata"))
                continue
            assert result == "EPERM"
            tried += 1
    assert tried >= 60
    assert denials("bpf") == before + tried
    (home,) = GUARD.iterdir()
    assert offswitch.open_pin(home / "control") == "EPERM"
    assert offswitch.open_pin(home / "register") == "EPERM"
    # A link can be opened by its pin, and nothing can be done with it.
    assert offswitch.detach_pinned_link(home / "kmg_guard_umount") in {"ENOTSUP", "EOPNOTSUPP"}
    ours = offswitch.numbers("program") - others["program"]
    assert sh(f"bpftool map dump pinned {home}/control").status != 0
    for number in ours:
        assert sh(f"bpftool cgroup detach /sys/fs/cgroup sysctl id {number}").status != 0
        break
    assert sh("umount -l /sys/fs/bpf").status != 0
    still_enforces(hardened, work)


@pytest.mark.parametrize(
    "attack", [offswitch.ATTACH, offswitch.WRITE_MEMORY, offswitch.STEAL_DESCRIPTOR],
    ids=["attach", "memory", "descriptor"],
)  # fmt: skip
def test_the_agent_cannot_be_taken_over(hardened: lab.Agent, attack: str) -> None:
    before = denials("ptrace")
    done = python(attack, hardened.pid)
    assert done.status == 1
    assert done.said in {"EPERM", "EACCES"}
    assert denials("ptrace") == before + 1
    assert sh(f"strace -p {hardened.pid} -o /dev/null").status != 0


@pytest.mark.parametrize(
    "life",
    [
        "sysctl -w kernel.printk_ratelimit=5",
        "mkdir /tmp/m && mount -t tmpfs t /tmp/m && umount /tmp/m",
        "mkdir /tmp/l && mount -t tmpfs t /tmp/l && umount -l /tmp/l",
        "mkdir -p /tmp/b && mount -t bpf b /tmp/b && mkdir /tmp/b/x && rmdir /tmp/b/x && umount /tmp/b",
        "mkdir /tmp/c && mount --bind /sys/fs/bpf /tmp/c && umount /tmp/c",
        # What a container runtime does with its own copy of the tree.
        "unshare -m umount -l /sys/fs/bpf",
        "unshare -m umount -l /sys",
        "mkdir /sys/fs/bpf/other && mv /sys/fs/bpf/other /sys/fs/bpf/another && rmdir /sys/fs/bpf/another",
        (
            "bpftool map create /sys/fs/bpf/mine type array key 4 value 4 entries 1 name mine && "
            "bpftool map update pinned /sys/fs/bpf/mine key 0 0 0 0 value 1 0 0 0 && "
            "bpftool map dump pinned /sys/fs/bpf/mine && rm /sys/fs/bpf/mine"
        ),
        "strace -o /dev/null true",
        "mkdir /tmp/d && touch /tmp/d/a && mv /tmp/d/a /tmp/d/b && ln -s b /tmp/d/c && rm -r /tmp/d",
    ],
)
def test_normal_life_goes_on(hardened: lab.Agent, life: str) -> None:
    del hardened
    before = {name: value for name, value in lab.metrics().items() if "off_switch" in name}
    done = sh(life)
    assert done.status == 0, done.said
    assert {name: value for name, value in lab.metrics().items() if "off_switch" in name} == before


def test_the_agent_itself_may_do_all_of_it(hardened: lab.Agent, work: Path) -> None:
    """A reload, a probe and a scrape pass the guard: they use maps, programs and the switch."""
    hardened.configure(HARDENED.replace('"2s"', '"3s"'))
    assert lab.get("/readyz")[0] == 200
    hardened.configure(HARDENED)
    still_enforces(hardened, work)


def test_an_edit_of_the_config_lifts_nothing(hardened: lab.Agent, work: Path) -> None:
    hardened.configure(lab.config(lab.ENFORCE))
    assert "takes effect at the next start" in hardened.log()
    assert sh("sysctl -w kernel.ftrace_enabled=0").status != 0
    hardened.configure(HARDENED)
    still_enforces(hardened, work)


def unlock(token: str, seconds: int = 5) -> int:
    done = subprocess.run(
        ["kmodgate", "unlock", "--token-file", "-", "--seconds", str(seconds)],
        check=False, input=token.encode(), capture_output=True,
    )  # fmt: skip
    return done.returncode


def test_a_token_lifts_it_once_and_for_a_while(hardened: lab.Agent, work: Path) -> None:
    assert unlock("wrong") == 1
    assert sh("sysctl -w kernel.ftrace_enabled=1").status != 0
    hardened.wait_for(lambda: unlock(TOKEN, 20) == 0, "unlock", 60)
    assert sh("sysctl -w kernel.ftrace_enabled=1").status == 0
    hardened.wait_for(lambda: lab.metrics()["kmodgate_hardened"] == 0, "gauge at 0")
    hardened.wait_for(lambda: lab.metrics()["kmodgate_hardened"] == 1, "gauge back at 1", 60)
    assert sh("sysctl -w kernel.ftrace_enabled=1").status != 0
    assert unlock(TOKEN) == 1
    assert "refused: used" in hardened.log()
    still_enforces(hardened, work)


def test_killing_the_agent_opens_nothing_but_its_place(hardened: lab.Agent) -> None:
    assert hardened.process is not None
    hardened.process.send_signal(signal.SIGKILL)  # never denied: whoever runs it must be able to
    hardened.process.wait(60)
    assert sh("sysctl -w kernel.ftrace_enabled=0").status != 0
    assert sh("umount -l /sys/fs/bpf").status != 0
    assert sh(f"rm -rf {PINS}").status != 0
    (home,) = GUARD.iterdir()
    assert offswitch.open_pin(home / "control") == "EPERM"
    # The next agent takes the place; its guard is in force before the old one goes.
    hardened.start(HARDENED)
    (new,) = GUARD.iterdir()
    assert int(new.name) == int(home.name) + 1
    assert sh("sysctl -w kernel.ftrace_enabled=0").status != 0
    assert unlock(TOKEN) == 1
    assert "refused: used" in hardened.log()


def test_a_second_agent_cannot_register_beside_a_living_one(hardened: lab.Agent, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(HARDENED.replace(f":{lab.PORT}", ":0"))
    done = sh(f"kmodgate run --config {config}", timeout=120)
    assert done.status == 3
    assert "still alive" in done.said
    assert hardened.process is not None
    assert hardened.process.poll() is None
