# SPDX-License-Identifier: MIT
"""VSTOR's layouts and numbers against the reference table, by dissect.cstruct and by hand."""

from __future__ import annotations

import struct
import uuid

import pytest
from dissect.cstruct import cstruct  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from emulator.devices.storage.protocol import (
    AUTOSENSE_VALID,
    HEADER_SIZE,
    PACKET_SIZE,
    Header,
    MalformedVstor,
    Operation,
    PropertiesFlags,
    ScsiRequest,
    SrbStatus,
    VstorStatus,
    answer,
    ide_instance,
    ide_offer,
    nt_status,
    properties,
    srb_answer,
)

LAYOUTS = cstruct().load("""
struct packet { uint32 operation; uint32 flags; uint32 status; };
struct request {
    uint16 length; uint8 srb_status; uint8 scsi_status; uint8 reserved1; uint8 path_id;
    uint8 target_id; uint8 lun; uint8 cdb_length; uint8 sense_info_ex_length; uint8 data_in;
    uint8 properties; uint32 data_transfer_length; uint8 payload[20];
    uint16 reserve; uint8 queue_tag; uint8 queue_action; uint32 srb_flags;
    uint32 time_out_value; uint32 queue_sort_key;
};
struct channel_properties {
    uint32 reserved; uint16 maximum_sub_channel_count; uint16 reserved2; uint32 flags;
    uint32 max_transfer_bytes; uint64 reserved3;
};
struct ide { uint16 reserved; uint8 path_id; uint8 target_id; uint32 reserved2; uint32 flags;
             uint8 reserved3[12]; };
""")

PACKETS = st.binary(min_size=48, max_size=72)


def test_sizes_are_those_of_the_table() -> None:
    assert len(LAYOUTS.packet) == HEADER_SIZE == 12
    assert len(LAYOUTS.request) == PACKET_SIZE - HEADER_SIZE == 52
    assert len(LAYOUTS.channel_properties) == len(
        properties(sub_channels=1, flags=PropertiesFlags.MULTI_CHANNEL)
    )


@given(PACKETS)
def test_a_request_is_read_as_the_table_has_it(packet: bytes) -> None:
    srb = ScsiRequest.parse(packet)
    theirs = LAYOUTS.request(packet[12:].ljust(52, b"\0"))
    assert tuple(srb) == (
        *(theirs.length, theirs.srb_status, theirs.scsi_status, theirs.reserved1),
        *(theirs.path_id, theirs.target_id, theirs.lun, theirs.cdb_length),
        *(theirs.sense_info_ex_length, theirs.data_in, theirs.properties),
        *(theirs.data_transfer_length, bytes(theirs.payload)),
    )
    assert srb.cdb == packet[28:44][: srb.cdb_length]
    assert srb.pack() == packet[12:48]


@given(st.binary(max_size=47))
def test_a_packet_that_is_too_short_is_malformed(packet: bytes) -> None:
    with pytest.raises(MalformedVstor):
        ScsiRequest.parse(packet)
    if len(packet) < 12:
        with pytest.raises(MalformedVstor):
            Header.parse(packet)


@given(PACKETS, st.sampled_from(SrbStatus), st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_an_answer_has_the_size_of_its_request(
    packet: bytes, status: SrbStatus, scsi: int, moved: int
) -> None:
    srb = ScsiRequest.parse(packet)
    for sense in (b"", bytes(range(18)), bytes(range(30))):
        reply = srb_answer(packet, srb, status, scsi, moved, sense)
        assert len(reply) == min(len(packet), 64)
        head = LAYOUTS.packet(reply)
        assert (head.operation, head.flags, head.status) == (
            Operation.COMPLETE_IO,
            struct.unpack_from("<I", packet, 4)[0],
            nt_status(status),
        )
        said = ScsiRequest.parse(reply)
        assert said.srb_status == status | (AUTOSENSE_VALID if sense else 0)
        assert (said.scsi_status, said.transfer_length) == (scsi, moved)
        assert said.sense_length <= 20
        assert said.payload[: said.sense_length] == sense[: said.sense_length]
        assert reply[48:] == packet[48:64]


@given(st.binary(min_size=12, max_size=80), st.sampled_from(VstorStatus))
def test_a_plain_answer_echoes_the_body(packet: bytes, status: VstorStatus) -> None:
    reply = answer(packet, status)
    assert reply == struct.pack("<I", 1) + packet[4:8] + struct.pack("<I", status) + packet[12:64]


def test_properties_are_laid_out_as_the_table_has_them() -> None:
    theirs = LAYOUTS.channel_properties(
        properties(sub_channels=7, flags=PropertiesFlags.MULTI_CHANNEL)
    )
    assert (theirs.maximum_sub_channel_count, theirs.flags) == (7, 1)
    assert theirs.max_transfer_bytes == 0x40000


def test_an_ide_accelerator_says_which_disk_it_is_for() -> None:
    theirs = LAYOUTS.ide(ide_offer(1, 0))
    assert (theirs.path_id, theirs.target_id, theirs.flags) == (1, 0, 2)
    assert ide_instance(1, 0) == uuid.UUID("00000001-0000-8899-0000-000000000000")


@pytest.mark.parametrize(
    ("srb", "nt"),
    [
        (0x05, 0x80000011),
        (0x01, 0),
        (0x20, 0xC00000C0),
        (0x21, 0xC00000C0),
        (0x08, 0xC00000C0),
        (0x11, 0xC00000C0),
        (0x09, 0xC00000B5),
        (0x0B, 0xC00000B5),
        (0x0A, 0xC000009D),
        (0x22, 0xC0000010),
        (0x15, 0xC0000010),
        (0x12, 0x80000005),
        (0x16, 0xC0000001),
        (0x02, 0xC0000120),
        (0x04, 0xC0000185),
        (0x06, 0xC0000185),
    ],
)
def test_srb_statuses_become_nt_statuses(srb: int, nt: int) -> None:
    assert nt_status(SrbStatus(srb)) == nt
