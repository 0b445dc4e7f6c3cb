# SPDX-License-Identifier: Apache-2.0
"""Everything that a command can be given wrongly, in tables.

Whatever it is: the right exit code, on standard error what is wrong and where, nothing on
standard output, and never a traceback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
from tests.vectors.generate import MODINFO, append, make_elf, make_identity, openssl_cms

from kmodgate.cli import COMMANDS, cli, main

ENFORCE = "linuxNodeConfig: {kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}}\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of every kind, and one of each thing that is no such file."""
    folder = tmp_path_factory.mktemp("lab")
    signer = make_identity("signer")
    elf = make_elf(MODINFO)
    (folder / "good.ko").write_bytes(append(elf, openssl_cms(elf, signer)))
    (folder / "plain.ko").write_bytes(elf)
    (folder / "good.pem").write_bytes(signer.pem)
    (folder / "key.pem").write_bytes(signer.key_pem)
    (folder / "good.yaml").write_text(ENFORCE + "kmodgate: {trust: {certificates: [good.pem]}}\n")
    (folder / "revoked").write_text(f"id:{signer.skid.hex()}\n")
    (folder / "garbage").write_bytes(b"\x00\xffnothing of the kind\x1b[2J")
    (folder / "empty").write_bytes(b"")
    (folder / "torn.pem").write_bytes(signer.pem[:200])
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "directory").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.close()
    (folder / "closed").write_bytes(b"kmodgate: {}\n")
    (folder / "closed").chmod(0)
    return folder


@pytest.fixture(autouse=True)
def inside(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)


