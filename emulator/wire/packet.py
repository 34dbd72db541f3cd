# SPDX-License-Identifier: MIT
"""The packets that travel on a VMBus ring: descriptor, type-specific header, payload, trailer.

::

    +0   u16 type, u16 data_offset8, u16 length8, u16 flags, u64 transaction_id    the descriptor
    +16  the header of the type: ranges of GPA-direct and transfer-page packets
    +data_offset8 * 8   payload, zero padded to a multiple of 8
    +length8 * 8        u32 zero, u32 ring offset of this packet                  the trailer

This file knows bytes and no ring: what is on a ring but not in a packet is in `emulator.ring`. It
keeps one rule: whatever a guest put into the bytes, decoding either returns values that satisfy
every check below or raises `MalformedPacket` that names the check. Layout: Linux
``include/linux/hyperv.h`` (``struct vmpacket_descriptor`` and the packets that begin with it).

All sizes are in bytes unless a name ends in ``8`` (units of 8 bytes). All integers are
little-endian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

__all__ = [
    "DESCRIPTOR_SIZE",
    "PAGE_SIZE",
    "TRAILER_SIZE",
    "Descriptor",
    "GpaRange",
    "MalformedPacket",
    "Packet",
    "PacketFlags",
    "PacketRule",
    "PacketSummary",
    "PacketType",
    "TransferPageRange",
    "TransferPages",
    "decode_body",
    "decode_descriptor",
    "encode_packet",
    "encode_trailer",
    "header_size",
    "packet_size",
    "plain_packet",
    "spanned_pages",
]

PAGE_SIZE = 4096
"""Bytes of a page of the bus (``HV_HYP_PAGE_SIZE``), whatever the guest's own page size is."""

DESCRIPTOR_SIZE = 16
TRAILER_SIZE = 8
_MAX_LENGTH8 = 0xFFFF
_PADDING = [bytes(size) for size in range(8)]

_DESCRIPTOR = Struct("<HHHHQ")
_TRAILER = Struct("<II")
_GPA_DIRECT_HEADER = Struct("<II")
_GPA_RANGE = Struct("<II")
# The byte after the set id is SenderOwnsSet, the next one is reserved: senders leave garbage there.
_TRANSFER_HEADER = Struct("<HBBI")
_TRANSFER_RANGE = Struct("<II")


class PacketType(IntEnum):
    """The packet types in use; Linux ``enum vmbus_packet_type`` has historical ones besides."""

    IN_BAND = 6
    TRANSFER_PAGES = 7
    """The payload's data is in pages that both sides know (a network receive buffer)."""
    GPA_DIRECT = 9
    """The packet names pages of the sender's memory."""
    CANCEL = 10
    COMPLETION = 11


class PacketFlags(IntFlag):
    """Descriptor flags; a set bit that is not named here breaks a rule."""

    NONE = 0
    COMPLETION_REQUESTED = 1


_COMPLETION_REQUESTED = PacketFlags.COMPLETION_REQUESTED


class PacketRule(Enum):
    """The rules a packet must keep; the value tells a person which one was broken."""

    TYPE = "the packet type is one of 6, 7, 9, 10, 11"
    FLAGS = "no descriptor flag but bit 0 is set"
    DATA_OFFSET_LOW = "data_offset8 covers the descriptor and the header of the packet type"
    DATA_OFFSET_HIGH = "data_offset8 is not beyond length8"
    AVAILABLE = "the packet and its trailer lie within the bytes that the writer has published"
    RANGE_COUNT = "range_count is not 0 and its ranges fill the header, as far as the type demands"
    RANGE_LENGTH = "a GPA range is not empty"
    RANGE_OFFSET = "the offset of a GPA range lies in its first page"
    RANGE_PFNS = "the page numbers of a GPA range lie within the header"


class MalformedPacket(Exception):
    """A packet breaks `rule`; the peer that wrote it is to blame. `detail` has the values found."""

    def __init__(self, rule: PacketRule, detail: str) -> None:
        super().__init__(f"{detail}; the rule: {rule.value}")
        self.rule = rule
        self.detail = detail


