# SPDX-License-Identifier: MIT
"""The Wireshark dissector says what Python says, of every message and packet, whole and broken.

tshark runs it. Values are compared, not labels; both sides decode the same bytes by themselves.
"""

from __future__ import annotations

import random
import re
from dataclasses import fields
from pathlib import Path
from uuid import UUID

from emulator.trace.decode import decode
from emulator.trace.dissector import PATH, form_fields, rewritten
from emulator.trace.record import (
    NO_VP,
    Direction,
    Event,
    Flags,
    Kind,
    Record,
    event_body,
)
from emulator.wire import messages as m
from emulator.wire.packet import (
    GpaRange,
    PacketType,
    TransferPageRange,
    TransferPages,
    encode_packet,
)
from emulator.wire.version import FeatureFlags, Version
from tests.unit.trace.shark import Frame, capture, dissected, tshark
from tests.unit.wire_messages.test_messages import GOLDEN, WIRE_A

GPADL_PIECES = [
    # One range of three pages; two ranges; one that goes on in a body; a body.
    m.GpadlHeader(5, 0xE1E10, 32, 1, bytes.fromhex("00300000 00000000") + bytes(range(24))),
    m.GpadlHeader(5, 1, 36, 2, bytes.fromhex("10000000 f8070000") + bytes(8) + b"\1" + bytes(15)),
    m.GpadlHeader(5, 2, 0xFFFF, 1, bytes.fromhex("00f00f00 00000000") + bytes(range(200))),
    m.GpadlBody(2, bytes(range(224))),
    m.GpadlBody(2, b"\1\2\3"),
]
PACKETS = [
    encode_packet(PacketType.IN_BAND, 0x1122334455667788, b"hello", flags=1),
    encode_packet(PacketType.IN_BAND, 0, b""),
    encode_packet(PacketType.COMPLETION, 0x1122334455667788, b"world"),
    encode_packet(PacketType.CANCEL, 7, b""),
    encode_packet(
        PacketType.GPA_DIRECT,
        2**64 - 1,
        b"scsi",
        flags=1,
        ranges=[GpaRange(5000, 100, (3, 2**52)), GpaRange(1, 4095, (9,))],
    ),
    encode_packet(
        PacketType.TRANSFER_PAGES,
        9,
        b"rndis",
        transfer=TransferPages(
            0xCAFE, (TransferPageRange(1514, 0), TransferPageRange(60, 0x4000)), True
        ),
    ),
]


def message(form: m.Message, **changes: object) -> Record:
    direction = Direction.FROM_GUEST if form.FROM_GUEST else Direction.TO_GUEST
    values: dict[str, object] = {"bus_version": Version.COPPER, "features": 0xFF} | changes
    return Record(Kind.MESSAGE, form.pack(), "vm", direction, **values)  # type: ignore[arg-type]


def packet(body: bytes, direction: Direction = Direction.FROM_GUEST, channel: int = 5) -> Record:
    return Record(
        Kind.PACKET, body, "vm", direction, channel_id=channel, subchannel=2, ring_offset=0x40
    )


def numbers(frame: Frame, name: str) -> list[int]:
    return [int(value, 0) for value in frame.get(name, [])]


def texts(frame: Frame) -> str:
    return " ".join(frame.get("_ws.expert.message", []))


def raw(frame: Frame, name: str) -> bytes:
    return bytes.fromhex("".join(frame.get(name, [])).replace(":", ""))


def same_message(record: Record, frame: Frame) -> None:
    found = decode(record)
    form = m.TABLE[[f.__name__ for f in m.TABLE].index(frame["vmbus.form"][0])]
    assert m.MessageType(numbers(frame, "vmbus.message_type")[0]).name == found.name
    assert [item.name for item in fields(form)] == list(found.fields)
    for name, value in found.fields.items():
        shown = frame.get(f"vmbus.{name}", [])
        if isinstance(value, UUID):
            assert shown == [str(value)], name
        elif isinstance(value, bytes):
            assert raw(frame, f"vmbus.{name}") == value, name
        else:
            assert [int(text, 0) for text in shown] == [value], name
    assert "vmbus.malformed" not in frame


