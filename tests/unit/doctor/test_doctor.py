# SPDX-License-Identifier: Apache-2.0
"""``kmodgate doctor``: the ladder, the lines, the answer, and the looks that they come from."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.vectors.generate import make_identity

from kmodgate.cli import main
from kmodgate.config import ListenAddress
from kmodgate.doctor import Answer, Purpose, Seen, State, checks, diagnose, look, rungs
from kmodgate.doctor.hardened import GUARD_HOOKS
from kmodgate.doctor.ladder import ASKED, HELPERS, SECURITY_CALLS
from kmodgate.doctor.seen import AgentSeen
from kmodgate.model import Backend, EffectivePolicy, Mode, Policy
from kmodgate.node import CgroupHierarchy, KernelKeys, KeyringCertificate, NodeFacts, PinnedRoot
from kmodgate.node.kernel import Preemption
from kmodgate.node.process import Capability, ProcessFacts
from kmodgate.node.security import KernelLoadPin, Lockdown, ModuleSignatures
from kmodgate.signature import TrustStore, load_certificates

FACTS = NodeFacts(
    release="6.1.0-28-amd64",
    btf=True,
    lsms=("lockdown", "capability", "bpf"),
    lockdown=Lockdown.NONE,
    signatures=ModuleSignatures(built=True, enforced=False),
    load_pin=KernelLoadPin(enforced=False, excludes_modules=False),
    modules_built=True,
    modules_disabled=False,
    ftrace_enabled=True,
    cgroups=CgroupHierarchy.V2,
    online_cpus=4,
    preemption=Preemption.VOLUNTARY,
    pinned_root=PinnedRoot(
        27,
        254,
        1,
        "/",
        "ext4",
        "/dev/vda1",
        mount_read_only=True,
        superblock_read_only=True,
        device_read_only=True,
    ),
    keys=KernelKeys((KeyringCertificate("1", "CA", "00", "rsa"),), (".builtin_trusted_keys",)),
)
GOOD = Seen(
    live=True,
    facts=FACTS,
    now=datetime(2026, 6, 1, tzinfo=UTC),
    machine="x86_64",
    kconfig=dict.fromkeys(("MODULE_SIG", "BPF_LSM", "KPROBES", "BPF_EVENTS"), "y"),
    functions=frozenset(ASKED),
    crypto=frozenset({"rsa", "sha256"}),
    process=ProcessFacts(frozenset(Capability), -1, in_initial_pid_namespace=True),
    bpffs=("/sys/fs/bpf",),
    pinned=(),
    headers=False,
    no_tracefs=(),
    jit=True,
    libbpf="",
    load="",
    agent=AgentSeen("127.0.0.1:9464", ready=True, said="ok"),
)
ENFORCE = Purpose(EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True), TrustStore())
LOAD_PIN = Purpose(EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True), TrustStore())


def with_facts(**changes: Any) -> Seen:
    return replace(GOOD, facts=replace(FACTS, **changes))


def states(seen: Seen, purpose: Purpose = ENFORCE) -> dict[str, State]:
    lines = checks(seen, purpose)
    assert len({line.code for line in lines}) == len(lines)
    assert all("\n" not in line.message and line.message for line in lines)
    return {line.code: line.state for line in lines}


def test_a_good_node_is_fine_throughout() -> None:
    found = diagnose(GOOD, ENFORCE)
    assert found.answer is Answer.YES
    assert found.because == ()
    assert set(states(GOOD).values()) == {State.OK}


def test_the_ladder_of_a_good_node() -> None:
    ladder = rungs(GOOD)
    assert [rung.backend for rung in ladder] == [item for item in Backend if item is not Backend.NONE]
    assert [rung.offered for rung in ladder] == [True, True, True, False, True]
    assert "linux-headers-6.1.0-28-amd64" in ladder[3].problems[0]
    without = rungs(replace(GOOD, headers=True, bcc="install python3-bpfcc"))[3]
    assert without.problems == ("the Python binding of BCC is missing: install python3-bpfcc",)
    assert rungs(replace(GOOD, headers=True, bcc=""))[3].offered


def test_without_type_information_the_rungs_that_need_none_are_left() -> None:
    seen = with_facts(btf=False)
    (line,) = [line for line in checks(seen, ENFORCE) if line.code == "btf"]
    assert line.state is State.WARNING
    assert "CONFIG_DEBUG_INFO_BTF=y" in line.message
    assert [rung.offered for rung in rungs(replace(seen, headers=True, bcc=""))][:4] == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("seen", "code", "state", "words"),
    [
        (
            with_facts(lsms=("lockdown",)),
            "lsm",
            State.WARNING,
            "add lsm=lockdown,bpf to the kernel command line",
        ),
        (with_facts(lsms=None), "lsm", State.WARNING, "mount securityfs"),
        (with_facts(ftrace_enabled=False), "ftrace", State.PROBLEM, "sysctl kernel.ftrace_enabled=1"),
        (with_facts(ftrace_enabled=None), "ftrace", State.UNKNOWN, "CONFIG_DYNAMIC_FTRACE=y"),
        (with_facts(cgroups=CgroupHierarchy.HYBRID), "cgroups", State.PROBLEM, "unified_cgroup_hierarchy=1"),
        (with_facts(cgroups=None), "cgroups", State.UNKNOWN, "process 1"),
        (with_facts(lockdown=None), "lockdown", State.OK, "not among"),
        (with_facts(lockdown=None, lsms=None), "lockdown", State.UNKNOWN, "securityfs"),
        (with_facts(online_cpus=1), "cpus", State.WARNING, "second one"),
        (with_facts(keys=None), "keyrings", State.UNKNOWN, "CONFIG_KEYS=y"),
        (with_facts(keys=KernelKeys((), ())), "keyrings", State.UNKNOWN, "run as root"),
        (
            with_facts(keys=KernelKeys((), (".builtin_trusted_keys",))),
            "keyrings",
            State.PROBLEM,
            "trust.certif",
        ),
        (with_facts(modules_disabled=True), "modules", State.WARNING, "rebooted"),
        (
            with_facts(signatures=ModuleSignatures(built=False, enforced=False)),
            "module-sig",
            State.PROBLEM,
            "CONFIG_MODULE_SIG",
        ),
        (
            with_facts(load_pin=KernelLoadPin(enforced=True, excludes_modules=False)),
            "loadpin",
            State.WARNING,
            "loadpin.exclude=kernel-module",
        ),
        (
            replace(GOOD, functions=frozenset(ASKED) - {"bpf_loop", "mod_verify_sig"}),
            "helpers",
            State.PROBLEM,
            "no bpf_loop; use Linux 5.18",
        ),
        (replace(GOOD, functions=None), "helpers", State.UNKNOWN, "/sys/kernel/btf/vmlinux"),
        (
            replace(GOOD, functions=frozenset(HELPERS)),
            "module-sig",
            State.PROBLEM,
            "inlined module_sig_check()",
        ),
        (replace(GOOD, jit=False), "jit", State.PROBLEM, "sysctl net.core.bpf_jit_enable=1"),
        (replace(GOOD, libbpf="libbpf.so.1 cannot be loaded"), "programs", State.PROBLEM, "libbpf.so.1"),
        (replace(GOOD, load=None), "programs", State.UNKNOWN, "run as root"),
        (replace(GOOD, load="invalid argument"), "programs", State.PROBLEM, "invalid argument"),
        (replace(GOOD, machine="riscv64"), "machine", State.PROBLEM, "x86_64 and aarch64"),
        (replace(GOOD, kconfig=None), "config", State.UNKNOWN, "/boot/config-RELEASE"),
        (replace(GOOD, crypto=None), "algorithms", State.UNKNOWN, "/proc/crypto"),
        (replace(GOOD, crypto=frozenset({"sha256"})), "algorithms", State.WARNING, "modprobe rsa_generic"),
        (replace(GOOD, pinned=("kmodgate",)), "pinned", State.WARNING, "in /sys/fs/bpf: kmodgate"),
        (replace(GOOD, pinned=None), "pinned", State.UNKNOWN, "run as root"),
        (replace(GOOD, bpffs=()), "bpffs", State.OK, "needs none"),
        (GOOD, "hardening", State.OK, "possible here"),
        (replace(GOOD, bpffs=()), "hardening", State.OK, "no BPF file system (mount -t bpf"),
        (with_facts(cgroups=CgroupHierarchy.V1), "hardening", State.OK, "no cgroup v2 hierarchy"),
        (with_facts(lsms=("lockdown",)), "hardening", State.OK, "bpf among the security modules"),
        (
            replace(GOOD, functions=frozenset(ASKED) - {"bpf_lsm_sb_umount", "bpf_sys_bpf"}),
            "hardening",
            State.OK,
            "there is no sb_umount, no programs of type syscall",
        ),
        (replace(GOOD, functions=None), "hardening", State.UNKNOWN, "/sys/kernel/btf/vmlinux"),
        (replace(GOOD, now=datetime(1970, 1, 1, tzinfo=UTC)), "clock", State.WARNING, "1970-01-01"),
        (replace(GOOD, agent=None), "agent", State.UNKNOWN, "--config FILE"),
        (
            replace(GOOD, agent=AgentSeen("h:1", ready=None, said="refused")),
            "agent",
            State.WARNING,
            "nothing is enforced",
        ),
        (
            replace(GOOD, agent=AgentSeen("h:1", ready=False, said="why")),
            "agent",
            State.WARNING,
            "not ready: why",
        ),
        (
            replace(GOOD, process=ProcessFacts(frozenset(), -1, in_initial_pid_namespace=True)),
            "capabilities",
            State.UNKNOWN,
            "CAP_BPF",
        ),
        (
            replace(GOOD, process=ProcessFacts(frozenset(Capability), -1, in_initial_pid_namespace=False)),
            "pid-namespace",
            State.PROBLEM,
            "hostPID: true",
        ),
        (
            replace(
                GOOD,
                functions=frozenset(HELPERS),
                process=ProcessFacts(frozenset(Capability), 65536, in_initial_pid_namespace=True),
            ),
            "locked-memory",
            State.WARNING,
            "65536",
        ),
    ],
)
def test_each_line(seen: Seen, code: str, state: State, words: str) -> None:
    (line,) = [line for line in checks(seen, ENFORCE) if line.code == code]
    assert line.state is state
    assert words in line.message
    problems = State.PROBLEM in states(seen).values()
    assert (diagnose(seen, ENFORCE).answer is Answer.NO) == problems


NO_SECURITY_CALLS = frozenset(ASKED) - set(SECURITY_CALLS)


def test_a_problem_is_the_answer_no_with_its_remedy() -> None:
    seen = replace(with_facts(lsms=("lockdown",)), functions=NO_SECURITY_CALLS, no_tracefs=("no events",))
    found = diagnose(seen, ENFORCE)
    assert found.answer is Answer.NO
    assert any("lsm=lockdown,bpf" in reason for reason in found.because)
    assert [rung.offered for rung in found.rungs[:3]] == [False, False, False]


def test_without_bpf_among_the_security_modules_the_gates_do_it() -> None:
    found = diagnose(with_facts(lsms=("lockdown",)), ENFORCE)
    assert found.answer is Answer.YES
    assert [rung.offered for rung in found.rungs[:3]] == [False, True, False]
    assert states(with_facts(lsms=("lockdown",)))["lsm"] is State.WARNING
    assert found.chosen is Backend.BPF_FMOD_RET


def test_what_decides_and_was_not_seen_is_neither_yes_nor_no() -> None:
    found = diagnose(replace(with_facts(lsms=None), functions=NO_SECURITY_CALLS), ENFORCE)
    assert found.answer is Answer.UNKNOWN
    assert "mount -t securityfs" in found.because[0]


def test_without_programs_the_kernel_is_left_to_refuse() -> None:
    """No BTF: tracefs, which can have sig_enforce set, and has no LoadPin here."""
    seen = replace(with_facts(btf=False), libbpf="the kernel's BTF: No such file or directory", load=None)
    found = diagnose(seen, ENFORCE)
    assert found.answer is Answer.YES
    assert found.chosen is Backend.TRACEFS
    assert "module.sig_enforce=1" in found.rungs[-1].enforces
    assert {"pid", "path", "sha256"} <= set(found.rungs[-1].fleeting)
    pinned = replace(ENFORCE, policy=replace(ENFORCE.policy, policy=Policy.UNSPECIFIED))
    found = diagnose(seen, pinned)
    assert found.answer is Answer.NO
    assert "no LoadPin of its own" in found.because[0]
    exempt = replace(ENFORCE, policy=replace(ENFORCE.policy, pinned_root_exempt=True))
    assert diagnose(seen, exempt).answer is Answer.NO
    watched = replace(pinned, policy=replace(pinned.policy, mode=Mode.AUDIT))
    assert diagnose(seen, watched).answer is Answer.YES


def test_trace_events_out_of_sight_are_no_answer() -> None:
    ladder = {rung.backend: rung for rung in rungs(replace(GOOD, no_tracefs=None, kconfig=None))}
    assert ladder[Backend.TRACEFS].offered is None
    built = replace(GOOD, no_tracefs=None, kconfig={"FTRACE_SYSCALLS": "y"})
    assert {rung.backend: rung for rung in rungs(built)}[Backend.TRACEFS].offered is True


def test_an_old_kernel_keeps_the_basic_rung() -> None:
    """5.10: BTF, no bpf in lsm=, neither bpf_loop nor task storage."""
    functions = frozenset(ASKED) - set(HELPERS)
    seen = replace(GOOD, functions=functions, facts=replace(FACTS, lsms=("lockdown", "bpf")))
    ladder = {rung.backend: rung for rung in rungs(seen)}
    assert ladder[Backend.BPF_LSM].offered is False
    assert ladder[Backend.BPF_FMOD_RET].offered is False
    assert ladder[Backend.BPF_LSM_BASIC].offered is True
    assert "bpf_loop" in ladder[Backend.BPF_LSM].problems[0]
    assert states(seen)["helpers"] is State.WARNING
    assert diagnose(seen, ENFORCE).answer is Answer.YES


def test_the_basic_rung_is_no_answer_to_what_needs_a_digest() -> None:
    old = replace(GOOD, functions=frozenset(ASKED) - {*HELPERS, "module_sig_check"})
    assert diagnose(old, ENFORCE).answer is Answer.YES
    for purpose, word in (
        (replace(ENFORCE, policy=replace(ENFORCE.policy, kernel_keyrings=False)), "trust.kernelKeyrings"),
        (replace(LOAD_PIN, policy=replace(LOAD_PIN.policy, revocations=True)), "revoked"),
    ):
        found = diagnose(old, purpose)
        assert found.answer is Answer.NO
        assert word in found.because[0]
        assert diagnose(GOOD, purpose).answer is Answer.YES


def test_the_weakness_of_fmod_ret_is_named() -> None:
    preemptible = with_facts(preemption=Preemption.FULL)
    assert "best effort only" in rungs(preemptible)[1].enforces
    assert rungs(GOOD)[1].enforces == "every load"
    without = replace(GOOD, functions=frozenset(ASKED) - {SECURITY_CALLS[0]})
    assert rungs(without)[1].offered is False


def test_an_unprivileged_look_at_the_root_is_unknown_and_no_problem() -> None:
    seen = replace(
        GOOD,
        facts=replace(FACTS, pinned_root=None),
        process=ProcessFacts(frozenset(), 0, in_initial_pid_namespace=True),
    )
    assert states(seen, LOAD_PIN)["pinned-root"] is State.UNKNOWN
    root = replace(seen, process=GOOD.process)
    assert states(root, LOAD_PIN)["pinned-root"] is State.PROBLEM


def test_the_clock_is_compared_with_the_certificates() -> None:
    certificate = make_identity("short", days=(-10, -5)).pem
    trust = TrustStore(load_certificates(certificate, "short.pem"))
    today = replace(GOOD, now=datetime.now(UTC))
    (line,) = [line for line in checks(today, replace(ENFORCE, trust=trust)) if line.code == "clock"]
    assert line.state is State.WARNING
    assert "short.pem expired on" in line.message
    early = replace(GOOD, now=datetime.now(UTC) - timedelta(days=100))
    (line,) = [
        line
        for line in checks(early, replace(ENFORCE, trust=trust, require_validity=True))
        if line.code == "clock"
    ]
    assert "is not valid before" in line.message
    assert "requireValidity" in line.message


# --- looks ------------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: bytes) -> Iterator[ListenAddress]:
    """An HTTP server on the loopback that answers every GET alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ListenAddress("127.0.0.1", server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_agent_is_asked_where_it_listens() -> None:
    with answering(200, b"ready\n") as listen:
        seen = look(Path("/"), listen=listen)
        assert seen.agent == AgentSeen(str(listen), ready=True, said="ready")
    assert look(Path("/"), listen=listen).agent == AgentSeen(
        str(listen), ready=None, said="Connection refused"
    )
    with answering(503, b"not enforcing: \xff\nmore") as listen:
        agent = look(Path("/"), listen=ListenAddress("0.0.0.0", listen.port)).agent  # noqa: S104
        assert agent == AgentSeen(f"0.0.0.0:{listen.port}", ready=False, said="not enforcing: \\xff")


def test_the_running_kernel_is_looked_at_for_real() -> None:
    seen = look(Path("/"))
    assert seen.live
    assert seen.facts.release == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert seen.crypto
    assert seen.process is not None
    assert seen.process.capabilities is not None
    diagnose(seen, ENFORCE)


def image(root: Path, configs: dict[str, str], names: tuple[str, ...] = ASKED) -> Path:
    """A root with kernels that have these functions; without any, with no kernel image."""
    (root / "boot").mkdir(parents=True)
    for release, text in configs.items():
        (root / "boot" / f"config-{release}").write_text(text)
        if names:
            strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
            small = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0"
            btf = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, len(strings)) + strings
            kernel = b"\x7fELF" + bytes(400) + small + bytes(80) + btf + bytes(40)
            (root / "boot" / f"vmlinuz-{release}").write_bytes(gzip.compress(kernel))
    return root


