# SPDX-License-Identifier: MIT
"""One record of a trace: a header that says what, when on which channel and which way; then bytes.

The bytes are those of the bus, unchanged: a channel message from its type on, or a packet from its
descriptor to the end of its payload (the trailer repeats the ring offset and is left out). Events
and notes, which no bus has bytes for, are text. docs/trace.md has the layout as a table for other
readers; ``emulator/trace/vmbus.lua`` is one of them.

The header carries the version and features in force, so that each record can be decoded without
those before it: a trace may begin in the middle of a connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final
from uuid import UUID

from emulator.wire.guid import GUID_SIZE, guid_from_wire, guid_to_wire

FORMAT_VERSION: Final = 1
HEADER: Final = Struct("<BBBBHHIIIIHHIII")
"""Version, kind, direction, bytes of name, bytes of header, event, flags, bus version, features,
channel id, subchannel, SINT, VP, connection id, ring offset. The name of the VM follows, padded
with zeros to a multiple of 4, and belongs to the header."""
HEADER_SIZE: Final = HEADER.size
MAX_NAME: Final = 255

NO_VP: Final = 0xFFFF_FFFF
NO_SINT: Final = 0xFFFF
NO_OFFSET: Final = 0xFFFF_FFFF


class MalformedRecord(Exception):
    """The bytes are no record of this format."""


class Kind(IntEnum):
    """What the bytes after the header are."""

    MESSAGE = 1
    """A channel message: the payload of HvPostMessage, or of a slot of the SIM page."""
    PACKET = 2
    """A packet of a ring, without its trailer."""
    EVENT = 3
    """Something happened: interface and instance GUID of the channel, or zeros, and a text."""
    NOTE = 4
    """A text about the trace itself: that records were dropped."""


class Direction(IntEnum):
    """Who sent it to whom; the numbers are those of pcapng's epb_flags, seen from the host."""

    NONE = 0
    FROM_GUEST = 1
    TO_GUEST = 2


class Event(IntEnum):
    """What happened. The first two tell, at the start of a trace, how things stand."""

    NONE = 0
    CONNECTION = 1
    CHANNEL = 2
    QEMU_CONNECTED = 3
    QEMU_GONE = 4
    RESET = 5
    """The machine was reset: the guest is forgotten."""
    STOPPED = 6
    """The virtual CPUs stand still and the devices have drained."""
    RESUMED = 7
    SAVED = 8
    RESTORED = 9
    BUS_CONNECTED = 10
    BUS_DISCONNECTED = 11
    """The connection ended: an unload, a reset, a new contact."""
    CHANNEL_OPENED = 12
    """The device has the rings of the channel. Its answer to the guest is a message of its own."""
    CHANNEL_CLOSED = 13
    GUEST_ERROR = 14
    """The guest broke a rule; the text says which."""


class Flags(IntFlag):
    """What else is known of a record."""

    NONE = 0
    MALFORMED = 1
    """The host did not take the packet: the bytes are as far as it read them."""
    RESENT = 2
    """A message that was on its way when the machine was saved, sent again after the restore."""


_NO_GUID: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Record:
    """One record. ``channel_id`` is 0 and the like where nothing is known.

    ``connection_id`` is that of HvPostMessage for a message of the guest, and of the channel's
    doorbell for a packet. ``ring_offset`` is where the packet begins in the ring's data, in bytes.
    ``vp`` is who posted a message of the guest, or whose SIM page one of the host is for.
    """

    kind: Kind
    body: bytes
    vm: str = ""
    direction: Direction = Direction.NONE
    event: Event = Event.NONE
    flags: Flags = Flags.NONE
    bus_version: int = 0
    features: int = 0
    channel_id: int = 0
    subchannel: int = 0
    sint: int = NO_SINT
    vp: int = NO_VP
    connection_id: int = 0
    ring_offset: int = NO_OFFSET

    def pack_header(self) -> bytes:
        """Encode the header; the body is to follow."""
        name = padded_name(self.vm)
        return pack_header(
            name,
            self.kind,
            self.direction,
            self.event,
            self.flags,
            self.bus_version,
            self.features,
            self.channel_id,
            self.subchannel,
            self.sint,
            self.vp,
            self.connection_id,
            self.ring_offset,
        )

    def pack(self) -> bytes:
        """Encode the record."""
        return self.pack_header() + self.body

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """Decode a record; raises :class:`MalformedRecord`."""
        if len(data) < HEADER_SIZE:
            raise MalformedRecord(f"{len(data)} bytes are no header")
        version, kind, direction, name, size, event, flags, *rest = HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            raise MalformedRecord(f"format version {version}, not {FORMAT_VERSION}")
        if not HEADER_SIZE + name <= size <= len(data):
            raise MalformedRecord(f"a header of {size} bytes with a name of {name}")
        try:
            return cls(
                Kind(kind),
                data[size:],
                data[HEADER_SIZE : HEADER_SIZE + name].decode("utf-8", "replace"),
                Direction(direction),
                Event(event),
                Flags(flags),
                *rest,
            )
        except ValueError as error:
            raise MalformedRecord(str(error)) from error


def padded_name(vm: str) -> tuple[int, bytes]:
    """Return the bytes of a VM's name, and it as it stands in a header."""
    name = vm.encode("utf-8", "replace")[:MAX_NAME]
    return len(name), name + bytes(-len(name) & 3)


def pack_header(name: tuple[int, bytes], kind: int, direction: int, *rest: int) -> bytes:
    """Encode a header from its fields in their order, the sizes left out: for the data path."""
    length, padded = name
    size = HEADER_SIZE + len(padded)
    return HEADER.pack(FORMAT_VERSION, kind, direction, length, size, *rest) + padded


def event_body(text: str, interface: UUID = _NO_GUID, instance: UUID = _NO_GUID) -> bytes:
    """Encode the body of an event."""
    return guid_to_wire(interface) + guid_to_wire(instance) + text.encode("utf-8", "replace")


def parse_event(body: bytes) -> tuple[UUID, UUID, str]:
    """Decode the body of an event: interface, instance and text. Raises MalformedRecord."""
    if len(body) < 2 * GUID_SIZE:
        raise MalformedRecord(f"an event of {len(body)} bytes")
    return (
        guid_from_wire(body[:GUID_SIZE]),
        guid_from_wire(body[GUID_SIZE : 2 * GUID_SIZE]),
        body[2 * GUID_SIZE :].decode("utf-8", "replace"),
    )
