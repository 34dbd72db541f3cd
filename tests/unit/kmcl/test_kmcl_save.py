# SPDX-License-Identifier: MIT
"""Saving: each test carries the number of its scenario in the KMCL conformance list.

A (1-12) registration and the save calls, B (13-22) EvtSavePacket. Of scenario 3 only the legacy
half: the Ex callbacks are of interface V5. Scenario 11 needs a client end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import Rig, nothing
from emulator.conformance.scenarios.support import chunks, guest_reads
from emulator.kmcl import (
    KmclError,
    OutgoingPacket,
    OutgoingState,
    Queue,
    SavedPacket,
    ServerChannel,
    decode_stream,
)
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy

OK = NtStatus.SUCCESS
MORE = NtStatus.MORE_PROCESSING_REQUIRED

# A. Registration and the save calls.


def test_scenario_1_callbacks_registered_while_disabled_are_used() -> None:
    rig = busy()
    rig.pause()
    chunks(rig)
    assert {context for context, _ in rig.vsp.save_calls} >= {"asked1", "asked2", "queued wait"}


def test_scenario_2_registration_after_enable_is_refused_and_changes_nothing() -> None:
    rig = busy()
    with pytest.raises(KmclError) as caught:
        rig.channel.init_set_save_restore_packet_callbacks(
            lambda *_: SavedPacket(OK), lambda *_: OK
        )
    assert caught.value.status is NtStatus.INVALID_PARAMETER_1
    rig.pause()
    chunks(rig)
    assert rig.vsp.save_calls


def test_scenario_3_the_last_registration_counts() -> None:
    rig = Rig()
    calls: list[int] = []

    def save(_: ServerChannel, __: OutgoingPacket, size: int) -> SavedPacket:
        calls.append(size)
        return SavedPacket(OK)

    rig.channel.init_set_save_restore_packet_callbacks(save, rig.vsp.restore_packet)
    rig.running()
    rig.send("ask", wait=True)
    rig.pause()
    chunks(rig)
    assert calls == [0]
    assert rig.vsp.save_calls == []


def test_scenario_4_packets_in_use_without_callbacks_fail_the_save_and_nothing_else() -> None:
    rig = Rig()
    rig.channel._save_packet = None
    rig.running()
    rig.pause()
    assert rig.channel.save_begin() is OK, "nothing in use needs no callback"
    rig.channel.save_end()
    rig.channel.start()
    rig.send("ask", wait=True)
    rig.pause()
    assert rig.channel.save_begin() is NtStatus.NOT_SUPPORTED
    rig.channel.start()
    assert rig.channel.queue is Queue.ON


def test_scenario_5_an_idle_channel_saves_without_a_packet_callback() -> None:
    rig = Rig().running()
    rig.pause()
    assert rig.channel.save_begin() is OK
    result = rig.channel.save_continue(4096)
    assert result.status is OK
    assert 0 < len(result.data) <= 4096
    rig.channel.save_end()
    assert rig.vsp.save_calls == []
    stream = decode_stream([result.data])
    assert (stream.in_ring, stream.queue) == ((), ())


def test_scenario_6_a_buffer_that_is_too_small_consumes_nothing() -> None:
    rig = busy()
    rig.pause()
    assert rig.channel.save_begin() is OK
    zero = rig.channel.save_continue(0)
    assert (zero.status, zero.data) == (NtStatus.BUFFER_TOO_SMALL, b"")
    short = rig.channel.save_continue(zero.bytes_required - 1)
    assert (short.status, short.bytes_required) == (NtStatus.BUFFER_TOO_SMALL, zero.bytes_required)
    exact = rig.channel.save_continue(zero.bytes_required)
    assert (exact.status, len(exact.data)) == (NtStatus.BUFFER_OVERFLOW, zero.bytes_required)


def test_scenario_7_overflow_means_go_on_and_is_not_a_success() -> None:
    rig = busy()
    rig.pause()
    rig.channel.save_begin()
    statuses: list[NtStatus] = []
    size = 200
    while True:
        result = rig.channel.save_continue(size)
        statuses.append(result.status)
        assert len(result.data) <= size
        if result.status is OK:
            break
        assert not result.status.is_success, "a loop on NT_SUCCESS would stop here"
        assert result.bytes_required > 0
        assert bool(result.data) is (result.status is NtStatus.BUFFER_OVERFLOW)
        size = max(200, result.bytes_required)
    assert NtStatus.BUFFER_OVERFLOW in statuses
    again = rig.channel.save_continue(size)
    assert (again.status, again.data) == (OK, b"")


def test_scenario_8_buffer_sizes_do_not_matter() -> None:
    rig = busy()
    rig.pause()
    sizes: list[Callable[[], int]] = [lambda: 0, lambda: 300, lambda: 1300, lambda: 1 << 20]
    streams = [rig.save(size) for size in sizes]
    assert len({b"".join(stream) for stream in streams}) == 1
    assert len({len(stream) for stream in streams}) >= 3
    for stream in streams:
        assert decode_stream(stream) == decode_stream(streams[0])


def test_scenario_9_misuse_of_the_save_calls_does_no_harm() -> None:
    rig = busy()
    assert rig.channel.save_continue(100).status is NtStatus.INVALID_DEVICE_STATE
    rig.channel.save_end()
    assert rig.channel.save_begin() is NtStatus.INVALID_DEVICE_STATE, "it runs"
    rig.pause()
    assert rig.channel.save_begin() is OK
    assert rig.channel.save_begin() is NtStatus.INVALID_DEVICE_STATE
    rig.channel.save_end()
    rig.channel.save_end()
    assert rig.channel.save_continue(100).status is NtStatus.INVALID_DEVICE_STATE
    expected = chunks(rig)
    assert chunks(rig) == expected


def test_scenario_9_a_disabled_or_draining_channel_cannot_be_saved() -> None:
    assert Rig().channel.save_begin() is NtStatus.INVALID_DEVICE_STATE
    rig = Rig(answer=False).running()
    rig.vsp.drain_in_suspend = False
    rig.guest.request(1)
    rig.ring()
    assert not rig.pause()
    assert rig.channel.save_begin() is NtStatus.INVALID_DEVICE_STATE
    rig.vsp.drain()
    assert rig.channel.save_begin() is OK


def test_scenario_9_start_and_send_wait_for_the_end_of_the_save() -> None:
    rig = Rig()
    rig.channel.enable()
    assert rig.channel.save_begin() is OK
    with pytest.raises(KmclError, match="save is under way"):
        rig.channel.start()
    with pytest.raises(KmclError, match="during a save"):
        rig.send("meanwhile")
    rig.channel.save_end()
    rig.send("afterwards")
    rig.channel.start()


def test_scenario_10_a_save_given_up_leaves_a_complete_second_one() -> None:
    rig = busy()
    rig.pause()
    rig.channel.save_begin()
    rig.channel.save_continue(300)
    rig.channel.save_end()
    stream = decode_stream(chunks(rig))
    assert (len(stream.in_ring), len(stream.queue)) == (2, 3)


def test_scenario_12_a_checkpoint_goes_on_as_if_nothing_had_been() -> None:
    rig = busy()
    rig.pause()
    chunks(rig)
    rig.channel.start()
    seen = guest_reads(rig)
    assert seen[:2] == ["asked1", "asked2"]
    assert seen[-2:] == ["queued wait", "queued wait 2"]
    assert len(seen) == len(set(seen))


def test_a_channel_that_closes_during_a_save_fails_it() -> None:
    rig = busy()
    rig.pause()
    rig.channel.save_begin()
    rig.channel.save_continue(300)
    rig.channel.port_closed(nothing)
    assert rig.channel.save_continue(1 << 20).status is NtStatus.DEVICE_REMOVED
    rig.channel.save_end()
    rig.guest.reopen()
    rig.open()
    rig.channel.start()


# B. EvtSavePacket.


def test_scenario_13_a_packet_with_state_is_asked_twice() -> None:
    rig = Rig().running()
    rig.send("four", wait=True)
    rig.pause()
    stream = decode_stream(chunks(rig))
    assert rig.vsp.save_calls == [("four", 0), ("four", 4)]
    ((_, save_buffer),) = stream.in_ring
    assert save_buffer == b"four"


def test_scenario_14_a_stateless_packet_is_asked_once_and_restored_with_nothing() -> None:
    rig = Rig().running()
    rig.send("", wait=True)
    rig.pause()
    pieces = chunks(rig)
    assert rig.vsp.save_calls == [("", 0)]
    rig.restored(pieces)
    assert [restored.save_buffer for restored in rig.vsp.restored] == [b""]


def test_scenario_15_a_packet_without_completion_in_the_ring_is_not_in_use() -> None:
    rig = Rig().running()
    rig.send("gone")
    rig.pause()
    chunks(rig)
    assert rig.vsp.save_calls == []
    rig.restored(chunks(rig))
    rig.channel.start()
    assert guest_reads(rig) == ["gone"]


def test_scenario_16_a_queued_packet_without_completion_is_saved_and_sent_later() -> None:
    rig = Rig().running()
    names = rig.fill()
    rig.saved_and_restored()
    rig.channel.start()
    assert rig.vsp.completed == []
    assert guest_reads(rig) == names
    assert rig.vsp.completed == [(names[-1], OK, None)]


def test_scenario_17_a_packet_in_the_ring_is_restored_as_awaiting_its_completion() -> None:
    rig = Rig().running()
    transaction = rig.send("ask", wait=True).transaction_id
    rig.saved_and_restored()
    assert rig.channel.stats().awaiting_completion == 1
    (waiting,) = rig.channel.traffic.in_ring()
    assert (waiting.state, waiting.transaction_id) == (OutgoingState.IN_RING, transaction)


def test_scenario_18_packets_not_in_use_are_not_saved() -> None:
    rig = Rig().running()
    rig.channel.packet_allocate()
    packet = rig.channel.packet_allocate()
    packet.set_completion_routine(lambda *_: None)
    packet.send(b"sent and complete")
    rig.pause()
    assert decode_stream(chunks(rig)).channel.packets == 0


def test_scenario_19_each_packet_in_use_is_asked_in_one_series() -> None:
    rig = busy()
    rig.pause()
    stream = decode_stream(chunks(rig))
    assert stream.channel.packets == 5
    asked = [context for context, size in rig.vsp.save_calls if size == 0]
    assert len(asked) == len(set(asked)) == 5
    assert rig.vsp.save_calls[::2] == [(context, 0) for context in asked]


def test_scenario_20_a_failing_second_call_fails_the_save_and_leaves_the_channel_usable() -> None:
    rig = busy()
    rig.vsp.save_hook = lambda _, size: SavedPacket(
        NtStatus.INSUFFICIENT_RESOURCES if size else NtStatus.BUFFER_TOO_SMALL, bytes_needed=9
    )
    rig.pause()
    rig.channel.save_begin()
    head = rig.channel.save_continue(1 << 20)
    assert head.status is NtStatus.INSUFFICIENT_RESOURCES
    assert rig.channel.save_continue(1 << 20).status is NtStatus.INSUFFICIENT_RESOURCES
    rig.channel.save_end()
    rig.vsp.save_hook = None
    assert decode_stream(chunks(rig)).channel.packets == 5
    rig.channel.start()
    assert len(guest_reads(rig)) > 4


def test_scenario_21_a_need_that_grows_fails_the_save() -> None:
    rig = busy()
    rig.vsp.save_hook = lambda _, size: SavedPacket(
        NtStatus.BUFFER_TOO_SMALL, bytes_needed=size + 8
    )
    rig.pause()
    rig.channel.save_begin()
    assert rig.channel.save_continue(1 << 20).status is NtStatus.BUFFER_TOO_SMALL
    assert len(rig.vsp.save_calls) == 2


def test_scenario_22_a_large_blob_is_never_split() -> None:
    rig = Rig().running()
    rig.send("x" * 10, wait=True)
    blob = bytes(range(256)) * 512
    rig.vsp.save_hook = lambda _, size: (
        SavedPacket(OK, blob) if size else SavedPacket(NtStatus.BUFFER_TOO_SMALL, b"", len(blob))
    )
    rig.pause()
    rig.channel.save_begin()
    assert rig.channel.save_continue(4096).status is NtStatus.BUFFER_OVERFLOW
    small = rig.channel.save_continue(len(blob))
    assert small.status is NtStatus.BUFFER_TOO_SMALL
    assert small.bytes_required > len(blob)
    assert rig.channel.save_continue(small.bytes_required).status is NtStatus.BUFFER_OVERFLOW
    assert len(rig.vsp.save_calls) == 2, "the packet was asked once, whatever the buffers"


def test_a_vsp_that_writes_beyond_its_buffer_fails_the_save() -> None:
    rig = busy()
    rig.vsp.save_hook = lambda _, __: SavedPacket(OK, b"too much")
    rig.pause()
    rig.channel.save_begin()
    assert rig.channel.save_continue(1 << 20).status is NtStatus.INVALID_BUFFER_SIZE


def test_the_save_callback_cannot_start_the_channel() -> None:
    rig = busy()

    def start(_: OutgoingPacket, __: int) -> SavedPacket:
        with pytest.raises(KmclError, match="inside EvtSavePacket"):
            rig.channel.start()
        return SavedPacket(OK)

    rig.vsp.save_hook = start
    rig.pause()
    assert decode_stream(chunks(rig)).channel.packets == 5
