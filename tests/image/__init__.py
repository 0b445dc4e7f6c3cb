# SPDX-License-Identifier: Apache-2.0
"""The container image: built with buildah on a Debian base made here, measured and run."""
