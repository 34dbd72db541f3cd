# SPDX-License-Identifier: MIT
"""A primary and its sub-channel: the one does not run when the other was told not to."""

from __future__ import annotations

from emulator.conformance.rig import Rig
from emulator.kmcl import IncomingPacket, Queue, Run


def family() -> tuple[Rig, Rig]:
    primary, sub = Rig().running(), Rig()
    sub.channel.init_set_primary_channel(primary.channel, 1)
    return primary, sub.running()


def test_a_pause_within_the_start_of_the_primary_is_of_its_sub_channel_too() -> None:
    primary, sub = family()
    assert primary.pause()
    over: list[bool] = []

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        primary.channel.pause(lambda: over.append(True))

    # The request is read as the last part of the start, before the sub-channel's turn comes.
    primary.vsp.on_packet = process
    primary.guest.request(1)
    primary.channel.start()
    assert over == [True]
    assert (sub.channel.run, sub.channel.queue) == (Run.PAUSED, Queue.OFF)
    primary.vsp.on_packet = None
    primary.channel.start()
    assert (sub.channel.run, sub.channel.queue) == (Run.STARTED, Queue.ON)
