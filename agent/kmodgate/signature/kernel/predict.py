# SPDX-License-Identifier: Apache-2.0
"""From a parsed message to the kernel's answer: signatures, embedded chains, keyring.

The steps of ``verify_pkcs7_message_sig()``:

1. The content must be detached.
2. For modules: content type pkcs7-data, and no signed attributes (but for ML-DSA).
3. Each SignerInfo: digest; if its certificate is embedded, the signature must match and the
   chain of embedded certificates is checked upwards as far as it goes.
4. Each SignerInfo: a certificate of its chain in the keyring, or the issuer of the last one, or
   the signer itself. One is enough; one that fails is fatal.

Sources: ``certs/system_keyring.c``, ``crypto/asymmetric_keys/pkcs7_verify.c``,
``pkcs7_trust.c``, ``asymmetric_type.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from kmodgate.errors import SignatureError
from kmodgate.model import Api, SignatureStatus
from kmodgate.signature.profile import LATEST, KernelProfile
from kmodgate.signature.trailer import BytesLike, split

from . import oids
from .answer import Acceptance, Refusal
from .certificate import Certificate, parse_certificate
from .keys import PublicKey, Signature, check_signature, digest_of
from .message import Message, SignedInfo, parse_message

_ELF_HEADER = 64
_SOFT = frozenset({"ENODATA", "ENOPKG", "ENOKEY"})


@dataclass(frozen=True, slots=True)
class Key:
    """A key in the keyring.

    Attributes:
        certificate: as the kernel parsed it.
        index: position in what the keyring was made from.
    """

    certificate: Certificate
    index: int

    @property
    def public(self) -> PublicKey:
        """The key itself."""
        return self.certificate.key


class Keyring:
    """The trusted keys of a kernel: those of the given certificates that it can load.

    Args:
        certificates: DER, one each; the second of two alike is passed over.
        profile: of the kernel; what it cannot parse is left out, as it leaves it out.
    """

    def __init__(self, certificates: Iterable[bytes], profile: KernelProfile) -> None:
        self.profile = profile
        self._by_id: dict[bytes, list[Key]] = {}
        seen: set[bytes] = set()
        for index, der in enumerate(certificates):
            if der in seen:
                continue
            seen.add(der)
            try:
                certificate = parse_certificate(der, profile)
            except Refusal:
                continue
            key = Key(certificate, index)
            for identity in {certificate.identity, certificate.skid} - {None}:
                self._by_id.setdefault(identity or b"", []).append(key)

    def find(self, first: bytes | None, second: bytes | None = None) -> list[Key]:
        """``find_asymmetric_key()``: all keys that it might return; empty for ENOKEY.

        Raises:
            Refusal: EINVAL for an empty id, EKEYREJECTED when the first id fits a key and the
                second does not.
        """
        wanted = second if first is None else first
        if not wanted:
            raise Refusal("EINVAL", "a signer or issuer is named by an empty id")
        keys = self._by_id.get(wanted, [])
        both = first is not None and second is not None
        if both and any(key.certificate.skid != second for key in keys):
            detail = "issuer and serial number name a trusted certificate, the key id another"
            raise Refusal("EKEYREJECTED", detail, SignatureStatus.BAD_SIGNATURE)
        return keys


DigestOf = Callable[[str], bytes]


@dataclass(slots=True)
class _Verification:
    """One message on its way through steps 3 and 4."""

    message: Message
    payload: Callable[[], BytesLike]
    keyring: Keyring
    digest: DigestOf
    seen: set[int] = field(default_factory=set)
    verified: dict[int, Acceptance] = field(default_factory=dict)

    def run(self) -> tuple[Acceptance, ...]:
        supported = False
        for info in self.message.signers:
            try:
                self._verify_one(info)
            except Refusal as refusal:
                if refusal.errno_name != "ENOPKG":
                    raise
                info.unsupported = True
            else:
                supported = True
        if not supported:
            raise Refusal("ENOPKG", "the kernel lacks a digest or key algorithm that every signature needs")
        return self._validate()

    # Step 3.

    def _verify_one(self, info: SignedInfo) -> None:
        """``pkcs7_verify_one()``."""
        self._digest(info)
        profile = self.keyring.profile
        for certificate in self.message.certificates:
            if certificate.identity == info.identity and (
                not profile.matches_key_algorithm or certificate.key.algorithm == info.signature.family
            ):
                info.signer = certificate
                break
        if info.signer is None:
            return
        if info.signing_time is not None:
            first, last = info.signer.validity
            if not first <= info.signing_time <= last:
                raise _rejected("EKEYREJECTED", "signed outside the validity of the embedded certificate")
        check_signature(info.signer.key, info.signature, profile)
        self._verify_chain(info.signer)

    def _digest(self, info: SignedInfo) -> None:
        """``pkcs7_digest()``."""
        signature, profile = info.signature, self.keyring.profile
        if info.attributes is None and signature.takes_data:
            signature.message = self.payload()
            return
        if signature.digest not in profile.digests:
            raise Refusal("ENOPKG", f"digest {signature.digest} is not built into the kernel")
        if info.attributes is None:
            # Computed when a key asks for it: some digests the kernel has cannot be computed here.
            signature.digest_source = self.digest
            return
        value = self.digest(signature.digest)
        if info.message_digest is None:
            raise _rejected("EKEYREJECTED", "signed attributes without a digest")
        if len(info.message_digest) != len(value):
            raise Refusal("EBADMSG", "the signed digest has another length than the algorithm's")
        if info.message_digest != value:
            raise _rejected("EKEYREJECTED", "the signed digest is not the module's")
        signature.message = b"\x31" + info.attributes[1:]

    def _verify_chain(self, certificate: Certificate) -> None:
        """``pkcs7_verify_sig_chain()``."""
        seen: set[int] = set()
        while True:
            seen.add(id(certificate))
            if certificate.self_signed:
                certificate.parent = certificate
                return
            issuer = self._issuer(certificate)
            if issuer is None or id(issuer) in seen:
                return
            if certificate.parent is not issuer:  # else another SignerInfo led here before
                check_signature(issuer.key, certificate.signature, self.keyring.profile)
                certificate.parent = issuer
            certificate = issuer

    def _issuer(self, certificate: Certificate) -> Certificate | None:
        identity, skid = certificate.authority
        if identity is not None:
            for other in self.message.certificates:
                if other.identity == identity:
                    if skid is not None and other.skid != skid:
                        raise _rejected("EKEYREJECTED", "an authority key identifier names two certificates")
                    return other
        elif skid is not None:
            for other in self.message.certificates:
                if other.skid == skid:
                    return other
        return None

    # Step 4.

    def _validate(self) -> tuple[Acceptance, ...]:
        """``pkcs7_validate_trust()``."""
        found: list[Acceptance] = []
        unsupported = False
        for info in self.message.signers:
            if info.unsupported:
                unsupported = True
                continue
            acceptance = self._validate_one(info)
            if acceptance is not None:
                found.append(acceptance)
        if found:
            return tuple(found)
        if unsupported:
            raise Refusal("ENOPKG", "a signature needs what the kernel lacks, and no other signer is trusted")
        raise Refusal("ENOKEY", "no signer is trusted", SignatureStatus.UNTRUSTED_SIGNER)

    def _validate_one(self, info: SignedInfo) -> Acceptance | None:
        """``pkcs7_validate_trust_one()``; None for ENOKEY."""
        path: list[Certificate] = []
        certificate = info.signer
        while certificate is not None:
            if id(certificate) in self.seen:
                known = self.verified.get(id(certificate))
                return known and self._accept(info, path, known)
            self.seen.add(id(certificate))
            try:
                keys = self.keyring.find(certificate.identity, certificate.skid)
            except Refusal:
                keys = []  # any error but "out of memory" counts as not found
            if keys:
                return self._matched(info, path, keys, certificate)
            if certificate.parent is certificate:
                return None
            path.append(certificate)
            certificate = certificate.parent
        if path:
            identity, skid = path[-1].authority
            if identity is not None or skid is not None:
                keys = self.keyring.find(identity, skid)
                if keys:
                    return self._matched(info, path, keys)
        keys = self.keyring.find(info.identity)
        return self._matched(info, [], keys) if keys else None

    def _matched(
        self, info: SignedInfo, path: list[Certificate], keys: list[Key], copy: Certificate | None = None
    ) -> Acceptance:
        """The keyring's own key must verify what stands below it."""
        signature: Signature = path[-1].signature if path else info.signature
        for key in keys:
            try:
                check_signature(key.public, signature, self.keyring.profile)
            except Refusal as refusal:
                raise _rejected(
                    "EKEYREJECTED", f"{refusal.detail} (by the key of a trusted certificate)"
                ) from refusal
        end = Acceptance(info, (), keys[0], copy)
        if copy is not None:
            self.verified[id(copy)] = end
        return self._accept(info, path, end)

    def _accept(self, info: SignedInfo, path: list[Certificate], rest: Acceptance) -> Acceptance:
        """``path`` leads to what is accepted already; remembered for SignerInfos that share it."""
        for position, certificate in enumerate(path):
            self.verified[id(certificate)] = Acceptance(
                info, (*path[position:], *rest.path), rest.key, rest.copy
            )
        return Acceptance(info, (*path, *rest.path), rest.key, rest.copy)


