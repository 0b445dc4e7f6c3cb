# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: each target feeds bytes to one parser and says what may come of it.

A target returns when all is well. It raises ``BrokenPromiseError`` when a promise is broken; anything
else that it raises is a finding, too: only the error tree of ``kmodgate.errors`` is
caught, and only where the parser may raise it.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import zstandard

from kmodgate.cli.verify import as_json, as_text
from kmodgate.config.parse import parse
from kmodgate.errors import ConfigError, ImageError, ModuleFormatError, NodeError, SignatureError
from kmodgate.fleet.details import Details
from kmodgate.inspection import inspect
from kmodgate.kube.cgroups import parse_path, parse_proc_cgroup
from kmodgate.kube.objects import node_of
from kmodgate.kube.pods import PodStore
from kmodgate.model import SignatureReport, SignatureStatus
from kmodgate.modfile import decompress, kernelimage, modinfo
from kmodgate.node.devicemapper import parse_table_status
from kmodgate.node.verity import (
    HEADER,
    TargetLine,
    UntrustedDeviceError,
    parse_trusted_digests,
    trusted_root_digest,
)
from kmodgate.signature import (
    LATEST,
    PROFILES,
    Revocations,
    SignedFile,
    TrustStore,
    let_go,
    load_certificates,
    predict,
    report,
    verify,
)
from kmodgate.signature.revocation import tbs_digests
from kmodgate.signature.trailer import MARKER, split

from . import mutators
from .mutators import CORPUS, TRUST, Mutate, Scramble

MAX_OUTPUT = 1 << 20
# Room for the longest message that the kernel's decoder looks at, and its payload.
MAX_FILE = (1 << 16) + 1024
MIB = 1 << 20
# ENOENT: an algorithm that the kernel's parser knows and its build lacks.
ERRNOS = {None, "EKEYREJECTED", "EBADMSG", "EINVAL", "EMSGSIZE", "ENOENT"}
_TRUSTED = SignatureStatus.TRUSTED_SIGNATURE
_STRUCT_SIZE = 12  # struct module_signature


class BrokenPromiseError(AssertionError):
    """A broken promise."""


@dataclass(frozen=True, slots=True)
class Target:
    """One parser under test.

    Attributes:
        check: takes the input; returns when all is well.
        mutator: makes a mutator from libFuzzer's own; None to use that as it is.
        max_length: longest input, in bytes.
        memory: how far the process may grow over all inputs, in bytes.
    """

    check: Callable[[bytes], None]
    mutator: Callable[[Scramble], Mutate] | None = None
    max_length: int = 4096
    memory: int = 96 * MIB


def expect(condition: object, promise: str) -> None:
    """Raise ``BrokenPromiseError`` unless the condition holds."""
    if not condition:
        raise BrokenPromiseError(promise)


@cache
def anchors() -> TrustStore:
    """A store of the certificates that the corpus was signed with."""
    files = sorted(TRUST.glob("*.pem"))
    return TrustStore(one for file in files for one in load_certificates(file.read_bytes(), file.stem))


@cache
def revoked() -> TrustStore:
    """The same anchors, all of them revoked."""
    every = frozenset[bytes]().union(*(tbs_digests(anchor.certificate) for anchor in anchors().anchors))
    return TrustStore(anchors().anchors, Revocations(certificates=every))


@cache
def signed_payload() -> bytes:
    """The one payload that the keys of the anchors ever signed."""
    return (TRUST / "payload").read_bytes()


@cache
def rigid() -> dict[int, list[bytes]]:
    """Trusted files of which no byte may change, by length."""
    found: dict[int, list[bytes]] = {}
    for path in (CORPUS / "cms").glob("seed-rigid-*"):
        data = path.read_bytes()
        expect(report(data, anchors()).status is _TRUSTED, f"{path.name} is trusted")
        found.setdefault(len(data), []).append(data)
    return found


