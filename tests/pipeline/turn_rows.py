"""A line of a run as it goes to the views, with everything that a line can have."""

from __future__ import annotations

from typing import Any


def row(round_: int, **fields: Any) -> dict[str, Any]:
    """A line of a run on two machines, with everything a line can have."""
    return {
        "round": round_,
        "attempt": 0,
        "tokens": 10 * round_,
        "round_tokens": 10,
        "loss": 5.0 / round_,
        "val_loss": 2.5,
        "tokens_per_s": 5.0,
        "seconds": 2.0,
        "payload_bytes": 200,
        "accepted": ["c0"],
        "rejected": [{"contributor": "c1", "reason": "failed-audit"}],
        "removed": [],
        "overruled": [],
        "audits": 2,
        "audits_passed": 1,
        "quarantined": ["c1"],
        "credits": {"c0": 10 * round_, "c1": 0, "a0": 3},
        "contributors": {
            "c0": {"tokens": 10, "loss": 4.5, "outcome": "accepted"},
            "c1": {"tokens": None, "loss": None, "outcome": "failed-audit"},
        },
        "verdicts": [
            {"round": round_, "contributor": "c0", "auditor": "a0", "look": 1, "outcome": "pass"},
            {"round": round_, "contributor": "c1", "auditor": "a0", "look": 1, "outcome": "fail"},
        ],
        "phases": {"open": 0.1, "commit": 1.0, "reveal": 0.2, "draw": 0.1, "audit": 0.5, "close": 0.1},
        "work_ms": {"c0": 900, "c1": 100},
        "joined": [],
        "left": [],
        "nodes": {
            "host-1.example": {"alive": True, "members": ["c0"], "memory_bytes": 5, "cpu_percent": 50.0},
            "host-2.example": {"alive": False, "members": ["c1"]},
        },
        "alerts": [],
        **fields,
    }
