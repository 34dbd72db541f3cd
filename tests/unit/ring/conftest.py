# SPDX-License-Identifier: MIT
"""Every ring test runs on both implementations of the page view."""

from __future__ import annotations

import pytest

from tests.unit.ring.support import VIEW_TYPES, ViewType


@pytest.fixture(params=sorted(VIEW_TYPES))
def view_type(request: pytest.FixtureRequest) -> ViewType:
    return VIEW_TYPES[request.param]
