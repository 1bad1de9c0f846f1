"""What decides the bits of a computation: profiles, and the numerics class of a machine.

Owns the environment and torch settings of the two profiles and the words that name a class. Does not own
the computation. Importing this module does not import torch, because the exact profile's variables act
only when they are set before that.

`exact` pins the instruction set of torch (AVX2) and MKL's code path, and turns oneDNN off: one torch build
then gives equal bits for any number of threads on any processor with AVX2, as long as nothing calls MKL's
vector library (torch.exp, log, sqrt, erf), which goes by the vendor.
`native` is as fast as the machine goes; everything known to change its bits is part of its class.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Literal

from verification.errors import UsageError

Profile = Literal["exact", "native"]

# One thread a member: members are many, and the exact profile gives equal bits for any number.
THREADS = 1
_EXACT = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT"}


def environment(profile: Profile) -> dict[str, str]:
    """Variables that must be set before torch is imported."""
    return dict(_EXACT) if profile == "exact" else {}


def prepare(profile: Profile, threads: int) -> None:
    """Put this process under a profile with `threads` compute threads; imports torch.

    Sets the environment when torch is not imported yet. Raises UsageError when it is and the environment
    is another one, or when the processor cannot do what the profile pins.
    """
    if threads < 1:
        raise UsageError("the number of threads is too small", expected="at least 1", got=threads)
    wanted = environment(profile)
    if "torch" not in sys.modules:
        for name, value in _EXACT.items():  # from a parent process of the exact profile
            if os.environ.get(name) == value:
                del os.environ[name]
        os.environ.update(wanted)
    found = {name: os.environ.get(name) for name in wanted}
    if found != wanted:
        raise _too_late(profile, found)
    import torch  # noqa: PLC0415 - only now is the environment right

    if profile == "exact":
        _require_x86()
        capability = torch.backends.cpu.get_cpu_capability()
        if capability != "AVX2":
            raise _too_late(profile, {"torch's CPU capability": capability})
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.mkldnn.enabled = profile == "native"  # type: ignore[assignment]


def _too_late(profile: Profile, found: dict[str, str | None]) -> UsageError:
    settings = " ".join(f"{name}={value}" for name, value in environment(profile).items())
    return UsageError(
        f"torch was imported before the {profile} profile was set up",
        expected=environment(profile),
        got=found,
        hint=f"Start the process with {settings}, or call prepare() before anything imports torch.",
    )


def _require_x86() -> None:
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        raise UsageError(
            "the exact profile needs an x86-64 processor",
            got=platform.machine(),
            hint="Use the native profile on this machine.",
        )


def numerics_class(profile: Profile, threads: int) -> str:
    """Name of all that fixes the bits: equal names, equal bits. Imports torch; call `prepare` first.

    The exact class leaves out the number of threads because the profile's bits do not depend on it.
    """
    import torch  # noqa: PLC0415 - importing this module must not import torch

    build = f"torch-{torch.__version__}"
    if profile == "exact":
        _require_x86()
        return f"exact-avx2.v2/x86-64/{build}"
    vendor, family, model = _processor()
    capability = torch.backends.cpu.get_cpu_capability()
    path = os.environ.get("MKL_CBWR", "auto")
    return f"native.v1/{vendor}-{family}-{model}/{capability}/mkl-{path}/threads-{threads}/{build}"


def _processor() -> tuple[str, str, str]:
    """Vendor, family and model number as the kernel prints them; "unknown" where it does not."""
    fields: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    vendor = fields.get("vendor_id") or fields.get("CPU implementer") or platform.machine() or "unknown"
    family = fields.get("cpu family") or fields.get("CPU architecture") or "unknown"
    return vendor, family, fields.get("model") or fields.get("CPU part") or "unknown"