def test_the_tables_are_those_of_the_library() -> None:
    text = PATH.read_text()
    assert text == rewritten(text), "run `python -m emulator.trace.dissector`"


def test_the_fields_of_the_table_are_those_of_the_forms() -> None:
    for form in m.TABLE:
        found = list(form_fields(form))
        assert [name for name, _, _ in found] == [item.name for item in fields(form)]
        assert all(offset <= form.LAYOUT.size for _, _, offset in found)


def test_every_message(tmp_path: Path) -> None:
    records = [message(form) for form, _, _ in GOLDEN] + [message(form) for form in GPADL_PIECES]
    assert {type(form) for form, _, _ in GOLDEN} == set(m.TABLE)
    (tmp_path / "t").write_bytes(capture(records))
    frames = dissected(tmp_path / "t")
    assert len(frames) == len(records)
    for record, frame in zip(records, frames, strict=True):
        same_message(record, frame)


def test_the_form_is_that_of_version_and_features(tmp_path: Path) -> None:
    long_open = next(form for form, _, _ in GOLDEN if isinstance(form, m.OpenChannel2))
    long_contact = next(form for form, _, _ in GOLDEN if isinstance(form, m.InitiateContact2))
    socket = next(form for form, _, _ in GOLDEN if isinstance(form, m.TlConnectRequest2))
    interrupts = int(FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION)
    records = [
        message(form, bus_version=version, features=features)
        for form in (long_open, long_contact, socket)
        for version in (0, *Version)
        for features in (0, interrupts, int(FeatureFlags.PAUSE_RESUME))
    ]
    (tmp_path / "t").write_bytes(capture(records))
    frames = dissected(tmp_path / "t")
    assert {frame["vmbus.form"][0] for frame in frames} == {
        "OpenChannel",
        "OpenChannel2",
        "InitiateContact2",
        "TlConnectRequest",
        "TlConnectRequest2",
    }
    for record, frame in zip(records, frames, strict=True):
        same_message(record, frame)
        used = len(record.body) - 8 - len(raw(frame, "vmbus.surplus"))
        assert (
            used == m.TABLE[[f.__name__ for f in m.TABLE].index(frame["vmbus.form"][0])].LAYOUT.size
        )


