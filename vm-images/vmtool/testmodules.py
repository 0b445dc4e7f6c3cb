# SPDX-License-Identifier: Apache-2.0
"""x."""

DKMS_PACKAGES = ("v4l2loopback-dkms", "vpoll-dkms", "acpi-call-dkms")
