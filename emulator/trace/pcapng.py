# SPDX-License-Identifier: MIT
"""pcapng: the blocks that a trace needs, written and read.

Source: the IETF draft *PCAP Next Generation (pcapng) Capture File Format*
(draft-ietf-opsawg-pcapng). Written are a Section Header, an Interface Description for each VM,
Enhanced Packets and, at the end, Interface Statistics; all little-endian, times in nanoseconds
since 1970. Read is what Wireshark and its tools make of such a file: either byte order, several
sections, other time units, blocks and options that are unknown.

Nothing here knows what a record is.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, Literal

LINKTYPE_USER0: Final = 147
"""DLT_USER0: reserved for private use, so a reader must be told what it means."""
MAX_CAPTURED: Final = 262_144
"""Bytes of a packet that Wireshark reads; it takes a file with more for damaged
(WTAP_MAX_PACKET_SIZE_STANDARD)."""

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_STATISTICS: Final = 5
_ENHANCED: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_END_OF_OPTIONS: Final = 0
_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_EPB_DROPCOUNT: Final = 4
_ISB_IFRECV: Final = 4
_ISB_IFDROP: Final = 5
_MAX_BLOCK: Final = 16 << 20
"""More is damage: a reader must not be made to wait for gigabytes by four bytes."""

_BLOCK: Final = Struct("<II")
_PACKET: Final = Struct("<IIIIIII")
_FLAGS_OPTION: Final = Struct("<HHI")
_DROPS_OPTION: Final = Struct("<HHQ")
_U32: Final = Struct("<I")
_END: Final = bytes(4)


class NotPcapng(Exception):
    """The bytes are not pcapng, or damaged; the text is for the user."""


def section(application: str) -> bytes:
    """Encode the beginning of a file."""
    fixed = Struct("<IHHq").pack(_BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, fixed + _option(_USERAPPL, application.encode()) + _END)


def interface(name: str) -> bytes:
    """Encode an interface; they are numbered from 0 in the order in which they are written."""
    fixed = Struct("<HHI").pack(LINKTYPE_USER0, 0, 0)
    options = _option(_IF_NAME, name.encode("utf-8", "replace")) + _option(_IF_TSRESOL, b"\x09")
    return _block(_INTERFACE, fixed + options + _END)


def packet(
    number: int, time_ns: int, data: bytes, length: int, *, flags: int = 0, dropped: int = 0
) -> bytes:
    """Encode a packet of interface ``number``.

    ``length`` is how long it was before it was cut to ``data``; ``flags`` are epb_flags, whose low
    two bits are the direction; ``dropped`` packets were lost since the one before.
    """
    padding = bytes(-len(data) & 3)
    options = b""
    if flags:
        options = _FLAGS_OPTION.pack(_EPB_FLAGS, 4, flags)
    if dropped:
        options += _DROPS_OPTION.pack(_EPB_DROPCOUNT, 8, dropped)
    if options:
        options += _END
    total = 32 + len(data) + len(padding) + len(options)
    head = _PACKET.pack(
        _ENHANCED, total, number, time_ns >> 32, time_ns & 0xFFFF_FFFF, len(data), length
    )
    return b"".join((head, data, padding, options, _U32.pack(total)))


def statistics(number: int, time_ns: int, *, received: int, dropped: int) -> bytes:
    """Encode the counts of an interface: packets that there were, and those of them not written."""
    fixed = Struct("<III").pack(number, time_ns >> 32, time_ns & 0xFFFF_FFFF)
    options = _option(_ISB_IFRECV, Struct("<Q").pack(received))
    options += _option(_ISB_IFDROP, Struct("<Q").pack(dropped))
    return _block(_STATISTICS, fixed + options + _END)


def _block(kind: int, body: bytes) -> bytes:
    total = 12 + len(body)
    return _BLOCK.pack(kind, total) + body + _U32.pack(total)


def _option(code: int, value: bytes) -> bytes:
    return Struct("<HH").pack(code, len(value)) + value + bytes(-len(value) & 3)


@dataclass(frozen=True, slots=True)
class Captured:
    """A packet that was read, of an interface with the link type ``link_type``."""

    interface: int
    link_type: int
    time_ns: int
    data: bytes
    length: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Interface statistics that were read."""

    received: int
    dropped: int


@dataclass(frozen=True, slots=True)
class _Interface:
    link_type: int
    units_per_second: int