def test_the_pages_of_gpadls(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(capture([message(form) for form in GPADL_PIECES]))
    one, two, long, body, short = dissected(tmp_path / "t")
    u64 = [int.from_bytes(bytes(range(at, at + 8)), "little") for at in range(0, 224, 8)]
    assert numbers(one, "vmbus.gpa_range.length") == [0x3000]
    assert numbers(one, "vmbus.gpa_range.pfn") == u64[:3]
    assert numbers(two, "vmbus.gpa_range.length") == [0x10, 1]
    assert numbers(two, "vmbus.gpa_range.offset") == [0x7F8, 0]
    assert numbers(two, "vmbus.gpa_range.pfn") == [0, 0]
    assert numbers(long, "vmbus.gpa_range.pfn") == u64[:25]
    assert numbers(body, "vmbus.gpa_range.pfn") == u64
    assert raw(short, "vmbus.tail") == b"\1\2\3"


def test_every_packet_type(tmp_path: Path) -> None:
    records = [packet(body) for body in PACKETS]
    (tmp_path / "t").write_bytes(capture(records))
    frames = dissected(tmp_path / "t")
    assert {numbers(frame, "vmbus.packet.type")[0] for frame in frames} == set(PacketType)
    for record, frame in zip(records, frames, strict=True):
        found = decode(record).fields
        for name in ("type", "offset8", "length8", "flags", "transaction_id"):
            assert numbers(frame, f"vmbus.packet.{name}") == [found[name]], name
        assert raw(frame, "vmbus.packet.payload") == found["payload"]
        ranges = found.get("ranges", ())
        assert numbers(frame, "vmbus.gpa_range.length") == [one.length for one in ranges]
        assert numbers(frame, "vmbus.gpa_range.offset") == [one.offset for one in ranges]
        pfns = [pfn for one in ranges for pfn in one.pfns]
        assert numbers(frame, "vmbus.gpa_range.pfn") == pfns
        parts = found.get("transfer_ranges", ())
        assert numbers(frame, "vmbus.transfer_range.byte_count") == [p.byte_count for p in parts]
        assert numbers(frame, "vmbus.transfer_range.byte_offset") == [p.byte_offset for p in parts]
        sets = [found["set_id"]] if "set_id" in found else []
        assert numbers(frame, "vmbus.packet.set_id") == sets
        assert "vmbus.malformed" not in frame
        assert numbers(frame, "vmbus.channel_id") == [5]
        assert numbers(frame, "vmbus.subchannel") == [2]
        assert numbers(frame, "vmbus.ring_offset") == [0x40]


def test_requests_and_completions_find_each_other(tmp_path: Path) -> None:
    request = encode_packet(PacketType.IN_BAND, 7, b"", flags=1)
    notify = encode_packet(PacketType.IN_BAND, 7, b"")
    answer = encode_packet(PacketType.COMPLETION, 7, b"")
    host = Direction.TO_GUEST
    records = [
        packet(request),  # 1
        packet(request, host),  # 2: the other direction has ids of its own
        packet(request, channel=6),  # 3: so has another channel
        packet(notify),  # 4: asks for nothing
        packet(answer, host),  # 5: of 1
        packet(answer, host),  # 6: of nothing
        packet(request),  # 7: the id again
        packet(answer),  # 8: of 2
        packet(answer, host),  # 9: of 7
    ]
    (tmp_path / "t").write_bytes(capture(records))
    frames = dissected(tmp_path / "t", "-2")
    requests = {n: numbers(f, "vmbus.request_in") for n, f in enumerate(frames, 1)}
    assert {n: found[0] for n, found in requests.items() if found} == {5: 1, 8: 2, 9: 7}
    responses = {n: numbers(f, "vmbus.response_in") for n, f in enumerate(frames, 1)}
    assert {n: found[0] for n, found in responses.items() if found} == {1: 5, 2: 8, 7: 9}
    assert [float(text) for text in frames[7]["vmbus.response_time"]] == [0.006]


def test_events_and_what_the_header_says(tmp_path: Path) -> None:
    interface = UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert event_body("", interface).startswith(bytes.fromhex(WIRE_A.replace(" ", "")))
    records = [
        Record(Kind.EVENT, event_body("bad ring", interface, UUID(int=7)), "böse", event=event)
        for event in Event
    ]
    records.append(Record(Kind.EVENT, event_body(""), event=Event.RESET))
    records.append(Record(Kind.NOTE, b"3 records were dropped", "vm"))
    records.append(message(m.Unload(), vp=3, sint=2, connection_id=4, flags=Flags.RESENT))
    (tmp_path / "t").write_bytes(capture(records))
    *events, reset, note, unload = dissected(tmp_path / "t")
    for event, frame in zip(Event, events, strict=True):
        assert numbers(frame, "vmbus.event") == [event]
        assert frame["vmbus.text"] == ["bad ring"]
        assert frame["vmbus.vm"] == ["böse"]
        assert frame["vmbus.interface_id"] == [str(interface)]
        assert ("vmbus.guest_error" in frame) == (event is Event.GUEST_ERROR)
    assert "vmbus.interface_id" not in reset
    assert "vmbus.vm" not in reset
    assert note["vmbus.text"] == ["3 records were dropped"]
    assert (numbers(unload, "vmbus.vp"), numbers(unload, "vmbus.sint")) == ([3], [2])
    assert numbers(unload, "vmbus.trace.connection_id") == [4]
    assert numbers(unload, "vmbus.version") == [Version.COPPER]
    assert unload["vmbus.trace.resent"] == ["1"]
    assert NO_VP not in numbers(note, "vmbus.vp")


def malformed_records() -> list[Record]:
    """Records that Python finds malformed, and some that it just does not."""
    found = [
        Record(Kind.MESSAGE, body, "vm", direction)
        for direction in (Direction.FROM_GUEST, Direction.TO_GUEST)
        for body in (
            b"",
            b"\1",
            b"\1\0\0\0",
            b"\1\0\0\0\0\0\0",
            bytes(8),
            b"\x1e" + bytes(7),
            b"\xff" * 240,
            bytes(241),
            b"\1" + bytes(240),
        )
    ]
    for form, _, size in GOLDEN:
        whole = message(form)
        found.append(Record(Kind.MESSAGE, whole.body, "vm", Direction(3 - whole.direction)))
        if size:
            found.append(Record(Kind.MESSAGE, whole.body[: 7 + size], "vm", whole.direction))
        if len(whole.body) < 240:
            found.append(Record(Kind.MESSAGE, whole.body + b"\0", "vm", whole.direction))
    found += [packet(body[:size]) for body in PACKETS for size in range(len(body))]
    dice = random.Random(4)
    for body in PACKETS:
        for _ in range(60):
            broken = bytearray(body)
            for _ in range(dice.randint(1, 2)):
                broken[dice.randrange(min(len(body), 48))] = dice.choice((0, 1, 3, 0x10, 0xFF))
            found.append(packet(bytes(broken)))
    found.append(Record(Kind.EVENT, bytes(31), "vm", event=Event.RESET))
    return found


def test_malformed_is_what_python_finds_malformed(tmp_path: Path) -> None:
    records = malformed_records()
    (tmp_path / "t").write_bytes(capture(records))
    verdicts = set()
    for record, frame in zip(records, dissected(tmp_path / "t"), strict=True):
        found = decode(record)
        assert ("vmbus.malformed" in frame) == bool(found.problem), (record, found, frame)
        if rule := re.search("the rule: (.*)", found.problem):
            assert rule[1] in texts(frame), (record, found.problem)
        verdicts.add(found.problem.partition("; ")[2])
        assert ("vmbus.cut" in frame) == found.cut
    # Each rule a packet can break by its bytes alone has been broken, and some packets are good.
    assert len(verdicts) >= 9


def test_what_is_cut_is_not_called_malformed(tmp_path: Path) -> None:
    records = [message(form) for form, _, _ in GOLDEN] + [packet(body) for body in PACKETS]
    for limit in (46, 52, 60, 70):
        (tmp_path / "t").write_bytes(capture(records, limit))
        for record, frame in zip(records, dissected(tmp_path / "t"), strict=True):
            whole = len(record.pack()) <= limit
            found = decode(Record.parse(record.pack()[:limit]), cut=not whole)
            assert ("vmbus.cut" in frame) == (not whole)
            assert "vmbus.malformed" not in frame
            assert not found.problem


def test_no_bytes_make_the_script_fail(tmp_path: Path) -> None:
    dice = random.Random(5)
    good = [message(form).pack() for form, _, _ in GOLDEN] + [packet(p).pack() for p in PACKETS]
    frames: list[bytes] = [b"\1" * size for size in range(1, 48)]
    for data in good:
        for _ in range(20):
            broken = bytearray(data[: dice.randint(1, len(data))])
            for _ in range(dice.randint(0, 4)):
                broken[dice.randrange(len(broken))] = dice.choice((0, 1, 2, 40, 44, 0x7F, 0xFF))
            frames.append(bytes(broken))
    (tmp_path / "t").write_bytes(capture(frames))
    # dissected() fails on a script's error.
    assert len(dissected(tmp_path / "t", "-2")) == len(frames)


def test_lists_say_who_sent_what(tmp_path: Path) -> None:
    records = [message(m.CloseChannel(9)), message(m.OpenResult(9, 1, 0)), packet(PACKETS[0])]
    (tmp_path / "t").write_bytes(capture(records))
    close, result, request = tshark(tmp_path / "t").splitlines()
    assert re.search("guest → host +VMBus .* CLOSE_CHANNEL channel_id=9", close)
    assert re.search("host → guest +VMBus .* OPEN_RESULT channel_id=9 status=0x0", result)
    assert re.search("IN_BAND channel=5 transaction=0x1122334455667788 completion", request)
