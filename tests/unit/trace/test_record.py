# SPDX-License-Identifier: MIT
"""The record format of docs/trace.md, and the lines that people read."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.trace.decode import line
from emulator.trace.record import (
    Direction,
    Event,
    Flags,
    Kind,
    MalformedRecord,
    Record,
    event_body,
)
from emulator.wire import messages as m
from emulator.wire.packet import GpaRange, PacketType, encode_packet

U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
RECORDS = st.builds(
    Record,
    st.sampled_from(Kind),
    st.binary(max_size=300),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(Direction),
    st.sampled_from(Event),
    st.sampled_from([Flags.NONE, Flags.MALFORMED, Flags.RESENT]),
    U32,
    U32,
    U32,
    U16,
    U16,
    U32,
    U32,
    U32,
)


def test_golden_bytes() -> None:
    record = Record(
        Kind.PACKET,
        b"body",
        "vm1",
        Direction.TO_GUEST,
        Event.NONE,
        Flags.MALFORMED,
        0x50003,
        0x2B,
        0x11,
        0x22,
        0x33,
        0x44,
        0x2055,
        0x66,
    )
    assert record.pack().hex(" ", 4) == (
        "01020203 2c000000 01000000 03000500 2b000000 11000000 22003300 44000000 55200000"
        " 66000000 766d3100 626f6479"
    )


@given(RECORDS)
def test_what_is_packed_is_parsed(record: Record) -> None:
    assert Record.parse(record.pack()) == record


@given(RECORDS, st.data())
def test_no_bytes_do_worse_than_a_malformed_record(record: Record, data: st.DataObject) -> None:
    broken = bytearray(record.pack())[: data.draw(st.integers(0, 200))]
    for _ in range(data.draw(st.integers(0, 3)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        text = line(Record.parse(bytes(broken)), cut=data.draw(st.booleans()))
    except MalformedRecord:
        return
    assert text.isprintable()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(39), "39 bytes"),
        (bytes(40), "format version 0"),
        (b"\1\1\0\0\x27\0" + bytes(34), "header of 39"),
        (b"\1\1\0\4\x28\0" + bytes(40), "name of 4"),
        (b"\1\1\0\0\xff\0" + bytes(40), "header of 255"),
        (b"\1\5\0\0\x28\0" + bytes(34), "5 is not a valid Kind"),
    ],
)
def test_malformed_records(data: bytes, words: str) -> None:
    with pytest.raises(MalformedRecord, match=words):
        Record.parse(data)


def test_a_longer_header_of_a_later_writer_is_skipped() -> None:
    data = bytearray(Record(Kind.NOTE, b"text").pack())
    data[4] += 4
    data[40:40] = b"more"
    assert Record.parse(bytes(data)).body == b"text"


def test_a_name_that_is_too_long_is_cut() -> None:
    assert Record.parse(Record(Kind.NOTE, b"x", "n" * 300).pack()).vm == "n" * 255


def message(form: m.Message, **changes: object) -> Record:
    direction = Direction.FROM_GUEST if form.FROM_GUEST else Direction.TO_GUEST
    return Record(Kind.MESSAGE, form.pack(), "vm", direction, **changes)  # type: ignore[arg-type]


PFNS = b"".join(pfn.to_bytes(8, "little") for pfn in (7, 8, 9))
GPA = (bytes.fromhex("0028000000080000"), "10240 bytes at 0x800 of pages 0x7+3")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            message(m.InitiateContact(0x50003, 1, 2, 0, 0x1000), vp=0, connection_id=4),
            "guest > host  INITIATE_CONTACT version=5.3 target_message_vp=1 "
            "interrupt_page_or_target_info=0x2 parent_to_child_monitor_page_gpa=0x0 "
            "child_to_parent_monitor_page_gpa=0x1000 [VP 0 port 4]",
        ),
        (
            message(m.GpadlHeader(9, 0xE1, 32, 1, GPA[0] + PFNS)),
            f"guest > host  GPADL_HEADER channel_id=9 gpadl_id=0xe1 length=32 count=1 {GPA[1]}",
        ),
        (
            message(m.GpadlBody(0xE1, PFNS[:8] + PFNS[16:])),
            "guest > host  GPADL_BODY gpadl_id=0xe1 2 pages from 0x7",
        ),
        (
            message(m.OpenResult(9, 1, 0x8000FFFF), vp=1, sint=2, flags=Flags.RESENT),
            "host > guest  OPEN_RESULT channel_id=9 open_id=1 status=0x8000ffff [VP 1 SINT 2] "
            "(sent again after the restore)",
        ),
        (
            Record(Kind.MESSAGE, b"\x05\0\0\0", direction=Direction.FROM_GUEST),
            "guest > host  OPEN_CHANNEL MALFORMED: a message of 4 bytes has no header",
        ),
        (
            Record(
                Kind.PACKET,
                encode_packet(
                    PacketType.GPA_DIRECT, 16, b"x", flags=1, ranges=[GpaRange(10, 5, (3,))]
                ),
                direction=Direction.FROM_GUEST,
                channel_id=4,
                subchannel=2,
                ring_offset=0x40,
            ),
            "guest > host  GPA_DIRECT channel 4 sub 2 at 0x40 completion requested "
            "transaction=0x10 10 bytes at 0x5 of pages 0x3+1 payload=8:7800000000000000",
        ),
        (
            Record(Kind.PACKET, bytes(16), flags=Flags.MALFORMED, channel_id=4),
            f"{'-' * 12}  PACKET 0 channel 4 transaction=0x0 (refused by the host) "
            "MALFORMED: packet type 0; the rule: the packet type is one of 6, 7, 9, 10, 11",
        ),
        (
            Record(
                Kind.EVENT,
                event_body("a\n\x1b[31mtext", UUID(int=1), UUID(int=2)),
                event=Event.GUEST_ERROR,
            ),
            f"{'-' * 12}  GUEST_ERROR a??[31mtext interface_id={UUID(int=1)} "
            f"instance_id={UUID(int=2)}",
        ),
    ],
)
def test_lines(record: Record, text: str) -> None:
    assert line(record) == text
