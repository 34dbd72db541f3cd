# SPDX-License-Identifier: MIT
"""The saved stream against docs/kmcl-state.md: built here by hand, byte for byte."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.conformance.rig import INSTANCE, INTERFACE
from emulator.kmcl import ChannelFault, FaultKind, StreamError, decode_stream
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
    decode_packet_record,
    encode_packet_record,
)
from emulator.wire.ntstatus import NtStatus

HEAD = SavedChannel(
    INTERFACE, INSTANCE, 3, True, 2, 1, 5, 0x77, (ChannelFault(FaultKind.PACKET_FAILED, "é"),)
)
IN_RING = PacketRecord(SavedPlace.IN_RING, True, 0x1122, b"")
QUEUED = PacketRecord(SavedPlace.QUEUED, False, 0, b"hello")


def chunk(kind: int, index: int, body: bytes, crc: int) -> bytes:
    head = struct.pack("<4sHHIIII", b"KMCS", 1, kind, 24 + len(body), index, 0, 0)
    crc = zlib.crc32(head + body, crc)
    return head[:16] + struct.pack("<I", crc) + head[20:] + body


def crc_of(data: bytes) -> int:
    return int.from_bytes(data[16:20], "little")


def lib(place: int, waits: int, transaction_id: int, payload: bytes, *, zero: int = 0) -> bytes:
    rest = struct.pack("<BBHIQ", place, waits, zero, len(payload), transaction_id) + payload
    return b"KMPK" + struct.pack("<I", zlib.crc32(b"KMPK" + bytes(4) + rest)) + rest


def by_hand() -> list[bytes]:
    fault = struct.pack("<II", 3, 2) + "é".encode()
    body = (
        INTERFACE.bytes + INSTANCE.bytes + struct.pack("<HHIIIQI", 1, 3, 2, 1, 5, 0x77, 1) + fault
    )
    chunks = [chunk(1, 0, body, 0)]
    for kind, body in (
        (2, struct.pack("<II", 24, 3) + lib(2, 1, 0x1122, b"") + b"vsp"),
        (2, struct.pack("<II", 29, 0) + lib(1, 0, 0, b"hello")),
        (3, struct.pack("<Q", 0x99) + b"completion"),
        (4, struct.pack("<II", 2, 1)),
    ):
        chunks.append(chunk(kind, len(chunks), body, crc_of(chunks[-1])))
    return chunks


def test_the_stream_is_what_the_document_says() -> None:
    writer = StreamWriter()
    records: list[Record] = [
        HEAD,
        SavedOutgoing(encode_packet_record(IN_RING), b"vsp"),
        SavedOutgoing(encode_packet_record(QUEUED), b""),
        SavedCompletion(0x99, b"completion"),
        StreamEnd(2, 1),
    ]
    assert [writer.encode(record) for record in records] == by_hand()


def test_a_stream_is_decoded_into_typed_values() -> None:
    stream = decode_stream(by_hand())
    assert stream.channel == HEAD
    assert stream.in_ring == ((IN_RING, b"vsp"),)
    assert stream.queue == ((QUEUED, b""), SavedCompletion(0x99, b"completion"))
    assert decode_stream([b"".join(by_hand())]) == stream


def test_a_stream_without_its_end_is_refused() -> None:
    with pytest.raises(StreamError, match="ends before"):
        decode_stream(by_hand()[:-1])
    with pytest.raises(StreamError, match="ends before"):
        decode_stream([])


HEAD_BODY = by_hand()[0][24:]
BODIES: dict[str, tuple[int, bytes]] = {
    "kind": (5, b""),
    "short head": (1, bytes(59)),
    "flags": (1, HEAD_BODY[:32] + b"\2" + HEAD_BODY[33:]),
    "no next id": (1, HEAD_BODY[:48] + bytes(8) + HEAD_BODY[56:]),
    "fault kind": (1, HEAD_BODY[:60] + b"\x09" + HEAD_BODY[61:]),
    "fault text": (1, HEAD_BODY[:64] + b"\xff\xff\xff\xff" + HEAD_BODY[68:]),
    "fault count": (1, HEAD_BODY[:56] + b"\xff\xff\xff\xff" + HEAD_BODY[60:]),
    "fault utf-8": (1, HEAD_BODY[:-1] + b"\xff"),
    "surplus": (1, HEAD_BODY + b"\0"),
}


@pytest.mark.parametrize(("kind", "body"), BODIES.values(), ids=BODIES)
def test_a_head_with_a_right_checksum_and_wrong_contents_is_refused(kind: int, body: bytes) -> None:
    with pytest.raises(StreamError) as caught:
        StreamReader().feed(chunk(kind, 0, body, 0))
    assert caught.value.status is NtStatus.DATA_ERROR


LATER: dict[str, tuple[int, bytes]] = {
    "second head": (1, HEAD_BODY),
    "sizes": (2, struct.pack("<II", 24, 4) + lib(2, 1, 1, b"") + b"vsp"),
    "huge sizes": (2, struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)),
    "short packet": (2, b"\0"),
    "short completion": (3, b"\0"),
    "end counts": (4, struct.pack("<II", 2, 1)),
    "end surplus": (4, struct.pack("<III", 0, 0, 0)),
}


@pytest.mark.parametrize(("kind", "body"), LATER.values(), ids=LATER)
def test_a_later_chunk_with_wrong_contents_is_refused(kind: int, body: bytes) -> None:
    reader = StreamReader()
    head = by_hand()[0]
    reader.feed(head)
    with pytest.raises(StreamError) as caught:
        reader.feed(chunk(kind, 1, body, crc_of(head)))
    assert caught.value.status is NtStatus.DATA_ERROR


@pytest.mark.parametrize(
    "data",
    [
        lib(3, 1, 1, b""),
        lib(1, 2, 1, b""),
        lib(1, 1, 0, b""),
        lib(1, 0, 1, b""),
        lib(2, 0, 0, b""),
        lib(2, 1, 1, b"", zero=1),
        lib(1, 1, 1, b"x")[:-1],
        lib(1, 1, 1, b"x") + b"y",
        b"",
    ],
)
def test_a_packet_record_that_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError) as caught:
        decode_packet_record(data)
    assert caught.value.status is NtStatus.INVALID_PARAMETER


@given(
    st.builds(
        PacketRecord,
        st.just(SavedPlace.QUEUED),
        st.just(True),
        st.integers(1, 0xFFFF_FFFF_FFFF_FFFF),
        st.binary(max_size=200),
    )
)
def test_packet_records_survive(record: PacketRecord) -> None:
    assert decode_packet_record(encode_packet_record(record)) == record


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_never_worse(data: bytes) -> None:
    with pytest.raises(StreamError):
        decode_stream([data])
    with pytest.raises(StreamError):
        decode_packet_record(data)


@pytest.mark.parametrize(
    ("status", "success"),
    [
        (NtStatus.SUCCESS, True),
        (NtStatus.PENDING, True),
        (NtStatus.BUFFER_OVERFLOW, False),
        (NtStatus.MORE_PROCESSING_REQUIRED, False),
        (NtStatus.UNSUCCESSFUL, False),
    ],
)
def test_nt_success(status: NtStatus, success: bool) -> None:
    assert status.is_success is success