class GpaRange(NamedTuple):
    """`length` bytes from byte `offset` of the first of the guest pages `pfns` (``struct
    gpa_range``). A named tuple, because one is made for each packet with external data.
    """

    length: int
    offset: int
    pfns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransferPageRange:
    """`byte_count` bytes at `byte_offset` of the transfer page set."""

    byte_count: int
    byte_offset: int


@dataclass(frozen=True, slots=True)
class TransferPages:
    """The header of a transfer-page packet: which set of pages, and which parts of it."""

    set_id: int
    ranges: tuple[TransferPageRange, ...]
    sender_owns_set: bool = False


class Packet(NamedTuple):
    """One packet, copied out of the ring. A named tuple, because one is made for each packet read.

    `payload` is what follows the headers. It is as long as the descriptor says: a multiple of 8, so
    that up to 7 padding bytes may follow what the sender meant.
    """

    type: PacketType
    flags: PacketFlags
    transaction_id: int
    payload: bytes
    ranges: tuple[GpaRange, ...] = ()
    """Only for GPA-direct packets."""
    transfer: TransferPages | None = None
    """Only for transfer-page packets."""

    @property
    def completion_requested(self) -> bool:
        """Whether the sender waits for a completion packet with this transaction id."""
        return self.flags is _COMPLETION_REQUESTED


@dataclass(frozen=True, slots=True)
class PacketSummary:
    """What the descriptor alone tells of a packet."""

    type: PacketType
    flags: PacketFlags
    transaction_id: int

    @property
    def completion_requested(self) -> bool:
        """Whether the sender waits for a completion packet with this transaction id."""
        return self.flags is _COMPLETION_REQUESTED


class Descriptor(NamedTuple):
    """A checked descriptor. A named tuple, because one is made for each packet read."""

    type: PacketType
    flags: PacketFlags
    transaction_id: int
    data_offset: int
    """Bytes from the start of the packet to its payload."""
    length: int
    """Bytes from the start of the packet to its trailer."""


# Indexed by what is on the ring: calling an enum class costs more than the rest of decoding does.
_TYPES = {int(member): member for member in PacketType}
_FLAGS = {0: PacketFlags.NONE, 1: PacketFlags.COMPLETION_REQUESTED}
_LEAST_OFFSET8 = {
    PacketType.IN_BAND: 2,
    PacketType.TRANSFER_PAGES: 3,
    PacketType.GPA_DIRECT: 3,
    PacketType.CANCEL: 2,
    PacketType.COMPLETION: 2,
}


def plain_packet(number: int, flags: int, transaction_id: int, payload: bytes) -> Packet:
    """Return a packet without a header of its type's own, from fields that were checked."""
    # What Packet() does, without a call of Python code for each packet.
    fields = (_TYPES[number], _FLAGS[flags], transaction_id, payload, (), None)
    return tuple.__new__(Packet, fields)


def spanned_pages(offset: int, length: int) -> int:
    """Return how many pages `length` bytes touch that begin `offset` bytes into a page."""
    return (offset + length + PAGE_SIZE - 1) // PAGE_SIZE


def header_size(*, ranges: Sequence[GpaRange] = (), transfer_ranges: int = 0) -> int:
    """Return the bytes before the payload of a packet with ranges of one kind or the other."""
    if ranges:
        return DESCRIPTOR_SIZE + 8 + sum(8 + 8 * len(gpa_range.pfns) for gpa_range in ranges)
    if transfer_ranges:
        return DESCRIPTOR_SIZE + 8 + 8 * transfer_ranges
    return DESCRIPTOR_SIZE


def packet_size(payload_len: int, header: int = DESCRIPTOR_SIZE) -> int:
    """Return the bytes a packet takes on a ring: header, payload, padding and trailer."""
    return header + (payload_len + 7 & ~7) + TRAILER_SIZE


