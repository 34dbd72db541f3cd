# SPDX-License-Identifier: MIT
"""Rings whose guest writes what it likes, where it likes, at any time; and packets of any bytes.

Each run is done twice, on the C extension and on the reference in Python, and both have to do the
same: return the same packets, refuse for the same rule, leave the same bytes in the guest's memory.
What else has to hold: nothing is raised but RingCorrupt, and nothing outside the ring is written.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from emulator.memory import GpaError, GuestMemory, PageView, RamRegion, _native
from emulator.memory._pure import PurePageView
from emulator.ring import IncomingRing, OutgoingRing, PacketTooLarge, RingCorrupt
from emulator.wire.packet import (
    TRAILER_SIZE,
    GpaRange,
    MalformedPacket,
    Packet,
    PacketType,
    TransferPages,
    decode_body,
    decode_descriptor,
    encode_packet,
    plain_packet,
)
from tests.corefuzz.source import Source

PAGE: Final = 4096
_WORDS: Final = (0, 4, 8, 12, 64)
_OFFSETS: Final = (0, 8, 16, 24, 32, 40, 2048, 4088, 8184, 4, 8192, 0xFFFF_FFF8)
_DESCRIPTORS: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "06000200040000000100000000000000",  # in-band, 16 bytes
        "06000200030001000200000000000000",  # in-band, 8 bytes, completion requested
        "0b000200020000000300000000000000",  # completion without payload
        "09000500060001000400000000000000",  # GPA direct
        "07000400050001000500000000000000",  # transfer pages
    )
)


class _Guarded:
    """A ring between two guard pages, and the views of it."""

    def __init__(self, native: bool, data_pages: int, fill: bytes) -> None:
        size = (data_pages + 1) * PAGE
        self.memory = bytearray(b"\xa5" * PAGE + bytes(size) + b"\xa5" * PAGE)
        self.memory[2 * PAGE : 2 * PAGE + len(fill)] = fill
        self.ring = memoryview(self.memory)[PAGE : PAGE + size]
        self.view: PageView = (_native.PageView if native else PurePageView)([self.ring])

    def check(self) -> None:
        """The guest can see no byte of ours outside the ring."""
        guards = self.memory[:PAGE] + self.memory[-PAGE:]
        assert guards == b"\xa5" * 2 * PAGE, "written outside the ring"


def _poke(source: Source, size: int) -> tuple[int, bytes]:
    """What the guest writes: a control word, a descriptor, or anything."""
    match source.below(4):
        case 0 | 1:
            offset = source.choice(_WORDS)
            return offset, source.word(_OFFSETS).to_bytes(8, "little")[:4]
        case 2:
            offset = PAGE + source.word((0, 8, 16, 24, 32, 40, 48), 2) % (size - PAGE) // 8 * 8
            return offset, source.choice(_DESCRIPTORS)
        case _:
            return source.number(2) % size, source.take(source.below(64))


def _write(ring: memoryview, offset: int, data: bytes) -> None:
    data = data[: len(ring) - offset]
    ring[offset : offset + len(data)] = data


def incoming(data: bytes) -> None:
    """Read a ring that a guest fills with anything."""
    source = Source(data)
    pages = 1 + source.below(2)
    fill = b"".join(source.choice(_DESCRIPTORS) for _ in range(source.below(32)))
    both = [_Guarded(native, pages, fill) for native in (True, False)]
    rings = [IncomingRing(each.view) for each in both]
    offset, words = source.word(_OFFSETS), source.word(_OFFSETS)
    for each in both:
        _write(each.ring, 0, offset.to_bytes(8, "little")[:4] + words.to_bytes(8, "little")[:4])
    attach = source.below(2) == 1
    what = "attach" if attach else "open"
    while True:
        found = [_incoming_step(ring, what) for ring in rings]
        assert found[0] == found[1], f"{what}: {found[0]} and {found[1]}"
        assert bytes(both[0].ring) == bytes(both[1].ring), what
        if isinstance(found[0], RingRefused) or not source.more:
            break
        if source.below(2):
            position, poked = _poke(source, len(both[0].ring))
            for each in both:
                _write(each.ring, position, poked)
        what = source.choice(("read", "read", "ahead", "commit", "mask", "unmask", "scan"))
    for each in both:
        each.check()


class RingRefused(str):
    """The rule for which a ring was refused."""

    __slots__ = ()


def _incoming_step(ring: IncomingRing, what: str) -> object:
    try:
        match what:
            case "attach":
                ring.attach()
            case "open":
                ring.init_at_open()
            case "read":
                return ring.read()
            case "ahead":
                return _read_ahead(ring)
            case "commit":
                return ring.commit()
            case "mask":
                ring.mask()
            case "unmask":
                # Its rule: first commit.
                return ring.commit(), ring.unmask()
            case _:
                return list(ring.scan())
    except RingCorrupt as error:
        return RingRefused(error)
    return None


def _read_ahead(ring: IncomingRing) -> list[Packet]:
    """Read up to three packets as KMCL does: ahead where that works, else one by one."""
    packets: list[Packet] = []
    while len(packets) < 3:
        ahead = ring.read_ahead(3 - len(packets))
        if ahead is None:
            break
        for number, flags, transaction_id, payload, next_out, fields in ahead:
            ring.consume(next_out)
            packet = plain_packet(number, flags, transaction_id, payload)
            if fields is not None:
                packet = packet._replace(ranges=(GpaRange(*fields),))
            packets.append(packet)
        if not ahead:
            one = ring.read()
            if one is None:
                break
            packets.append(one)
    return packets


def outgoing(data: bytes) -> None:
    """Write into a ring whose reader moves its index, mask and pending size as it likes."""
    source = Source(data)
    pages = 1 + source.below(2)
    both = [_Guarded(native, pages, b"") for native in (True, False)]
    rings = [OutgoingRing(each.view) for each in both]
    start, end = source.word(_OFFSETS), source.word(_OFFSETS)
    for each in both:
        _write(each.ring, 0, start.to_bytes(8, "little")[:4] + end.to_bytes(8, "little")[:4])
    step: tuple[str, int, int] = ("attach" if source.below(2) else "open", 0, 0)
    while True:
        found = [_outgoing_step(ring, *step) for ring in rings]
        assert found[0] == found[1], f"{step}: {found[0]!r} and {found[1]!r}"
        assert bytes(both[0].ring) == bytes(both[1].ring), step
        if isinstance(found[0], RingRefused) or not source.more:
            break
        if source.below(2):
            position, poked = _poke(source, len(both[0].ring))
            for each in both:
                _write(each.ring, position, poked)
        match source.below(7):
            case 6:
                step = ("completions", source.below(9), source.word((0, 1, 8, 64, 2000, 4040), 2))
            case 0 | 1 | 2:
                size = source.word((0, 1, 8, 64, 2000, 4040), 2)
                step = ("write", source.number(8), size)
            case 3:
                step = ("publish", 0, 0)
            case 4:
                step = ("request", source.word((8, 64, 4096, 8192), 2), 0)
            case _:
                step = ("clear", 0, 0)
    for each in both:
        each.check()


def _outgoing_step(ring: OutgoingRing, what: str, first: int, second: int) -> object:
    try:
        match what:
            case "attach":
                return ring.attach()
            case "open":
                ring.init_at_open()
            case "write":
                return ring.write(PacketType.IN_BAND, first, bytes([second & 0xFF]) * second)
            case "completions":
                queue = [(number, bytes([number]) * second) for number in range(first)]
                return ring.write_completions(queue)
            case "publish":
                return ring.publish()
            case "request":
                # Its rule: first publish.
                ring.publish()
                return ring.request_space(first)
            case _:
                ring.clear_space_request()
    except RingCorrupt as error:
        return RingRefused(error)
    except PacketTooLarge as error:
        return str(error)
    return None


def _make_memory() -> GuestMemory:
    """64 pages, a hole of as many, and 64 more."""
    fd = os.memfd_create("corefuzz")
    try:
        os.ftruncate(fd, 128 * PAGE)
        low, high = RamRegion(0, 64 * PAGE, 0), RamRegion(128 * PAGE, 64 * PAGE, 64 * PAGE)
        return GuestMemory.map([(low, fd), (high, fd)])
    finally:
        os.close(fd)


_MEMORY: Final = _make_memory()


def packet(data: bytes) -> None:
    """Decode bytes as a packet; what it names in guest memory is inside it, or refused."""
    source = Source(data)
    available = source.number(2)
    try:
        descriptor = decode_descriptor(source.take(16), available)
    except MalformedPacket:
        return
    assert 16 <= descriptor.data_offset <= descriptor.length <= available
    try:
        found = decode_body(descriptor, source.take(descriptor.length - 16))
    except MalformedPacket:
        return
    _round_trip(found)
    for gpa_range in found.ranges:
        _in_memory(gpa_range)


def _round_trip(found: Packet) -> None:
    transfer: TransferPages | None = found.transfer
    raw = encode_packet(
        found.type,
        found.transaction_id,
        found.payload,
        flags=found.flags,
        ranges=found.ranges,
        transfer=transfer,
    )
    descriptor = decode_descriptor(raw[:16], len(raw) + TRAILER_SIZE)
    again = decode_body(descriptor, raw[16 : descriptor.length])
    assert again == found


def _in_memory(gpa_range: GpaRange) -> None:
    with contextlib.suppress(GpaError):
        pieces = _MEMORY.range(gpa_range)
        assert sum(piece.nbytes for piece in pieces) == gpa_range.length
