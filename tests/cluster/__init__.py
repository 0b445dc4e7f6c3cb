# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes 1.20: its control plane on this machine's loopback, its node in a virtual machine."""
