"""Before anything imports torch or ray: the exact profile, and Ray without tokens or usage reports."""

from __future__ import annotations

import os

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["WANDB_MODE"] = "offline"

from model.numerics import THREADS, prepare

prepare("exact", THREADS)
