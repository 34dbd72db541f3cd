# SPDX-License-Identifier: MIT
"""The saved stream of a channel: chunks and records (docs/kmcl-state.md). Pure encoding.

Windows' stream is opaque and undocumented; this is ours. It keeps what is documented of the
original: the stream is made of chunks, a buffer holds whole chunks, and a packet is never split
over two.

A stream is hostile like guest memory: a snapshot can be cut, edited or mixed with another. Each
chunk carries its number and a CRC-32 that runs on from the chunk before, so one that is missing,
doubled, moved or of another stream shows at once; every length is checked against the bytes at
hand before it is used.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, assert_never

from emulator.kmcl.errors import ChannelFault, FaultKind
from emulator.wire.ntstatus import NtStatus

STREAM_MAGIC: Final = 0x5343_4D4B
"""The bytes "KMCS"."""
PACKET_MAGIC: Final = 0x4B50_4D4B
"""The bytes "KMPK"."""
STREAM_VERSION: Final = 1

_CHUNK = struct.Struct("<IHHIIII")
_CHANNEL = struct.Struct("<16s16sHHIIIQI")
_FAULT = struct.Struct("<II")
_PACKET = struct.Struct("<II")
_LIB = struct.Struct("<IIBBHIQ")
_COMPLETION = struct.Struct("<Q")
_END = struct.Struct("<II")
_CRC_OFFSET: Final = 16
_PLACE_OFFSET: Final = 8


class StreamError(Exception):
    """A saved stream is not one, or not whole; ``status`` is what the restore call returns."""

    def __init__(self, status: NtStatus, text: str) -> None:
        """Say what is wrong with the stream."""
        super().__init__(text)
        self.status = status


class ChunkKind(IntEnum):
    """What a chunk holds."""

    CHANNEL = 1
    PACKET = 2
    COMPLETION = 3
    END = 4


class ChannelSaveFlags(IntFlag):
    """Flags of a CHANNEL chunk."""

    OPEN = 1
    """The guest had the channel open."""


class SavedPlace(IntEnum):
    """Where a saved packet was."""

    QUEUED = 1
    IN_RING = 2


@dataclass(frozen=True, slots=True)
class SavedChannel:
    """The first chunk: whose stream it is, and what is not of a single packet."""

    interface: uuid.UUID
    instance: uuid.UUID
    subchannel_index: int
    is_open: bool
    packets: int
    completions: int
    largest_payload: int
    """Bytes of the largest queued packet: a channel with a smaller maximum cannot take it."""
    next_transaction_id: int
    faults: tuple[ChannelFault, ...]


@dataclass(frozen=True, slots=True)
class PacketRecord:
    """KMCL's own part of a saved packet; in the ring, its ``payload`` is with the guest: empty."""

    place: SavedPlace
    waits: bool
    transaction_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class SavedOutgoing:
    """A packet in use: LibBuf (encoded :class:`PacketRecord`) and the VSP's own SaveBuf."""

    lib_buffer: bytes
    save_buffer: bytes


