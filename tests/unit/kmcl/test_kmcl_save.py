# SPDX-License-Identifier: MIT
"""Saving and restoring: each test carries the number of its scenario in the KMCL conformance list.

A (1-12) registration and the save calls, B (13-22) EvtSavePacket, C (23-34) the restore calls,
E (44-52) traffic over a save. Scenario 3 needs the Ex callbacks of interface V5, 11 the client end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.kmcl import (
    Connection,
    FaultKind,
    IncomingPacket,
    KmclError,
    OutgoingPacket,
    OutgoingState,
    Queue,
    Restore,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    StreamError,
    decode_stream,
)
from emulator.kmcl.save import decode_packet_record
from emulator.wire.ntstatus import NtStatus
from tests.model.ring import WORD_IN, WORD_MASK, WORD_OUT, WORD_PENDING
from tests.unit.kmcl.guest import COMPLETION, request, text
from tests.unit.kmcl.rig import INSTANCE, INTERFACE, PAGE, Rig, nothing

OK = NtStatus.SUCCESS
MORE = NtStatus.MORE_PROCESSING_REQUIRED
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
    seen = drain_guest(rig)
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
    assert drain_guest(rig) == ["gone"]


def test_scenario_16_a_queued_packet_without_completion_is_saved_and_sent_later() -> None:
    rig = Rig().running()
    names = rig.fill()
    rig.saved_and_restored()
    rig.channel.start()
    assert rig.vsp.completed == []
    assert drain_guest(rig) == names
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
    assert len(drain_guest(rig)) > 4


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


# C. The restore calls.


def test_scenario_23_a_whole_stream_in_one_buffer() -> None:
    rig = busy()
    rig.pause()
    stream = b"".join(chunks(rig))
    rig.new_process()
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(stream) is OK
    assert rig.channel.restore_state is Restore.COMPLETE
    assert len(rig.vsp.restored) == 5


def test_scenario_24_chunk_by_chunk_more_is_expected_until_the_last() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    assert len(pieces) == 7
    rig.new_process()
    rig.channel.enable()
    for piece in pieces[:-1]:
        assert rig.channel.restore_from_buffer(piece) is MORE
        assert rig.channel.restore_state is Restore.PARTIAL
        with pytest.raises(KmclError, match="partial"):
            rig.channel.start()
        with pytest.raises(KmclError, match="during a save or restore"):
            rig.send("between")
        assert rig.channel.save_begin() is NtStatus.INVALID_DEVICE_STATE
    assert rig.channel.restore_from_buffer(pieces[-1]) is OK


def fails(rig: Rig, *buffers: bytes) -> NtStatus:
    """Restore what must fail in a new process; returns the status, with the channel put away."""
    rig.new_process()
    rig.channel.enable()
    for buffer in buffers[:-1]:
        assert rig.channel.restore_from_buffer(buffer) is MORE
    status = rig.channel.restore_from_buffer(buffers[-1])
    assert status not in (OK, MORE)
    assert rig.channel.restore_failure
    put_away_after_failure(rig)
    return status


def put_away_after_failure(rig: Rig) -> None:
    """Show that a channel whose restore has failed is good for disabling, and for that only."""
    assert rig.channel.restore_state is Restore.FAILED
    with pytest.raises(KmclError, match="failed"):
        rig.channel.start()
    assert rig.channel.restore_from_buffer(b"x") is NtStatus.INVALID_DEVICE_STATE
    done: list[bool] = []
    rig.channel.disable(lambda: done.append(True))
    assert done == [True]
    stats = rig.channel.stats()
    assert (stats.awaiting_completion, stats.queued_wait, stats.queued_no_wait) == (0, 0, 0)
    rig.channel.cleanup()


@pytest.mark.parametrize("cut", [1, 20, 23, 24, 30, 100])
def test_scenario_25_a_buffer_cut_inside_a_chunk_fails_and_restores_nothing_of_it(cut: int) -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    two = pieces[1] + pieces[2]
    assert fails(rig, pieces[0], two[: len(pieces[1]) + min(cut, len(pieces[2]) - 1)]) is (
        NtStatus.DATA_ERROR
    )
    assert rig.vsp.restored == [], "not even the chunk that was whole"


def _swapped(pieces: list[bytes]) -> list[bytes]:
    return [pieces[0], pieces[2], pieces[1], *pieces[3:]]


MUTATIONS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], NtStatus]] = {
    "reordered": (_swapped, NtStatus.DATA_ERROR),
    "duplicated": (lambda p: [p[0], p[1], p[1], *p[2:]], NtStatus.DATA_ERROR),
    "missing": (lambda p: [p[0], *p[2:]], NtStatus.DATA_ERROR),
    "no head": (lambda p: p[1:], NtStatus.DATA_ERROR),
    "trailing": (lambda p: [*p[:-1], p[-1] + b"\0"], NtStatus.DATA_ERROR),
    "magic": (lambda p: [b"\0" + p[0][1:]], NtStatus.DATA_ERROR),
    "version": (lambda p: [p[0][:4] + b"\2" + p[0][5:]], NtStatus.REVISION_MISMATCH),
    "huge": (lambda p: [p[0][:8] + b"\xff" * 4 + p[0][12:]], NtStatus.DATA_ERROR),
    "tiny": (lambda p: [p[0][:8] + bytes(4) + p[0][12:]], NtStatus.DATA_ERROR),
    "empty": (lambda p: [p[0], b""], NtStatus.INVALID_PARAMETER),
    "reserved": (lambda p: [p[0][:20] + b"\1" + p[0][21:]], NtStatus.CRC_ERROR),
}


@pytest.mark.parametrize(("mutate", "status"), MUTATIONS.values(), ids=MUTATIONS)
def test_scenario_26_a_stream_that_is_not_as_written_fails(
    mutate: Callable[[list[bytes]], list[bytes]], status: NtStatus
) -> None:
    rig = busy()
    rig.pause()
    pieces = mutate(chunks(rig))
    rig.new_process()
    rig.channel.enable()
    statuses = [MORE]
    while statuses[-1] is MORE:
        statuses.append(rig.channel.restore_from_buffer(pieces[len(statuses) - 1]))
    assert statuses[-1] is status
    put_away_after_failure(rig)


def test_scenario_26_a_chunk_of_another_stream_fails() -> None:
    rig = busy()
    rig.pause()
    first = chunks(rig)
    rig.channel.start()
    rig.guest.take_all()
    rig.ring()
    rig.pause()
    second = chunks(rig)
    assert fails(rig, second[0], first[1]) is NtStatus.CRC_ERROR


def test_scenario_26_every_flipped_bit_is_found() -> None:
    rig = Rig().running()
    rig.send("ask", wait=True)
    rig.pause()
    stream = b"".join(chunks(rig))
    for bit in range(len(stream) * 8):
        bad = bytearray(stream)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            decode_stream([bytes(bad)])


def test_scenario_27_a_buffer_after_the_last_chunk_is_refused_and_does_no_harm() -> None:
    rig = busy().saved_and_restored()
    rig.pause()
    stream = rig.save()
    assert rig.channel.restore_from_buffer(stream[0]) is NtStatus.INVALID_DEVICE_STATE
    assert rig.channel.restore_state is Restore.COMPLETE
    rig.channel.start()
    assert drain_guest(rig)[-1] == "queued wait 2"


def test_scenario_28_the_callback_gets_what_was_saved() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    saved = decode_stream(pieces)
    rig.restored(pieces)
    expected = [*saved.in_ring, *(item for item in saved.queue if isinstance(item, tuple))]
    got = [
        (decode_packet_record(restored.lib_buffer), restored.save_buffer)
        for restored in rig.vsp.restored
    ]
    assert got == expected
    assert [blob.decode() for _, blob in got[:2]] == ["asked1", "asked2"]


def test_scenario_29_a_vsp_that_cannot_allocate_fails_the_restore() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()

    def out_of_packets(channel: ServerChannel, _: RestoredPacket) -> NtStatus:
        try:
            channel.packet_allocate()
            channel.packet_allocate()
        except KmclError as error:
            return error.status
        return OK

    rig.vsp.restore_hook = out_of_packets
    rig.channel.init_set_maximum_packet_count(5)
    rig.channel.enable()
    rig.channel.packet_allocate()
    assert rig.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_PARAMETER
    assert "maximum packet count is 5" in str(rig.channel.restore_failure)
    put_away_after_failure(rig)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lib: b"",
        lambda lib: lib[:-1],
        lambda lib: lib + b"\0",
        lambda lib: lib[:9] + b"\0" + lib[10:],
        lambda lib: b"\0" + lib[1:],
    ],
    ids=["empty", "short", "long", "changed", "magic"],
)
def test_scenario_30_a_bad_lib_buffer_fails_and_the_packet_stays_the_vsps(
    spoil: Callable[[bytes], bytes],
) -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()
    packets: list[OutgoingPacket] = []

    def restore(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        packets.append(channel.packet_allocate())
        return packets[-1].restore(spoil(restored.lib_buffer))

    rig.vsp.restore_hook = restore
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is NtStatus.INVALID_PARAMETER
    assert [packet.state for packet in packets] == [OutgoingState.ALLOCATED]
    packets[0].free()
    put_away_after_failure(rig)


def test_scenario_30_a_lib_buffer_serves_once_and_only_in_its_callback() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()
    statuses: list[NtStatus] = []
    libs: list[bytes] = []

    def restore(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        first, second = channel.packet_allocate(), channel.packet_allocate()
        if libs:
            statuses.append(first.restore(libs[-1]))
        libs.append(restored.lib_buffer)
        status = first.restore(restored.lib_buffer)
        statuses.append(second.restore(restored.lib_buffer))
        return status

    rig.vsp.restore_hook = restore
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is OK
    assert set(statuses) == {NtStatus.INVALID_PARAMETER}
    outside = rig.channel.packet_allocate().restore(libs[0])
    assert outside is NtStatus.INVALID_DEVICE_STATE


def test_scenario_31_success_without_a_restored_packet_is_a_failure() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()
    rig.vsp.restore_hook = lambda _, __: OK
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is NtStatus.UNSUCCESSFUL
    put_away_after_failure(rig)


@pytest.mark.parametrize("failing", [0, 1, 4])
def test_scenario_32_packets_restored_before_a_failure_are_reclaimed_at_disable(
    failing: int,
) -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()
    rig.channel.init_set_maximum_packet_count(5)
    good = rig.vsp.restore_packet

    def restore(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        if len(rig.vsp.restored) > failing:
            return NtStatus.INSUFFICIENT_RESOURCES
        rig.vsp.restore_hook = None
        rig.vsp.restored.pop()
        status = good(channel, restored)
        rig.vsp.restore_hook = restore
        return status

    rig.vsp.restore_hook = restore
    rig.channel.enable()
    status = rig.channel.restore_from_buffer(b"".join(pieces))
    assert status is NtStatus.INSUFFICIENT_RESOURCES
    put_away_after_failure(rig)
    assert [status for _, status, _ in rig.vsp.completed] == [NtStatus.DEVICE_REMOVED] * failing
    assert rig.channel._packets_alive == 0


def test_scenario_32_an_exception_of_the_callback_fails_the_restore() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()

    def restore(_: ServerChannel, __: RestoredPacket) -> NtStatus:
        raise RuntimeError("a bug")

    rig.vsp.restore_hook = restore
    rig.channel.enable()
    with pytest.raises(RuntimeError):
        rig.channel.restore_from_buffer(b"".join(pieces))
    put_away_after_failure(rig)


CONFIGURATIONS: dict[str, tuple[Callable[[ServerChannel], None], str]] = {
    "packet size": (lambda c: c.init_set_maximum_packet_size(999), "maximum packet size is 999"),
    "packet count": (lambda c: c.init_set_maximum_packet_count(4), "maximum packet count is 4"),
    "instance": (lambda c: c.init_set_target_interface_id(INTERFACE, INTERFACE), "this is"),
    "class": (lambda c: c.init_set_target_interface_id(INSTANCE, INSTANCE), "this is"),
}


@pytest.mark.parametrize(("configure", "text"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_scenario_33_a_channel_that_cannot_hold_the_stream_refuses_it(
    configure: Callable[[ServerChannel], None], text: str
) -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process()
    configure(rig.channel)
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_PARAMETER
    assert text in str(rig.channel.restore_failure)
    put_away_after_failure(rig)


def test_scenario_33_all_that_does_not_fit_is_named_at_once() -> None:
    rig = busy()
    rig.pause()
    pieces = chunks(rig)
    rig.new_process(was_open=False)
    rig.channel.init_set_maximum_packet_size(9)
    rig.channel.init_set_maximum_packet_count(1)
    rig.channel._restore_packet = None
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_PARAMETER
    failure = str(rig.channel.restore_failure)
    for part in ("packet size", "packet count", "restore callback", "open"):
        assert part in failure


def test_scenario_34_restore_needs_a_fresh_enabled_channel() -> None:
    rig = busy()
    rig.pause()
    pieces = rig.save()
    assert Rig().channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_DEVICE_STATE
    running = Rig().running()
    assert running.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_DEVICE_STATE
    assert running.channel.restore_state is Restore.NONE
    assert running.channel.queue is Queue.ON, "the mistake does the running channel no harm"
    used = Rig()
    used.channel.enable()
    used.send("in use")
    assert used.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_DEVICE_STATE
    started = Rig()
    started.channel.enable()
    started.channel.start()
    assert started.channel.restore_from_buffer(pieces[0]) is NtStatus.INVALID_DEVICE_STATE


def test_a_channel_that_was_offered_only_is_saved_and_restored_so() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.send("before open", wait=True)
    rig.restored(rig.save(), was_open=False)
    assert rig.channel.connection is Connection.ENABLED
    rig.channel.start()
    rig.open()
    assert drain_guest(rig) == ["before open"]


# D. Callbacks around a restore.


def test_scenario_39_40_a_restored_channel_starts_without_being_opened() -> None:
    rig = busy().saved_and_restored()
    assert rig.channel.connection is Connection.OPEN
    assert rig.vsp.trace == []
    rig.channel.start()
    assert rig.vsp.trace == ["started", "post_started"]


def test_a_restored_channel_can_be_closed_before_it_starts() -> None:
    rig = busy().saved_and_restored()
    rig.channel.port_closed(nothing)
    assert rig.vsp.trace == ["closed"]
    assert {status for _, status, _ in rig.vsp.completed} == {NtStatus.DEVICE_REMOVED}
    rig.guest.reopen()
    rig.channel.start()
    assert rig.open() is OK
    rig.guest.request(1, b"12345678")
    rig.ring()
    assert rig.vsp.received == [b"12345678"]


# E. Traffic over a save.


def test_scenario_44_requests_left_unread_are_delivered_once_and_in_order() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(2)
    rig.guest.put(*[request(n, bytes([n] * 8)) for n in range(1, 7)])
    rig.ring()
    assert len(rig.vsp.held) == 2
    first = list(rig.vsp.received)
    rig.saved_and_restored()
    assert rig.channel.stats().unread_requests == 4
    assert rig.vsp.received == []
    rig.channel.start()
    assert first + rig.vsp.received == [bytes([n] * 8) for n in range(1, 7)]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [*range(1, 7)]


def test_scenario_45_queued_packets_leave_in_order_behind_what_is_in_the_ring() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(500)
    rig.ring()
    names: list[str | int] = [*rig.fill()]
    for number in range(4):
        rig.send(f"q{number}", wait=bool(number % 2), size=100)
    rig.saved_and_restored()
    assert rig.channel.stats().queued_completions == 1, "Pause has drained the held request"
    rig.send("new")
    rig.channel.start()
    assert drain_guest(rig) == [*names, "q0", "q1", "q2", "q3", 500, "new"]
    assert [name for name, _, _ in rig.vsp.completed] == [names[-1], "q0", "q2", "new"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_scenario_46_a_completion_meets_its_packet_before_or_after_start(when: str) -> None:
    rig = Rig().running()
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.saved_and_restored()
    if when == "after":
        rig.channel.start()
    rig.guest.complete(asked.transaction_id, b"answer__")
    if when == "before":
        rig.channel.start()
    rig.ring()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]
    assert rig.channel.stats().awaiting_completion == 0


def test_scenario_46_a_completion_that_arrives_inside_started() -> None:
    rig = Rig().running()
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.saved_and_restored()

    def guest_answers(_: ServerChannel) -> None:
        rig.guest.complete(asked.transaction_id, b"answer__")
        rig.ring()
        assert rig.vsp.completed == [], "nothing is delivered inside EvtStarted"

    rig.vsp.hooks["started"] = guest_answers
    rig.channel.start()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]


def test_scenario_47_a_completion_in_the_ring_at_the_save_meets_its_restored_packet() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.guest.put(request(1))
    rig.ring()
    rig.guest.complete(asked.transaction_id, b"answer__")
    rig.ring()
    stats = rig.channel.stats()
    assert (stats.held, stats.unread_completions, stats.awaiting_completion) == (1, 1, 1)
    rig.saved_and_restored()
    assert rig.channel.stats().unread_completions == 1
    rig.channel.start()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]
    assert rig.channel.fault is None


def test_scenario_48_new_ids_do_not_collide_with_restored_ones() -> None:
    rig = Rig(pages=2).running()
    old = {rig.send(f"old{n}", wait=True).transaction_id for n in range(5)}
    rig.guest.take_all()
    rig.saved_and_restored()
    rig.channel.start()
    new = {rig.send(f"new{n}", wait=True).transaction_id for n in range(5)}
    assert not old & new
    for transaction in sorted(old | new, reverse=True):
        rig.guest.complete(transaction)
    rig.ring()
    assert {name for name, _, _ in rig.vsp.completed} == {
        f"{age}{n}" for age in ("old", "new") for n in range(5)
    }
    assert rig.channel.fault is None


def test_scenario_49_a_masked_waiting_guest_is_woken_after_a_restore() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    count = 0
    while rig.guest.request(count + 1, bytes(1000)):
        count += 1
    assert rig.guest.up.control[WORD_PENDING] > 0
    rig.fill()
    assert rig.guest.down.control[WORD_PENDING] > 0
    rig.saved_and_restored()
    assert not rig.interrupted()
    rig.channel.start()
    assert rig.interrupted(), "the guest may have slept through the interrupt that was lost"
    assert rig.guest.up.control[WORD_MASK] == 0
    assert len(rig.vsp.received) == count
    assert rig.guest.down.control[WORD_PENDING] > 0, "still blocked, so it asks again"
    rig.guest.take_all()
    assert rig.doorbell


def test_scenario_49_the_guest_is_signalled_at_the_start_even_if_nothing_is_sent() -> None:
    rig = Rig().running()
    rig.send("unread, its interrupt lost with the process")
    rig.saved_and_restored()
    assert not rig.interrupted(), "nothing is signalled before the start"
    rig.channel.start()
    assert rig.interrupted()
    rig.pause()
    rig.channel.start()
    assert not rig.interrupted(), "an ordinary start loses no interrupt"


@pytest.mark.parametrize("offset", [PAGE - 8, PAGE - 16, PAGE - 24, PAGE - 40])
def test_scenario_50_a_packet_over_the_end_of_a_wrapped_ring_survives(offset: int) -> None:
    rig = Rig(answer=False)
    for ring in (rig.guest.up, rig.guest.down):
        ring.control[WORD_IN] = ring.control[WORD_OUT] = offset
    rig.guest.writer.position = rig.guest.reader.position = offset
    rig.running()
    rig.pause()
    assert rig.guest.request(1, bytes(range(64)))
    rig.restored(rig.save())
    rig.send("wrapped" * 8, wait=True)
    rig.channel.start()
    assert rig.vsp.received == [bytes(range(64))]
    assert drain_guest(rig) == ["wrapped" * 8, 1]


def test_scenario_50_rings_that_are_full_to_the_last_8_bytes_survive() -> None:
    rig = Rig(answer=False).running()
    rig.pause()
    # Five packets of 816 bytes: 16 are left, of which a writer may use 8, which is no packet.
    for number in range(5):
        assert rig.guest.request(number + 1, bytes([number]) * 792, completion=False)
    assert not rig.guest.request(6)
    rig.channel.start()
    assert len(rig.vsp.received) == 5
    rig.vsp.drain()
    names = [f"{number}" for number in range(5)]
    for name in names:
        rig.send(name, size=792)
    assert rig.channel.stats().queued_no_wait == 0
    rig.send("one more")
    rig.saved_and_restored()
    rig.channel.start()
    assert drain_guest(rig) == [*names, "one more"]


def test_scenario_51_a_queue_at_its_quota_is_drained_by_pause_and_restarts_by_start() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    rig.guest.put(request(1), request(2), request(3))
    rig.ring()
    rig.saved_and_restored(answer=False)
    rig.channel.set_transaction_quota(2)
    rig.channel.start()
    assert rig.channel.stats().held == 2


@pytest.mark.parametrize("kind", list(FaultKind))
def test_scenario_52_a_faulted_channel_stays_faulted(kind: FaultKind) -> None:
    rig = Rig().running()
    rig.channel.traffic.fault(kind, "why – with a dash")
    rig.saved_and_restored()
    assert [(fault.kind, fault.text) for fault in rig.channel.faults] == [
        (kind, "why – with a dash")
    ]
    rig.guest.request(1, completion=False)
    rig.channel.start()
    rig.send("out")
    assert len(rig.vsp.received) == (not kind.stops_reading)
    assert len(rig.guest.take_all()) == kind.stops_reading


@pytest.mark.parametrize("word", [WORD_IN, WORD_OUT])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_ring_that_is_corrupt_at_the_restore_is_a_fault_of_its_direction(
    direction: str, word: int
) -> None:
    rig = busy()
    rig.pause()
    pieces = rig.save()
    getattr(rig.guest, direction).control[word] = 5
    rig.restored(pieces)
    kind = FaultKind.INCOMING_RING if direction == "up" else FaultKind.OUTGOING_RING
    assert [fault.kind for fault in rig.channel.faults] == [kind]
    rig.channel.start()
    rig.channel.disable(nothing)


def test_scenario_67_two_cycles_before_anybody_moves() -> None:
    rig = busy()
    names = [context for context in ("asked1", "asked2", "queued wait", "queued wait 2")]
    rig.pause()
    first = rig.save()
    rig.restored(first)
    second = rig.save()
    assert second == first
    rig.restored(second)
    rig.channel.start()
    seen = drain_guest(rig)
    assert [name for name in seen if name in names] == names
    assert len(seen) == len(set(seen))


def test_a_pause_from_within_a_packet_saves_a_ring_without_that_packet() -> None:
    rig = Rig().running()
    pieces: list[bytes] = []

    def pause_and_save(packet: IncomingPacket) -> None:
        rig.channel.pause(lambda: pieces.extend(rig.save()))
        packet.complete(b"done")

    rig.vsp.on_packet = pause_and_save
    rig.guest.put(request(1, b"12345678"), request(2, b"23456789"))
    rig.ring()
    rig.restored(pieces)
    rig.channel.start()
    assert rig.vsp.received == [b"23456789"]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1, 2]
