# SPDX-License-Identifier: Apache-2.0
"""The bcc rung without a kernel to try it on: what it looks for, and what it says where that is missing."""

from __future__ import annotations

import io
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from kmodgate.errors import HookError
from kmodgate.hooks import abi, bcc, bccheaders, choice
from kmodgate.hooks.bcc import BccBackend, Probes
from kmodgate.hooks.bcccompile import binding, binding_path
from kmodgate.hooks.choice import Features
from kmodgate.model import Backend, EffectivePolicy, Mode, Policy
from kmodgate.node import NodePaths
from kmodgate.policy import compile_table, refuses

CALLS = (
    "__x64_sys_finit_module",
    "__x64_sys_init_module",
    "__ia32_sys_finit_module",
    "__ia32_sys_init_module",
)
FUNCTIONS = (
    *CALLS,
    "security_kernel_read_file",
    "security_kernel_load_data",
    "security_sb_free",
    "mod_verify_sig",
)
RELEASE = "6.1.0-test"


@pytest.fixture
def node(tmp_path: Path) -> NodePaths:
    """A node that can do everything."""
    paths = NodePaths(proc=tmp_path / "proc", sys=tmp_path / "sys")
    paths.proc.mkdir()
    lines = [f"ffffffff81000{n:03x} {'tT'[n % 2]} {name}" for n, name in enumerate(FUNCTIONS)]
    lines += ["ffffffff82000000 d __x64_sys_data", "ffffffffc0000000 t other\t[module]"]
    (paths.proc / "kallsyms").write_text("\n".join(lines) + "\n")
    pmu = paths.sys / "bus/event_source/devices/kprobe/type"
    pmu.parent.mkdir(parents=True)
    pmu.write_text("6\n")
    listed = paths.sys / "kernel/debug/error_injection/list"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{name}\tERRNO\n" for name in (*CALLS, "should_failslab")))
    return paths


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with binding and headers."""
    monkeypatch.setattr(bcc, "binding_path", lambda: "/usr/lib/python3/dist-packages/bcc/__init__.py")
    monkeypatch.setattr(bccheaders, "find", lambda _release: bccheaders.Headers((Path("/"),)))


def test_all_four_entries_are_seen_and_may_be_refused(node: NodePaths) -> None:
    found = Probes(node, "x86_64")
    assert list(found.lacks()) == []
    assert (found.calls, found.signature, found.overrides) == (CALLS, True, True)


def test_a_call_that_may_not_be_refused_is_a_way_around(node: NodePaths) -> None:
    listed = node.sys / "kernel/debug/error_injection/list"
    listed.write_text("".join(f"{name}\tERRNO\n" for name in CALLS[:3]))
    found = Probes(node, "x86_64")
    assert not found.overrides
    assert found.cannot_refuse() == "the kernel lets nobody override __ia32_sys_init_module"
    assert list(found.lacks()) == []  # it watches


@pytest.mark.parametrize("text", [None, "", "\n", "__x64_sys_finit_module_not\tERRNO\n"])
def test_without_the_list_nothing_is_refused(node: NodePaths, text: str | None) -> None:
    listed = node.sys / "kernel/debug/error_injection/list"
    listed.unlink()
    if text is not None:
        listed.write_text(text)
    found = Probes(node, "x86_64")
    assert not found.overrides
    assert ("CONFIG_BPF_KPROBE_OVERRIDE" if text is None else "override") in found.cannot_refuse()


def test_a_kernel_without_32_bit_calls_has_two_entries(node: NodePaths) -> None:
    kallsyms = node.proc / "kallsyms"
    kallsyms.write_text("".join(f"0 t {name}\n" for name in FUNCTIONS if "ia32" not in name))
    found = Probes(node, "x86_64")
    assert (found.calls, found.overrides) == (CALLS[:2], True)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "ia32" not in name and name[0] != "m"])
def test_each_function_is_needed(node: NodePaths, name: str) -> None:
    kallsyms = node.proc / "kallsyms"
    kallsyms.write_text(kallsyms.read_text().replace(f" {name}\n", " gone\n"))
    (lack,) = Probes(node, "x86_64").lacks()
    assert f"no function {name}()" in lack


def test_what_keeps_a_node_from_the_rung_is_said_whole(
    node: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcc, "binding_path", lambda: None)
    (node.sys / "bus/event_source/devices/kprobe/type").unlink()
    (node.proc / "kallsyms").unlink()
    said = "\n".join(Probes(node, "x86_64").lacks())
    assert "apt-get install python3-bpfcc" in said
    assert "PyPI is something else" in said
    assert "CONFIG_KPROBE_EVENTS" in said
    assert "__x64_sys_finit_module" in said
    assert list(Probes(node, "riscv64").lacks()) == ["machine type riscv64: only x86_64 and aarch64 work"]
    with pytest.raises(HookError, match="backend bcc cannot work here: "):
        BccBackend(paths=node)


def test_a_policy_that_refuses_needs_a_kernel_that_lets_it(
    node: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (node.sys / "kernel/debug/error_injection/list").unlink()
    with BccBackend(paths=node, data=b"int x;") as backend:
        table = compile_table(EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False))
        with pytest.raises(HookError, match=r"can refuse nothing on this kernel: .*; set mode: audit"):
            backend.set_policy(table)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False), False),
        (EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=True), True),
        (EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.AUDIT, load_pin=True), False),
        (EffectivePolicy(Policy.ENFORCE, Mode.AUDIT, load_pin=False), False),
        (EffectivePolicy(Policy.DO_NOT_ENFORCE, Mode.ENFORCE, load_pin=False, revocations=True), True),
    ],
)
def test_which_tables_refuse(policy: EffectivePolicy, expected: bool) -> None:
    assert refuses(compile_table(policy)) is expected


def test_it_is_looked_for_only_where_nothing_better_works(
    node: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[NodePaths] = []

    def lacks(paths: NodePaths) -> tuple[str, ...]:
        asked.append(paths)
        return ()

    monkeypatch.setattr(bcc, "lacks", lacks)
    monkeypatch.setattr(choice, "read_btf_names", lambda _paths, _names: None)
    features = Features.look(lsm_active=True, paths=node)
    found = choice.choose(features)
    assert (found.backend, asked) == (Backend.BCC, [node])
    assert dict(found.passed_over)[Backend.BPF_LSM] == (
        "the kernel's type information (/sys/kernel/btf/vmlinux) cannot be read",
    )
    full = Features(
        frozenset({*choice._LSM_HOOKS, *choice._HELPERS, "module_sig_check"}),
        lsm_programs=True,
        loop=True,
        task_storage=True,
        syscall_programs=True,
        lsm_active=True,
    )
    monkeypatch.setattr(choice, "read_btf_names", lambda _paths, _names: frozenset())
    monkeypatch.setattr(Features, "probe", lambda **_: full)
    assert choice.choose(Features.look(lsm_active=True, paths=node)).backend is Backend.BPF_LSM
    assert len(asked) == 1
    wanted = Features.look(lsm_active=True, paths=node, wanted=Backend.BCC)
    assert choice.choose(wanted, Backend.BCC).backend is Backend.BCC
    with pytest.raises(HookError, match="backend bcc cannot work on this kernel: BCC was not looked for"):
        choice.choose(full, Backend.BCC)


# --- the kernel's headers --------------------------------------------------------------------


def make_headers(folder: Path, member: str) -> Path:
    header = folder / "include/linux/fs.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"struct inode {{\n\tstruct timespec64\t{member};\n}};\n")
    return folder


def find(tmp_path: Path) -> bccheaders.Headers:
    return REAL_FIND(RELEASE, modules=tmp_path / "modules", sys=tmp_path / "sys")


REAL_FIND = bccheaders.find


def test_installed_headers(tmp_path: Path) -> None:
    home = tmp_path / "modules" / RELEASE
    make_headers(home / "build", "i_ctime")
    assert find(tmp_path) == bccheaders.Headers((home / "build",))


def test_debian_has_them_in_two_folders(tmp_path: Path) -> None:
    home = tmp_path / "modules" / RELEASE
    make_headers(home / "source", "i_ctime")
    (home / "build").mkdir()
    assert find(tmp_path) == bccheaders.Headers((home / "source",))


def test_a_dangling_link_is_no_headers(tmp_path: Path) -> None:
    home = tmp_path / "modules" / RELEASE
    home.mkdir(parents=True)
    (home / "build").symlink_to("/usr/src/of-another-machine")
    with pytest.raises(HookError) as caught:
        find(tmp_path)
    said = str(caught.value)
    assert f"apt-get install linux-headers-{RELEASE}" in said
    assert "modprobe kheaders" in said
    assert f"{home}/build" in said


def archive(path: Path, members: dict[str, bytes]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("./include/linux/link.h")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(plain.getvalue()))
    return path


def test_headers_that_the_kernel_carries(tmp_path: Path) -> None:
    members = {
        "./include/linux/fs.h": b"u32 i_ctime_nsec; time64_t i_ctime_sec;",
        "arch/x86/include/asm/one.h": b"1",
        "./kernel/not.c": b"2",
        "include/../../out.h": b"3",
    }
    carried = archive(tmp_path / "sys/kernel/kheaders.tar.xz", members)
    found = find(tmp_path)
    assert found.archive == carried
    with bccheaders.at_hand(found) as (trees, environment):
        (folder,) = trees
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert files == ["arch/x86/include/asm/one.h", "include/linux/fs.h"]
        assert environment == {"BCC_KERNEL_SOURCE": str(folder)}
        assert folder.stat().st_mode & 0o077 == 0
        assert bccheaders.inode_time(trees) == "-DKMG_I_CTIME_SEC"
    assert not folder.exists()
    assert not (tmp_path / "out.h").exists()


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sys/kernel/kheaders.tar.xz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no archive")
    with pytest.raises(HookError, match="cannot be unpacked"), bccheaders.at_hand(find(tmp_path)):
        pass


def test_an_archive_that_swells_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bccheaders, "_UNPACKED_MAX", 100)
    archive(tmp_path / "sys/kernel/kheaders.tar.xz", {"include/large.h": bytes(101)})
    with pytest.raises(HookError, match="MiB of headers"), bccheaders.at_hand(find(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("member", "flag"),
    [("i_ctime", ""), ("__i_ctime", "-DKMG_I_CTIME_HIDDEN"), ("i_ctime_sec", "-DKMG_I_CTIME_SEC")],
)
def test_the_name_of_an_inodes_time(tmp_path: Path, member: str, flag: str) -> None:
    assert bccheaders.inode_time((tmp_path / "none", make_headers(tmp_path / "tree", member))) == flag


def test_headers_without_a_known_name_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="no ctime that this version knows"):
        bccheaders.inode_time((make_headers(tmp_path / "tree", "i_other"),))
    with pytest.raises(HookError, match=r"no include/linux/fs\.h"):
        bccheaders.inode_time((tmp_path / "none",))


# --- the binding -----------------------------------------------------------------------------


def make_package(folder: Path, text: str, *, of_libbcc: bool = True) -> Path:
    package = folder / "bcc"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    if of_libbcc:
        (package / "libbcc.py").write_text("")
    return folder


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)


@pytest.mark.usefixtures("no_bcc")
def test_only_the_binding_is_taken_from_its_folder(tmp_path: Path) -> None:
    place = make_package(tmp_path / "place", "BPF = 1\nimport sys\nSEEN = list(sys.path)\n")
    (place / "beside.py").write_text("")
    module = binding((str(place),))
    assert module.BPF == 1
    assert str(place) not in module.SEEN


def test_the_package_of_the_same_name_is_not_it(tmp_path: Path) -> None:
    place = make_package(tmp_path / "place", "raise SystemExit\n", of_libbcc=False)
    assert binding_path((str(place),)) is None
    with pytest.raises(HookError, match=r"binding of BCC is missing; .*python3-bpfcc.*PyPI"):
        binding((str(place), str(tmp_path / "none")))


@pytest.mark.usefixtures("no_bcc")
def test_a_binding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    place = make_package(tmp_path / "place", "import no_such_thing\n")
    with pytest.raises(HookError, match=r"bcc/__init__\.py cannot be imported: No module named"):
        binding((str(place),))


def test_the_agent_does_not_import_it() -> None:
    """Neither BCC nor LLVM may be in the agent's own process."""
    code = "import sys, kmodgate.hooks.choice; sys.exit('bcc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