def decode_descriptor(data: bytes, available: int) -> Descriptor:
    """Decode and check the 16 bytes of a descriptor.

    `available` is the number of bytes, from the start of the packet, that the writer has published;
    the trailer counts. Raises MalformedPacket.
    """
    number, offset8, length8, flag_bits, transaction_id = _DESCRIPTOR.unpack(data)
    packet_type = _TYPES.get(number)
    if packet_type is None:
        raise MalformedPacket(PacketRule.TYPE, f"packet type {number}")
    flags = _FLAGS.get(flag_bits)
    if flags is None:
        raise MalformedPacket(PacketRule.FLAGS, f"flags {flag_bits:#06x}")
    if offset8 < _LEAST_OFFSET8[packet_type]:
        raise MalformedPacket(
            PacketRule.DATA_OFFSET_LOW, f"data_offset8 {offset8} in a {packet_type.name} packet"
        )
    if offset8 > length8:
        raise MalformedPacket(
            PacketRule.DATA_OFFSET_HIGH, f"data_offset8 {offset8}, length8 {length8}"
        )
    length = length8 * 8
    if length + TRAILER_SIZE > available:
        raise MalformedPacket(
            PacketRule.AVAILABLE, f"length8 {length8}, but {available} bytes are published"
        )
    return Descriptor(packet_type, flags, transaction_id, offset8 * 8, length)


def decode_body(descriptor: Descriptor, body: bytes) -> Packet:
    """Decode what lies between the descriptor and the trailer (`descriptor.length` - 16 bytes).

    `body` must be a copy: it is read more than once. Raises MalformedPacket.
    """
    packet_type, flags, transaction_id, data_offset, _ = descriptor
    if data_offset == DESCRIPTOR_SIZE:
        return Packet(packet_type, flags, transaction_id, body)
    header_end = data_offset - DESCRIPTOR_SIZE
    payload = body[header_end:]
    match packet_type:
        case PacketType.GPA_DIRECT:
            ranges = _decode_gpa_ranges(body, header_end)
            return Packet(packet_type, flags, transaction_id, payload, ranges)
        case PacketType.TRANSFER_PAGES:
            transfer = _decode_transfer_pages(body, header_end)
            return Packet(packet_type, flags, transaction_id, payload, (), transfer)
        case PacketType.IN_BAND | PacketType.CANCEL | PacketType.COMPLETION:
            # A longer header than the type has is not an error: data_offset8 exists to skip it.
            return Packet(packet_type, flags, transaction_id, payload)


def _decode_gpa_ranges(body: bytes, end: int) -> tuple[GpaRange, ...]:
    """Decode the GPA-direct header in body[:end].

    Bytes left over before the payload are allowed: Linux storvsc sends its fixed-size page array
    with only the first entries in use.
    """
    _, count = _GPA_DIRECT_HEADER.unpack_from(body)
    position = _GPA_DIRECT_HEADER.size
    if count == 0:
        raise MalformedPacket(PacketRule.RANGE_COUNT, "range_count 0 in a GPA-direct packet")
    ranges: list[GpaRange] = []
    # A range takes 16 bytes or more, so the header ends this loop whatever the count says.
    for _ in range(count):
        if end - position < _GPA_RANGE.size:
            raise MalformedPacket(
                PacketRule.RANGE_COUNT,
                f"range_count {count}, but {len(ranges)} ranges fill the header",
            )
        length, offset = _GPA_RANGE.unpack_from(body, position)
        position += _GPA_RANGE.size
        if length == 0:
            raise MalformedPacket(PacketRule.RANGE_LENGTH, f"GPA range {len(ranges)} is empty")
        if offset >= PAGE_SIZE:
            raise MalformedPacket(
                PacketRule.RANGE_OFFSET, f"GPA range {len(ranges)} has the offset {offset:#x}"
            )
        pages = spanned_pages(offset, length)
        if pages * 8 > end - position:
            raise MalformedPacket(
                PacketRule.RANGE_PFNS,
                f"GPA range {len(ranges)} spans {pages} pages, the header has room for "
                f"{(end - position) // 8}",
            )
        pfns = memoryview(body)[position : position + pages * 8]
        position += pages * 8
        ranges.append(GpaRange(length, offset, Struct(f"<{pages}Q").unpack(pfns)))
    return tuple(ranges)


