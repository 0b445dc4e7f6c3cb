# SPDX-License-Identifier: Apache-2.0
"""Backends that hook module loading: what each can see and refuse, behind one protocol.

This package knows the kernel's records and nothing of signatures, YAML or metrics.
"""
