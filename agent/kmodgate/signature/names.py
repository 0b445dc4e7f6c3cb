# SPDX-License-Identifier: Apache-2.0
"""Distinguished names: DER to the RFC 4514 string that people read.

This module compares no names (signers are matched on the DER) and never fails: what it
cannot render it shows in hexadecimal. Names come from untrusted files, so control
characters are always escaped.
"""

from __future__ import annotations

import warnings

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.utils import CryptographyDeprecationWarning

# A certificate's oddity is told by the verdict. As a warning on standard error it would be text
# that whoever made the certificate chooses to have there.
warnings.filterwarnings("ignore", category=CryptographyDeprecationWarning)

CERTIFICATE_PROBLEMS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for a certificate, when parsing it or later, at the field's first use."""

# Names are foreign text of any length, and reports are kept and logged.
_MAX_CHARACTERS = 256
_SHORT = 0x80  # lengths below stand in one byte (X.690 section 8.1.3.4)


def escape(text: str) -> str:
    """Replace what is not printable by its UTF-8 bytes in hexadecimal (RFC 4514 section 2.4).

    What is longer than a name has reason to be is cut, which ``…`` says.
    """
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else "".join(f"\\{byte:02X}" for byte in char.encode("utf-8", "replace"))
        for char in text
    )


def hexadecimal(contents: bytes) -> str:
    """An identifier for people; what is longer than any has reason to be is cut."""
    return escape(contents.hex())


def render(contents: bytes) -> str:
    """Render the contents of a Name's SEQUENCE, as the kernel's parser keeps them."""
    size = len(contents)
    head = bytes((size,)) if size < _SHORT else b""
    if not head:
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        head = bytes((_SHORT | len(length),)) + length
    try:
        return rfc4514(asn1.decode_der(asn1.TLV, b"\x30" + head + contents))
    except ValueError:
        return escape("#" + contents.hex())


def rfc4514(name: asn1.TLV) -> str:
    """Render a Name, last element first (RFC 4514 section 2.1); ``#hex`` when it is none."""
    with warnings.catch_warnings():
        # An attribute longer than X.520 allows is odd, and still the signer's name.
        warnings.simplefilter("ignore")
        try:
            return escape(name.parse(x509.Name).rfc4514_string())
        except CERTIFICATE_PROBLEMS:
            return escape("#" + bytes(name.data).hex())


def subject_of(certificate: x509.Certificate) -> str:
    """The subject for messages, whatever is in it."""
    try:
        return escape(certificate.subject.rfc4514_string())
    except CERTIFICATE_PROBLEMS:
        return "?"
