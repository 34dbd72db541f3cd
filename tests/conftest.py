# SPDX-License-Identifier: MIT
"""Settings for the whole test suite; fixtures of one floor stand in that floor's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["emulator.testing.plugin"]

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the campaigns be asked for; they are too long for every run."""
    parser.addoption("--full", action="store_true", help="run the tests marked full as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run what boots a guest last: a broken unit test shows within seconds."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)
    if not config.getoption("--full"):
        campaigns = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=campaigns)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
