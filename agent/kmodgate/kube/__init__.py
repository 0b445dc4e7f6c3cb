# SPDX-License-Identifier: Apache-2.0
"""The agent's place in a Kubernetes cluster: labels of its node, its pods, events, a node condition.

``cgroups`` and ``objects`` are pure. ``api`` speaks HTTP with the API server, ``reflector`` keeps
a copy of what it watches, ``notices`` sends events. Nothing here decides a load or is waited for
by one. docs/adr/0014 says why there is no client library.
"""
