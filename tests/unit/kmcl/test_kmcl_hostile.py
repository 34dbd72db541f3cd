# SPDX-License-Identifier: MIT
"""Streams whose every checksum is right and whose contents are not: someone has made them so.

Whatever becomes of such a stream, the channel can be disabled and cleaned up, and no packet leaks.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.conformance.rig import INSTANCE, INTERFACE, Rig
from emulator.kmcl import ChannelFault, Connection, FaultKind, KmclError, Restore
from emulator.kmcl.save import (
    PacketRecord,
    Record,
    SavedChannel,
    SavedCompletion,
    SavedOutgoing,
    SavedPlace,
    StreamEnd,
    StreamReader,
    StreamWriter,
    encode_packet_record,
)
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy


def packet(
    payload: bytes = b"", *, place: SavedPlace = SavedPlace.QUEUED, transaction_id: int = 0
) -> SavedOutgoing:
    record = PacketRecord(place, bool(transaction_id), transaction_id, payload)
    return SavedOutgoing(encode_packet_record(record), b"name")


def head(packets: int = 0, completions: int = 0, largest: int = 0) -> SavedChannel:
    return SavedChannel(INTERFACE, INSTANCE, 0, True, packets, completions, largest, 9, ())


def sealed(records: list[Record]) -> list[bytes]:
    writer = StreamWriter()
    return [writer.encode(record) for record in records]


def restoring(pieces: list[bytes], rig: Rig | None = None) -> tuple[Rig, NtStatus]:
    """Restore in a new process as far as it goes."""
    rig = rig or Rig().running()
    if rig.channel.connection is Connection.OPEN:
        rig.pause()
    rig.new_process()
    rig.channel.enable()
    status = NtStatus.MORE_PROCESSING_REQUIRED
    for piece in pieces:
        status = rig.channel.restore_from_buffer(piece)
        if status is not NtStatus.MORE_PROCESSING_REQUIRED:
            break
    return rig, status


def put_away(rig: Rig) -> None:
    """Disable and clean up; nothing may be left."""
    ended: list[bool] = []
    rig.channel.disable(lambda: ended.append(True))
    assert ended
    assert rig.channel.packets_alive == 0
    rig.channel.cleanup()


IN_RING = packet(place=SavedPlace.IN_RING, transaction_id=5)

LIES: dict[str, tuple[list[Record], str]] = {
    "an id twice": (
        [head(2), IN_RING, packet(transaction_id=5), StreamEnd(2, 0)],
        "EvtRestorePacket failed",
    ),
    "larger than the head says": (
        [head(1, largest=8), packet(bytes(9)), StreamEnd(1, 0)],
        "9 bytes.*largest.* 8",
    ),
    "more packets than the head says": (
        [head(1, largest=1), packet(b"1"), packet(b"2"), StreamEnd(2, 0)],
        "2 packets .*counts 1 ",
    ),
    "fewer packets than the head says": (
        [head(2, largest=1), packet(b"1"), StreamEnd(1, 0)],
        "counts 2",
    ),
    "more completions than the head says": (
        [head(), SavedCompletion(1, b""), StreamEnd(0, 1)],
        "1 completions .*counts 0 and 0",
    ),
    "a completion that never fits": (
        [head(0, 1), SavedCompletion(1, bytes(5000)), StreamEnd(0, 1)],
        "5000 bytes",
    ),
    "in the ring behind the queue": (
        [head(2, largest=1), packet(b"1"), IN_RING, StreamEnd(2, 0)],
        "in the ring.* behind",
    ),
}


@pytest.mark.parametrize(("records", "reason"), LIES.values(), ids=LIES)
@pytest.mark.parametrize("whole", [True, False], ids=["at once", "chunk by chunk"])
def test_a_stream_that_contradicts_itself_is_refused_with_a_reason(
    records: list[Record], reason: str, whole: bool
) -> None:
    pieces = sealed(records)
    rig, status = restoring([b"".join(pieces)] if whole else pieces)
    assert not status.is_success
    assert status is not NtStatus.MORE_PROCESSING_REQUIRED
    assert rig.channel.restore_state is Restore.FAILED
    text = rig.channel.restore_failure or ""
    assert re.search(reason, text), text
    with pytest.raises(KmclError, match="its restore is failed"):
        rig.channel.start()
    put_away(rig)


def test_a_packet_that_was_queued_before_the_ring_was_too_small_for_it_ends_at_the_start() -> None:
    # It need not be a lie: the guest may have opened the channel and the VSP not started it yet.
    rig = Rig()
    rig.channel.enable()
    rig.send("large", size=5000)
    assert rig.open().is_success
    rig.restored(rig.save())
    rig.channel.start()
    assert rig.vsp.completed == [("large", NtStatus.INVALID_BUFFER_SIZE, None)]
    put_away(rig)


@pytest.mark.parametrize(
    "records",
    [
        [head(1), IN_RING, StreamEnd(1, 0)],
        [head(0, 1), SavedCompletion(1, b""), StreamEnd(0, 1)],
    ],
    ids=["packet", "completion"],
)
def test_a_transaction_on_a_pipe_is_refused(records: list[Record]) -> None:
    rig = Rig()
    rig.channel.init_set_flags(1)
    rig.channel.enable()
    assert rig.open().is_success
    rig.new_process()
    rig.channel.init_set_flags(1)
    rig.channel.enable()
    pieces = b"".join(sealed(records))
    assert rig.channel.restore_from_buffer(pieces) is NtStatus.INVALID_PARAMETER
    assert "pipe" in (rig.channel.restore_failure or "")
    put_away(rig)


def test_lengths_and_counts_that_are_huge_cost_no_memory() -> None:
    heads = [replace(head(0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)), head(0, 0xFFFF_FFFF)]
    tracemalloc.start()
    try:
        for each in heads:
            rig, status = restoring(sealed([each]))
            assert status in (NtStatus.INVALID_PARAMETER, NtStatus.MORE_PROCESSING_REQUIRED)
            put_away(rig)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# Anything at all, with right checksums.

_FAULTS = st.lists(
    st.builds(ChannelFault, st.sampled_from(FaultKind), st.text(max_size=5)), max_size=2
).map(tuple)
_ID = st.integers(0, 6)
_PAYLOAD = st.integers(0, 6000).map(bytes)
_RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        SavedChannel,
        st.sampled_from([INTERFACE, INSTANCE]),
        st.just(INSTANCE),
        st.integers(0, 1),
        st.booleans(),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 6000),
        st.integers(1, 9),
        _FAULTS,
    ),
    st.builds(
        lambda place, waits, number, payload: SavedOutgoing(
            encode_packet_record(PacketRecord(place, waits, number, payload)), b"name"
        ),
        st.sampled_from(SavedPlace),
        st.booleans(),
        _ID,
        _PAYLOAD,
    ),
    st.builds(SavedCompletion, _ID, _PAYLOAD),
    st.builds(StreamEnd, st.integers(0, 3), st.integers(0, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_RECORDS, max_size=6), st.booleans())
def test_records_in_any_order_leave_a_channel_that_can_be_put_away(
    records: list[Record], with_a_head: bool
) -> None:
    packets = sum(isinstance(record, SavedOutgoing) for record in records)
    completions = sum(isinstance(record, SavedCompletion) for record in records)
    if with_a_head:
        records = [head(packets, completions, 6000), *records, StreamEnd(packets, completions)]
    rig, status = restoring(sealed(records))
    if status is NtStatus.SUCCESS:
        rig.channel.start()
        rig.guest.take_all()
        rig.ring()
    elif records and status is not NtStatus.MORE_PROCESSING_REQUIRED:
        assert rig.channel.restore_failure
    put_away(rig)


# Any buffer size.


def test_every_buffer_size_from_none_saves_the_same_stream() -> None:
    rig = busy()
    assert rig.pause()
    chunks = rig.save(lambda: 0)
    whole = b"".join(chunks)
    largest = max(map(len, chunks))
    for size in range(len(whole) + 2):
        assert rig.channel.save_begin() is NtStatus.SUCCESS
        saved = b""
        while True:
            result = rig.channel.save_continue(size)
            assert len(result.data) <= size
            saved += result.data
            if result.status is NtStatus.SUCCESS:
                break
            if result.status is NtStatus.BUFFER_TOO_SMALL:
                assert not result.data
                assert size < result.bytes_required <= largest
                # The same again: nothing was consumed.
                assert rig.channel.save_continue(size) == result
                result = rig.channel.save_continue(result.bytes_required)
                saved += result.data
                if result.status is NtStatus.SUCCESS:
                    break
            assert result.status is NtStatus.BUFFER_OVERFLOW
            assert result.data
            assert 0 < result.bytes_required <= largest
        rig.channel.save_end()
        assert saved == whole, size
    assert StreamReader().feed(whole)


# All that is wrong, at once.


def test_all_mismatches_are_named_at_once() -> None:
    other = SavedChannel(INSTANCE, INTERFACE, 3, False, 9, 0, 9999, 1, ())
    rig = Rig().running()
    configure: list[Callable[[], None]] = [
        lambda: rig.channel.init_set_maximum_packet_size(100),
        lambda: rig.channel.init_set_maximum_packet_count(4),
    ]
    rig.new_process()
    for setting in configure:
        setting()
    rig.channel.enable()
    assert rig.channel.restore_from_buffer(sealed([other])[0]) is NtStatus.INVALID_PARAMETER
    text = rig.channel.restore_failure or ""
    for part in (str(INSTANCE), "sub-channel 3", "not open", "9999 bytes", "9 packets"):
        assert part in text, text
    put_away(rig)
