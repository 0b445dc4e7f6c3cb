# SPDX-License-Identifier: Apache-2.0
"""The chart: linted, rendered by two Helms, held against Kubernetes and the agent."""