class Reader:
    """Takes the bytes of a file in pieces of any size, and gives its packets and counts."""

    def __init__(self) -> None:
        """Start at the beginning of a file."""
        self._data = bytearray()
        self._order: Literal["<", ">"] = "<"
        self._in_section = False
        self._interfaces: list[_Interface] = []

    def feed(self, data: bytes) -> list[Captured | Counts]:
        """Take more bytes; returns what they complete. Raises :class:`NotPcapng`."""
        self._data += data
        found: list[Captured | Counts] = []
        position = 0
        while (block := self._next(position)) is not None:
            kind, body, size = block
            position += size
            item = self._read(kind, body)
            if item is not None:
                found.append(item)
        del self._data[:position]
        return found

    def finish(self) -> None:
        """Tell that there are no more bytes; raises :class:`NotPcapng` inside a block."""
        if self._data or not self._in_section:
            raise NotPcapng("the file is cut in the middle of a block")

    def _next(self, position: int) -> tuple[int, bytes, int] | None:
        left = len(self._data) - position
        if left < 12:
            return None
        head = bytes(self._data[position : position + 12])
        if head[:4] == _U32.pack(_SECTION):
            self._begin_section(head)
        elif not self._in_section:
            raise NotPcapng("it does not begin as a pcapng file does")
        kind, size = Struct(f"{self._order}II").unpack_from(head)
        if size < 12 or size % 4 or size > _MAX_BLOCK:
            raise NotPcapng(f"a block of {size} bytes")
        if left < size:
            return None
        block = bytes(self._data[position : position + size])
        if block[-4:] != head[4:8]:
            raise NotPcapng("the two lengths of a block differ")
        return kind, block[8:-4], size

    def _begin_section(self, head: bytes) -> None:
        for order in ("<", ">"):
            if Struct(f"{order}I").unpack_from(head, 8)[0] == _BYTE_ORDER:
                self._order = "<" if order == "<" else ">"
                self._in_section = True
                return
        raise NotPcapng("a section header without its byte-order mark")

    def _read(self, kind: int, body: bytes) -> Captured | Counts | None:
        try:
            if kind == _SECTION:
                self._interfaces = []
            elif kind == _INTERFACE:
                self._interfaces.append(self._interface(body))
            elif kind == _ENHANCED:
                return self._packet(body)
            elif kind == _STATISTICS:
                options = self._options(body[12:])
                return Counts(
                    self._number(options.get(_ISB_IFRECV, b"")),
                    self._number(options.get(_ISB_IFDROP, b"")),
                )
        except (IndexError, ValueError, ArithmeticError) as error:
            raise NotPcapng(f"a block of type {kind}: {error}") from error
        return None

    def _interface(self, body: bytes) -> _Interface:
        if len(body) < 8:
            raise ValueError(f"an interface of {len(body)} bytes")
        resolution = self._options(body[8:]).get(_IF_TSRESOL, b"\x06")[0]
        base, power = (2, resolution & 0x7F) if resolution & 0x80 else (10, resolution)
        (link_type,) = Struct(f"{self._order}H").unpack_from(body)
        return _Interface(link_type, base**power)

    def _packet(self, body: bytes) -> Captured:
        if len(body) < 20:
            raise ValueError(f"a packet of {len(body)} bytes")
        number, high, low, captured, length = Struct(f"{self._order}IIIII").unpack_from(body)
        if number >= len(self._interfaces):
            raise ValueError(f"interface {number} was not described")
        if captured > len(body) - 20:
            raise ValueError(f"{captured} bytes of packet in a block of {len(body)}")
        where = self._interfaces[number]
        options = self._options(body[20 + captured + (-captured & 3) :])
        return Captured(
            number,
            where.link_type,
            (high << 32 | low) * 1_000_000_000 // where.units_per_second,
            body[20 : 20 + captured],
            length,
            self._number(options.get(_EPB_DROPCOUNT, b"")),
        )

    def _options(self, data: bytes) -> dict[int, bytes]:
        """Return the last value of each option."""
        head = Struct(f"{self._order}HH")
        found: dict[int, bytes] = {}
        position = 0
        while len(data) - position >= 4:
            code, length = head.unpack_from(data, position)
            if code == _END_OF_OPTIONS:
                break
            if length > len(data) - position - 4:
                raise ValueError(f"option {code} of {length} bytes does not fit its block")
            found[code] = data[position + 4 : position + 4 + length]
            position += 4 + length + (-length & 3)
        return found

    def _number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self._order == "<" else "big")