CONFIG = (
    "CONFIG_MODULES=y\nCONFIG_MODULE_SIG=y\nCONFIG_BPF_LSM=y\nCONFIG_DEBUG_INFO_BTF=y\n"
    'CONFIG_LSM="landlock,lockdown,yama,bpf"\n'
)


def test_an_image_is_judged_by_its_newest_kernel(tmp_path: Path) -> None:
    root = image(tmp_path, {"6.9.1": "CONFIG_MODULES=y\n", "6.12.3-amd64": CONFIG, "6.1.0": CONFIG})
    seen = look(root)
    assert not seen.live
    assert seen.kernels == ("6.12.3-amd64", "6.9.1", "6.1.0")
    assert seen.functions == frozenset(ASKED)
    found = diagnose(seen, ENFORCE)
    assert found.answer is Answer.YES
    assert found.rungs[0].offered is True
    assert states(seen)["helpers"] is State.OK


def test_an_image_whose_kernel_lacks_a_helper_is_a_no(tmp_path: Path) -> None:
    names = tuple(name for name in ASKED if name not in {"bpf_loop", "mod_verify_sig"})
    found = diagnose(look(image(tmp_path, {"6.1.0": CONFIG}, names)), ENFORCE)
    assert found.answer is Answer.NO
    assert "no bpf_loop" in found.because[0]


