# SPDX-License-Identifier: MIT
"""The probe's layouts and ledgers against docs/probe.md."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.devices.probe.ledger import GuestLedger, HostLedger, compare
from emulator.devices.probe.protocol import (
    GUEST_SALT,
    Header,
    MalformedProbe,
    Role,
    mix,
    offer_data,
    pattern,
    write_back,
)


def test_the_offers_user_defined_bytes() -> None:
    assert offer_data(Role.CONTROL, 7) == b"VPRB" + bytes.fromhex("0100 0200 07000000")


def test_a_header_is_32_bytes_as_specified() -> None:
    header = Header(type=1, seq=0x0102, flags=1, body_size=5, body_crc=0xAABBCCDD, arg=9)
    assert header.pack() == (
        b"PRB1" + bytes.fromhex("0100 0100 0201000000000000 05000000 ddccbbaa 0900000000000000")
    )


@given(
    st.builds(
        Header,
        type=st.integers(0, 0xFFFF),
        seq=st.integers(0, 2**64 - 1),
        flags=st.integers(0, 1),
        body_size=st.integers(0, 65536),
        body_crc=st.integers(0, 2**32 - 1),
        arg=st.integers(0, 2**64 - 1),
    ),
    st.binary(max_size=16),
)
def test_headers_round_trip_whatever_follows(header: Header, rest: bytes) -> None:
    assert Header.parse(header.pack() + rest) == header


@given(st.binary(max_size=80))
def test_any_bytes_parse_or_are_malformed(data: bytes) -> None:
    try:
        assert Header.parse(data).pack() == data[:24] + data[24:32]
    except MalformedProbe:
        return


@given(st.integers(1, 2**64 - 1), st.integers(0, 3000), st.sampled_from([0x11, 0x22]))
def test_the_pattern_is_the_documented_formula(seq: int, size: int, salt: int) -> None:
    assert pattern(seq, size, salt) == bytes((seq * 167 + i * 13 + salt) % 256 for i in range(size))


def test_write_back_is_its_own_inverse() -> None:
    body = pattern(5, 700, GUEST_SALT)
    assert write_back(body)[0] == body[0] ^ 0xA5
    assert write_back(write_back(body)) == body


def test_mix_is_splitmix64() -> None:
    # First outputs of splitmix64 seeded with 0, as published with the generator.
    golden = 0x9E3779B97F4A7C15
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(golden) == 0x6E789E6AA1B965F4


def model(requests: int, packets: int) -> tuple[HostLedger, GuestLedger]:
    """Two ledgers of a conversation without a fault."""
    host = HostLedger()
    words = dict.fromkeys(GuestLedger.__slots__, 0)
    words["version"] = 1
    for seq in range(1, requests + 1):
        gpa = seq % 3 == 0
        host.request_received(seq, gpa_direct=gpa)
        host.request_answered(seq)
        words["sent_gpa_direct" if gpa else "sent_in_band"] += 1
        words["sent_digest"] = words["sent_digest"] + mix(seq) & 2**64 - 1
        words["answers"] += 1
        words["answered_digest"] = words["sent_digest"]
    for number in range(packets):
        wants = number % 3 != 2
        seq = host.sent(wants_answer=wants)
        words["host_requests" if wants else "host_notifies"] += 1
        words["host_digest"] = words["host_digest"] + mix(seq) & 2**64 - 1
        words["last_seq"] = seq
        if wants:
            host.completed(seq)
            words["host_answered"] += 1
            words["host_answered_digest"] = words["host_answered_digest"] + mix(seq) & 2**64 - 1
    packed = struct.pack("<20Q", *words.values())
    return host, GuestLedger.parse(packed)


@given(st.integers(0, 50), st.integers(0, 50))
def test_ledgers_of_a_good_conversation_agree(requests: int, packets: int) -> None:
    assert list(compare(*model(requests, packets))) == []


@pytest.mark.parametrize("name", [name for name in GuestLedger.__slots__ if name != "version"])
def test_every_word_of_the_guests_ledger_matters(name: str) -> None:
    host, guest = model(10, 10)
    wrong = replace(guest, **{name: getattr(guest, name) + 1})
    assert list(compare(host, wrong)) != []


@pytest.mark.parametrize(
    "name",
    [name for name in HostLedger.__struct_fields__ if name != "next_request"],
)
def test_every_word_of_the_hosts_ledger_matters(name: str) -> None:
    host, guest = model(10, 10)
    setattr(host, name, getattr(host, name) + 1)
    assert list(compare(host, guest)) != []


def test_a_doubled_and_a_lost_request_are_told_apart() -> None:
    host = HostLedger()
    for seq in (1, 2, 2, 5):
        host.request_received(seq, gpa_direct=False)
    assert (host.requests_twice, host.requests_lost) == (1, 2)


def test_one_twice_and_another_not_at_all_shows_in_the_digest() -> None:
    host, guest = model(10, 0)
    host.answered_digest = host.answered_digest - mix(3) + mix(4) & 2**64 - 1
    assert any("digest" in line for line in compare(host, guest))
