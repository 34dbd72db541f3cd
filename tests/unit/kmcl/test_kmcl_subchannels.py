# SPDX-License-Identifier: MIT
"""A primary and its sub-channel: the one does not run when the other was told not to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import Rig, nothing
from emulator.kmcl import Connection, IncomingPacket, KmclError, Queue, Run, ServerChannel
from emulator.wire.ntstatus import NtStatus


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


PRIMARY_CALLS: dict[str, Callable[[ServerChannel], object]] = {
    "start": lambda channel: channel.start(),
    "pause": lambda channel: channel.pause(nothing),
    "disable": lambda channel: channel.disable(nothing),
    "close": lambda channel: channel.port_closed(nothing),
}


@pytest.mark.parametrize("call", PRIMARY_CALLS)
def test_the_primary_cannot_be_moved_in_a_callback_of_its_sub_channel(call: str) -> None:
    primary, sub = family()
    refusals: list[KmclError] = []

    def misuse(_: ServerChannel) -> None:
        with pytest.raises(KmclError) as caught:
            PRIMARY_CALLS[call](primary.channel)
        refusals.append(caught.value)

    sub.vsp.hooks["suspend"] = misuse
    assert sub.pause()
    (error,) = refusals
    assert error.status is NtStatus.INVALID_DEVICE_STATE
    assert "inside EvtChannelSuspend of its sub-channel" in error.text
    # None of it was done by half.
    state = primary.channel
    assert (state.connection, state.run, state.queue) == (Connection.OPEN, Run.STARTED, Queue.ON)
    over: list[bool] = []
    primary.channel.disable(lambda: over.append(True))
    assert over
    assert sub.channel.connection is Connection.DISABLED


def test_a_sub_channel_can_be_enabled_in_post_started_of_its_primary() -> None:
    primary, sub = Rig(), Rig()
    sub.channel.init_set_primary_channel(primary.channel, 1)

    def enable(_: ServerChannel) -> None:
        sub.channel.enable()
        sub.channel.start()

    primary.vsp.hooks["post_started"] = enable
    primary.running()
    assert sub.open() is NtStatus.SUCCESS
    assert sub.channel.queue is Queue.ON
