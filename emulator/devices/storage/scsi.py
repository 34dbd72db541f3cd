# SPDX-License-Identifier: MIT
"""SCSI's numbers: operation codes, statuses, and sense data with the reasons there are for it.

Sources: SPC-4, SBC-3 and MMC-6 (T10); the names are theirs.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, NamedTuple

BLOCK: Final = 512
"""Bytes of a disk's logical block."""
DVD_BLOCK: Final = 2048
"""Bytes of a DVD's logical block."""


class Op(IntEnum):
    """Operation codes (the first byte of a CDB)."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS_NOTIFICATION = 0x4A
    READ_DISC_INFORMATION = 0x51
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    WRITE_16 = 0x8A
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    READ_DVD_STRUCTURE = 0xAD
    VERIFY_12 = 0xAF
    MECHANISM_STATUS = 0xBD


class ScsiStatus(IntEnum):
    """Status codes (SAM-5 section 5.3)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18


class Key(IntEnum):
    """Sense keys."""

    NO_SENSE = 0
    NOT_READY = 2
    MEDIUM_ERROR = 3
    HARDWARE_ERROR = 4
    ILLEGAL_REQUEST = 5
    UNIT_ATTENTION = 6
    DATA_PROTECT = 7
    ABORTED_COMMAND = 11
    MISCOMPARE = 14


class Sense(Enum):
    """Why a command failed: key, additional sense code, its qualifier."""

    NONE = (Key.NO_SENSE, 0x00, 0x00)
    MEDIUM_NOT_PRESENT = (Key.NOT_READY, 0x3A, 0x00)
    STOPPED = (Key.NOT_READY, 0x04, 0x02)
    READ_ERROR = (Key.MEDIUM_ERROR, 0x11, 0x00)
    WRITE_ERROR = (Key.MEDIUM_ERROR, 0x0C, 0x00)
    SPACE_EXHAUSTED = (Key.DATA_PROTECT, 0x27, 0x07)
    TARGET_FAILURE = (Key.HARDWARE_ERROR, 0x44, 0x00)
    INVALID_OPCODE = (Key.ILLEGAL_REQUEST, 0x20, 0x00)
    OUT_OF_RANGE = (Key.ILLEGAL_REQUEST, 0x21, 0x00)
    INVALID_FIELD = (Key.ILLEGAL_REQUEST, 0x24, 0x00)
    NOT_SUPPORTED_LUN = (Key.ILLEGAL_REQUEST, 0x25, 0x00)
    INVALID_PARAMETERS = (Key.ILLEGAL_REQUEST, 0x26, 0x00)
    INVALID_RELEASE = (Key.ILLEGAL_REQUEST, 0x26, 0x04)
    PARAMETER_LENGTH = (Key.ILLEGAL_REQUEST, 0x1A, 0x00)
    SAVING_NOT_SUPPORTED = (Key.ILLEGAL_REQUEST, 0x39, 0x00)
    REMOVAL_PREVENTED = (Key.ILLEGAL_REQUEST, 0x53, 0x02)
    NO_REGISTRATION_ROOM = (Key.ILLEGAL_REQUEST, 0x55, 0x04)
    MISCOMPARE = (Key.MISCOMPARE, 0x1D, 0x00)
    WRITE_PROTECTED = (Key.DATA_PROTECT, 0x27, 0x00)
    POWER_ON = (Key.UNIT_ATTENTION, 0x29, 0x00)
    DEVICE_RESET = (Key.UNIT_ATTENTION, 0x29, 0x03)
    MEDIUM_CHANGED = (Key.UNIT_ATTENTION, 0x28, 0x00)
    CAPACITY_CHANGED = (Key.UNIT_ATTENTION, 0x2A, 0x09)
    MODE_CHANGED = (Key.UNIT_ATTENTION, 0x2A, 0x01)
    RESERVATIONS_PREEMPTED = (Key.UNIT_ATTENTION, 0x2A, 0x03)
    RESERVATIONS_RELEASED = (Key.UNIT_ATTENTION, 0x2A, 0x04)
    REGISTRATIONS_PREEMPTED = (Key.UNIT_ATTENTION, 0x2A, 0x05)
    LUNS_CHANGED = (Key.UNIT_ATTENTION, 0x3F, 0x0E)

    def fixed(self) -> bytes:
        """Return fixed-format sense data, 18 bytes (SPC-4 section 4.5.3)."""
        key, asc, ascq = self.value
        return bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))

    def descriptor(self) -> bytes:
        """Return descriptor-format sense data, 8 bytes (SPC-4 section 4.5.2)."""
        key, asc, ascq = self.value
        return bytes((0x72, key, asc, ascq, 0, 0, 0, 0))


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION and this sense."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense.name)
        self.sense = sense


class ReservationConflict(Exception):
    """A command ends with RESERVATION CONFLICT."""


class Extent(NamedTuple):
    """Blocks of a medium: the first, and how many."""

    lba: int
    blocks: int


def extent_6(cdb: bytes) -> Extent:
    """Return the blocks of READ(6) and WRITE(6), where 0 blocks are 256."""
    return Extent(int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256)


def extent_10(cdb: bytes) -> Extent:
    """Return the blocks of a 10-byte command."""
    return Extent(int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big"))


def extent_12(cdb: bytes) -> Extent:
    """Return the blocks of a 12-byte command."""
    return Extent(int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big"))


def extent_16(cdb: bytes) -> Extent:
    """Return the blocks of a 16-byte command."""
    return Extent(int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big"))


def cdb_length(opcode: int) -> int:
    """Return how long a command is that begins with this byte (SPC-4 section 4.2.5.1); 0 if the
    group has no length of its own.
    """
    return (6, 10, 10, 0, 16, 12, 0, 0)[opcode >> 5]
