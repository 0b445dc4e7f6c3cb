# SPDX-License-Identifier: Apache-2.0
"""What RFC 5280 asks of a chain of certificates, and kernels do not.

A kernel takes any trusted certificate for an issuer. Here an issuer must be a CA that may sign
certificates, with room for the path below it, and each certificate must verify under strict
rules: names that fit, one algorithm named twice alike, DER throughout. Validity against the
clock is asked for separately.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from kmodgate.errors import SignatureError
from kmodgate.model import SignatureStatus

from .cms import overlooked
from .names import CERTIFICATE_PROBLEMS, subject_of

_PROBLEMS = (InvalidSignature, *CERTIFICATE_PROBLEMS)


def _refused(certificate: x509.Certificate, problem: str) -> SignatureError:
    subject = subject_of(certificate)
    return SignatureError(
        SignatureStatus.UNTRUSTED_SIGNER,
        "EKEYREJECTED",
        f"certificate {subject!r} in the signer's path {problem} (kernels do not mind, kmodgate does)",
    )


def _check_issuer(issuer: x509.Certificate, below: int) -> None:
    """``below``: certificates between this issuer and the signer's own."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise _refused(issuer, "issues certificates and is no CA")
    if constraints.path_length is not None and constraints.path_length < below:
        raise _refused(issuer, f"allows {constraints.path_length} CAs below it and has {below}")
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise _refused(issuer, "issues certificates, which its key usage does not allow")


def check_chain(path: Sequence[bytes], anchor: x509.Certificate) -> tuple[x509.Certificate, ...]:
    """Check embedded certificates, the signer's first, up to the anchor that issued the last.

    Args:
        path: DER of each; may be empty.
        anchor: the trust anchor.

    Returns:
        The parsed path.

    Raises:
        SignatureError: ``untrusted_signer`` EKEYREJECTED, or ``malformed_signature`` EBADMSG.
    """
    certificates: list[x509.Certificate] = []
    for der in path:
        try:
            certificates.append(x509.load_der_x509_certificate(der))
        except CERTIFICATE_PROBLEMS as error:
            raise overlooked(f"a certificate inside is not DER ({error})") from error
    for position, certificate in enumerate(certificates):
        issuer = certificates[position + 1] if position + 1 < len(certificates) else anchor
        try:
            _check_issuer(issuer, position)
            certificate.verify_directly_issued_by(issuer)
        except _PROBLEMS as error:
            raise _refused(certificate, f"does not verify strictly: {error or 'bad signature'}") from error
    return tuple(certificates)
