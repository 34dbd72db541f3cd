# SPDX-License-Identifier: MIT
"""What the save and restore tests have in common: a busy channel."""

from __future__ import annotations

from emulator.conformance.rig import Rig


def busy() -> Rig:
    """Make a rig with two packets in the ring awaiting completion and three queued, two with."""
    rig = Rig().running()
    rig.send("asked1", wait=True)
    rig.send("asked2", wait=True)
    rig.fill()
    rig.send("queued wait", wait=True)
    rig.send("queued wait 2", wait=True)
    return rig