# --- the compiler's process ------------------------------------------------------------------


def backend_whose_compiler(node: NodePaths, monkeypatch: pytest.MonkeyPatch, code: str) -> BccBackend:
    """A backend whose compiler is a script: ``s`` is its socket, ``r`` its request."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(bccheaders, "inode_time", lambda _trees: "")
    script = (
        "import json, socket, sys\n"
        f"s = socket.socket(fileno=int(sys.argv[-1])); r = json.loads(input())\n{code}"
    )
    real = subprocess.Popen

    def start(_argv: list[str], **options: object) -> object:
        number = str(options["pass_fds"][0])  # type: ignore[index]  # a tuple of one
        return real([sys.executable, "-c", script, number], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)
    return BccBackend(paths=node, data=b"int x;")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "print('main.c:1: what is x?', file=sys.stderr, flush=True); "  # noqa: ISC004  # one program
            "s.send(json.dumps({'error': 'BCC could not compile'}).encode())",
            "BCC could not compile; the compiler said: main.c:1: what is x?",
        ),
        ("print('killed', file=sys.stderr)", "the compiler's process has died; it said: killed"),
        ("", "the compiler's process has died; it said: nothing"),
    ],
)
def test_what_the_compiler_says_is_passed_on(
    node: NodePaths, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    with (
        backend_whose_compiler(node, monkeypatch, code) as backend,
        pytest.raises(HookError) as caught,
    ):
        backend.load()
    assert words in str(caught.value)


def test_the_request_names_every_program_and_place(node: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "s.send(json.dumps({'error': json.dumps([r['flags'], r['attach']])}).encode())"
    with (
        backend_whose_compiler(node, monkeypatch, code) as backend,
        pytest.raises(HookError) as caught,
    ):
        backend.load()
    said = str(caught.value)
    assert '["-DKMG_X86", "-DKMG_OVERRIDE"]' in said
    # Of two probes at one function the younger one is asked first, so the returns come last.
    first_return = said.index('["kmg_return", "return", "__x64_sys_finit_module"]')
    for name, call in (
        ("kmg_finit_module", "__x64_sys_finit_module"),
        ("kmg_init_module", "__x64_sys_init_module"),
        ("kmg_finit_module_compat", "__ia32_sys_finit_module"),
        ("kmg_init_module_compat", "__ia32_sys_init_module"),
    ):
        assert said.index(f'["{name}", "entry", "{call}"]') < first_return


def test_no_probe_is_attached_before_there_is_a_policy(
    node: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with BccBackend(paths=node, data=b"int x;") as backend:
        backend._control = abi.Control()
        with pytest.raises(HookError, match="no policy was set"):
            backend.attach()