@dataclass(frozen=True, slots=True)
class SavedCompletion:
    """A completion that waited for room, at its place in the queue."""

    transaction_id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last chunk."""

    packets: int
    completions: int


Record = SavedChannel | SavedOutgoing | SavedCompletion | StreamEnd


def encode_packet_record(record: PacketRecord) -> bytes:
    """Encode LibBuf. It has its own CRC, because the VSP carries it to VmbPacketRestore."""
    rest = _LIB.pack(
        PACKET_MAGIC, 0, record.place, record.waits, 0, len(record.payload), record.transaction_id
    )
    crc = zlib.crc32(rest + record.payload)
    return rest[:4] + crc.to_bytes(4, "little") + rest[8:] + record.payload


def peek_packet_record(data: bytes) -> tuple[int, bool, int]:
    """Return place, whether it waits, and payload bytes of LibBuf; it may be damaged all the same.

    Raises :class:`StreamError` with DATA_ERROR for one that is too short.
    """
    if len(data) < _LIB.size:
        raise StreamError(NtStatus.DATA_ERROR, f"a packet record of {len(data)} bytes is too short")
    place, waits = data[_PLACE_OFFSET], data[_PLACE_OFFSET + 1]
    return place, bool(waits), len(data) - _LIB.size


def decode_packet_record(data: bytes) -> PacketRecord:
    """Decode LibBuf; raises :class:`StreamError` with INVALID_PARAMETER."""
    if len(data) < _LIB.size:
        raise StreamError(
            NtStatus.INVALID_PARAMETER, f"a packet record of {len(data)} bytes is too short"
        )
    magic, crc, place, waits, zero, size, transaction_id = _LIB.unpack_from(data)
    payload = data[_LIB.size :]
    if magic != PACKET_MAGIC or size != len(payload):
        raise StreamError(NtStatus.INVALID_PARAMETER, "this is not a saved packet record")
    if zlib.crc32(data[:4] + bytes(4) + data[8:]) != crc:
        raise StreamError(NtStatus.INVALID_PARAMETER, "the packet record's checksum is wrong")
    known = place in (SavedPlace.QUEUED, SavedPlace.IN_RING) and waits in (0, 1) and not zero
    # Without a completion to come, a packet has no id, and is not in use once it is in the ring.
    if not known or bool(waits) != bool(transaction_id) or (place == SavedPlace.IN_RING) > waits:
        raise StreamError(NtStatus.INVALID_PARAMETER, "the packet record contradicts itself")
    return PacketRecord(SavedPlace(place), bool(waits), transaction_id, payload)


def _encode_body(record: Record) -> tuple[ChunkKind, bytes]:
    match record:
        case SavedChannel():
            faults = b""
            for fault in record.faults:
                text = fault.text.encode()
                faults += _FAULT.pack(fault.kind, len(text)) + text
            body = _CHANNEL.pack(
                record.interface.bytes,
                record.instance.bytes,
                ChannelSaveFlags.OPEN if record.is_open else 0,
                record.subchannel_index,
                record.packets,
                record.completions,
                record.largest_payload,
                record.next_transaction_id,
                len(record.faults),
            )
            return ChunkKind.CHANNEL, body + faults
        case SavedOutgoing():
            sizes = _PACKET.pack(len(record.lib_buffer), len(record.save_buffer))
            return ChunkKind.PACKET, sizes + record.lib_buffer + record.save_buffer
        case SavedCompletion():
            return ChunkKind.COMPLETION, _COMPLETION.pack(record.transaction_id) + record.payload
        case StreamEnd():
            return ChunkKind.END, _END.pack(record.packets, record.completions)
        case _:
            assert_never(record)


class StreamWriter:
    """Numbers and seals chunks."""

    def __init__(self) -> None:
        """Start a stream."""
        self._index = 0
        self._crc = 0

    def encode(self, record: Record) -> bytes:
        """Return the next chunk of the stream."""
        kind, body = _encode_body(record)
        size = _CHUNK.size + len(body)
        head = _CHUNK.pack(STREAM_MAGIC, STREAM_VERSION, kind, size, self._index, 0, 0)
        self._crc = zlib.crc32(head + body, self._crc)
        self._index += 1
        return head[:_CRC_OFFSET] + self._crc.to_bytes(4, "little") + head[_CRC_OFFSET + 4 :] + body


class StreamReader:
    """Takes a stream buffer by buffer and checks that it is whole, in order, and as its head says.

    What must hold for :class:`SavedOutgoing` is checked without LibBuf's checksum, which is
    VmbPacketRestore's.
    """

    def __init__(self) -> None:
        """Expect the first chunk."""
        self._index = 0
        self._crc = 0
        self._head: SavedChannel | None = None
        self._queue_has_begun = False
        self._packets = 0
        self._completions = 0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the END chunk has come."""
        return self._ended

    def feed(self, buffer: bytes) -> list[Record]:
        """Decode one buffer of whole chunks, all or none; raises :class:`StreamError`."""
        if not buffer:
            raise StreamError(NtStatus.INVALID_PARAMETER, "the buffer is empty")
        records: list[Record] = []
        offset = 0
        while offset < len(buffer):
            if self._ended:
                raise StreamError(
                    NtStatus.DATA_ERROR, "there are bytes after the end of the stream"
                )
            offset = self._chunk(buffer, offset, records)
        return records

    def _chunk(self, buffer: bytes, offset: int, records: list[Record]) -> int:
        where = f"chunk {self._index} of the stream"
        left = len(buffer) - offset
        if left < _CHUNK.size:
            raise StreamError(NtStatus.DATA_ERROR, f"{where} is cut off after {left} bytes")
        magic, version, kind, size, index, crc, zero = _CHUNK.unpack_from(buffer, offset)
        if magic != STREAM_MAGIC:
            raise StreamError(NtStatus.DATA_ERROR, f"{where} does not begin with the magic number")
        if version != STREAM_VERSION:
            raise StreamError(
                NtStatus.REVISION_MISMATCH,
                f"{where} has format version {version}; this program reads {STREAM_VERSION}",
            )
        if not _CHUNK.size <= size <= left:
            raise StreamError(
                NtStatus.DATA_ERROR, f"{where} claims {size} bytes; the buffer has {left} left"
            )
        if index != self._index:
            raise StreamError(
                NtStatus.DATA_ERROR, f"{where} is missing; number {index} came instead"
            )
        chunk = buffer[offset : offset + size]
        blank = chunk[:_CRC_OFFSET] + bytes(4) + chunk[_CRC_OFFSET + 4 :]
        if zlib.crc32(blank, self._crc) != crc or zero:
            raise StreamError(
                NtStatus.CRC_ERROR,
                f"{where} is damaged or of another stream: its checksum is wrong",
            )
        record = _decode_body(kind, chunk[_CHUNK.size :], where)
        self._in_order(record, where)
        records.append(record)
        self._index += 1
        self._crc = crc
        return offset + len(chunk)

    def _in_order(self, record: Record, where: str) -> None:
        if isinstance(record, SavedChannel) is not (self._index == 0):
            raise StreamError(NtStatus.DATA_ERROR, f"{where} is out of place")
        match record:
            case SavedChannel():
                self._head = record
            case SavedOutgoing():
                self._packets += 1
                self._packet_in_order(record, where)
            case SavedCompletion():
                self._completions += 1
                self._queue_has_begun = True
            case StreamEnd():
                if (record.packets, record.completions) != (self._packets, self._completions):
                    raise StreamError(
                        NtStatus.DATA_ERROR,
                        f"the stream ends with {record.packets} packets and {record.completions} "
                        f"completions, but holds {self._packets} and {self._completions}",
                    )
                self._ended = True
            case _:
                assert_never(record)
        head = self._head
        assert head is not None
        too_many = self._packets > head.packets or self._completions > head.completions
        if too_many or (
            self._ended and (self._packets, self._completions) != (head.packets, head.completions)
        ):
            raise StreamError(
                NtStatus.DATA_ERROR,
                f"{where}: {self._packets} packets and {self._completions} completions have come; "
                f"the first chunk counts {head.packets} and {head.completions}",
            )

    def _packet_in_order(self, record: SavedOutgoing, where: str) -> None:
        assert self._head is not None
        place, _, size = peek_packet_record(record.lib_buffer)
        if place != SavedPlace.IN_RING:
            self._queue_has_begun = True
        elif self._queue_has_begun:
            raise StreamError(
                NtStatus.DATA_ERROR,
                f"{where} has a packet in the ring behind those that are queued",
            )
        if size > self._head.largest_payload:
            raise StreamError(
                NtStatus.DATA_ERROR,
                f"{where} has a packet of {size} bytes; the largest should have "
                f"{self._head.largest_payload}",
            )


