# SPDX-License-Identifier: Apache-2.0
"""``kmodgate scan``: outcomes, exit codes, formats, and what goes wrong."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.unit.scan.conftest import NEW, OLD, Lab, kernel_image, module_file
from tests.vectors.generate import make_identity

from kmodgate.cli import main
from kmodgate.model import Reason, SignatureStatus
from kmodgate.scan.formats import COLUMNS
from kmodgate.scan.records import Outcome, ScanReason

SCHEMA = json.loads(files("kmodgate.scan").joinpath("report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def run(capsys: pytest.CaptureFixture[str], lab: Lab, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["scan", "--root", str(lab.root), *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


def run_json(
    capsys: pytest.CaptureFixture[str], lab: Lab, *arguments: str
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, the document, and its files by name without the directory of modules."""
    code, out, err = run(capsys, lab, "--output", "json", *arguments)
    assert err == ""
    assert out.isascii()
    document = json.loads(out)
    VALIDATOR.validate(document)
    assert document["summary"]["exit_code"] == code
    return code, document, {file["file"].removeprefix("/lib/modules/"): file for file in document["files"]}


def found(file: dict[str, Any]) -> tuple[str, str, str | None]:
    return file["outcome"], file["reason"], file["errno"]


def test_each_kernels_own_key_counts_for_its_modules(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    code, document, by_name = run_json(capsys, lab)
    assert code == 0
    assert {file["trusted_by"] for name, file in by_name.items() if name.startswith(OLD)} == {f"kernel:{OLD}"}
    assert [kernel["certificates"] for kernel in document["kernels"]] == [1, 1]
    assert document["summary"]["accepted"] == 4
    assert document["loaded"] is None
    lab.add(OLD, "updates/dkms/other.ko", lab.keys[NEW])
    code, _, by_name = run_json(capsys, lab)
    assert code == 1
    other = by_name[f"{OLD}/updates/dkms/other.ko"]
    assert found(other) == ("refused", "untrusted_signer", "EKEYREJECTED")
    assert (other["place"], other["in_tree"]) == ("updates/dkms", False)


def test_what_is_refused_and_why(capsys: pytest.CaptureFixture[str], lab: Lab, tmp_path: Path) -> None:
    lab.add(OLD, "extra/plain.ko.gz", None)
    lab.add(OLD, "extra/ours.ko", lab.operator)
    lab.add(OLD, "extra/theirs.ko", lab.stranger)
    revoked = lab.add(OLD, "extra/revoked.ko", lab.operator)
    tampered = lab.add(OLD, "extra/tampered.ko", lab.operator)
    data = bytearray(tampered.read_bytes())
    data[70] ^= 1
    tampered.write_bytes(data)
    cut = lab.add(OLD, "extra/cut.ko", lab.operator)
    data = bytearray(cut.read_bytes())
    data[-32:-28] = b"\xff\xff\xff\xff"
    cut.write_bytes(data)
    (tmp_path / "revoked").write_text(f"bin:{hashlib.sha256(revoked.read_bytes()).hexdigest()}\n")
    code, document, by_name = run_json(
        capsys,
        lab,
        *("--trust", str(tmp_path / "operator.pem"), "--revoked", str(tmp_path / "revoked")),
        *("--kernel", OLD),
    )
    assert code == 1
    extra = {name.rpartition("/")[2]: found(file) for name, file in by_name.items() if "/extra/" in name}
    assert extra == {
        "plain.ko.gz": ("refused", "unsigned", "EKEYREJECTED"),
        "ours.ko": ("accepted", "trusted_signature", None),
        "theirs.ko": ("refused", "untrusted_signer", "EKEYREJECTED"),
        "revoked.ko": ("refused", "revoked", "EKEYREJECTED"),
        "tampered.ko": ("refused", "bad_signature", "EKEYREJECTED"),
        "cut.ko": ("refused", "malformed_signature", "EBADMSG"),
    }
    assert {kernel["release"] for kernel in document["kernels"]} == {OLD}
    assert document["summary"]["refused"] == 5
    assert document["summary"]["by_reason"][0] == {
        "outcome": "accepted",
        "reason": "trusted_signature",
        "modules": 3,
        "loaded": 0,
    }


def test_without_its_image_a_kernels_modules_are_unknown_and_never_accepted(
    capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    (lab.root / f"boot/vmlinuz-{OLD}").unlink()
    (lab.root / f"boot/vmlinuz-{NEW}").write_bytes(b"MZ no kernel")
    lab.add(OLD, "extra/plain.ko", None)
    code, document, by_name = run_json(capsys, lab)
    assert code == 1
    assert found(by_name[f"{OLD}/kernel/fs/ext4.ko"]) == ("unknown", "kernel_keys_missing", None)
    assert found(by_name[f"{NEW}/kernel/fs/ext4.ko"]) == ("unknown", "kernel_keys_missing", None)
    assert found(by_name[f"{OLD}/extra/plain.ko"]) == ("refused", "unsigned", "EKEYREJECTED")
    problems = {kernel["release"]: kernel["problem"] for kernel in document["kernels"]}
    assert f"there is no /boot/vmlinuz-{OLD}" in problems[OLD]
    assert problems[NEW].startswith(f"/boot/vmlinuz-{NEW}: ")


@pytest.mark.parametrize("place", [f"usr/lib/modules/{OLD}/vmlinuz", f"boot/vmlinux-{OLD}"])
def test_other_places_of_the_image(capsys: pytest.CaptureFixture[str], lab: Lab, place: str) -> None:
    (lab.root / f"boot/vmlinuz-{OLD}").rename(lab.root / place)
    code, document, _ = run_json(capsys, lab, "--kernel", OLD)
    assert code == 0
    assert document["kernels"][0]["image"].endswith(place.rpartition("/")[2])


def test_certificates_that_cannot_sign_modules_are_left_out(
    capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    odd = kernel_image(lab.keys[OLD]).replace(lab.keys[OLD].der[-20:], bytes(20))
    (lab.root / f"boot/vmlinuz-{OLD}").write_bytes(odd)
    code, document, _ = run_json(capsys, lab, "--kernel", OLD)
    assert code == 1
    assert document["kernels"][0]["certificates"] == 0
    assert "cannot sign modules" in document["kernels"][0]["problem"]


def config(tmp_path: Path, ours: str, policy: str = "ENFORCE_SIGNED_MODULES") -> str:
    path = tmp_path / "node.yaml"
    path.write_text(
        f"linuxNodeConfig:\n  kernelModuleLoading:\n    policy: {policy}\n"
        f"kmodgate:\n  trust:\n    certificates: [operator.pem]\n{ours}"
    )
    return str(path)


def test_a_config_brings_trust_and_exemptions(
    capsys: pytest.CaptureFixture[str], lab: Lab, tmp_path: Path
) -> None:
    lab.add(OLD, "extra/ours.ko", lab.operator)
    lab.add(OLD, "extra/plain.ko", None)
    code, document, by_name = run_json(capsys, lab, "--config", config(tmp_path, ""))
    assert code == 1
    assert by_name[f"{OLD}/extra/ours.ko"]["trusted_by"].endswith("operator.pem")
    assert document["notes"] == []
    exempt = config(tmp_path, "  pinnedRootExempt: true\n", "DO_NOT_ENFORCE_SIGNED_MODULES")
    code, document, by_name = run_json(capsys, lab, "--config", exempt)
    assert code == 0
    assert found(by_name[f"{OLD}/extra/plain.ko"]) == ("accepted", "pinned_root", None)
    assert len(document["notes"]) == 2
    code, document, by_name = run_json(
        capsys, lab, "--config", config(tmp_path, "    kernelKeyrings: false\n")
    )
    assert code == 1
    assert found(by_name[f"{OLD}/kernel/fs/ext4.ko"]) == ("refused", "untrusted_signer", "EKEYREJECTED")
    assert "kernelKeyrings is false" in document["kernels"][0]["problem"]


def test_a_node_pool_can_be_picked(capsys: pytest.CaptureFixture[str], lab: Lab, tmp_path: Path) -> None:
    lab.add(OLD, "extra/plain.ko", None)
    pools = "  nodePools:\n    - name: lax\n      matchLabels: {pool: lax}\n      pinnedRootExempt: true\n"
    path = config(tmp_path, pools)
    assert run(capsys, lab, "--config", path)[0] == 1
    assert run(capsys, lab, "--config", path, "--node-label", "pool=lax")[0] == 0


def test_paths_instead_of_the_tree(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    (lab.root / "opt").mkdir()
    (lab.root / "opt/own.ko").write_bytes(module_file("own", lab.keys[OLD]))
    (lab.root / "opt/odd.bin").write_bytes(module_file("odd", None))
    code, _, by_name = run_json(capsys, lab, "/opt", "opt/odd.bin")
    assert code == 1
    # Two kernels, and nothing says which of them would load it.
    assert found(by_name["/opt/own.ko"]) == ("unknown", "kernel_keys_missing", None)
    assert by_name["/opt/odd.bin"]["reason"] == "unsigned"
    code, _, by_name = run_json(capsys, lab, "--kernel", OLD, "/opt/own.ko", f"/lib/modules/{NEW}")
    assert code == 0
    assert by_name["/opt/own.ko"]["kernel"] == OLD
    assert by_name[f"{NEW}/kernel/fs/ext4.ko"]["trusted_by"] == f"kernel:{NEW}"


def test_paths_of_this_system_may_be_relative(
    capsys: pytest.CaptureFixture[str], lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build/own.ko").write_bytes(module_file("own", lab.operator))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["scan", "--trust", "operator.pem", "--no-loaded", "build", "build/../build/own.ko"])
    assert ended.value.code == 0
    assert "trusted_signature" in capsys.readouterr().out


def test_what_cannot_be_read_is_two_and_the_rest_is_reported(
    capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    extra = lab.modules(OLD) / "extra"
    extra.mkdir()
    os.mkfifo(extra / "fifo.ko")
    (extra / "empty.ko").write_bytes(b"")
    (extra / "out.ko").symlink_to("/../../../../../etc/passwd")
    (extra / "loop.ko").symlink_to("loop.ko")
    (extra / "directory.ko").symlink_to(".")
    (extra / "cut.ko.xz").write_bytes((lab.modules(OLD) / "kernel/net/tun-device.ko.xz").read_bytes()[:-4])
    with (extra / "huge.ko").open("wb") as file:
        file.truncate(1 << 40)
    code, document, by_name = run_json(capsys, lab, "--kernel", OLD)
    assert code == 2
    errors = {name.rpartition("/")[2]: file["errno"] for name, file in by_name.items() if "/extra/" in name}
    assert errors == {
        "fifo.ko": "EINVAL",
        "empty.ko": "EINVAL",
        "out.ko": "ENOENT",
        "loop.ko": "ELOOP",
        "directory.ko": "EINVAL",
        "cut.ko.xz": "EINVAL",
        "huge.ko": "EFBIG",
    }
    assert document["summary"]["unreadable"] == 7
    assert document["summary"]["accepted"] == 2
    code, out, _ = run(capsys, lab, "--kernel", OLD)
    assert code == 2
    assert "7 modules could not be read:" in out


HOSTILE = os.fsdecode(b"=cmd|' C calc'!A0\n\x1b[2J\xff,\"x.ko")


def test_names_are_harmless_in_every_format(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    for first in "=+-@\t":
        (lab.modules(OLD) / f"{first}evil.ko").write_bytes(module_file(f"{first}evil", None))
    (lab.modules(OLD) / HOSTILE).write_bytes(b"no elf")
    _, _, by_name = run_json(capsys, lab, "--kernel", OLD)
    assert OLD + "/" + r"""=cmd|' C calc'!A0\x0a\x1b[2J\xff,"x.ko""" in by_name
    _, out, _ = run(capsys, lab, "--kernel", OLD, "--output", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 8
    assert out.count("\n") == 9
    for row in rows:
        for value in row.values():
            assert value is not None
            assert value.isprintable()
            assert not value.startswith(("=", "+", "-", "@"))
    modules = {row["module"] for row in rows}
    assert {"'=evil", "'+evil", "'-evil", "'@evil", r"\x09evil"} <= modules
    _, out, err = run(capsys, lab, "--kernel", OLD)
    assert "\x1b" not in out + err
    assert all(line.isprintable() for line in out.splitlines())


def test_csv_has_a_header_and_a_row_for_each_file(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    code, out, _ = run(capsys, lab, "--output", "csv")
    assert code == 0
    rows = list(csv.reader(io.StringIO(out)))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 5
    row = dict(zip(COLUMNS, rows[2], strict=True))
    assert row["file"] == f"/lib/modules/{OLD}/kernel/net/tun-device.ko.xz"
    assert (row["module"], row["loaded"], row["in_tree"], row["errno"]) == ("tun-device", "false", "true", "")


def test_text_lists_what_is_refused(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    code, out, err = run(capsys, lab)
    assert (code, err) == (0, "")
    assert "would refuse" not in out
    lab.add(OLD, "updates/dkms/plain.ko", None)
    (lab.root / f"boot/vmlinuz-{NEW}").unlink()
    for number in range(12):
        lab.add(NEW, f"kernel/drivers/d{number}.ko", lab.keys[NEW])
    code, out, _ = run(capsys, lab)
    lines = [line.split() for line in out.splitlines()]
    assert code == 1
    assert ["refused", "unsigned", "1"] in lines
    assert "ENFORCE_SIGNED_MODULES would refuse 1 module, 0 of them loaded now:" in out
    path = f"/lib/modules/{OLD}/updates/dkms/plain.ko"
    assert ["plain", "EKEYREJECTED", "unsigned", "none", path, "out-of-tree", "(updates/dkms)"] in lines
    assert "Not known for 14 modules:" in out
    assert any(line[:3] == ["14", "modules", "kernel_keys_missing"] for line in lines)
    assert "give them with --trust" in out


@pytest.mark.parametrize("jobs", ["1", "2", "3"])
def test_any_number_of_processes_gives_the_same(
    capsys: pytest.CaptureFixture[str], lab: Lab, jobs: str
) -> None:
    for number in range(60):
        lab.add(OLD, f"kernel/d{number % 7}/m{number}.ko", lab.keys[OLD] if number % 5 else None)
    _, expected, _ = run(capsys, lab, "--output", "json", "--jobs", "2")
    code, out, _ = run(capsys, lab, "--output", "json", "--jobs", jobs)
    assert (code, out) == (1, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", "9.9"], "--kernel 9.9: no modules of it"),
        (["--root", "/nowhere"], "--root '/nowhere': no such file or directory"),
        (["--root", "/etc/passwd"], "--root '/etc/passwd': not a directory"),
        (["/nowhere"], "/nowhere: no such file or directory"),
        (["/boot"], "no module files (.ko, .ko.gz, .ko.xz, .ko.zst) in /boot"),
        (["--loaded"], "is not a running system's root"),
        (["--trust", "none.pem"], "none.pem: no such file"),
        (["--trust", "garbage"], "garbage: holds no X.509 certificate"),
        (["--revoked", "garbage"], "garbage:1: not a revocation"),
        (["--config", "garbage"], "garbage"),
        (["--config", "none.yaml"], "none.yaml: cannot be read: no such file"),
        (["--node-label", "a=b"], "give --config, too"),
        (["--node-label", "ab"], "'ab' is not KEY=VALUE"),
        (["--kernel-profile", "9.9"], "'9.9' is no kernel profile"),
        (["--max-size", "0"], "'0' is not a size"),
        (["--jobs", "0"], "--jobs"),
        (["--output", "xml"], "xml"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_usage_is_two_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("garbage").write_bytes(b"\xff\x00nothing\n")
    code, out, err = run(capsys, lab, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_root_without_modules_is_no_clean_scan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scan", "--root", str(tmp_path)])
    assert ended.value.code == 2
    assert "is the right root file system mounted there?" in capsys.readouterr().err


def test_the_limit_holds(capsys: pytest.CaptureFixture[str], lab: Lab) -> None:
    code, _, by_name = run_json(capsys, lab, "--max-size", "100")
    assert code == 2
    assert {file["errno"] for file in by_name.values()} == {"EFBIG"}


def test_a_profile_changes_what_a_kernel_knows(
    capsys: pytest.CaptureFixture[str], lab: Lab, tmp_path: Path
) -> None:
    p521 = make_identity("p521", kind="p521")
    (tmp_path / "p521.pem").write_bytes(p521.pem)
    lab.add(OLD, "extra/p521.ko", p521)
    trust = ("--trust", str(tmp_path / "p521.pem"), "--kernel", OLD)
    assert run(capsys, lab, *trust)[0] == 1
    assert run(capsys, lab, *trust, "--kernel-profile", "6.12")[0] == 0


def test_schema_is_valid_and_knows_the_closed_sets() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    definitions = SCHEMA["$defs"]
    assert set(definitions["outcome"]["enum"]) == set(Outcome)
    policy = {Reason.PINNED_ROOT, Reason.TRUSTED_SIGNATURE, *range(30, 36), Reason.UNREADABLE}
    labels = {Reason(number).label for number in policy}
    assert set(definitions["reason"]["enum"]) == labels | set(ScanReason)
    assert set(definitions["file"]["properties"]["status"]["enum"]) == set(SignatureStatus)


def test_nothing_heavy_is_imported_before_the_images_are_read() -> None:
    code = (
        "import sys, kmodgate.cli.scan, kmodgate.scan.kernels, kmodgate.scan.live, kmodgate.scan.plan, "
        "kmodgate.scan.pool; sys.exit(any(name in sys.modules for name in ('cryptography', 'rich')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
