"""Audits by tolerance across numerics classes (protocol, sections 6, 7 and 9).

Owns who may audit whom, which slots rest on tolerance, what their deviations make of a verdict, and the cap
on their weights. How far a step deviates takes arrays: that is level 3's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verification.fsck_findings import Record, Report
from verification.fsck_shapes import MILLION, Tolerances

Limits = Mapping[str, Any]
"""An item of `audit.tolerance`."""
_NUMBERS = ("loss_ppm", "norm_ppb", "peak_ppm", "step_milli")


def check_tolerance(manifest: Record, where: str, report: Report) -> None:
    """What a manifest that has passed its shape says of tolerances."""
    items = manifest["config"]["audit"]["tolerance"]
    every = manifest["config"]["train"]["trace_every"]
    if items and every != 1:
        report.add("audit.tolerance is of single steps, train.trace_every is not", where, 1, every)
    pairs = [sorted(item["classes"]) for item in items]
    for i, pair in enumerate(pairs):
        if pair[0] == pair[1]:
            report.add("audit.tolerance has an item of one class", where, "two classes", pair[0])
        if pair in pairs[:i]:
            report.add("audit.tolerance has two items of the same two classes", where, "one", pair)


def eligible(line: Record, auditors: Sequence[Record], tolerances: Tolerances) -> list[Record]:
    """Who may audit a roster entry, in the order of the open: those of another operator and the same class;
    where there are none, those of another operator and a class that a tolerance covers.
    """
    others = [auditor for auditor in auditors if auditor["operator"] != line["operator"]]
    same = [auditor for auditor in others if auditor["class"] == line["class"]]
    return same or [a for a in others if frozenset((line["class"], a["class"])) in tolerances]


def rests_on_tolerance(line: Record, auditors: Sequence[Record], tolerances: Tolerances) -> bool:
    """Whether all who may audit a roster entry, and there are some, are of other classes."""
    return any(auditor["class"] != line["class"] for auditor in eligible(line, auditors, tolerances))


def limits_of(line: Record, auditor: Record, tolerances: Tolerances) -> Limits | None:
    """The thresholds by which an eligible auditor judges a roster entry; None where it goes by digests."""
    if auditor["class"] == line["class"]:
        return None
    return tolerances[frozenset((line["class"], auditor["class"]))]


def check_deviations(
    verdict: Record, limits: Limits | None, drawn: int, *, of: str, where: str, report: Report
) -> None:
    """A verdict has one deviation for each `drawn` segment where there are `limits`, and else none."""
    due = drawn if limits is not None else 0
    what = f"the verdict of {of} has another number of deviations than are due"
    report.equal(what, where, due, len(verdict["deviations"]))


def deviates(verdict: Record, limits: Limits | None) -> bool:
    """Whether one of a verdict's deviations is above its threshold."""
    if limits is None:
        return False
    return any(deviation[key] > limits[key] for deviation in verdict["deviations"] for key in _NUMBERS)


def capped(weights: Sequence[int], resting: Sequence[bool], cap_ppm: int) -> list[int]:
    """Section 9, 1: the weights of accepted slots after the cap on those that rest on tolerance."""
    shared = sum(weight for weight, rests in zip(weights, resting, strict=True) if rests)
    exact, other = sum(weights) - shared, MILLION - cap_ppm
    if not exact or shared * other <= cap_ppm * exact:
        return list(weights)
    return [
        weight * cap_ppm * exact // (other * shared) if rests else weight
        for weight, rests in zip(weights, resting, strict=True)
    ]