def _rejected(errno_name: str, detail: str) -> Refusal:
    return Refusal(errno_name, detail, SignatureStatus.BAD_SIGNATURE)


def check_usage(message: Message) -> None:
    """Steps 1 and 2.

    Raises:
        Refusal: EBADMSG for embedded content, EKEYREJECTED for what a module may not have.
    """
    if message.has_content:
        raise Refusal("EBADMSG", "content is embedded; a module signature must be detached")
    unsupported = SignatureStatus.UNSUPPORTED_SIGNATURE
    if message.content_type != oids.DATA:
        detail = "the content type is Microsoft's indirect data, not pkcs7-data"
        raise Refusal("EKEYREJECTED", detail, unsupported)
    if message.has_attributes and not message.attributes_waived:
        detail = "signed attributes are not accepted in a module signature; sign with -noattr"
        raise Refusal("EKEYREJECTED", detail, unsupported)


def examine(
    message: Message, payload: Callable[[], BytesLike], keyring: Keyring, digest: DigestOf
) -> tuple[Acceptance, ...]:
    """``verify_pkcs7_message_sig()`` for a module.

    Args:
        message: from ``parse_message`` with the keyring's profile; used once.
        payload: gives what the signature covers; asked only where that is signed itself.
        keyring: the trusted keys.
        digest: gives the payload's digest by the kernel's name.

    Returns:
        Every SignerInfo that leads to the keyring; at least one.

    Raises:
        Refusal: with the kernel's errno.
    """
    check_usage(message)
    return _Verification(message, payload, keyring, digest).run()


