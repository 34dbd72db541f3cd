# SPDX-License-Identifier: MIT
"""Messages of the probe device: layouts and constants of docs/probe.md, nothing else."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

PROBE_INTERFACE: Final = uuid.UUID("b1a1c3f0-5c2e-4b6e-9d53-0d9f5a6c7e21")
VERSION: Final = 2
"""Of the protocol: what the guest says in READY. Version 1 lacks the orders from GPADL_MAKE on."""
LAYOUT_VERSION: Final = 1
"""Of the offer and of the ledger."""
HEADER_SIZE: Final = 32
MAX_BODY: Final = 65_536
ANSWER_BIT: Final = 0x8000
GUEST_SALT: Final = 0x11
HOST_SALT: Final = 0x22
WRITE_BACK_MASK: Final = 0xA5

_OFFER_MAGIC: Final = 0x42525056
_MAGIC: Final = 0x31425250
_OFFER = struct.Struct("<IHHI")
_HEADER = struct.Struct("<IHHQIIQ")
_RUN = struct.Struct("<IIIIQ")
_STALL = struct.Struct("<II")
_STALL_ANSWER = struct.Struct("<III")
_READY = struct.Struct("<II")
_GPADL_MAKE = struct.Struct("<II")

_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_FLIP: Final = bytes(b ^ WRITE_BACK_MASK for b in range(256))
_RAMP: Final = bytes(i * 13 % 256 for i in range(256)) * (MAX_BODY // 256)
_SHIFT: Final = [bytes((b + k) % 256 for b in range(256)) for k in range(256)]


class MalformedProbe(Exception):
    """A packet breaks docs/probe.md; the text says which rule."""


class Role(IntEnum):
    """Which of the two channels of a pair an offer is."""

    DATA = 1
    CONTROL = 2


class ProbeType(IntEnum):
    """Message types of both channels (sections 3 and 4)."""

    G_REQUEST = 1
    G_ANSWER = 2
    H_REQUEST = 3
    H_ANSWER = 4
    H_NOTIFY = 5
    G_ECHO = 6
    RUN = 16
    STALL = 17
    RESUME = 18
    FINISH = 19
    LEDGER = 20
    MALFORM = 21
    PING = 22
    EXIT = 23
    GPADL_MAKE = 24
    GPADL_CHECK = 25
    GPADL_FREE = 26
    REOPEN = 27
    READY = 32


class ProbeFlags(IntFlag):
    """Header flags."""

    NONE = 0
    WRITE_BACK = 1


# A plain int: the operators of an IntFlag cost more than all else in Header.parse.
_KNOWN_FLAGS: Final = int(ProbeFlags.WRITE_BACK)


class Deed(IntEnum):
    """Wrong things the guest can be asked to do (MALFORM)."""

    BAD_MAGIC = 1
    UNKNOWN_PACKET_TYPE = 2
    UNKNOWN_TRANSACTION = 3
    PFN_OUTSIDE_RAM = 4
    WILD_WRITE_INDEX = 5
    OVERLONG_PACKET = 6


class ExitAction(IntEnum):
    """What the guest does after EXIT."""

    END = 0
    RELOAD = 1
    REBOOT = 2
    POWER_OFF = 3


class Header(NamedTuple):
    """The 32 bytes before every body. ``type`` is a plain int: answers carry ``ANSWER_BIT``.

    A named tuple, because one is made for each packet.
    """

    type: int
    seq: int
    flags: int = 0
    body_size: int = 0
    body_crc: int = 0
    arg: int = 0

    def pack(self) -> bytes:
        """Encode 32 bytes."""
        return _HEADER.pack(
            _MAGIC, self.type, self.flags, self.seq, self.body_size, self.body_crc, self.arg
        )

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Decode the start of ``payload``; raises :class:`MalformedProbe`."""
        if len(payload) < HEADER_SIZE:
            raise MalformedProbe(f"a packet of {len(payload)} bytes has no probe header")
        magic, kind, flags, seq, size, crc, arg = _HEADER.unpack_from(payload)
        if magic != _MAGIC:
            raise MalformedProbe(f"bad magic {magic:#010x}")
        if flags & ~_KNOWN_FLAGS or size > MAX_BODY:
            raise MalformedProbe(f"flags {flags:#x} or body size {size} out of range")
        return cls(kind, seq, flags, size, crc, arg)


def offer_data(role: Role, pair: int) -> bytes:
    """Return the user-defined bytes of an offer (section 1)."""
    return _OFFER.pack(_OFFER_MAGIC, LAYOUT_VERSION, role, pair)


def pattern(seq: int, size: int, salt: int) -> bytes:
    """Return the body of transaction ``seq``: ``(seq * 167 + i * 13 + salt) mod 256``."""
    return _RAMP[:size].translate(_SHIFT[(seq * 167 + salt) % 256])


def write_back(body: bytes) -> bytes:
    """Return the body as WRITE_BACK leaves it."""
    return body.translate(_FLIP)


def message(kind: ProbeType, seq: int, body: bytes = b"") -> bytes:
    """Encode a message with its body in the packet."""
    return Header(kind, seq, 0, len(body), zlib.crc32(body)).pack() + body


def run_body(*, window: int, gpa_every: int, owe_every: int, body_max: int, total: int) -> bytes:
    """Encode the body of RUN."""
    return _RUN.pack(window, gpa_every, owe_every, body_max, total)


def stall_body(*, requests: int, answers: int) -> bytes:
    """Encode the body of STALL."""
    return _STALL.pack(requests, answers)


def gpadl_make_body(*, number: int, pages: int) -> bytes:
    """Encode the body of GPADL_MAKE."""
    return _GPADL_MAKE.pack(number, pages)


def gpadl_pattern(number: int, size: int, salt: int) -> bytes:
    """Return what a GPADL of ``size`` bytes holds: the pattern of ``number``, of any length."""
    period = pattern(number, 256, salt)
    return (period * -(-size // len(period)))[:size]


@dataclass(frozen=True, slots=True)
class StallAnswer:
    """What the guest did before it stalled."""

    requests_sent: int
    answers_sent: int
    owed: int

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode; raises :class:`MalformedProbe`."""
        if len(body) < _STALL_ANSWER.size:
            raise MalformedProbe("the answer to STALL is too short")
        return cls(*_STALL_ANSWER.unpack_from(body))


def parse_ready(body: bytes) -> tuple[int, str]:
    """Decode READY: the protocol version and the guest's name for its system."""
    if len(body) < _READY.size:
        raise MalformedProbe("READY is too short")
    version, _ = _READY.unpack_from(body)
    return version, body[_READY.size :].decode("utf-8", "replace")


def mix(seq: int) -> int:
    """Return the splitmix64 finalizer of ``seq`` (section 5)."""
    x = (seq + 0x9E37_79B9_7F4A_7C15) & _M64
    x = ((x ^ x >> 30) * 0xBF58_476D_1CE4_E5B9) & _M64
    x = ((x ^ x >> 27) * 0x94D0_49BB_1331_11EB) & _M64
    return x ^ x >> 31