def run(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


SIGN = ["--key", "key.pem", "--cert", "good.pem", "--out", "out.ko"]

# Nobody listens there; the files come first.
FLEET = ["fleet", "report", "--prometheus", "https://127.0.0.1:1"]

# Every option and argument that names a file, as `@`. The second element is what may be
# written to standard output: `verify` reports on each file there, readable or not.
PLACES: dict[str, tuple[list[str], bool]] = {
    "run --config": (["run", "--config", "@"], False),
    "describe --config": (["describe", "--config", "@"], False),
    "doctor --config": (["doctor", "--config", "@"], False),
    "explain FILE": (["explain", "@", "--config", "good.yaml"], False),
    "explain --config": (["explain", "good.ko", "--config", "@"], False),
    "explain --kernel-trust": (["explain", "good.ko", "--config", "good.yaml", "--kernel-trust", "@"], False),
    "verify FILE": (["verify", "@"], True),
    "verify --trust": (["verify", "good.ko", "--trust", "@"], False),
    "verify --revoked": (["verify", "good.ko", "--revoked", "@"], False),
    "scan --config": (["scan", "good.ko", "--config", "@"], False),
    "scan --trust": (["scan", "good.ko", "--trust", "@"], False),
    "scan --revoked": (["scan", "good.ko", "--revoked", "@"], False),
    "trust list --config": (["trust", "list", "--config", "@"], False),
    "trust list --trust": (["trust", "list", "--trust", "@"], False),
    "trust extract VMLINUZ": (["trust", "extract", "@"], False),
    "sign FILE": (["sign", "@", *SIGN], False),
    "sign --key": (["sign", "plain.ko", "--key", "@", "--cert", "good.pem", "--out", "out.ko"], False),
    "sign --cert": (["sign", "plain.ko", "--key", "key.pem", "--cert", "@", "--out", "out.ko"], False),
    "sign --passphrase-file": (["sign", "plain.ko", *SIGN, "--passphrase-file", "@"], False),
    "fleet report --events": ([*FLEET, "--events", "@"], False),
    "fleet report --bearer-token-file": ([*FLEET, "--bearer-token-file", "@"], False),
    "fleet report --ca-file": ([*FLEET, "--ca-file", "@"], False),
    "unlock --token-file": (["unlock", "--token-file", "@"], False),
}
NO_FILES = {
    "missing": ("no such file",),
    "missing/below": ("no such file",),
    "good.ko/below": ("no directory", "not a directory"),
    "directory": ("is a directory",),
    "fifo": ("is a fifo", "is no regular file"),
    "socket": ("socket", "is no regular file"),
    "loop": ("loop", "too many levels"),
    "huge": ("limit", "larger than", "bytes"),
    "/dev/zero": ("character device", "is no regular file"),
    "x" * 300: ("too long",),
    "": ("directory", "no such file"),
}


@pytest.mark.parametrize("name", NO_FILES, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file(capfd: pytest.CaptureFixture[str], place: str, name: str) -> None:
    arguments, reports = PLACES[place]
    code, out, err = run(capfd, [name if item == "@" else item for item in arguments])
    assert code == 2, err
    assert reports or out == ""
    assert any(words in err.lower() for words in NO_FILES[name]), err
    assert len(err.splitlines()) == 1
    assert err.startswith("kmodgate: error: ")
    assert name in err


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may not read everything; root comes back afterwards."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_may_not_be_read(capfd: pytest.CaptureFixture[str], lab: Path, place: str) -> None:
    arguments, reports = PLACES[place]
    run(capfd, ["missing" if item == "@" else item for item in arguments])  # imports what it needs
    for folder in (lab, *lab.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name:
            folder.chmod(0o755)
    with unprivileged():
        code, out, err = run(capfd, ["closed" if item == "@" else item for item in arguments])
    assert code == 2
    assert reports or out == ""
    assert "closed: " in err
    assert "permission denied" in err


WRONG_INSIDE = {
    "config": {
        "garbage": "garbage",
        "good.ko": "good.ko",
        "unknown.yaml": "unknown.yaml:1: unknown key 'kmodgat'; did you mean kmodgate?",
        "word.yaml": "word.yaml:2: ",
        "cgroup.yaml": "cgroup v2",
        "twice.yaml": "twice.yaml:2",
        "deep.yaml": "deep.yaml",
        "nothing.yaml": "trusts nothing",
        "nul.yaml": "nul.yaml:1",
    },
    "certificate": {
        "garbage": "garbage: holds no X.509 certificate",
        "empty": "empty: holds no X.509 certificate",
        "torn.pem": "torn.pem: a certificate does not parse",
        "key.pem": "key.pem: holds a private key",
    },
    "revocations": {"garbage": "garbage:1: not a revocation", "good.pem": "good.pem:1: not a revocation"},
}
CONTENTS = {
    "unknown.yaml": "kmodgat: {}\n",
    "word.yaml": "kmodgate:\n  mode: maybe\n",
    "cgroup.yaml": ENFORCE + "linuxConfig: {cgroupMode: CGROUP_MODE_V1}\n",
    "twice.yaml": "kmodgate: {}\nkmodgate: {}\n",
    "deep.yaml": "[" * 5000,
    "nul.yaml": 'kmodgate: {trust: {certificates: ["a\\0b"]}}\n',
    "nothing.yaml": ENFORCE + "kmodgate: {trust: {kernelKeyrings: false}}\n",
}
KINDS = {
    "--config": "config",
    "--trust": "certificate",
    "--kernel-trust": "certificate",
    "--revoked": "revocations",
}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (place, name)
        for place in PLACES
        for name in WRONG_INSIDE.get(KINDS.get(place.rsplit(maxsplit=1)[-1], ""), ())
    ],
)
def test_what_is_wrong_inside(capfd: pytest.CaptureFixture[str], lab: Path, place: str, name: str) -> None:
    if name in CONTENTS:
        (lab / name).write_text(CONTENTS[name])
    code, out, err = run(capfd, [name if item == "@" else item for item in PLACES[place][0]])
    assert (code, out) == (2, "")
    assert err.startswith("kmodgate: error: ")
    assert "\x1b" not in err
    assert WRONG_INSIDE[KINDS[place.rsplit(maxsplit=1)[-1]]][name] in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["describe", "--config", "broken.yaml"],
        ["doctor", "--config", "broken.yaml"],
        ["explain", "good.ko", "--config", "broken.yaml"],
        ["run", "--config", "broken.yaml"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(("key", "names"), [("certificates", "garbage"), ("revoked", "absent")])
def test_a_file_that_the_config_names(
    capfd: pytest.CaptureFixture[str], lab: Path, arguments: list[str], key: str, names: str
) -> None:
    (lab / "broken.yaml").write_text(ENFORCE + f"kmodgate: {{trust: {{{key}: [{names}]}}}}\n")
    code, out, err = run(capfd, arguments)
    if arguments[0] == "describe":  # says what the config says, and opens nothing that it names
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert names in err


# Written, not read; or not files.
NOT_READ = {"--out", "--detached", "--root", "PATH", "--pkcs11-module", "--socket"}


def file_options(command: click.Command, path: str = "") -> Iterator[str]:
    """Every option and argument that takes a path, as `PLACES` names it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from file_options(below, f"{path} {name}".strip())
    for parameter in command.params:
        metavar = (parameter.metavar or str(parameter.name).upper()).strip("[].")
        name = parameter.opts[0] if isinstance(parameter, click.Option) else metavar
        if name not in NOT_READ and (isinstance(parameter.type, click.Path) or metavar in METAVARS):
            yield f"{path} {name}"


METAVARS = {"FILE", "PEM", "KEY", "CERT", "VMLINUZ"}


def test_no_option_that_takes_a_file_is_left_out() -> None:
    assert set(file_options(cli)) == set(PLACES)


# --- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("option", "words"), [("--no-such-option", "no such option"), ("--output", "argument")]
)
def test_options_that_there_are_not(
    capfd: pytest.CaptureFixture[str], command: str, option: str, words: str
) -> None:
    code, out, err = run(capfd, [command, option])
    assert (code, out) == (2, "")
    assert words in err.lower() or "no such" in err.lower()
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage: kmodgate"),
        (["no-such-command"], "No such command 'no-such-command'"),
        (["run"], "Missing option '--config'"),
        (["describe"], "Missing option '--config'"),
        (["verify"], "Missing argument 'FILE...'"),
        (["explain", "good.ko"], "Missing option '--config'"),
        (["explain", "--config", "good.yaml"], "Missing argument 'FILE'"),
        (["explain", "good.ko", "good.ko", "--config", "good.yaml"], "unexpected extra argument"),
        (["describe", "more", "--config", "good.yaml"], "unexpected extra argument"),
        (["doctor", "more"], "unexpected extra argument"),
        (["completion"], "Missing argument"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
        (["verify", "good.ko", "--output", "xml"], "'xml' is not one of"),
        (["explain", "good.ko", "--config", "good.yaml", "--from", "moon"], "'moon' is not one of"),
        (["verify", "good.ko", "--max-size", "-1"], "not a size"),
        (["verify", "good.ko", "--max-size", "1T"], "not a size"),
        (["verify", "good.ko", "--max-size", "9" * 400], "not a size"),
        (["verify", "good.ko", "--kernel-profile", "2.4"], "give one of running, latest"),
        (["explain", "good.ko", "--config", "good.yaml", "--kernel-profile", ""], "no kernel profile"),
        (["explain", "good.ko", "--config", "good.yaml", "--node-label", "x"], "'x' is not KEY=VALUE"),
        (["describe", "--config", "good.yaml", "--node-label", "=x"], "'=x' is not KEY=VALUE"),
        (["doctor", "--node-label", "x"], "'x' is not KEY=VALUE"),
        (["run", "--config", "good.yaml", "--node-label", "x"], "'x' is not KEY=VALUE"),
        (["run", "--config", "good.yaml", "--log-format", "xml"], "'xml' is not one of"),
        (["scan", "--jobs", "0"], "is not in the range"),
        (["scan", "--max-size", "x"], "not a size"),
        (["scan", "--kernel-profile", "x"], "no kernel profile"),
        (["scan", "--root", "missing"], "missing"),
        (["scan", "good.ko", "--node-label", "x"], "'x' is not KEY=VALUE"),
        (["trust"], "Usage: kmodgate trust"),
        (["trust", "show"], "No such command 'show'"),
        (["trust", "extract"], "Missing argument 'VMLINUZ'"),
        (["trust", "extract", "good.ko", "--max-size", "x"], "not a size"),
        (["trust", "list", "--node-label", "x"], "'x' is not KEY=VALUE"),
        (["sign", "plain.ko"], "Missing option '--key'"),
        (["sign", "plain.ko", "--key", "key.pem"], "Missing option '--cert'"),
        (["sign", "plain.ko", "good.ko", *SIGN], "--out"),
        (["sign", "plain.ko", *SIGN, "--hash", "md5"], "'md5' is not one of"),
        (["sign", "good.ko", *SIGN], "good.ko"),
        (["sign", "plain.ko", *SIGN, "--passphrase-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["sign", "plain.ko", *SIGN[:4], "--out", "missing/out.ko"], "missing/out.ko"),
        (["doctor", "--root", "missing"], "'missing': no such file or directory; give the directory"),
        (["doctor", "--root", "good.ko"], "'good.ko': not a directory; give the directory"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_usage(capfd: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = run(capfd, arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_an_image_without_a_kernel_cannot_be_judged(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capfd, ["doctor", "--root", "directory"])
    assert (code, out) == (3, "")
    assert "boot/config-RELEASE" in err


def test_node_pools_that_nobody_can_pick_from_are_three(capfd: pytest.CaptureFixture[str], lab: Path) -> None:
    text = "kmodgate: {nodePools: [{name: a, nodeSelector: {x: 'y'}, mode: audit}]}\n"
    (lab / "pools.yaml").write_text(text)
    code, out, err = run(capfd, ["run", "--config", "pools.yaml"])
    assert (code, out) == (3, "")
    assert "pools.yaml" in err


# --- names -----------------------------------------------------------------------------------

ODD = ["\udcff\udcfe.ko", "a\x1b[2J.ko", "a\nb.ko", "[red].ko", "-.ko", "\u202egnp.ko"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
@pytest.mark.parametrize(
    "arguments",
    [["verify", "--trust", "good.pem", "--", "@"], ["explain", "--config", "good.yaml", "--", "@"]],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_odd_names_are_taken_and_shown_harmless(
    capfd: pytest.CaptureFixture[str], lab: Path, arguments: list[str], name: str, output: str
) -> None:
    (lab / name).write_bytes((lab / "good.ko").read_bytes())
    options = [name if item == "@" else item for item in arguments]
    code, out, err = run(capfd, [options[0], "--output", output, *options[1:]])
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\u202e" not in out
    if output == "json":
        assert json.loads(out)["file"] == name
    code, out, err = run(capfd, [item if item != name else f"missing-{name}" for item in options])
    assert code == 2
    assert "\x1b" not in out + err


# --- the streams and signals of a real process ------------------------------------------------

KMODGATE = [sys.executable, "-m", "kmodgate"]
QUIET: dict[str, list[str]] = {
    "help": ["--help"],
    "version": ["--version"],
    "command help": ["verify", "--help"],
    "verify": ["verify", "good.ko", "--trust", "good.pem"],
    "verify json": ["verify", "good.ko", "--trust", "good.pem", "--output", "json"],
    "explain": ["explain", "good.ko", "--config", "good.yaml"],
    "explain json": ["explain", "good.ko", "--config", "good.yaml", "--output", "json"],
    "describe": ["describe", "--config", "good.yaml"],
    "doctor": ["doctor"],
    "completion": ["completion", "bash"],
    "scan": ["scan", "good.ko", "--trust", "good.pem"],
    "trust list": ["trust", "list", "--trust", "good.pem"],
    "sign": ["sign", "plain.ko", *SIGN],
}


def process(lab: Path, arguments: list[str], redirection: str) -> tuple[int, str]:
    """Exit code and standard error of a command with a shell's redirection."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *KMODGATE, *arguments],
        cwd=lab,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", QUIET)
def test_a_full_disk_is_told(lab: Path, name: str) -> None:
    code, err = process(lab, QUIET[name], ">/dev/full")
    assert code == 3
    assert "standard output cannot be written: no space left on device" in err


@pytest.mark.parametrize("name", QUIET)
def test_a_closed_output_is_told(lab: Path, name: str) -> None:
    code, err = process(lab, QUIET[name], ">&-")
    assert code == 3
    assert err == "kmodgate: error: standard output is closed; send it to /dev/null if it is not wanted\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "missing"], 2),
        (["describe", "--config", "missing"], 2),
        (["no-such-command"], 2),
        (["verify", "good.ko", "--trust", "good.pem"], 0),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_without_standard_error_the_exit_code_still_tells(
    lab: Path, arguments: list[str], code: int, redirection: str
) -> None:
    assert process(lab, arguments, f"{redirection} >/dev/null")[0] == code


def test_a_reader_that_leaves_gets_no_answer_and_no_noise(lab: Path) -> None:
    many = ["verify", *["good.ko"] * 3000, "--trust", "good.pem"]
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", *KMODGATE, *many],
        cwd=lab,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_locale_will_do(lab: Path, locale: str, encoding: str) -> None:
    (lab / "n\u00e4me \u4e2d.ko").write_bytes((lab / "good.ko").read_bytes())
    done = subprocess.run(
        [*KMODGATE, "verify", "n\u00e4me \u4e2d.ko", "--trust", "good.pem"],
        cwd=lab,
        env={**os.environ, "LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"trusted_signature" in done.stdout


def _interrupted(lab: Path, arguments: list[str], ready: Callable[[int], bool]) -> tuple[int, str]:
    running = subprocess.Popen(
        [*KMODGATE, *arguments], cwd=lab, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not ready(running.pid):
        assert running.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    return running.returncode, err


def test_ctrl_c_is_130(lab: Path) -> None:
    """While it works on its files; seen by a file that it has open or has read."""
    with (lab / "large.ko").open("wb") as file:
        file.truncate(60 << 20)
    arguments = ["verify", *["large.ko"] * 2000, "--trust", "good.pem", "--revoked", "revoked"]

    def at_work(pid: int) -> bool:
        with suppress(OSError):  # descriptors come and go
            return any("large.ko" in str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())
        return False

    code, err = _interrupted(lab, arguments, at_work)
    assert code == 130
    assert err.strip() == ""


def test_too_little_memory_is_three(
    lab: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("kmodgate.cli.verify.inspect", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(lab / "good.ko")])
    assert ended.value.code == 3
    assert capsys.readouterr().err == (
        "kmodgate: error: out of memory; give it more, or fewer and smaller files\n"
    )
