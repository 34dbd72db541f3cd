# SPDX-License-Identifier: MIT
"""VSTOR packets: the protocol of the synthetic SCSI controller, layouts and constants only.

Sources: Linux ``drivers/scsi/storvsc_drv.c`` (struct vstor_packet, vmscsi_request,
vmstorage_channel_properties, vmstorage_protocol_version) and the tables that the tests hold this
file against. All integers are little-endian; sizes are bytes. A packet is 12 bytes of header and a
body, of 36 bytes before Windows 8 and of 52 from it on; the host answers in the size it was asked
in, at most :data:`PACKET_SIZE`.
"""

from __future__ import annotations

import struct
import uuid
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

SCSI_INTERFACE: Final = uuid.UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
IDE_INTERFACE: Final = uuid.UUID("32412632-86cb-44a2-9b5c-50d1417354f5")

HEADER_SIZE: Final = 12
LEGACY_BODY: Final = 36
"""Bytes of the body before Windows 8 (the SRB without ``vmscsi_win8_extension``)."""
BODY: Final = 52
PACKET_SIZE: Final = HEADER_SIZE + BODY
CDB_SIZE: Final = 16
SENSE_SIZE: Final = 20
"""Bytes of sense data there is room for, in place of the CDB."""
MAX_TRANSFER: Final = 0x40000
"""``max_transfer_bytes`` of the properties: what Hyper-V says, too."""
MAX_LUNS: Final = 64

_HEADER = struct.Struct("<III")
_SRB = struct.Struct("<HBBBBBBBBBBI20s")
_PROPERTIES = struct.Struct("<IHHIIQ")
_IDE_OFFER = struct.Struct("<HBBII12s")
_IDE_FLAGS: Final = 0x2


class MalformedVstor(Exception):
    """A packet is too short for what it says it is; the guest is to blame."""


class Operation(IntEnum):
    """``enum vstor_packet_operation``."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13
    EVENT_NOTIFICATION = 14


class StorVersion(IntEnum):
    """Protocol versions: major in the high byte, minor in the low one."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    WIN8_1 = 0x0600
    WIN10 = 0x0602

    def __str__(self) -> str:
        return f"{self >> 8}.{self & 0xFF}"


class PropertiesFlags(IntFlag):
    """Flags of the channel properties."""

    MULTI_CHANNEL = 0x1


class VstorStatus(IntEnum):
    """NTSTATUS values of the header's status field, as far as this protocol uses them."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x8000_0005
    DEVICE_BUSY = 0x8000_0011
    UNSUCCESSFUL = 0xC000_0001
    INVALID_PARAMETER = 0xC000_000D
    INVALID_DEVICE_REQUEST = 0xC000_0010
    REVISION_MISMATCH = 0xC000_0059
    DEVICE_NOT_CONNECTED = 0xC000_009D
    IO_TIMEOUT = 0xC000_00B5
    DEVICE_DOES_NOT_EXIST = 0xC000_00C0
    CANCELLED = 0xC000_0120
    INVALID_DEVICE_STATE = 0xC000_0184
    IO_DEVICE_ERROR = 0xC000_0185


class SrbStatus(IntEnum):
    """SRB status, the 6 bits that tell what became of the request (Windows ``srb.h``)."""

    PENDING = 0x00
    SUCCESS = 0x01
    ABORTED = 0x02
    ERROR = 0x04
    BUSY = 0x05
    INVALID_REQUEST = 0x06
    INVALID_PATH_ID = 0x07
    NO_DEVICE = 0x08
    TIMEOUT = 0x09
    SELECTION_TIMEOUT = 0x0A
    COMMAND_TIMEOUT = 0x0B
    BUS_RESET = 0x0E
    NO_HBA = 0x11
    DATA_OVERRUN = 0x12
    BAD_SRB_BLOCK_LENGTH = 0x15
    REQUEST_FLUSHED = 0x16
    INVALID_LUN = 0x20
    INVALID_TARGET_ID = 0x21
    BAD_FUNCTION = 0x22


AUTOSENSE_VALID: Final = 0x80
"""Beside a :class:`SrbStatus`: the payload has sense data."""
QUEUE_FROZEN: Final = 0x40

_NT_OF_SRB: Final = {
    SrbStatus.BUSY: VstorStatus.DEVICE_BUSY,
    SrbStatus.SUCCESS: VstorStatus.SUCCESS,
    SrbStatus.INVALID_LUN: VstorStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.INVALID_TARGET_ID: VstorStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_DEVICE: VstorStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_HBA: VstorStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.TIMEOUT: VstorStatus.IO_TIMEOUT,
    SrbStatus.COMMAND_TIMEOUT: VstorStatus.IO_TIMEOUT,
    SrbStatus.SELECTION_TIMEOUT: VstorStatus.DEVICE_NOT_CONNECTED,
    SrbStatus.BAD_FUNCTION: VstorStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.BAD_SRB_BLOCK_LENGTH: VstorStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.DATA_OVERRUN: VstorStatus.BUFFER_OVERFLOW,
    SrbStatus.REQUEST_FLUSHED: VstorStatus.UNSUCCESSFUL,
    SrbStatus.ABORTED: VstorStatus.CANCELLED,
}


def nt_status(srb_status: SrbStatus) -> VstorStatus:
    """Return what the header says of a request that ended so."""
    return _NT_OF_SRB.get(srb_status, VstorStatus.IO_DEVICE_ERROR)


class DataIn(IntEnum):
    """The direction of the data: ``enum vmscsi_request_type``. More than a flag."""

    WRITE = 0
    READ = 1
    NONE = 2


class Header(NamedTuple):
    """The 12 bytes before every body."""

    operation: int
    flags: int
    status: int

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Decode; raises :class:`MalformedVstor`."""
        if len(payload) < HEADER_SIZE:
            raise MalformedVstor(f"a packet of {len(payload)} bytes has no VSTOR header")
        return cls(*_HEADER.unpack_from(payload))

    def pack(self) -> bytes:
        """Encode 12 bytes."""
        return _HEADER.pack(*self)


