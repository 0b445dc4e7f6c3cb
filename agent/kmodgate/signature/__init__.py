# SPDX-License-Identifier: Apache-2.0
"""Module signatures, judged as the kernel judges them.

Pure: no file and network I/O, no clock, no logging; bytes in, verdict or error out.
"""

from .kernel import predict
from .profile import LATEST, PROFILES, KernelProfile, profile_for
from .revocation import Revocations
from .signedfile import SignedFile
from .trust import TrustAnchor, TrustStore, load_certificates
from .verify import VerifiedSignature, let_go, report, verify

__all__ = [
    "LATEST",
    "PROFILES",
    "KernelProfile",
    "Revocations",
    "SignedFile",
    "TrustAnchor",
    "TrustStore",
    "VerifiedSignature",
    "let_go",
    "load_certificates",
    "predict",
    "profile_for",
    "report",
    "verify",
]
