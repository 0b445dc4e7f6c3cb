# SPDX-License-Identifier: Apache-2.0
"""What ENFORCE_SIGNED_MODULES would refuse: of what is loaded, and of what lies on disk.

This file imports nothing: ``kernels`` reads images in processes of its own while what
verifies is still being imported.
"""
