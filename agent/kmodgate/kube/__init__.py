# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: nothing here yet; the agent runs without it."""
