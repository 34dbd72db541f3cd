# SPDX-License-Identifier: MIT
"""Settings for the whole test suite; fixtures of one floor stand in that floor's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: how long an example takes on a loaded machine says nothing about the code. Under CI
# the examples are the same in every run, so that a red run can be repeated.
settings.register_profile(
    "vmbus",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("vmbus")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the root of the source tree."""
    return Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what boots a guest last: a broken unit test shows within seconds."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)
