"""A process under one numerics environment that takes local steps when asked to.

Owns the conversation over standard input and output: a first line that says what the process is to be, then
one line a step. Points go through files of canonical array bytes. Does not own the steps, which are
model/local_steps.py's as everywhere, nor what they are compared for (calibrate_workers.py).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from model.arrays import arrays_from_bytes
from model.numerics import numerics_class, prepare
from pipeline.calibrate_points import Plan
from pipeline.config import config_from_manifest
from verification.errors import BarnraiseError, UsageError


def main() -> None:
    """Answer every line with a line, with `error` in it where something is refused; end with the input."""
    order = json.loads(sys.stdin.readline())
    try:
        threads, device = order["threads"], order["device"]
        # The environment was set for this process. Imported by prepare(), torch would come without what of it
        # is also the exact profile's.
        import torch  # noqa: F401, PLC0415

        prepare(order["profile"], threads)
        if device != "cpu":
            # What cuBLAS wants before it is deterministic; read when the device is first used.
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            _require_device(device)
        _say({"class": numerics_class(order["profile"], threads)})
        plan = Plan(config_from_manifest(order["config"]), (), np.zeros((0, 0, 0), np.int64))
        for line in sys.stdin:
            _say(_step(plan, json.loads(line), device))
    except (BarnraiseError, ImportError) as error:
        _say({"error": str(error)})


def _require_device(device: str) -> None:
    import torch  # noqa: PLC0415 - torch must be prepared first

    if not torch.cuda.is_available():
        raise UsageError(f"this machine has no {device}")


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201


def _step(plan: Plan, order: dict[str, str], device: str) -> dict[str, object]:
    """One local step: from the point in the file `start`, on `windows`, to the file `end`."""
    from model.local_steps import local_steps  # noqa: PLC0415 - imports torch, which must be prepared first

    model, first = plan.config.model, int(order["first"])
    shape = 1, plan.config.train.batch, model.context + 1
    windows = arrays_from_bytes(Path(order["windows"]).read_bytes(), {"windows": (np.int64, shape)})
    start = plan.point(Path(order["start"]).read_bytes())
    rate = float.fromhex(order["rate"])
    # A start of its own in each step, but for the sum that `gradient` mode has behind it.
    begun = first if plan.config.train.mode == "gradient" else 0
    if not begun:
        start.state.pop("gradient_sum", None)
    done = local_steps(model, plan.spec, start, windows["windows"], [rate], first=begun, device=device)
    Path(order["end"]).write_bytes(plan.to_bytes(done.end))
    return {"leaf": done.leaves[0], "loss": done.losses[0]}


if __name__ == "__main__":
    main()
