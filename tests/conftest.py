"""Before anything imports torch or ray: the exact profile, and Ray without tokens or usage reports.

Also how the tests are shared out when they run on several cores.
"""

from __future__ import annotations

import os
import signal

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["WANDB_MODE"] = "offline"

from model.numerics import THREADS, prepare

prepare("exact", THREADS)
# A shell lets what it starts in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what to start first: files with Ray's and other slow tests, for one begun last is waited for.

    A file's tests share its fixtures and stay in one process (`--dist loadfile`).
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: (item.path not in ray, item.path not in slow))
