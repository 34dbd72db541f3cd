# SPDX-License-Identifier: MIT
"""The restore calls: scenarios 23 to 34 (C) of the KMCL conformance list."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import INSTANCE, INTERFACE, Rig
from emulator.conformance.scenarios.support import chunks, guest_reads
from emulator.kmcl import (
    Connection,
    KmclError,
    OutgoingPacket,
    OutgoingState,
    Queue,
    Restore,
    RestoredPacket,
    ServerChannel,
    StreamError,
    decode_stream,
)
from emulator.kmcl.save import decode_packet_record
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy

OK = NtStatus.SUCCESS
MORE = NtStatus.MORE_PROCESSING_REQUIRED

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
    assert guest_reads(rig)[-1] == "queued wait 2"


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
    assert guest_reads(rig) == ["before open"]