def test_an_image_without_its_kernel_is_not_claimed_to_do(tmp_path: Path) -> None:
    root = image(tmp_path, {"6.1.0": CONFIG}, ())
    assert diagnose(look(root), ENFORCE).answer is Answer.UNKNOWN
    (root / "boot/vmlinuz-6.1.0").write_bytes(b"no kernel at all")
    found = diagnose(look(root), ENFORCE)
    assert found.answer is Answer.UNKNOWN
    assert "boot/vmlinuz-RELEASE" in found.because[0]


def test_an_image_without_bpf_lsm_stands_a_rung_lower(tmp_path: Path) -> None:
    text = CONFIG.replace("CONFIG_BPF_LSM=y", "# CONFIG_BPF_LSM is not set")
    found = diagnose(look(image(tmp_path, {"6.1.0": text})), ENFORCE)
    assert found.rungs[0].offered is False
    assert "without CONFIG_BPF_LSM" in found.rungs[0].problems[0]
    assert found.rungs[1].offered is not False


def test_a_config_beside_the_modules_counts(tmp_path: Path) -> None:
    (tmp_path / "lib/modules/6.5.0").mkdir(parents=True)
    (tmp_path / "lib/modules/6.5.0/config").write_text(CONFIG)
    assert look(tmp_path).kernels == ("6.5.0",)


