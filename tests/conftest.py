"""Before anything imports torch or ray: the exact profile, and Ray without tokens or usage reports.

Also how the tests are shared out when they run on several cores.
"""

from __future__ import annotations

import os

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["WANDB_MODE"] = "offline"

from model.numerics import THREADS, prepare

prepare("exact", THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what must stay together, and what to start first.

    A file's tests share its fixtures, so they stay in one process; all of Ray's do, because two clusters
    on one machine are in each other's way. Files with slow tests come first: one begun last is waited for.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.get_closest_marker("ray"), item.path not in slow))
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
