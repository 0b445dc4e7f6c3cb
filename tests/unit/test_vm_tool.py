# SPDX-License-Identifier: Apache-2.0
"""The VM tool's pure parts: no machine is booted, no package fetched."""

from __future__ import annotations

import datetime as dt
import struct
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vm-images"))

from vmtool import apt, bootstrap, cache, host, initramfs, machine, runner, testmodules, vmlinux
from vmtool.cli import cli
from vmtool.errors import VmToolError

DEP = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_ring.ko:
kernel/fs/netfs/netfs.ko:
kernel/drivers/char/snd-odd.ko:
"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KMODGATE_VM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_modules_load_after_what_they_need() -> None:
    order = initramfs.load_order(DEP, ["9pnet_virtio", "9p", "no_such_module", "snd_odd"])
    names = [initramfs.module_name(path) for path in order]
    assert names == ["9pnet", "virtio_ring", "virtio", "9pnet_virtio", "netfs", "9p", "snd_odd"]


def test_newc_members_are_aligned_and_end_with_the_trailer() -> None:
    archive = initramfs.newc([initramfs.Node("a", 0o100644, b"xyz"), initramfs.Node("dir", 0o040755)])
    assert len(archive) % 4 == 0
    assert archive.startswith(b"070701")
    assert b"TRAILER!!!\0" in archive
    size = int(archive[6 + 6 * 8 : 6 + 7 * 8], 16)
    name_size = int(archive[6 + 11 * 8 : 6 + 12 * 8], 16)
    data_at = (110 + name_size + 3) // 4 * 4
    assert (size, archive[data_at : data_at + size]) == (3, b"xyz")


def test_depends_field_gives_first_alternatives() -> None:
    field = "linux-headers-6.1.0-1-common (= 6.1.1-1), linux-kbuild-6.1 | other, libc6 (>= 2.34)"
    assert apt.parse_depends(field) == ["linux-headers-6.1.0-1-common", "linux-kbuild-6.1", "libc6"]
    assert apt.parse_depends("") == []


def test_resolution_survives_its_file() -> None:
    package = apt.Package("linux-image-1", "1:2~3")
    resolved = apt.Resolved("sid", "1", image=(package,), headers=(), dkms=(package,))
    assert apt.Resolved.from_json(resolved.to_json()) == resolved


def test_a_root_reaches_the_mirror_as_the_machine_does() -> None:
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://p:1";\nAcquire::http "";\n'
        'Acquire::Check-Valid-Until "false";\nAPT::Sandbox::User "_apt";\nAcquire::https::CAInfo "";\n'
    )
    assert bootstrap.carried_settings(dump) == [
        'Acquire::http::Proxy "http://p:1"',
        'Acquire::Check-Valid-Until "false"',
    ]


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(VmToolError, match="unknown suite 'woody'"):
        apt.Apt("woody")


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 100])
def test_tail_passes_all_but_the_token(piece: int) -> None:
    got = bytearray()
    tail = runner.Tail(b"ababc", got.extend)
    data = b"ab\0abab\r\nabaababc"
    for at in range(0, len(data), piece):
        assert not tail.done
        tail.feed(data[at : at + piece])
    assert tail.done
    assert bytes(got) == b"ab\0abab\r\naba"
    tail.feed(b"late")
    assert bytes(got) == b"ab\0abab\r\naba"


def test_tail_holds_back_no_more_than_a_token_may_need() -> None:
    got = bytearray()
    runner.Tail(b"TOKEN", got.extend).feed(b"prompt> TO")
    assert bytes(got) == b"prompt> "


@pytest.mark.parametrize(
    ("text", "status"),
    [(b"", None), (b"start\n", None), (b"start\nexit 7", None), (b"start\nexit 7\n", 7), (b"exit x\n", None)],
)
def test_status_needs_a_whole_line(text: bytes, status: int | None) -> None:
    assert runner.parse_status(text) == status


def test_console_tail_begins_at_the_panic(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"noise\n" * 50 + b"\x1b[1mKernel panic - not syncing: test\r\n" + b"trace\n" * 50)
    tail = runner.console_tail(log).splitlines()
    assert "Kernel panic" in tail[0]
    assert len(tail) < 40
    assert "\x1b" not in tail[0]
    assert runner.console_tail(tmp_path / "absent") == ""


def _machine(**changes: object) -> machine.Machine:
    base: dict[str, object] = {
        "kernel": Path("/k"),
        "initrd": Path("/i"),
        "disk": Path("/a,b.ext4"),
        "console": Path("/log"),
    }
    return machine.Machine(**{**base, **changes})  # type: ignore[arg-type]


def test_the_disk_is_never_written_to() -> None:
    writable = " ".join(machine.arguments(_machine(), {}))
    assert "file=/a,,b.ext4,format=raw,if=none,id=root,snapshot=on" in writable
    fixed = " ".join(machine.arguments(_machine(readonly_root=True), {}))
    assert "readonly=on" in fixed
    assert "kmodgate.root=ro" in fixed


def test_shares_are_read_only_unless_asked() -> None:
    shares = {
        "src": machine.Share(Path("/p"), "/src"),
        "share": machine.Share(Path("/s"), "/share", writable=True),
    }
    virtfs = [word for word in machine.arguments(_machine(shares=shares), {}) if word.startswith("local,")]
    assert [word.endswith(",readonly=on") for word in virtfs] == [True, False]
    assert shares["src"].options.startswith("ro,")


