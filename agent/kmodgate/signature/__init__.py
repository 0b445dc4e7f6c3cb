# SPDX-License-Identifier: Apache-2.0
"""Module signatures, judged as the kernel judges them.

Pure: no file and network I/O, no clock, no logging; bytes in, verdict or error out.
"""

from .kernel import predict
from .profile import LATEST, PROFILES, KernelProfile, profile_for
from .revocation import Revocations
from .trust import TrustAnchor, TrustStore, load_certificates
from .verify import VerifiedSignature, report, verify

__all__ = [
    "LATEST",
    "PROFILES",
    "KernelProfile",
    "Revocations",
    "TrustAnchor",
    "TrustStore",
    "VerifiedSignature",
    "load_certificates",
    "predict",
    "profile_for",
    "report",
    "verify",
]
