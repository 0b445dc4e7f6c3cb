# SPDX-License-Identifier: Apache-2.0
"""The image: what is in it and what is not, its size, and its commands run."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.image import builder
from tests.need import unavailable
from tests.vectors.generate import MODINFO, append, make_elf, make_identity, openssl_cms

from kmodgate import __version__

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

LIMIT = 120e6
COMPILERS = ("cc", "gcc", "clang", "as", "ld", "make", "g++", "c++", "go", "rustc")
OTHERS = ("pip", "pip3", "buildah", "npm", "curl", "wget")


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built from this tree."""
    try:
        builder.need_builder()
    except builder.ImageError as error:
        unavailable(str(error))
    return builder.build()


@pytest.fixture(scope="session")
def root(image: str) -> Iterator[Path]:
    with builder.mounted(image) as path:
        yield path


@pytest.fixture(scope="session")
def made(image: str) -> Iterator[str]:
    with builder.container(image) as name:
        yield name


@pytest.fixture(scope="session")
def config(image: str) -> dict[str, Any]:
    return builder.config(image)


def test_it_is_small_beyond_the_base(image: str) -> None:
    beyond = sum(builder.layers(image)) - sum(builder.layers(builder.BASE))
    print(f"{beyond / 1e6:.1f} MB beyond the base")
    assert 10e6 < beyond <= LIMIT


def test_there_is_no_compiler_and_no_way_to_fetch_one(root: Path) -> None:
    path = os.pathsep.join(
        str(root / folder) for folder in ("usr/local/bin", "usr/bin", "bin", "opt/kmodgate/bin")
    )
    assert shutil.which("kmodgate", path=path) is not None
    for program in (*COMPILERS, *OTHERS):
        assert shutil.which(program, path=path) is None, program
    assert not list((root / "opt/kmodgate").rglob("pip"))


def test_nothing_gives_anybody_more_rights(root: Path) -> None:
    """What is set-user-ID in Debian's base is there before us; we add nothing."""
    added = [
        path
        for path in (root / "opt").rglob("*")
        if not path.is_symlink() and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)
    ]
    assert not added
    assert {path.owner() for path in (root / "opt").rglob("*")} == {"root"}


def test_no_byte_code_is_missing(root: Path) -> None:
    """A read-only root cannot take it at the first start."""
    library = next((root / "opt/kmodgate/lib").glob("python3*"))
    sources = list(library.rglob("*.py"))
    assert len(sources) > 300
    missing = [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    assert not missing


def test_the_programs_are_in_it(root: Path) -> None:
    found = {path.name for path in (root / "opt/kmodgate").rglob("*.bpf.o")}
    assert {"kmodgate.bpf.o", "kmodgate_basic.bpf.o", "kmodgate_fmod_ret.bpf.o", "guard.bpf.o"} <= found


def test_it_is_labelled_and_runs_as_nobody(config: dict[str, Any]) -> None:
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["kmodgate"]
    assert config["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "kmodgate"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == builder.revision("%H")
    assert labels["org.opencontainers.image.created"] == builder.revision("%cI")
    for name in ("licenses", "description"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_the_bill_of_materials_names_what_is_in_it(root: Path) -> None:
    document = json.loads((root / "usr/share/doc/kmodgate/sbom.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    purls = [item["purl"] for item in document["components"] if "purl" in item]
    names = {purl.partition("?")[0] for purl in purls}
    status = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    packages = [
        dict(line.split(": ", 1) for line in part.splitlines() if ": " in line[:30]) for part in status
    ]
    installed = {
        (item["Package"], item["Version"])
        for item in packages
        if item.get("Status") == "install ok installed"
    }
    assert len(installed) > 50
    listed = {
        (item["name"], item["version"])
        for item in document["components"]
        if item.get("purl", "").startswith("pkg:deb/")
    }
    assert installed <= listed
    site = next((root / "opt/kmodgate/lib").glob("python3*")) / "site-packages"
    component = document["metadata"]["component"]
    assert (component["name"], component["version"]) == ("kmodgate-image", __version__)
    folders = [folder for folder in site.glob("*.dist-info") if not folder.name.startswith("kmodgate-")]
    assert len(folders) >= 8
    for folder in folders:
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        wanted = f"pkg:pypi/{name.replace('_', '-').lower()}@{version}"
        assert wanted in names, wanted


def test_version(made: str) -> None:
    done = builder.execute(made, "kmodgate", "--version")
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout


def test_it_runs_as_nobody_and_verifies_a_module(made: str, modules: Path) -> None:
    done = builder.execute(
        made, "kmodgate", "verify", "--output", "json", "--trust", "/modules/cert.pem",
        "/modules/signed.ko", "/modules/unsigned.ko", volumes={modules: "/modules"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    statuses = [json.loads(line)["status"] for line in done.stdout.splitlines()]
    assert statuses == ["trusted_signature", "unsigned"]
    who = builder.execute(made, "id", "-u")
    assert who.stdout.strip() == "65532"


def test_doctor_answers(made: str) -> None:
    done = builder.execute(made, "kmodgate", "doctor", "--output", "json")
    assert done.returncode in {0, 1, 3}, done.stderr
    answer = json.loads(done.stdout)
    assert answer["answer"] == {0: "yes", 1: "no", 3: "unknown"}[done.returncode]
    assert "Traceback" not in done.stderr


def test_the_health_check_says_no_where_no_agent_is(made: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kmodgate: {listen: '127.0.0.1:1'}\n")
    tmp_path.chmod(0o755)
    done = builder.execute(made, "healthcheck", volumes={tmp_path: "/etc/kmodgate"})
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: ")


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed module and an unsigned one, with the certificate."""
    folder = tmp_path_factory.mktemp("modules")
    folder.chmod(0o755)
    signer = make_identity("signer")
    payload = make_elf(MODINFO)
    (folder / "cert.pem").write_bytes(signer.pem)
    (folder / "unsigned.ko").write_bytes(payload)
    (folder / "signed.ko").write_bytes(append(payload, openssl_cms(payload, signer)))
    return folder


@pytest.mark.skipif(
    not os.environ.get("KMODGATE_TEST_BCC_IMAGE"), reason="240 MB more; run: make test-image-bcc"
)
def test_the_bcc_variant_has_the_bindings() -> None:
    builder.need_builder()
    name = builder.build("bcc")
    with builder.container(name) as made:
        done = builder.execute(made, "/opt/kmodgate/bin/python", "-c", "import bcc; print(bcc.__version__)")
        assert done.returncode == 0, done.stderr
        assert builder.execute(made, "kmodgate", "--version").returncode == 0
