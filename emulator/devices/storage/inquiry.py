# SPDX-License-Identifier: MIT
"""INQUIRY data: who a unit is, in the standard data and in the VPD pages (SPC-4 6.6 and 7.8).

The vendor is "Msft", as on Hyper-V, because drivers look for it: Linux's storvsc raises the SCSI
level and allows WRITE SAME for that vendor only (storvsc_device_configure).
"""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

from emulator.devices.storage.scsi import BLOCK

DISK_TYPE: Final = 0x00
DVD_TYPE: Final = 0x05
NO_UNIT: Final = 0x7F
"""Peripheral qualifier 3 and type 1Fh: no unit can be here."""

SERIAL_PAGE: Final = 0x80
IDENTIFICATION_PAGE: Final = 0x83
LIMITS_PAGE: Final = 0xB0
CHARACTERISTICS_PAGE: Final = 0xB1
PROVISIONING_PAGE: Final = 0xB2

_VENDOR: Final = b"Msft    "
_REVISION: Final = b"1.0 "
_SPC_3: Final = 0x05
_COMMAND_QUEUE: Final = 0x02
_STANDARD_SIZE: Final = 36
_NON_ROTATING: Final = 1
_GRANULARITY: Final = 8
"""Blocks: a page of the file system that a disk's file usually lies on."""
MAX_UNMAP_BLOCKS: Final = 0x400000
MAX_UNMAP_RANGES: Final = 256
MAX_SAME_BLOCKS: Final = 0x8000
"""16 MiB at a time: what one WRITE SAME may take must be bounded by more than the disk's size."""


class Identity(NamedTuple):
    """Who a unit is, in every run of the machine."""

    uuid: uuid.UUID
    product: str
    serial: str


def standard(device_type: int, removable: bool, identity: Identity) -> bytes:
    """Return the standard INQUIRY data, 36 bytes."""
    head = bytes(
        (device_type, 0x80 if removable else 0, _SPC_3, 0x02, _STANDARD_SIZE - 5, 0, 0)
    ) + bytes((_COMMAND_QUEUE,))
    return head + _VENDOR + identity.product.encode("ascii")[:16].ljust(16) + _REVISION


def no_unit() -> bytes:
    """Return the standard data of a LUN where there is nothing."""
    return bytes((NO_UNIT, 0, _SPC_3, 0x02, _STANDARD_SIZE - 5)).ljust(_STANDARD_SIZE, b"\0")


def serial_page(identity: Identity) -> bytes:
    """Return the body of page 80h."""
    return identity.serial.encode("ascii")


def identification_page(identity: Identity) -> bytes:
    """Return the body of page 83h: a locally assigned NAA name, and one under the vendor's id."""
    naa = bytes((0x30 | identity.uuid.bytes[0] & 0x0F,)) + identity.uuid.bytes[1:8]
    t10 = _VENDOR + identity.uuid.hex.encode()
    return bytes((0x01, 0x03, 0, len(naa))) + naa + bytes((0x02, 0x01, 0, len(t10))) + t10


def limits_page(max_transfer: int, *, unmap: bool) -> bytes:
    """Return the body of page B0h, 60 bytes; ``max_transfer`` in bytes (SBC-3 6.6.4)."""
    body = bytearray(60)
    body[0] = 1  # WSNZ: WRITE SAME of 0 blocks, to the end of the disk, is refused
    body[2:4] = _GRANULARITY.to_bytes(2, "big")
    body[4:8] = (max_transfer // BLOCK).to_bytes(4, "big")
    body[8:12] = (max_transfer // BLOCK).to_bytes(4, "big")
    if unmap:
        body[16:20] = MAX_UNMAP_BLOCKS.to_bytes(4, "big")
        body[20:24] = MAX_UNMAP_RANGES.to_bytes(4, "big")
        body[24:28] = _GRANULARITY.to_bytes(4, "big")
    body[32:40] = MAX_SAME_BLOCKS.to_bytes(8, "big")
    return bytes(body)


def characteristics_page() -> bytes:
    """Return the body of page B1h, 60 bytes: nothing rotates."""
    return _NON_ROTATING.to_bytes(2, "big") + bytes(58)


def provisioning_page(*, unmap: bool, zeroes: bool) -> bytes:
    """Return the body of page B2h, 4 bytes: how blocks are given back, if they are (SBC-3 6.6.6).

    ``zeroes``: what was given back reads as zeroes (LBPRZ).
    """
    if not unmap:
        return bytes(4)
    return bytes((0, 0x80 | 0x40 | 0x20 | (0x04 if zeroes else 0), 2, 0))