def test_a_link_in_an_image_leads_nowhere_outside(tmp_path: Path) -> None:
    """An image with /proc linked to the host's would else be told as the host."""
    root = image(tmp_path / "image", {"6.1.0": CONFIG})
    (root / "proc").symlink_to("/proc")
    assert not look(root).live


# --- the rung that an agent would stand on ---------------------------------------------------

BARE = replace(with_facts(btf=False), headers=True, bcc="", no_refusal="the kernel lets nobody override")


def test_a_rung_that_can_carry_the_policy_out_wins_over_a_higher_one_that_cannot() -> None:
    found = diagnose(BARE, ENFORCE)
    assert (found.answer, found.chosen) == (Answer.YES, Backend.TRACEFS)
    ((backend, why),) = found.passed_over
    assert backend is Backend.BCC
    assert "decides before the kernel looks at the signature" in why
    assert "can refuse nothing on this kernel: the kernel lets nobody override" in why
    audit = replace(ENFORCE, policy=replace(ENFORCE.policy, mode=Mode.AUDIT))
    found = diagnose(BARE, audit)
    assert (found.answer, found.chosen, found.passed_over) == (Answer.YES, Backend.BCC, ())
    assert "the kernel lets nobody override" in found.rungs[3].enforces


def test_where_no_rung_can_carry_it_out_each_says_why() -> None:
    found = diagnose(BARE, LOAD_PIN)
    assert (found.answer, found.chosen) == (Answer.NO, None)
    assert ["backend bcc" in reason for reason in found.because] == [True, False]
    assert "no LoadPin of its own" in found.because[1]
    watched = diagnose(BARE, replace(LOAD_PIN, may_observe=True))
    assert (watched.answer, watched.chosen) == (Answer.NO, Backend.TRACEFS)
    able = diagnose(replace(BARE, no_refusal=""), LOAD_PIN)
    assert (able.answer, able.chosen) == (Answer.YES, Backend.BCC)


