# SPDX-License-Identifier: MIT
"""The packet codec: golden bytes, sizes, and input that is not a packet at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.wire.packet import (
    GpaRange,
    MalformedPacket,
    Packet,
    PacketFlags,
    PacketRule,
    PacketType,
    TransferPageRange,
    TransferPages,
    decode_body,
    decode_descriptor,
    encode_packet,
    encode_trailer,
    header_size,
    packet_size,
    spanned_pages,
)

RANGES = (GpaRange(0x1800, 0x900, (0x12345, 0xFFFFFFFFFF, 7)), GpaRange(1, 0, (9,)))
TRANSFER = TransferPages(0x1234, (TransferPageRange(0x100, 0x2000), TransferPageRange(8, 0)), True)

GOLDEN: list[tuple[Packet, str]] = [
    (
        Packet(
            PacketType.IN_BAND, PacketFlags.COMPLETION_REQUESTED, 0x1122334455667788, b"8 bytes!"
        ),
        "0600 0200 0300 0100 8877665544332211 3820627974657321",
    ),
    (
        Packet(PacketType.COMPLETION, PacketFlags.NONE, 1, b""),
        "0b00 0200 0200 0000 0100000000000000",
    ),
    (
        Packet(PacketType.CANCEL, PacketFlags.NONE, 2, b""),
        "0a00 0200 0200 0000 0200000000000000",
    ),
    (
        Packet(PacketType.GPA_DIRECT, PacketFlags.COMPLETION_REQUESTED, 3, b"payload.", RANGES),
        "0900 0900 0a00 0100 0300000000000000"
        "00000000 02000000"
        "00180000 00090000 4523010000000000 ffffffffff000000 0700000000000000"
        "01000000 00000000 0900000000000000"
        "7061796c6f61642e",
    ),
    (
        Packet(PacketType.TRANSFER_PAGES, PacketFlags.NONE, 4, b"payload.", transfer=TRANSFER),
        "0700 0500 0600 0000 0400000000000000"
        "3412 01 00 02000000 00010000 00200000 08000000 00000000"
        "7061796c6f61642e",
    ),
]


@pytest.mark.parametrize(("packet", "golden"), GOLDEN)
def test_golden_bytes(packet: Packet, golden: str) -> None:
    data = bytes.fromhex(golden)
    encoded = encode_packet(
        packet.type,
        packet.transaction_id,
        packet.payload,
        flags=packet.flags,
        ranges=packet.ranges,
        transfer=packet.transfer,
    )
    assert encoded == data
    descriptor = decode_descriptor(data[:16], len(data) + 8)
    assert decode_body(descriptor, data[16:]) == packet
    count = len(packet.transfer.ranges) if packet.transfer else 0
    assert descriptor.data_offset == header_size(ranges=packet.ranges, transfer_ranges=count)
    assert packet_size(len(packet.payload), descriptor.data_offset) == len(data) + 8


def test_every_type_has_golden_bytes() -> None:
    assert {packet.type for packet, _ in GOLDEN} == set(PacketType)


@pytest.mark.parametrize(("length", "padded"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16)])
def test_payloads_are_padded_with_zeroes(length: int, padded: int) -> None:
    data = encode_packet(PacketType.IN_BAND, 1, b"\xff" * length)
    assert data[16:] == b"\xff" * length + bytes(padded - length)
    assert packet_size(length) == 16 + padded + 8


def test_trailer() -> None:
    assert encode_trailer(0x1238) == bytes.fromhex("00000000 38120000")


@pytest.mark.parametrize(
    ("offset", "length", "pages"),
    [
        (0, 1, 1),
        (0, 4096, 1),
        (0, 4097, 2),
        (4095, 1, 1),
        (4095, 2, 2),
        (4095, 4097, 2),
        (1, 8191, 2),
    ],
)
def test_spanned_pages(offset: int, length: int, pages: int) -> None:
    assert spanned_pages(offset, length) == pages


@pytest.mark.parametrize(
    "gpa_range",
    [
        GpaRange(0, 0, ()),
        GpaRange(1, 4096, (1,)),
        GpaRange(4097, 0, (1,)),
        GpaRange(4096, 0, (1, 2)),
    ],
)
def test_encode_refuses_gpa_ranges_that_contradict_themselves(gpa_range: GpaRange) -> None:
    with pytest.raises(ValueError, match="GPA range"):
        encode_packet(PacketType.GPA_DIRECT, 1, b"", ranges=(gpa_range,))


def test_encode_refuses_what_length8_cannot_say() -> None:
    assert len(encode_packet(PacketType.IN_BAND, 1, bytes(0xFFFF * 8 - 16))) == 0xFFFF * 8
    with pytest.raises(ValueError, match="length8"):
        encode_packet(PacketType.IN_BAND, 1, bytes(0xFFFF * 8 - 15))


def test_an_error_names_the_values_and_the_rule() -> None:
    with pytest.raises(
        MalformedPacket, match="data_offset8 9, length8 3; the rule: data_offset8"
    ) as e:
        decode_descriptor(bytes.fromhex("0600 0900 0300 0000 0100000000000000"), 4096)
    assert e.value.rule is PacketRule.DATA_OFFSET_HIGH


@given(
    number=st.sampled_from([6, 7, 9, 10, 11]) | st.integers(0, 0xFFFF),
    offset8=st.integers(0, 12) | st.integers(0, 0xFFFF),
    length8=st.integers(0, 24) | st.integers(0, 0xFFFF),
    flags=st.sampled_from([0, 1]) | st.integers(0, 0xFFFF),
    count=st.integers(0, 4) | st.integers(0, 2**32 - 1),
    words=st.lists(
        st.integers(0, 3) | st.integers(0, 8192) | st.integers(0, 2**64 - 1), max_size=22
    ),
)
def test_anything_either_decodes_to_sane_values_or_is_malformed(
    number: int, offset8: int, length8: int, flags: int, count: int, words: list[int]
) -> None:
    words = [count << 32, *words]
    data = b"".join(
        (
            number.to_bytes(2, "little"),
            offset8.to_bytes(2, "little"),
            length8.to_bytes(2, "little"),
            flags.to_bytes(2, "little"),
            bytes(8),
            *(word.to_bytes(8, "little") for word in words),
        )
    )
    try:
        descriptor = decode_descriptor(data[:16], len(data))
        packet = decode_body(descriptor, data[16 : descriptor.length])
    except MalformedPacket:
        return
    assert len(packet.payload) == (length8 - offset8) * 8
    assert (packet.type is PacketType.GPA_DIRECT) == bool(packet.ranges)
    assert (packet.type is PacketType.TRANSFER_PAGES) == (packet.transfer is not None)
    for gpa_range in packet.ranges:
        assert gpa_range.length > 0
        assert gpa_range.offset < 4096
        assert len(gpa_range.pfns) == -(-(gpa_range.offset + gpa_range.length) // 4096)
    assert header_size(ranges=packet.ranges) <= offset8 * 8
