# SPDX-License-Identifier: Apache-2.0
"""The ``bpf-fmod-ret`` rung: the programs of ``bpf-lsm`` at the kernel's own ``security_*()`` functions.

For nodes where ``bpf`` is not among the security modules. Best effort where the kernel preempts:
``bpf/answer.h`` says why, docs/performance.md how much was measured.
"""

from __future__ import annotations

from typing import ClassVar

from kmodgate.model import Backend

from .bpf import BpfBackend


class FmodRetBackend(BpfBackend):
    """Programs, maps and counters of ``bpf/kmodgate.bpf.c``, compiled with ``KMG_FMOD_RET``."""

    backend: ClassVar[Backend] = Backend.BPF_FMOD_RET
    object_name: ClassVar[str] = "kmodgate_fmod_ret.bpf.o"
