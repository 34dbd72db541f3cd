# SPDX-License-Identifier: MIT
"""What all integration services share on the wire: header, negotiation, versions, statuses.

A message is a header of 20 bytes and a body, in the framing of a pipe, which KMCL adds and takes
off. Source: Linux include/linux/hyperv.h, ``struct icmsg_hdr`` and ``struct icmsg_negotiate``;
drivers/hv/channel_mgmt.c, ``vmbus_prep_negotiate_resp``. Little-endian throughout.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

HEADER_SIZE: Final = 20
MAX_MESSAGE: Final = 13_312
"""Bytes of the largest message, header included (OpenVMM: the services' maximum message size)."""
MAX_VERSIONS: Final = 100
"""Versions of both kinds in one negotiation (IC_VERSION_NEGOTIATION_MAX_VER_COUNT)."""

_HEADER = struct.Struct("<HHHHHHIBB2x")
_NEGOTIATE = struct.Struct("<HHI")
_VERSION = struct.Struct("<HH")


class MalformedIc(Exception):
    """The guest breaks the protocol of an integration service; the text says how."""


class IcVersion(NamedTuple):
    """A framework's or message's version."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


FRAMEWORKS: Final = (IcVersion(3, 0), IcVersion(1, 0))
"""Newest first. 1.0 is that of Windows Server 2008."""


class IcType(IntEnum):
    """``icmsgtype``."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KVP = 2
    SHUTDOWN = 3
    TIMESYNC = 4
    VSS = 5
    FCOPY = 7


class IcFlags(IntFlag):
    """``icflags``."""

    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


class IcStatus(IntEnum):
    """HRESULTs that the guests answer (hyperv.h: HV_S_OK, HV_E_FAIL, HV_S_CONT, HV_ERROR_*)."""

    OK = 0
    NOT_SUPPORTED = 0x8007_0032
    ALREADY_EXISTS = 0x8007_0050
    INVALID_ARGUMENT = 0x8007_0057
    DISK_FULL = 0x8007_0070
    NO_MORE_ITEMS = 0x8007_0103
    MACHINE_LOCKED = 0x8007_04F7
    FAIL = 0x8000_4005
    NOT_FOUND = 0x8004_1002
    DEVICE_NOT_CONNECTED = 0x8007_048F


def status_name(status: int) -> str:
    """Return what to call a status in a message."""
    try:
        return f"{IcStatus(status).name} ({status:#010x})"
    except ValueError:
        return f"{status:#010x}"


class Header(NamedTuple):
    """``struct icmsg_hdr``, 20 bytes; ``size`` is that of the body."""

    framework: IcVersion
    type: int
    version: IcVersion
    size: int
    status: int = 0
    transaction: int = 0
    flags: IcFlags = IcFlags.TRANSACTION | IcFlags.REQUEST

    def pack(self) -> bytes:
        """Encode 20 bytes."""
        return _HEADER.pack(
            *self.framework,
            self.type,
            *self.version,
            self.size,
            self.status,
            self.transaction,
            self.flags,
        )

    @classmethod
    def parse(cls, message: bytes) -> tuple[Self, bytes]:
        """Decode a message into header and body; raises :class:`MalformedIc`.

        What follows the body is left alone: the answers of Linux are as long as the requests,
        whatever their header says of the body.
        """
        if not HEADER_SIZE <= len(message) <= MAX_MESSAGE:
            raise MalformedIc(f"a message of {len(message)} bytes")
        fields = _HEADER.unpack_from(message)
        frame_major, frame_minor, kind, major, minor, size, status, transaction, flags = fields
        if size > len(message) - HEADER_SIZE:
            raise MalformedIc(
                f"the header says {size} bytes, {len(message) - HEADER_SIZE} follow it"
            )
        header = cls(
            IcVersion(frame_major, frame_minor),
            kind,
            IcVersion(major, minor),
            size,
            status,
            transaction,
            IcFlags(flags),
        )
        return header, message[HEADER_SIZE : HEADER_SIZE + size]


class Negotiation(NamedTuple):
    """``struct icmsg_negotiate``: 8 bytes, then 4 a version, the framework's first."""

    frameworks: tuple[IcVersion, ...]
    versions: tuple[IcVersion, ...]

    def pack(self) -> bytes:
        """Encode."""
        return _NEGOTIATE.pack(len(self.frameworks), len(self.versions), 0) + b"".join(
            _VERSION.pack(*version) for version in (*self.frameworks, *self.versions)
        )

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode; raises :class:`MalformedIc`."""
        if len(body) < _NEGOTIATE.size:
            raise MalformedIc(f"a negotiation of {len(body)} bytes")
        frameworks, versions, _ = _NEGOTIATE.unpack_from(body)
        total = frameworks + versions
        if total > MAX_VERSIONS or len(body) < _NEGOTIATE.size + total * _VERSION.size:
            raise MalformedIc(f"a negotiation of {total} versions in {len(body)} bytes")
        end = _NEGOTIATE.size + total * _VERSION.size
        found = [IcVersion(*pair) for pair in _VERSION.iter_unpack(body[_NEGOTIATE.size : end])]
        return cls(tuple(found[:frameworks]), tuple(found[frameworks:]))


def message(header: Header, body: bytes) -> bytes:
    """Encode a message; ``header.size`` is made that of ``body``."""
    return header._replace(size=len(body)).pack() + body


def chosen(
    answer: Negotiation, frameworks: Sequence[IcVersion], versions: Sequence[IcVersion]
) -> tuple[IcVersion, IcVersion] | None:
    """Return what the guest has chosen of an offer; None: it can do with none of it.

    Raises :class:`MalformedIc` for any other number of versions than one of each, or for a choice
    that was not offered.
    """
    counts = len(answer.frameworks), len(answer.versions)
    if counts == (0, 0):
        return None
    if counts != (1, 1):
        raise MalformedIc(f"the guest chose {counts[0]} framework and {counts[1]} message versions")
    framework, version = answer.frameworks[0], answer.versions[0]
    if framework not in frameworks or version not in versions:
        raise MalformedIc(f"the guest chose framework {framework}, version {version}: not offered")
    return framework, version


def utf16(text: str, units: int, what: str) -> bytes:
    """Encode text with its NUL, to fill ``units`` UTF-16 units; raises ValueError if too long."""
    data = (text + "\0").encode("utf-16-le")
    if len(data) > units * 2:
        raise ValueError(f"{what} is too long: {len(data) // 2 - 1} UTF-16 units, {units - 1} fit")
    if "\0" in text:
        raise ValueError(f"{what} has a NUL in it")
    return data.ljust(units * 2, b"\0")


def from_utf16(data: bytes) -> str:
    """Decode text up to its NUL, or all of it; what is no UTF-16 becomes U+FFFD."""
    return data[: len(data) & ~1].decode("utf-16-le", "replace").partition("\0")[0]
