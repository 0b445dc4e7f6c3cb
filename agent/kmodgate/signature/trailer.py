# SPDX-License-Identifier: Apache-2.0
"""The appended-signature layout of a module file.

This module only finds the pieces: it decodes no CMS, computes no digest and decides no
trust. File I/O and decompression live elsewhere.

Layout (``kernel/module/signing.c``, ``kernel/module_signature.c``)::

    payload ‖ PKCS#7 ‖ struct module_signature (12 bytes) ‖ marker (28 bytes)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from kmodgate.errors import SignatureError
from kmodgate.model import SignatureStatus

BytesLike: TypeAlias = bytes | bytearray | memoryview

MARKER = b"~Module signature appended~\n"
PKEY_ID_PKCS7 = 2
# lib/asn1_decoder.c refuses more than this before it looks at the first byte.
MAX_CMS_SIZE = 65535

# struct module_signature: algo, hash, id_type, signer_len, key_id_len, pad[3], BE32 sig_len.
_MODULE_SIGNATURE = struct.Struct(">BBBBB3sI")


@dataclass(frozen=True, slots=True)
class AppendedSignature:
    """The pieces of a signed file; views into it, never copies of the payload.

    Attributes:
        payload: what the signature covers.
        cms: the DER of the PKCS#7 message (at most 65,535 bytes).
        tail: everything after the payload: message, ``struct module_signature``, marker.
    """

    payload: memoryview
    cms: bytes
    tail: memoryview


def _malformed(errno_name: str, detail: str) -> SignatureError:
    return SignatureError(SignatureStatus.MALFORMED_SIGNATURE, errno_name, detail)


def split(data: BytesLike) -> AppendedSignature:
    """Take a decompressed module file apart, in the kernel's order of checks.

    Raises:
        SignatureError: ``unsigned`` (ENODATA, so EKEYREJECTED) without a marker at the very
            end; ``malformed_signature`` EBADMSG for a size or reserved field that cannot
            be; ``unsupported_signature`` (ENOPKG, so EKEYREJECTED) for an ``id_type`` other
            than PKCS#7; ``malformed_signature`` EMSGSIZE for a message above 65,535 bytes.
    """
    view = memoryview(data)
    # 1. module_sig_check(): the marker must be the end, and not the whole, of the file.
    remaining = len(view) - len(MARKER)
    if remaining <= 0 or view[remaining:] != MARKER:
        detail = "no signature is appended to the file"
        if MARKER in bytes(view[-4096:]):
            detail = "bytes follow the signature marker, so the kernel takes the file for unsigned"
        raise SignatureError(SignatureStatus.UNSIGNED, "EKEYREJECTED", detail)
    # 2. mod_verify_sig(): room for struct module_signature and at least one byte more.
    if remaining <= _MODULE_SIGNATURE.size:
        raise _malformed("EBADMSG", f"only {remaining} bytes stand before the signature marker")
    end = remaining - _MODULE_SIGNATURE.size
    algo, hash_, id_type, signer_len, key_id_len, pad, sig_len = _MODULE_SIGNATURE.unpack_from(view, end)
    # 3. mod_check_sig(): the length, before the type.
    if sig_len >= end:
        raise _malformed("EBADMSG", f"sig_len is {sig_len}, but only {end} bytes stand before the trailer")
    # 4. Only PKCS#7 is implemented.
    if id_type != PKEY_ID_PKCS7:
        raise SignatureError(
            SignatureStatus.UNSUPPORTED_SIGNATURE,
            "EKEYREJECTED",
            f"id_type is {id_type}, and only PKCS#7 (2) is supported (ENOPKG)",
        )
    # 5. The fields of the older formats must be zero.
    if algo or hash_ or signer_len or key_id_len or any(pad):
        raise _malformed("EBADMSG", "reserved fields of struct module_signature are not zero")
    # 6. asn1_ber_decoder(): the size, before the first byte.
    if sig_len > MAX_CMS_SIZE:
        raise _malformed(
            "EMSGSIZE", f"the PKCS#7 message has {sig_len} bytes; the kernel reads 65535 at most"
        )
    payload_size = end - sig_len
    return AppendedSignature(
        payload=view[:payload_size], cms=bytes(view[payload_size:end]), tail=view[payload_size:]
    )
