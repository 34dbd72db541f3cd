# SPDX-License-Identifier: MIT
"""What the save and restore tests have in common: a busy channel, and ways to look at it."""

from __future__ import annotations

from collections.abc import Callable

from emulator.conformance.rig import Rig
from emulator.model.driver import COMPLETION, text

SMALLEST_CHUNKS: Callable[[], int] = lambda: 0  # noqa: E731


def busy() -> Rig:
    """Make a rig with two packets in the ring awaiting completion and three queued, two with."""
    rig = Rig().running()
    rig.send("asked1", wait=True)
    rig.send("asked2", wait=True)
    rig.fill()
    rig.send("queued wait", wait=True)
    rig.send("queued wait 2", wait=True)
    return rig


def chunks(rig: Rig) -> list[bytes]:
    """Save chunk by chunk."""
    return rig.save(SMALLEST_CHUNKS)


def drain_guest(rig: Rig) -> list[str | int]:
    """Read all that comes: the names of packets, the ids of completions."""
    seen: list[str | int] = []
    while packets := rig.guest.take_all():
        for packet in packets:
            seen.append(packet.transaction_id if packet.type == COMPLETION else text(packet))
        rig.ring()
    return seen