def test_a_rung_that_the_config_names_is_the_only_one() -> None:
    found = diagnose(BARE, replace(ENFORCE, backend=Backend.BCC))
    assert (found.answer, found.chosen) == (Answer.NO, None)
    found = diagnose(GOOD, replace(ENFORCE, backend=Backend.TRACEFS))
    assert (found.answer, found.chosen) == (Answer.YES, Backend.TRACEFS)
    assert dict(found.passed_over)[Backend.BPF_LSM] == "another was asked for"


# --- the command ------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_text_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(image(tmp_path, {"6.1.0": CONFIG.replace(",bpf", "").replace("CONFIG_DEBUG_INFO_BTF=y", "")}))
    code, text, err = run(capsys, "--root", root)
    assert (code, err) == (1, "")
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["RUNG", "NODE", "POLICY"]
    assert lines[1].split()[:2] == ["bpf-lsm", "no"]
    assert "ENFORCE_SIGNED_MODULES cannot be enforced here:" in lines
    code, out, _ = run(capsys, "--root", root, "--output", "json")
    document = json.loads(out)
    assert (code, document["answer"]) == (1, "no")
    assert document["backend"] is None
    assert all(rung["policy_obstacles"] == [] for rung in document["rungs"][:2])
    for reason in document["because"]:
        assert f"  - {reason}" in lines