def check_report(found: SignatureReport) -> None:
    """A report can be printed, and its fields belong together."""
    document = json.loads(as_json("a\x1b[0m\udcff.ko", found))
    expect(document["status"] == found.status.value, "JSON has the status")
    expect(document["detail"] == found.detail, "JSON has the detail")
    expect("\n" not in as_text("a.ko", found, colour=False), "the text is one line")
    expect(found.errno in ERRNOS, f"{found.errno} is an errno of the signature stage")
    trusted = found.status is _TRUSTED
    expect(trusted == (found.errno is None), "no errno exactly when trusted")
    expect(trusted == (found.trusted_by is not None), "an anchor exactly when trusted")


def check_trust(data: bytes) -> SignatureReport:
    """Trusted means: the payload that was signed, by the strict path too, and not revoked."""
    found = report(data, anchors())
    check_report(found)
    try:
        verify(data, anchors())
        verified = True
    except SignatureError as error:
        verified = False
        expect((error.status, error.errno_name) == (found.status, found.errno), "verify and report agree")
    trusted = found.status is _TRUSTED
    expect(verified == trusted, "verify and report agree")
    file = SignedFile(data)
    if let_go(file, LATEST):
        expect(report(file, anchors()) == found, "a file that let go of its payload is judged the same")
    if trusted:
        expect(bytes(split(data).payload) == signed_payload(), "only what was signed is trusted")
        expect(report(data, revoked()).status is not _TRUSTED, "a revoked signer is never trusted")
        for good in rigid().get(len(data), ()):
            changed = sum(a != b for a, b in zip(good, data, strict=True))
            expect(changed != 1, "no byte of a trusted file can be changed")
    return found


def cms(data: bytes) -> None:
    """Whole files with an appended message."""
    check_trust(data)


def kernels(data: bytes) -> None:
    """Never trusted where a kernel with the same anchors refuses, and its errno otherwise."""
    if not data:
        return  # EINVAL, before the signature stage: a matter of ``inspect``
    # One other kernel for each input: all of them would take eight times as long.
    others = sorted(PROFILES)
    for profile in (LATEST, PROFILES[others[zlib.crc32(data) % len(others)]]):
        found = report(data, anchors(), profile=profile)
        expected = predict(data, anchors(), profile)
        expect(expected in ERRNOS, f"{expected} is an errno of the signature stage")
        trusted = found.status is _TRUSTED
        if trusted:
            expect(expected is None, f"a kernel {profile.name} refuses with {expected} what is trusted")
        elif expected is not None:
            expect(found.errno == expected, f"{found.errno} is {expected} on a kernel {profile.name}")


def trailer(data: bytes) -> None:
    """The pieces are the file, and nothing but a SignatureError is raised."""
    try:
        parts = split(data)
    except SignatureError as error:
        expect(error.errno_name in ERRNOS - {None}, "an errno of the signature stage")
        return
    expect(bytes(parts.payload) + bytes(parts.tail) == data, "the pieces are the file")
    expect(bytes(parts.tail[: len(parts.cms)]) == parts.cms, "the message begins the tail")
    expect(len(parts.tail) == len(parts.cms) + _STRUCT_SIZE + len(MARKER), "nothing else is in the tail")


def certificates(data: bytes) -> None:
    """Trust anchors: errors are one line and name the file; what loads can be used."""
    try:
        loaded = load_certificates(data, "file.pem")
    except ConfigError as error:
        check_message(error)
        return
    store = TrustStore(loaded, Revocations(key_ids=frozenset({b"x"})))
    for anchor in loaded:
        expect(anchor in store.find(anchor.identity), "an anchor is found by its id")
        expect((anchor.signer.subject or "").isprintable(), "a name is printable")
        expect(len(anchor.fingerprint) == 64, "an anchor has a fingerprint")


def check_message(error: ConfigError) -> None:
    """What an operator reads is one printable line that names the file."""
    expect(str(error).startswith("file."), "the file is named")
    expect(all(line.isprintable() for line in str(error).split("\n")), f"{str(error)!r} is printable")


def revocations(data: bytes) -> None:
    """Revocation lists, decoded as the agent decodes them."""
    try:
        found = Revocations.parse(data.decode("utf-8", "replace"), "file.txt")
    except ConfigError as error:
        check_message(error)
        expect(error.line, "the line is named")
        return
    expect(Revocations.merge((found, Revocations())) == found, "merging with nothing changes nothing")


