# SPDX-License-Identifier: MIT
"""The queue between the bus and a reader: bounded, in order, and honest about what it dropped."""

from __future__ import annotations

import pytest

from emulator.trace import pcapng
from emulator.trace.feed import MAX_LIMIT, Feed, Wanted
from emulator.trace.pcapng import Captured, Counts, Reader
from emulator.trace.record import Direction, Kind, Record

HEADER = Record(Kind.MESSAGE, b"", "vm", Direction.FROM_GUEST).pack_header()


def put(feed: Feed, number: int, size: int = 100) -> None:
    feed.put(number, Direction.FROM_GUEST, HEADER, number.to_bytes(4, "little") + bytes(size - 4))


def everything(reader: Reader, feed: Feed) -> list[Captured | Counts]:
    found: list[Captured | Counts] = []
    while chunk := feed.take(1000):
        found += reader.feed(chunk)
    return found


def bodies(found: list[Captured | Counts]) -> list[Record]:
    return [Record.parse(item.data) for item in found if isinstance(item, Captured)]


def test_records_come_out_in_order_and_the_end_has_the_counts() -> None:
    feed = Feed("vm", Wanted())
    for number in range(20):
        put(feed, number)
    feed.close(20)
    put(feed, 99)
    reader = Reader()
    found = everything(reader, feed)
    reader.finish()
    records = bodies(found)
    assert [int.from_bytes(record.body[:4], "little") for record in records] == list(range(20))
    assert found[-1] == Counts(20, 0)
    assert [item.time_ns for item in found if isinstance(item, Captured)] == list(range(20))


def test_a_full_queue_drops_and_says_so() -> None:
    feed = Feed("vm", Wanted(), queue_bytes=1000)
    for number in range(100):
        put(feed, number)
    assert feed.waiting < 1200
    reader = Reader()
    first = bodies(everything(reader, feed))
    assert 5 <= len(first) <= 8
    assert feed.waiting == 0
    put(feed, 100)
    note, after = everything(reader, feed)
    assert isinstance(note, Captured)
    assert note.dropped == 100 - len(first)
    text = Record.parse(note.data)
    assert (text.kind, text.vm) == (Kind.NOTE, "vm")
    assert f"{note.dropped} records were dropped".encode() in text.body
    assert isinstance(after, Captured)
    assert Record.parse(after.data).body[:4] == b"\x64\0\0\0"
    assert after.dropped == 0
    assert (feed.received, feed.dropped) == (101, note.dropped)


def test_what_is_dropped_at_the_end_is_said_as_well() -> None:
    feed = Feed("vm", Wanted(), queue_bytes=1)
    put(feed, 1)
    put(feed, 2)
    feed.close(3)
    found = everything(Reader(), feed)
    assert [item.dropped for item in found] == [2, 2]
    assert found[-1] == Counts(2, 2)


def test_a_packet_is_cut_and_its_length_kept() -> None:
    feed = Feed("vm", Wanted(packets=True, limit=16))
    feed.put(1, Direction.TO_GUEST, HEADER, bytes(100), 16)
    (found,) = everything(Reader(), feed)
    assert isinstance(found, Captured)
    assert (len(found.data), found.length) == (len(HEADER) + 16, len(HEADER) + 100)


def test_the_reader_is_woken_once_for_many_records() -> None:
    feed = Feed("vm", Wanted())
    calls: list[int] = []
    feed.take(1 << 20)
    feed.ready = lambda: calls.append(feed.waiting)
    put(feed, 1)
    put(feed, 2)
    assert len(calls) == 1
    assert calls[0] > 0
    feed.take(1 << 20)
    put(feed, 3)
    assert len(calls) == 2


def test_what_is_wanted() -> None:
    assert not Wanted().wants(1)
    assert Wanted(packets=True).wants(1)
    assert [Wanted(packets=True, channel=2).wants(number) for number in (1, 2)] == [False, True]
    for limit in (15, MAX_LIMIT + 1, -1):
        with pytest.raises(ValueError, match="16 to"):
            Wanted(limit=limit)


def test_the_largest_limit_is_one_that_wireshark_reads() -> None:
    header = Record(Kind.PACKET, b"", "n" * 300).pack_header()
    assert len(header) + MAX_LIMIT <= pcapng.MAX_CAPTURED