def test_a_config_is_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = image(tmp_path / "image", {"6.1.0": CONFIG})
    config = tmp_path / "node.yaml"
    config.write_text("kmodgate: {mode: audit, backend: bcc}\n")
    assert run(capsys, "--root", str(root), "--config", str(config))[0] == 1  # no headers in this image
    config.write_text("kmodgate: {mode: audit, backend: bpf-lsm}\n")
    code, out, _ = run(capsys, "--root", str(root), "--config", str(config), "--output", "json")
    document = json.loads(out)
    assert (code, document["policy"], document["mode"]) == (0, "POLICY_UNSPECIFIED", "audit")
    assert any("nothing is denied" in line["message"] for line in document["checks"])
    config.write_text("kmodgate:\n  nodePools:\n  - {name: a, nodeSelector: {x: 'y'}, mode: audit}\n")
    assert run(capsys, "--root", str(root), "--config", str(config))[0] == 1
    assert run(capsys, "--root", str(root), "--config", str(config), "--node-label", "x=y")[0] == 0
    (root / "boot/vmlinuz-6.1.0").unlink()
    code, out, _ = run(capsys, "--root", str(root))
    assert code == 3
    assert "cannot be told from here" in out


def test_the_guards_hooks_are_those_of_its_source() -> None:
    source = (Path(__file__).parents[3] / "bpf/guard.bpf.c").read_text()
    assert sorted(
        f"bpf_lsm_{hook}" for hook in re.findall(r'^SEC\("lsm/(\w+)"\)', source, re.MULTILINE)
    ) == list(GUARD_HOOKS)