class ScsiRequest(NamedTuple):
    """The first 36 bytes of an SRB's body; the rest, from Windows 8 on, only advises."""

    length: int
    srb_status: int
    scsi_status: int
    reserved: int
    path_id: int
    target_id: int
    lun: int
    cdb_length: int
    sense_length: int
    data_in: int
    properties: int
    transfer_length: int
    payload: bytes
    """The CDB on the way to the host, sense data on the way back; 20 bytes."""

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Decode what follows the header of a packet; raises :class:`MalformedVstor`."""
        if len(payload) < HEADER_SIZE + _SRB.size:
            raise MalformedVstor(f"a packet of {len(payload)} bytes has no SCSI request")
        return cls(*_SRB.unpack_from(payload, HEADER_SIZE))

    def pack(self) -> bytes:
        """Encode 36 bytes."""
        return _SRB.pack(*self)

    @property
    def cdb(self) -> bytes:
        """The command, 1 to 16 bytes; a guest that names more has its 16 all the same."""
        return self.payload[: min(self.cdb_length, CDB_SIZE)]


def properties(*, sub_channels: int, flags: PropertiesFlags) -> bytes:
    """Encode the answer to QUERY_PROPERTIES, 24 bytes."""
    return _PROPERTIES.pack(0, sub_channels, 0, flags, MAX_TRANSFER, 0)


def answer(request: bytes, status: int, body: bytes | None = None) -> bytes:
    """Return the completion of ``request``: its size, its flags, its body or another."""
    size = min(len(request), PACKET_SIZE)
    head = _HEADER.pack(Operation.COMPLETE_IO, Header.parse(request).flags, status)
    if body is None:
        return head + request[HEADER_SIZE:size]
    return (head + body).ljust(size, b"\0")


def srb_answer(
    request: bytes,
    srb: ScsiRequest,
    srb_status: SrbStatus,
    scsi_status: int,
    transferred: int,
    sense: bytes = b"",
) -> bytes:
    """Return the completion of an EXECUTE_SRB; ``sense`` beyond 20 bytes is cut."""
    sense = sense[: min(SENSE_SIZE, srb.sense_length or SENSE_SIZE)]
    payload = sense.ljust(SENSE_SIZE, b"\0") if sense else srb.payload
    done = srb._replace(
        srb_status=srb_status | (AUTOSENSE_VALID if sense else 0),
        scsi_status=scsi_status,
        sense_length=len(sense),
        transfer_length=transferred,
        payload=payload,
    )
    end = HEADER_SIZE + _SRB.size
    head = _HEADER.pack(Operation.COMPLETE_IO, Header.parse(request).flags, nt_status(srb_status))
    return head + done.pack() + request[end : min(len(request), PACKET_SIZE)]


def notice(operation: Operation) -> bytes:
    """Encode what the host says unasked: ENUMERATE_BUS, REMOVE_DEVICE."""
    return _HEADER.pack(operation, 0, 0) + bytes(BODY)


def ide_offer(channel: int, device: int) -> bytes:
    """Encode the offer data of an IDE accelerator: ``channel`` and ``device`` are 0 or 1."""
    return _IDE_OFFER.pack(0, channel, device, 0, _IDE_FLAGS, bytes(12))


def ide_instance(channel: int, device: int) -> uuid.UUID:
    """Return the instance GUID by which a guest knows the IDE disk that the channel is for."""
    return uuid.UUID(fields=(channel, device, 0x8899, 0, 0, 0))
