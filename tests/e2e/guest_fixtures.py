# SPDX-License-Identifier: MIT
"""The fixture of the bare-metal programs, for any test that wants one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.guest_program import Programs


@pytest.fixture(scope="session")
def programs(qemu: Path, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(qemu, tmp_path_factory.mktemp("guest"))
