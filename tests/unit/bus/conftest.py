# SPDX-License-Identifier: MIT
"""Rigs that close their guest's memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.bus.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A bus whose owners answer at once."""
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def slow() -> Iterator[Rig]:
    """A bus whose owners answer when they are told to."""
    rig = Rig(automatic=False)
    yield rig
    rig.close()