def _decode_transfer_pages(body: bytes, end: int) -> TransferPages:
    set_id, owns, _, count = _TRANSFER_HEADER.unpack_from(body)
    ranges = body[_TRANSFER_HEADER.size : end]
    if count == 0 or count * _TRANSFER_RANGE.size != len(ranges):
        raise MalformedPacket(
            PacketRule.RANGE_COUNT, f"range_count {count} in a header with {len(ranges)} bytes"
        )
    return TransferPages(
        set_id,
        tuple(TransferPageRange(*fields) for fields in _TRANSFER_RANGE.iter_unpack(ranges)),
        owns & 1 != 0,
    )


def encode_packet(
    packet_type: PacketType,
    transaction_id: int,
    payload: bytes,
    *,
    flags: int = 0,
    ranges: Sequence[GpaRange] = (),
    transfer: TransferPages | None = None,
) -> bytes:
    """Encode a packet without its trailer; the length of the result is a multiple of 8.

    Raises ValueError if the ranges do not go with the type or `length8` cannot express the size.
    """
    if bool(ranges) != (packet_type is PacketType.GPA_DIRECT):
        raise ValueError(f"a {packet_type.name} packet with {len(ranges)} GPA ranges")
    if (transfer is not None) != (packet_type is PacketType.TRANSFER_PAGES):
        raise ValueError(f"a {packet_type.name} packet and its transfer pages do not go together")
    header = b""
    if ranges:
        header = _encode_gpa_ranges(ranges)
    elif transfer is not None:
        header = _encode_transfer_pages(transfer)
    padding = -len(payload) & 7
    offset8 = (DESCRIPTOR_SIZE + len(header)) >> 3
    length8 = offset8 + (len(payload) + padding >> 3)
    if length8 > _MAX_LENGTH8:
        raise ValueError(f"a packet of {length8 * 8} bytes; length8 ends at {_MAX_LENGTH8 * 8}")
    descriptor = _DESCRIPTOR.pack(packet_type, offset8, length8, flags, transaction_id)
    return b"".join((descriptor, header, payload, _PADDING[padding]))


def encode_trailer(ring_offset: int) -> bytes:
    """Encode the 8 bytes after a packet that begins at `ring_offset` of the ring's data."""
    return _TRAILER.pack(0, ring_offset)


def _encode_gpa_ranges(ranges: Sequence[GpaRange]) -> bytes:
    parts = [_GPA_DIRECT_HEADER.pack(0, len(ranges))]
    for gpa_range in ranges:
        if not gpa_range.length or gpa_range.offset >= PAGE_SIZE:
            raise ValueError(f"an empty GPA range or an offset beyond its first page: {gpa_range}")
        if len(gpa_range.pfns) != spanned_pages(gpa_range.offset, gpa_range.length):
            raise ValueError(f"a GPA range with {len(gpa_range.pfns)} page numbers: {gpa_range}")
        parts.append(_GPA_RANGE.pack(gpa_range.length, gpa_range.offset))
        parts.append(Struct(f"<{len(gpa_range.pfns)}Q").pack(*gpa_range.pfns))
    return b"".join(parts)


def _encode_transfer_pages(transfer: TransferPages) -> bytes:
    if not transfer.ranges:
        raise ValueError("a transfer-page packet without ranges")
    return _TRANSFER_HEADER.pack(
        transfer.set_id, transfer.sender_owns_set, 0, len(transfer.ranges)
    ) + b"".join(_TRANSFER_RANGE.pack(r.byte_count, r.byte_offset) for r in transfer.ranges)