def digests(data: bytes) -> None:
    """Trusted dm-verity digests, and the same text as the table of a device."""
    found: frozenset[bytes] = frozenset()
    try:
        found = parse_trusted_digests(data, "file.txt")
    except ConfigError as error:
        check_message(error)
    else:
        lines = data.rstrip().split(b"\n")
        expect(lines[0] == HEADER, "the header is there")
        expect({line.lower() for line in lines[1:]} == {d.hex().encode() for d in found}, "each line is one")
    table = [TargetLine("verity", data.decode("ascii", "backslashreplace"))]
    try:
        expect(trusted_root_digest(table, found) in found, "only what is listed is trusted")
    except UntrustedDeviceError as error:
        expect(str(error).isprintable(), "an error is one printable line")
    with contextlib.suppress(NodeError):
        parse_table_status(data, "253:0")


def elf(data: bytes) -> None:
    """Naming strings of hostile ELF files."""
    with contextlib.suppress(ModuleFormatError):
        info = modinfo(data)
        for value in (info.name, info.version, info.srcversion, info.vermagic):
            expect(value is None or len(value) <= 4 * 256, "a value is bounded")


def _reference(data: bytes) -> bytes:
    """The decoders' own answer for a whole stream."""
    if data[:2] == b"\x1f\x8b":
        return zlib.decompress(data, wbits=31)
    if data[:1] == b"\xfd":
        return lzma.decompress(data, format=lzma.FORMAT_XZ)
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return reader.read()


def streams(data: bytes) -> None:
    """Containers: the cap holds, and what comes out is what other decoders give."""
    try:
        plain = decompress(data, max_size=MAX_OUTPUT)
    except ModuleFormatError as error:
        expect(error.errno_name in {"EFBIG", "EINVAL"}, "an errno of the container")
        return
    expect(len(plain) <= MAX_OUTPUT, "the cap holds")
    expect(plain is data or bytes(plain) == _reference(data), "the bytes are what other decoders give")
    with contextlib.suppress(ModuleFormatError):
        check_report(inspect(data, anchors(), max_size=MAX_OUTPUT))


def kernel_image(data: bytes) -> None:
    """Kernel images and the certificates in them."""
    try:
        kernel = kernelimage.extract(data, max_size=MAX_OUTPUT)
        expect(len(kernel) <= MAX_OUTPUT, "the cap holds")
        for certificate in kernelimage.certificates(kernel):
            expect(certificate in kernel, "a certificate is a part of the kernel")
    except ImageError as error:
        expect(str(error).isprintable(), "an error is one printable line")


def config(data: bytes) -> None:
    """Node configs: wrong ones are refused in lines that people can read."""
    try:
        parse(data, source="file.yaml")
    except ConfigError as error:
        check_message(error)


def cluster(data: bytes) -> None:
    """Names of cgroups, objects of the API server, and lines of event logs."""
    text = data.decode("utf-8", "surrogateescape")
    for ref in (parse_path(text), parse_proc_cgroup(text)):
        if ref is not None:
            expect(ref.container_id is None or re.fullmatch("[0-9a-f]{64}", ref.container_id), "an id")
            expect(ref.pod_uid is None or re.fullmatch("[0-9a-f-]{32,36}", ref.pod_uid), "a UID")
    details = Details()
    details.read([data], datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    expect(len(details.groups) <= 1, "a line is one event")
    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(item, dict):
        node_of(item)
        store = PodStore()
        store.changed(item)
        store.replaced([item])
        store.deleted(item)
        expect(len(store) == 0, "a pod that was deleted is gone")


TARGETS: dict[str, Target] = {
    "trailer": Target(trailer),
    "cms": Target(cms, mutators.files, max_length=MAX_FILE),
    "kernels": Target(kernels, mutators.files, max_length=MAX_FILE),
    "certificates": Target(certificates, mutators.certificates),
    "revocations": Target(revocations),
    "digests": Target(digests),
    "modinfo": Target(elf, mutators.elfs),
    "decompress": Target(streams, mutators.streams, 1 << 14, 192 * MIB),
    "kernelimage": Target(kernel_image, max_length=1 << 14, memory=192 * MIB),
    "config": Target(config),
    "cluster": Target(cluster),
}
