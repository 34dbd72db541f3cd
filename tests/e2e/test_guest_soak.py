# SPDX-License-Identifier: MIT
"""No interrupt is lost, whatever the processors are busy with: ``tests/guest/soak.c``.

``VMBUS_STRESS_SECONDS`` is the length of the first run in the guest's time (15; 600 for a release);
the others take a fifth of it. ``VMBUS_STRESS_SEED`` repeats what was random in a run before.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from tests.e2e.guest_program import Programs, Setup, without
from tests.e2e.test_guest_checks import ALL_FLAGS

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

SECONDS = int(os.environ.get("VMBUS_STRESS_SECONDS", "15"))
SHORTER = max(SECONDS // 5, 1)
SOAK = Setup("soak", cpus=8, flags=ALL_FLAGS)


@pytest.mark.parametrize(
    ("setup", "seconds"),
    [
        pytest.param(SOAK, SECONDS, id="8-vcpus"),
        pytest.param(
            replace(SOAK, flags=without(ALL_FLAGS, "hv-avic")), SHORTER, id="8-vcpus-no-avic"
        ),
        pytest.param(replace(SOAK, x2apic=True), SHORTER, id="8-vcpus-x2apic"),
        pytest.param(
            replace(SOAK, flags=without(ALL_FLAGS, "hv-vapic", "hv-avic")),
            SHORTER,
            id="8-vcpus-no-vapic",
        ),
        pytest.param(
            replace(SOAK, cpus=4, accel="tcg,thread=single"), SHORTER, id="4-vcpus-one-thread"
        ),
        pytest.param(
            replace(SOAK, cpus=2, qemu_args=("-icount", "shift=2")), SHORTER, id="2-vcpus-icount"
        ),
        pytest.param(replace(SOAK, cpus=1), SHORTER, id="1-vcpu"),
    ],
)
async def test_no_interrupt_is_lost_and_none_comes_twice(
    programs: Programs, setup: Setup, seconds: int
) -> None:
    seed = int(os.environ.get("VMBUS_STRESS_SEED", "0")) or random.randrange(1, 1 << 20)
    print(f"VMBUS_STRESS_SEED={seed}")
    await programs.passes(replace(setup, words=[f"seconds={seconds}", f"seed={seed}"]))
