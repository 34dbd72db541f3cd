# SPDX-License-Identifier: MIT
"""Golden bytes of every form of every channel message, typed from the tables of the protocol."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.wire import messages as m
from emulator.wire.guid import guid_from_wire, guid_to_wire
from emulator.wire.version import FeatureFlags, Version

A = UUID("00112233-4455-6677-8899-aabbccddeeff")
B = UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
C = UUID("a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5")
WIRE_A = "33221100 5544 7766 8899 aabbccddeeff"
WIRE_B = "04030201 0605 0807 090a 0b0c0d0e0f10"
WIRE_C = "a3a2a1a0 b1b0 c1c0 d0d1 e0e1e2e3e4e5"
USER = bytes(range(120))

# form, whole message in hex (spaces separate fields), size of the body in the table.
GOLDEN: list[tuple[m.Message, str, int]] = [
    (
        m.OfferChannel(A, B, 0x2001, 0x0304, USER, 5, 6, 0x7FF, 0xFF, 0, 1, 0x27FF),
        f"01000000 00000000 {WIRE_A} {WIRE_B} {'00' * 16} 0120 0403 {USER.hex()} 0500 0600"
        " ff070000 ff 00 0100 ff270000",
        188,
    ),
    (m.RescindChannelOffer(0x7FF), "02000000 00000000 ff070000", 4),
    (m.RequestOffers(), "03000000 00000000", 0),
    (m.AllOffersDelivered(), "04000000 00000000", 0),
    (
        m.OpenChannel(9, 0x0A0B, 0xE1E10, 0xFFFFFFFF, 0x21, USER),
        f"05000000 00000000 09000000 0b0a0000 101e0e00 ffffffff 21000000 {USER.hex()}",
        140,
    ),
    (
        m.OpenChannel2(9, 0x0A0B, 0xE1E10, 3, 0x21, USER, 0x2009, 0x1234, 1),
        f"05000000 00000000 09000000 0b0a0000 101e0e00 03000000 21000000 {USER.hex()}"
        " 09200000 3412 0100",
        148,
    ),
    (m.OpenResult(9, 0x0A0B, 0x8000FFFF), "06000000 00000000 09000000 0b0a0000 ffff0080", 12),
    (m.CloseChannel(9), "07000000 00000000 09000000", 4),
    (
        m.GpadlHeader(9, 0xE1E10, 0x18, 1, bytes.fromhex("00200000 00000000")),
        "08000000 00000000 09000000 101e0e00 1800 0100 00200000 00000000",
        12,
    ),
    (
        m.GpadlBody(0xE1E10, bytes.fromhex("8877665544332211")),
        "09000000 00000000 00000000 101e0e00 8877665544332211",
        8,
    ),
    (m.GpadlCreated(9, 0xE1E10, 0), "0a000000 00000000 09000000 101e0e00 00000000", 12),
    (m.GpadlTeardown(9, 0xE1E10), "0b000000 00000000 09000000 101e0e00", 8),
    (m.GpadlTorndown(0xE1E10), "0c000000 00000000 101e0e00", 4),
    (m.RelIdReleased(9), "0d000000 00000000 09000000", 4),
    (
        m.InitiateContact(0x50003, 1, 0x0000_0000_0000_0002, 0x1000, 0x1_0000_2000),
        "0e000000 00000000 03000500 01000000 02 00 0000 00000000 0010000000000000 0020000001000000",
        32,
    ),
    (
        m.InitiateContact2(0x60000, 1, 0x0000_002B_0000_0002, 0x1000, 0x2000, C),
        "0e000000 00000000 00000600 01000000 02 00 0000 2b000000 0010000000000000 0020000000000000"
        f" {WIRE_C}",
        48,
    ),
    (m.VersionResponse(1, 0, 4), "0f000000 00000000 01 00 0000 04000000", 8),
    (m.VersionResponse2(1, 2, 4, 0x2B), "0f000000 00000000 01 02 0000 04000000 2b000000", 12),
    (
        m.VersionResponse3(1, 0, 4, 0x40, 0x1000, 0x2000),
        "0f000000 00000000 01 00 0000 04000000 40000000 00000000 0010000000000000 0020000000000000",
        32,
    ),
    (m.Unload(), "10000000 00000000", 0),
    (m.UnloadComplete(), "11000000 00000000", 0),
    (
        m.OpenReservedChannel(9, 1, 5, 0xE1E10, 0x21),
        "12000000 00000000 09000000 01000000 05000000 101e0e00 21000000",
        20,
    ),
    (m.CloseReservedChannel(9, 1, 5), "13000000 00000000 09000000 01000000 05000000", 12),
    (m.CloseReservedChannelResponse(9), "14000000 00000000 09000000", 4),
    (m.TlConnectRequest(A, B), f"15000000 00000000 {WIRE_A} {WIRE_B}", 32),
    (m.TlConnectRequest2(A, B, C), f"15000000 00000000 {WIRE_A} {WIRE_B} {WIRE_C}", 48),
    (m.ModifyChannel(9, 3), "16000000 00000000 09000000 03000000", 8),
    (
        m.TlConnectResult(A, B, m.MessageStatus.CONNECTION_REFUSED),
        f"17000000 00000000 {WIRE_A} {WIRE_B} 360200c0",
        36,
    ),
    (
        m.ModifyChannelResponse(9, m.MessageStatus.UNSUCCESSFUL),
        "18000000 00000000 09000000 ffff0080",
        8,
    ),
    (
        m.ModifyConnection(0x1000, 0x2000),
        "19000000 00000000 0010000000000000 0020000000000000",
        16,
    ),
    (m.ModifyConnectionResponse(1), "1a000000 00000000 01", 1),
    (m.Pause(), "1b000000 00000000", 0),
    (m.PauseResponse(), "1c000000 00000000", 0),
    (m.Resume(), "1d000000 00000000", 0),
]
FORMS = [pytest.param(*golden, id=type(golden[0]).__name__) for golden in GOLDEN]


@pytest.mark.parametrize(("message", "wire", "size"), FORMS)
def test_golden_bytes(message: m.Message, wire: str, size: int) -> None:
    expected = bytes.fromhex(wire)
    assert message.pack() == expected
    assert message.LAYOUT.size == size
    parse = m.parse_guest if message.FROM_GUEST else m.parse_host
    assert parse(expected) == message


def test_every_form_has_golden_bytes() -> None:
    assert [type(message) for message, _, _ in GOLDEN] == list(m.TABLE)
    assert {form.TYPE for form in m.TABLE} == set(range(1, 30))


@pytest.mark.parametrize(("message", "wire", "size"), FORMS)
def test_the_other_direction_is_malformed(message: m.Message, wire: str, size: int) -> None:
    parse = m.parse_host if message.FROM_GUEST else m.parse_guest
    with pytest.raises(m.MalformedMessage, match="direction"):
        parse(bytes.fromhex(wire))


@pytest.mark.parametrize(
    ("message", "wire", "size"), [form for form in FORMS if form.values[2] != 0]
)
def test_a_missing_byte_makes_the_shorter_form_or_is_malformed(
    message: m.Message, wire: str, size: int
) -> None:
    data = bytes.fromhex(wire)[: 8 + size - 1]
    parse = m.parse_guest if message.FROM_GUEST else m.parse_host
    shorter = [form for form in m.TABLE if form.TYPE == message.TYPE and form.LAYOUT.size < size]
    if shorter:
        assert type(parse(data)) is shorter[-1]
    else:
        with pytest.raises(m.MalformedMessage, match=rf"{size} bytes of body, not {size - 1}"):
            parse(data)


@pytest.mark.parametrize(("message", "wire", "size"), FORMS)
def test_surplus_bytes_are_tolerated(message: m.Message, wire: str, size: int) -> None:
    data = bytes.fromhex(wire)
    longer = [form.LAYOUT.size for form in m.TABLE if form.TYPE == message.TYPE]
    room = min([other for other in longer if other > size] or [232]) - size
    surplus = b"\xee" * min(room - 1, 232 - (len(data) - 8))
    parse = m.parse_guest if message.FROM_GUEST else m.parse_host
    parsed = parse(data + surplus)
    if hasattr(message, "tail"):
        assert parsed.pack() == data + surplus
    else:
        assert parsed == message


@pytest.mark.parametrize(
    ("message", "version", "form"),
    [
        (m.OpenChannel2(1, 2, 3, 4, 5, USER, 6, 7, 8), Version.IRON, m.OpenChannel),
        (m.OpenChannel2(1, 2, 3, 4, 5, USER, 6, 7, 8), Version.COPPER, m.OpenChannel2),
        (m.TlConnectRequest2(A, B, C), Version.WIN10_RS4, m.TlConnectRequest),
        (m.TlConnectRequest2(A, B, C), Version.WIN10_RS5, m.TlConnectRequest2),
        # A contact comes before there is a version, or ends the one there was.
        (m.InitiateContact2(0x60000, 0, 0, 0, 0, C), Version.IRON, m.InitiateContact2),
    ],
)
def test_the_version_chooses_the_form(
    message: m.Message, version: Version, form: type[m.Message]
) -> None:
    assert type(m.parse_guest(message.pack(), version)) is form


@pytest.mark.parametrize(
    ("features", "form"),
    [
        (FeatureFlags.NONE, m.OpenChannel),
        (FeatureFlags.PAUSE_RESUME | FeatureFlags.MODIFY_CONNECTION, m.OpenChannel),
        (FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS, m.OpenChannel2),
        (FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION, m.OpenChannel2),
    ],
)
def test_the_features_choose_the_form(features: FeatureFlags, form: type[m.Message]) -> None:
    data = m.OpenChannel2(1, 2, 3, 4, 5, USER, 6, 7, 8).pack()
    assert type(m.parse_guest(data, Version.COPPER, features)) is form


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes has no header"),
        (b"\x03\0\0\0\0\0\0", "7 bytes has no header"),
        (bytes(8), "type 0 is not"),
        (b"\x1e" + bytes(7), "type 30 is not"),
        (b"\xff" * 8, "type 4294967295 is not"),
        (b"\x03" + bytes(240), "241 bytes; at most 240"),
    ],
)
def test_what_is_no_message(data: bytes, text: str) -> None:
    with pytest.raises(m.MalformedMessage, match=text):
        m.parse_guest(data)


def test_the_padding_of_the_header_is_ignored() -> None:
    assert m.parse_guest(bytes.fromhex("03000000 efbeadde")) == m.RequestOffers()


@given(st.binary(max_size=260))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for parse in (m.parse_guest, m.parse_host):
        try:
            message = parse(data)
        except m.MalformedMessage:
            continue
        # What was understood packs to the same bytes, but for padding and surplus.
        assert parse(message.pack()) == message


@given(st.uuids())
def test_guids(guid: UUID) -> None:
    digits = re.sub("-", "", str(guid))
    by_hand = b"".join(
        bytes.fromhex(digits[start:end])[::-1] for start, end in ((0, 8), (8, 12), (12, 16))
    ) + bytes.fromhex(digits[16:])
    assert guid_to_wire(guid) == by_hand
    assert guid_from_wire(by_hand) == guid


def test_versions() -> None:
    assert [str(version) for version in Version] == (
        ["0.13", "1.1", "2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"]
    )
    assert sorted(Version) == list(Version)
