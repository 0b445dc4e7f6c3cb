# SPDX-License-Identifier: Apache-2.0
"""One line for each property of the node that the policy leans on. Pure.

What ``node.limits`` finds keeps its wording here; what it has no finding for is shown with its
value, so that a report can be compared with another node's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from kmodgate.node import limits

from .around import agent, other_limits, process, trust
from .hardened import hardening
from .ladder import HELPERS, MACHINES, SIGNATURE_CHECK, VERIFICATION
from .line import Check, Findings, judged, ok, only_live, problem, unknown, warning
from .seen import Purpose, Seen

_OPTIONS: Final = (
    "MODULES",
    "MODULE_SIG",
    "MODULE_SIG_FORCE",
    "MODULE_DECOMPRESS",
    "BPF_LSM",
    "BPF_SYSCALL",
    "BPF_JIT",
    "BPF_KPROBE_OVERRIDE",
    "DEBUG_INFO_BTF",
    "SECURITY_LOADPIN",
    "SECURITY_LOCKDOWN_LSM",
    "SYSTEM_BLACKLIST_KEYRING",
)
_DIGESTS: Final = ("sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512")
_KEYS: Final = (
    "rsa",
    "ecdsa-nist-p256",
    "ecdsa-nist-p384",
    "ecdsa-nist-p521",
    "mldsa44",
    "mldsa65",
    "mldsa87",
)


def checks(seen: Seen, purpose: Purpose) -> tuple[Check, ...]:
    """Every line, in the order of the questions that an operator asks."""
    findings = {
        finding.code: finding
        for finding in limits(
            seen.facts,
            purpose.policy,
            configured_certificates=bool(purpose.trust),
            kernel_keyrings=purpose.kernel_keyrings,
        )
    }
    return tuple(check for part in _PARTS for check in part(seen, purpose, findings))


def _kernel(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    del purpose
    facts = seen.facts
    machine = "" if seen.machine is None else f", {seen.machine}"
    others = "" if len(seen.kernels) < 2 else f"; the image also holds {', '.join(seen.kernels[1:])}"  # noqa: PLR2004
    yield (
        unknown("kernel", "kernel", f"its release is seen {only_live(seen)}")
        if facts.release is None
        else ok("kernel", "kernel", f"Linux {facts.release}{machine}{others}")
    )
    if seen.machine not in {None, *MACHINES}:
        yield problem("machine", "machine type", f"{seen.machine}: kmodgate runs on {' and '.join(MACHINES)}")
    yield judged(
        "modules",
        "module loading",
        findings,
        ("modules-not-built", "modules-disabled"),
        ok("modules", "module loading", "built in, and not switched off")
        if seen.live
        else ok("modules", "module loading", "built in"),
    )
    if seen.kconfig is None:
        yield unknown(
            "config",
            "build config",
            "neither /proc/config.gz nor /boot/config-RELEASE is there; install the kernel package's config",
        )
        return
    on = [name for name in _OPTIONS if seen.option(name)]
    off = [name for name in _OPTIONS if not seen.option(name)]
    yield ok("config", "build config", f"{' '.join(on) or 'none of those looked at'}; not: {' '.join(off)}")


def _bpf(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    del purpose
    yield judged(
        "btf", "type information", findings, ("btf-missing",), ok("btf", "type information", "BTF is there")
    )
    yield judged(
        "lsm",
        "security modules",
        findings,
        ("bpf-lsm-inactive", "lsm-list-unreadable"),
        ok(
            "lsm",
            "security modules",
            ", ".join(seen.facts.lsms or ())
            + ("" if seen.live else " (by default; lsm= on the kernel command line replaces them)"),
        ),
    )
    yield _functions(seen)
    if seen.live:
        yield judged(
            "ftrace",
            "kernel.ftrace_enabled",
            findings,
            ("ftrace-disabled",),
            unknown("ftrace", "kernel.ftrace_enabled", "absent; seen with CONFIG_DYNAMIC_FTRACE=y")
            if seen.facts.ftrace_enabled is None
            else ok("ftrace", "kernel.ftrace_enabled", "1"),
        )
        yield _jit(seen)


def _functions(seen: Seen) -> Check:
    code, subject = "helpers", "BPF helpers"
    if seen.functions is None:
        place = "in /sys/kernel/btf/vmlinux" if seen.live else "or in boot/vmlinuz-RELEASE of the image"
        return unknown(code, subject, f"seen {only_live(seen)}, {place}")
    missing = [name for name in HELPERS if name not in seen.functions]
    if missing:
        said = f"the kernel has no {', '.join(missing)}"
        if VERIFICATION in seen.functions:
            return warning(
                code, subject, f"{said}, so only its own keyrings can judge; for more use Linux 5.18 or later"
            )
        return problem(code, subject, f"{said}; use Linux 5.18 or later")
    return ok(code, subject, ", ".join(HELPERS))


def _jit(seen: Seen) -> Check:
    code, subject = "jit", "net.core.bpf_jit_enable"
    if seen.jit is None:
        return unknown(code, subject, "absent, or not readable by this user")
    if not seen.jit:
        return problem(
            code,
            subject,
            "0, and no BPF program can be attached; run sysctl net.core.bpf_jit_enable=1, remove the setting",
        )
    return ok(code, subject, "1")


def _programs(seen: Seen) -> Check:
    code, subject = "programs", "kmodgate's programs"
    if seen.functions is not None and seen.functions.isdisjoint((SIGNATURE_CHECK, VERIFICATION)):
        return unknown(
            code, subject, "not tried: they attach to a function that this kernel lacks, see above"
        )
    if not seen.facts.btf:
        return unknown(
            code, subject, "not tried: without type information they cannot be attached, see above"
        )
    if seen.libbpf:
        return problem(code, subject, seen.libbpf)
    if seen.load is None:
        return unknown(code, subject, "not tried; run as root to have the kernel's verifier look at them")
    if seen.load:
        return problem(code, subject, f"the kernel does not take them: {seen.load}")
    whose = "them" if seen.tried is None else f"those of {seen.tried}"
    return ok(code, subject, f"the kernel's verifier takes {whose} (loaded, not attached, unloaded)")


def _signatures(seen: Seen, purpose: Purpose, findings: Findings) -> Iterator[Check]:
    facts = seen.facts
    yield judged(
        "module-sig",
        "module signatures",
        findings,
        ("module-sig-missing", "module-sig-unknown"),
        _signature_check(seen),
    )
    if seen.live:
        yield _programs(seen)
    else:
        return
    enforced = facts.signatures.enforced
    yield judged(
        "sig-enforce",
        "module.sig_enforce",
        findings,
        ("sig-enforce-excludes-certificates", "sig-enforce-stricter"),
        unknown("sig-enforce", "module.sig_enforce", "seen with sysfs mounted on /sys")
        if enforced is None
        else ok("sig-enforce", "module.sig_enforce", "on" if enforced else "off"),
    )
    yield judged(
        "lockdown",
        "lockdown",
        findings,
        ("lockdown-excludes-certificates", "lockdown-stricter"),
        _lockdown(seen),
    )
    yield _algorithms(seen)
    yield _keyrings(seen, purpose, findings)


def _signature_check(seen: Seen) -> Check:
    code, subject = "module-sig", "module signatures"
    if seen.facts.signatures.built is None:
        return unknown(code, subject, f"seen {only_live(seen)}")
    if not seen.facts.signatures.built:
        return warning(code, subject, "the kernel does not check them (CONFIG_MODULE_SIG=n)")
    if seen.functions is not None and SIGNATURE_CHECK not in seen.functions:
        if VERIFICATION in seen.functions:
            return ok(code, subject, f"checked by the kernel, seen at {VERIFICATION}() only")
        return problem(
            code,
            subject,
            f"the compiler inlined {SIGNATURE_CHECK}(), so nothing can attach to it; use a newer kernel",
        )
    return ok(code, subject, "checked by the kernel")


def _lockdown(seen: Seen) -> Check:
    facts = seen.facts
    if facts.lockdown is not None:
        return ok("lockdown", "lockdown", str(facts.lockdown))
    if facts.lsms is None:
        return unknown("lockdown", "lockdown", "seen with securityfs mounted on /sys/kernel/security")
    return ok("lockdown", "lockdown", "not among the security modules")


def _algorithms(seen: Seen) -> Check:
    code, subject = "algorithms", "signature algorithms"
    if seen.crypto is None:
        return unknown(code, subject, "/proc/crypto cannot be read")
    now = [name for name in (*_KEYS, *_DIGESTS) if name in seen.crypto]
    if not set(_KEYS) & seen.crypto:
        return warning(
            code, subject, "no RSA and no ECDSA is registered, so no signature verifies; modprobe rsa_generic"
        )
    more = [] if seen.profile is None else sorted((seen.profile.keys | seen.profile.digests) - seen.crypto)
    on_demand = [name for name in (*_KEYS, *_DIGESTS) if name in more]
    rest = f"; if they were built, loaded on demand: {', '.join(on_demand)}" if on_demand else ""
    return ok(code, subject, f"registered now: {', '.join(now)}{rest}")


def _keyrings(seen: Seen, purpose: Purpose, findings: Findings) -> Check:
    code, subject = "keyrings", "kernel keyrings"
    keys = seen.facts.keys
    if keys is None:
        fine = unknown(code, subject, "/proc/keys cannot be read; a kernel with CONFIG_KEYS=y has it")
    elif ".builtin_trusted_keys" not in keys.keyrings:
        fine = unknown(
            code, subject, "this user does not see .builtin_trusted_keys; run as root on the node itself"
        )
    elif not purpose.kernel_keyrings:
        fine = ok(code, subject, "not trusted by this config")
    else:
        count = len(keys.certificates)
        fine = ok(code, subject, f"{count} certificate{'' if count == 1 else 's'}: " + _subjects(seen))
    return judged(code, subject, findings, ("kernel-keyrings-empty",), fine)


def _subjects(seen: Seen) -> str:
    certificates = () if seen.facts.keys is None else seen.facts.keys.certificates
    shown = [certificate.subject for certificate in certificates[:4]]
    return "; ".join([*shown, *(["…"] if len(certificates) > len(shown) else [])]) or "none"


_Part = Callable[[Seen, Purpose, Findings], Iterator[Check]]
_PARTS: Final[tuple[_Part, ...]] = (
    _kernel,
    _bpf,
    _signatures,
    other_limits,
    hardening,
    process,
    trust,
    agent,
)
