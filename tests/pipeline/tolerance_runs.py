"""Whole tiny runs with a member of another numerics class: emulated, its gradients are off by a little.

One process has one class, so the name of the other is put there by these helpers, and so is what its
arithmetic differs in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model.local_steps import _Work
from model.numerics import THREADS, numerics_class
from pipeline.auditor import Auditor
from pipeline.contributor import Contributor
from pipeline.member import Member
from tests.pipeline.adversary_runs import Story, tell
from tests.pipeline.segment_runs import LIAR, config

HERE = numerics_class("exact", THREADS)
FAR, THIRD = "native/another-machine", "native/yet-another-machine"
LIMITS = {"loss_ppm": 20, "norm_ppb": 100_000, "peak_ppm": 1_000, "step_milli": 1_500}
NOISE = {FAR: 2.0**-17, THIRD: 2.0**-18}  # of a gradient, relative: near 10^4 billionths


def item(one: str = HERE, other: str = FAR, **limits: int) -> dict[str, Any]:
    """An item of `audit.tolerance`."""
    return {"classes": [one, other], **LIMITS, **limits}


@contextmanager
def arithmetic_of(name: str) -> Iterator[None]:
    """Gradients and losses as a machine of this class gets them."""
    true = _Work.compute_gradient

    def noisy(self: _Work, tokens_BT: Any, micro_batch: int) -> int:
        loss = true(self, tokens_BT, micro_batch)
        self.gradient_P[::2].mul_(1 + NOISE[name])
        return loss + 10

    with pytest.MonkeyPatch.context() as patch:
        if name in NOISE:
            patch.setattr(_Work, "compute_gradient", noisy)
        yield


@contextmanager
def classes(of: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, members of these names are of other classes, and work and audit as those do."""
    prepared, works, audits = Member.prepared, Contributor.compute, Auditor.compute
    tells = Auditor.sketches

    def named(self: Member, profile: Any) -> str:
        return of.get(self.name) or prepared(self, profile)

    def working(self: Contributor, *arguments: Any) -> Any:
        with arithmetic_of(self.numerics_class):
            return works(self, *arguments)

    def auditing(self: Auditor, *arguments: Any) -> Any:
        with arithmetic_of(self.numerics_class):
            return audits(self, *arguments)

    def telling(self: Auditor, *arguments: Any) -> Any:
        with arithmetic_of(self.numerics_class):
            return tells(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Auditor, "sketches", telling)
        patch.setattr(Member, "prepared", named)
        patch.setattr(Contributor, "compute", working)
        patch.setattr(Auditor, "compute", auditing)
        yield


def tolerant_run(folder: Path, kind: str = "", auditor: str = HERE, **sections: Any) -> Story:
    """Two rounds in which everybody is audited twice, c03 of another class; `kind` is how it cheats.

    `auditor` is the class of a01.
    """
    audit = {"tolerance": [item()], **sections.pop("audit", {})}
    with classes({LIAR: FAR, **({"a01": auditor} if auditor != HERE else {})}):
        return tell(folder, config(audit=audit, **sections), {LIAR: kind} if kind else {})
