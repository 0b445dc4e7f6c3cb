# SPDX-License-Identifier: Apache-2.0
"""Shell completion, in the shells themselves: the script is loaded and TAB is pressed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmodgate.cli import COMMANDS

_SCRIPT = '#!/bin/sh\nexec {python} -m kmodgate "$@"\n'
_CONTROL = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)|[\r\x07\x08]")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A PATH with this kmodgate, a home with nothing in it, and some files."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin/kmodgate"
    program.parent.mkdir()
    program.write_text(_SCRIPT.format(python=sys.executable))
    program.chmod(0o755)
    for name in ("driver one.ko", "zebra.ko"):
        (home / name).write_bytes(b"")
    return {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "PS1": "READY> ",
        "LC_ALL": "C.UTF-8",
    }


def typed(shell: list[str], environment: dict[str, str], setup: str, keys: str, expected: str) -> str:
    """What a shell on a terminal shows after some keys, up to the expected text."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(environment["HOME"])
        os.execvpe(shell[0], shell, environment)  # noqa: S606  # a child on its own terminal
    shown = b""
    try:
        deadline = time.monotonic() + 30

        def wait_for(text: str) -> None:
            nonlocal shown
            while text.encode() not in _CONTROL.sub(b"", shown):
                left = deadline - time.monotonic()
                ready, _, _ = select.select([terminal], [], [], max(0.0, left))
                assert ready, f"{shell[0]} did not show {text!r}: {shown!r}"
                shown += os.read(terminal, 4096)

        os.write(terminal, (setup + "\necho set''up done\n").encode())
        wait_for("setup done")
        shown = b""
        os.write(terminal, keys.encode())
        wait_for(expected)
        return _CONTROL.sub(b"", shown).decode()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


CASES = [
    ("kmodgate ver\t", "kmodgate verify"),
    ("kmodgate explain --kernel-p\t", "--kernel-profile"),
    ("kmodgate explain --kernel-profile deb\t", "debian-1"),
    ("kmodgate verify zeb\t", "zebra.ko"),
    ("kmodgate verify dri\t", "driver\\ one.ko"),
    ("kmodgate verify zebra.ko --trust zeb\t", "--trust zebra.ko"),
    ("kmodgate doctor --output js\t", "--output json"),
    ("kmodgate completion zs\t", "completion zsh"),
    ("kmodgate trust ext\t", "trust extract"),
    ("kmodgate scan zeb\t", "zebra.ko"),
    ("kmodgate sign zebra.ko --key zeb\t", "--key zebra.ko"),
]


@pytest.mark.parametrize(("keys", "expected"), CASES, ids=[expected for _, expected in CASES])
def test_bash_completes(environment: dict[str, str], keys: str, expected: str) -> None:
    assert typed(
        ["bash", "--norc", "--noprofile", "-i"],
        environment,
        "source <(kmodgate completion bash)",
        keys,
        expected,
    )


@pytest.mark.parametrize(("keys", "expected"), CASES, ids=[expected for _, expected in CASES])
def test_zsh_completes(environment: dict[str, str], keys: str, expected: str) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed; type: apt-get install zsh")
    assert typed(
        ["zsh", "-f", "-i"],
        environment,
        "autoload -U compinit && compinit -u && source <(kmodgate completion zsh)",
        keys,
        expected,
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kmodgate ver", "verify"),
        ("kmodgate explain --ker", "--kernel-profile"),
        ("kmodgate explain --kernel-profile deb", "debian-12"),
        ("kmodgate verify zeb", "zebra.ko"),
        ("kmodgate doctor --output js", "json"),
    ],
)
def test_fish_completes(environment: dict[str, str], line: str, expected: str) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed; type: apt-get install fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"kmodgate completion fish | source; complete -C '{line}'"],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert expected in [answer.split("\t")[0] for answer in done.stdout.splitlines()]


def test_every_command_is_completed_without_importing_it(environment: dict[str, str]) -> None:
    code = (
        "import sys; from kmodgate.cli import COMMANDS, main\n"
        "try: main([])\n"
        "finally: print([n for n in COMMANDS if 'kmodgate.cli.' + n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment
        | {"COMP_WORDS": "kmodgate ", "COMP_CWORD": "1", "_KMODGATE_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == [f"plain,{name}" for name in COMMANDS]
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_all_that_is_printed(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    script = subprocess.run(
        ["kmodgate", "completion", shell], env=environment, capture_output=True, text=True, check=True
    )
    assert script.stderr == ""
    assert "_KMODGATE_COMPLETE" in script.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; type: apt-get install {shell}")
    path = tmp_path / "script"
    path.write_text(script.stdout)
    subprocess.run([shell, "-n", str(path)], check=True, timeout=60)
