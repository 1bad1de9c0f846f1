"""Tolerances and deviations of made-up runs, for fake_run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from verification.encoding import sha256_digest
from verification.judge import Audit
from verification.records import Deviation
from verification.tolerance import thresholds


def tolerance(one: str, other: str, **limits: int) -> dict[str, Any]:
    """An item of `audit.tolerance`."""
    allowed = {"loss_ppm": 50, "norm_ppb": 900_000, "peak_ppm": 7_000, "step_milli": 4_000}
    return {"classes": [one, other], **allowed, **limits}


def deviations(
    audit: Audit, numerics_class: str, *, far: bool = False, by: str = ""
) -> tuple[Deviation, ...]:
    """What an auditor of a class finds: what is just allowed, or in the last segment more than that."""
    allowed = thresholds(audit.tolerances, audit.numerics_class, numerics_class)
    if not audit.tolerant or allowed is None:
        return ()
    found = [
        Deviation(
            loss_ppm=allowed.loss_ppm,
            norm_ppb=allowed.norm_ppb,
            own=sha256_digest(f"{numerics_class} {by} own {segment}".encode()),
            peak_ppm=allowed.peak_ppm,
            step_milli=allowed.step_milli,
            sketch=(segment, -1, *range(6)),
        )
        for segment in audit.segments
    ]
    if far:
        found[-1] = replace(found[-1], peak_ppm=allowed.peak_ppm + 1)
    return tuple(found)