def test_append_comes_last_so_that_it_wins() -> None:
    assert machine.kernel_arguments(_machine(append="panic=5 lsm=yama")).endswith("panic=5 lsm=yama")


def test_ports_are_forwarded_on_loopback_alone() -> None:
    argv = machine.arguments(_machine(network=True, forward={40001: 9464}), {})
    assert "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:40001-:9464" in argv
    assert machine.arguments(_machine(forward={1: 2}), {})[-1] == "none"


def test_icount_means_one_processor() -> None:
    argv = machine.arguments(_machine(icount=True, smp=4), {})
    assert argv[argv.index("-smp") + 1] == "1"
    assert argv[argv.index("-icount") + 1] == "shift=0,sleep=off"


def test_processors_take_turns_when_asked_to() -> None:
    assert "tcg,thread=multi" in machine.arguments(_machine(), {})
    assert "tcg,thread=single" in machine.arguments(_machine(in_turn=True), {})


def _signed(payload: bytes) -> bytes:
    signature = b"S" * 40
    return payload + signature + bytes([0, 0, 2, 0, 0, 0, 0, 0]) + struct.pack(">I", 40) + testmodules.MARKER


def test_tampering_flips_one_bit_of_the_payload() -> None:
    signed = _signed(b"\x7fELF...\0license=GPL\0description=text\0")
    changed = testmodules.tampered(signed)
    assert [(a, b) for a, b in zip(signed, changed, strict=True) if a != b] == [(ord("t"), ord("u"))]
    with pytest.raises(VmToolError, match="neither description nor author"):
        testmodules.tampered(_signed(b"\x7fELF"))


def test_malformed_keeps_the_marker_and_breaks_the_length() -> None:
    broken = testmodules.malformed(_signed(b"payload"))
    assert broken.endswith(b"\xff\xff\xff\xff" + testmodules.MARKER)
    assert len(broken) == len(_signed(b"payload"))
    with pytest.raises(VmToolError, match="not a signed module"):
        testmodules.malformed(b"payload")


def _certificate(common_name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def test_the_kernels_own_key_is_told_from_other_certificates() -> None:
    one, two = _certificate(vmlinux.KERNEL_KEY_SUBJECT), _certificate("another")
    assert vmlinux.certificates(b"\x7fELF" + one + b"\x30\x82\x01\x00junk" + two + one) == ([one], [one, two])
    assert vmlinux.to_pem(one).startswith(b"-----BEGIN CERTIFICATE-----")


def test_an_image_without_a_kernel_is_an_error() -> None:
    with pytest.raises(VmToolError, match="vmlinuz: not a kernel image"):
        vmlinux.extract(b"MZ nothing here")


def test_digest_frames_its_parts(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert cache.digest(["ab", "c"]) != cache.digest(["a", "bc"])
    before = cache.digest([tmp_path])
    (tmp_path / "f").chmod(0o755)
    assert cache.digest([tmp_path]) != before
    (tmp_path / "__pycache__").mkdir()
    after = cache.digest([tmp_path])
    (tmp_path / "__pycache__" / "x.pyc").write_text("y")
    assert cache.digest([tmp_path]) == after


def test_a_failed_build_leaves_no_entry(own_cache: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise VmToolError("broken")

    with pytest.raises(VmToolError, match="broken"):
        cache.entry("thing-0123456789abcdef", fail)
    assert [path.name for path in own_cache.iterdir()] == ["locks"]


def test_an_entry_is_built_once_and_pruned_when_unused(own_cache: Path) -> None:
    calls = []

    def build(target: Path) -> None:
        calls.append(target)
        target.write_text("whole")

    name = f"thing-{cache.digest(['x'])}.tar"
    assert cache.entry(name, build) == cache.entry(name, build) == own_cache / name
    assert len(calls) == 1
    (own_cache / "resolved-bookworm.json").write_text("{}")
    assert cache.prune(3600) == []
    assert cache.prune(-1) == [name]
    assert (own_cache / "resolved-bookworm.json").exists()


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)
    with pytest.raises(VmToolError, match="apt-get install mmdebstrap"):
        host.find("mmdebstrap")


def test_every_program_comes_from_a_listed_package() -> None:
    essential = {"apt", "dpkg", "util-linux", "coreutils", "tar"}
    assert set(host.PROGRAMS.values()) - essential <= set(host.packages())


@pytest.mark.parametrize("command", ["build", "run", "shell", "path", "prune", "deps"])
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


def test_options_after_the_command_are_the_commands_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[str, ...]] = []

    def fake(command: tuple[str, ...], options: runner.Options, **_sinks: object) -> runner.Completed:
        seen.append(command)
        assert options.append == "lsm=yama"
        return runner.Completed(3, b"", b"", tmp_path)

    monkeypatch.setattr(runner, "run", fake)
    invoke = CliRunner().invoke
    assert invoke(cli, ["run", "--append", "lsm=yama", "uname", "-a", "--memory"]).exit_code == 3
    assert invoke(cli, ["run", "--append", "lsm=yama", "--", "ls", "--", "-x"]).exit_code == 3
    assert seen == [("uname", "-a", "--memory"), ("ls", "--", "-x")]
    assert invoke(cli, ["run", "--bogus", "--", "ls"]).exit_code == 2
