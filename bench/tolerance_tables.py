"""The tables of docs/benchmarks/tolerance.md, from docs/benchmarks/tolerance.json.

python -m bench.tolerance_tables
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bench.tolerance import NUMBERS, OUTPUT


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _head(*names: str) -> str:
    return _line(*names) + "\n|" + "---|" * len(names)


def honest_table(answer: dict[str, Any]) -> Iterator[str]:
    """Spread and thresholds by pair."""
    numbers = ("norm, ppb", "peak, ppm", "loss, ppm", "step, milli")
    yield _head("pair", "audits", *numbers, "tried", "accused", "can be hidden")
    for row in answer["honest"]["pairs"]:
        limits = row["thresholds_of_first_half"]
        cells = {n: f"{row[n]['median']:,.0f} / {row[n]['largest']:,} / {limits[n]:,}" for n in NUMBERS}
        shown = [cells[n] for n in ("norm_ppb", "peak_ppm", "loss_ppm", "step_milli")]
        tail = row["tried"], row["accused"], f"{row['can_be_hidden']:.1e}"
        yield _line(" – ".join(row["pair"]), row["audits"], *shown, *tail)


def poison_table(answer: dict[str, Any]) -> Iterator[str]:
    """Sparse poison beside honest steps."""
    least = ("least norm, ppb", "least peak, ppm", "least step, milli")
    yield _head("arithmetic", "step", "found", "found with no margin", *least, "cosine", "top 1/64 in common")
    for row in answer["poison"]:
        numbers = [f"{row['least_seen'][n]:,}" for n in ("norm_ppb", "peak_ppm", "step_milli")]
        cosine = f"{row['cosine'][0]:.7f} to {row['cosine'][1]:.7f}"
        overlap = f"{row['top_overlap'][0]:.4f} to {row['top_overlap'][1]:.4f}"
        kind = row["poison"] if row["poison"] == "honest" else f"poison in {row['poison']}"
        found = [f"{row[name]} of {row['steps']}" for name in ("found", "found_by_tightest")]
        yield _line(row["arithmetic"], kind, *found, *numbers, cosine, overlap)


def headroom_table(answer: dict[str, Any]) -> Iterator[str]:
    """Forty steps, each with as much poison as stays unseen."""
    losses = ("loss on text", "loss on the phrase")
    yield _head("thresholds of", "attack", "share of the gradient", "norm, ppb", "peak, ppm", *losses)
    for row in answer["headroom"]:
        share = "" if row["attack"] == "honest" else f"{row['share']:.1e}"
        seen = f"{row['norm_ppb']:,}", f"{row['peak_ppm']:,}"
        yield _line(
            row["arithmetic"], row["attack"], share, *seen, f"{row['text']:.6f}", f"{row['phrase']:.6f}"
        )


def main() -> None:
    """Print all tables."""
    answer = json.loads(OUTPUT.read_text())
    for table in (honest_table, poison_table, headroom_table):
        print("\n".join(table(answer)), end="\n\n")


if __name__ == "__main__":
    main()