def _decode_body(kind: int, body: bytes, where: str) -> Record:
    # The checksum was right: what fails here was written wrongly, by whomever.
    try:
        match kind:
            case ChunkKind.CHANNEL:
                return _decode_channel(body)
            case ChunkKind.PACKET:
                lib, save = _PACKET.unpack_from(body)
                rest = body[_PACKET.size :]
                if lib + save != len(rest):
                    raise ValueError("sizes do not add up")
                return SavedOutgoing(rest[:lib], rest[lib:])
            case ChunkKind.COMPLETION:
                (transaction_id,) = _COMPLETION.unpack_from(body)
                return SavedCompletion(transaction_id, body[_COMPLETION.size :])
            case ChunkKind.END:
                return StreamEnd(*_END.unpack(body))
    except (struct.error, ValueError) as error:
        raise StreamError(NtStatus.DATA_ERROR, f"{where} cannot be read: {error}") from error
    raise StreamError(NtStatus.DATA_ERROR, f"{where} is of an unknown kind, {kind}")


def _decode_channel(body: bytes) -> SavedChannel:
    interface, instance, flags, index, packets, completions, largest, next_id, count = (
        _CHANNEL.unpack_from(body)
    )
    if flags & ~int(ChannelSaveFlags.OPEN) or not next_id:
        raise ValueError("unknown flags or no next transaction id")
    offset = _CHANNEL.size
    faults: list[ChannelFault] = []
    for _ in range(count):
        kind, size = _FAULT.unpack_from(body, offset)
        offset += _FAULT.size
        if size > len(body) - offset:
            raise ValueError("a fault's text is cut off")
        faults.append(ChannelFault(FaultKind(kind), body[offset : offset + size].decode()))
        offset += size
    if offset != len(body):
        raise ValueError("surplus bytes")
    return SavedChannel(
        uuid.UUID(bytes=interface),
        uuid.UUID(bytes=instance),
        index,
        bool(flags & ChannelSaveFlags.OPEN),
        packets,
        completions,
        largest,
        next_id,
        tuple(faults),
    )


@dataclass(frozen=True, slots=True)
class DecodedStream:
    """A whole stream, for people: :func:`decode_stream`."""

    channel: SavedChannel
    in_ring: tuple[tuple[PacketRecord, bytes], ...]
    """Packets awaiting their completion, each with its SaveBuf."""
    queue: tuple[tuple[PacketRecord, bytes] | SavedCompletion, ...]
    """Packets (with SaveBuf) and completions in the order in which they will be sent."""


def decode_stream(pieces: Iterable[bytes]) -> DecodedStream:
    """Decode a whole stream, however it was cut into buffers; raises :class:`StreamError`."""
    reader = StreamReader()
    channel: SavedChannel | None = None
    in_ring: list[tuple[PacketRecord, bytes]] = []
    queue: list[tuple[PacketRecord, bytes] | SavedCompletion] = []
    for piece in pieces:
        for record in reader.feed(piece):
            match record:
                case SavedChannel():
                    channel = record
                case SavedOutgoing():
                    packet = decode_packet_record(record.lib_buffer)
                    place = in_ring if packet.place is SavedPlace.IN_RING else queue
                    place.append((packet, record.save_buffer))
                case SavedCompletion():
                    queue.append(record)
                case StreamEnd():
                    pass
                case _:
                    assert_never(record)
    if channel is None or not reader.ended:
        raise StreamError(NtStatus.DATA_ERROR, "the stream ends before its last chunk")
    return DecodedStream(channel, tuple(in_ring), tuple(queue))
