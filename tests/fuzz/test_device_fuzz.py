# SPDX-License-Identifier: MIT
"""The vmbus-user device against a hostile backend, for two minutes or as long as one likes.

VMBUS_FUZZ_SECONDS (120) and VMBUS_FUZZ_SEED (random) choose the run. A failure names the record,
which ``scripts/fuzz --replay`` plays again. A short run need not have seen everything.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from emulator.machine.qemu import find_qemu
from tests.e2e.guest_program import build
from tests.fuzz.bare import storm
from tests.fuzz.generate import episodes
from tests.fuzz.run import fuzz, missing, new_seed

FULL_SECONDS = 120.0


@pytest.mark.asyncio
@pytest.mark.e2e
@pytest.mark.slow
async def test_no_backend_takes_the_machine_down(tmp_path: Path) -> None:
    seconds = float(os.environ.get("VMBUS_FUZZ_SECONDS", FULL_SECONDS))
    seed = int(os.environ.get("VMBUS_FUZZ_SEED", new_seed()))
    # It logs each slow callback: thousands of lines before the one that says what failed.
    asyncio.get_running_loop().set_debug(False)
    print(f"VMBUS_FUZZ_SECONDS={seconds:g} VMBUS_FUZZ_SEED={seed}")
    guest = storm(build(tmp_path))
    memory = await fuzz(
        episodes(seed, guest.smp),
        qemu=find_qemu(),
        guest=guest,
        folder=tmp_path,
        seconds=seconds,
        say=print,
    )
    if seconds >= FULL_SECONDS:
        assert missing(memory) == []