class HasKeyring(Protocol):
    """What ``predict`` needs of a trust store."""

    def keyring(self, profile: KernelProfile) -> Keyring:
        """The keyring of a kernel that trusts the same certificates."""


def predict(
    data: BytesLike,
    trust: HasKeyring,
    profile: KernelProfile = LATEST,
    *,
    api: Api = Api.FINIT_MODULE,
    ignore_flags: bool = False,
) -> str | None:
    """What a kernel with these keys and ``sig_enforce`` answers at the signature stage.

    Args:
        data: the module file, decompressed.
        trust: the trusted certificates; revocations are not looked at.
        profile: of the kernel.
        api: the system call; they differ for files too short to be looked at.
        ignore_flags: MODULE_INIT_IGNORE_MODVERSIONS or _VERMAGIC is set.

    Returns:
        The errno's name, None when the signature is accepted.
    """
    if api is Api.INIT_MODULE and len(data) < _ELF_HEADER:
        return "ENOEXEC"
    if not len(data):
        return "EINVAL"
    if ignore_flags:
        return "EKEYREJECTED"
    try:
        parts = split(data)
        examine(
            parse_message(parts.cms, profile),
            lambda: parts.payload,
            trust.keyring(profile),
            lambda name: digest_of(name, parts.payload),
        )
    except SignatureError as error:
        return error.errno_name
    except Refusal as refusal:
        return "EKEYREJECTED" if refusal.errno_name in _SOFT else refusal.errno_name
    return None
