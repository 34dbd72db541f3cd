# SPDX-License-Identifier: MIT
"""What a record says: the name of its message or packet, its fields, and what is wrong with it.

Messages are decoded by the table of ``emulator.wire.messages``, packets by
``emulator.wire.packet``; nothing here knows their layout. The one exception are the GPA ranges in
the pieces of a GPADL, which the table leaves as bytes because a range may go on in the next piece.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Final, assert_never
from uuid import UUID

from emulator.trace.record import (
    NO_OFFSET,
    NO_SINT,
    NO_VP,
    Direction,
    Flags,
    Kind,
    MalformedRecord,
    Record,
    parse_event,
)
from emulator.wire import messages as m
from emulator.wire.packet import (
    DESCRIPTOR_SIZE,
    TRAILER_SIZE,
    MalformedPacket,
    decode_body,
    decode_descriptor,
    spanned_pages,
)
from emulator.wire.version import FeatureFlags, Version

HEX_FIELDS: Final = frozenset(
    {
        "child_to_parent_monitor_page_gpa",
        "connection_id",
        "flags",
        "gpadl_id",
        "interrupt_page_or_target_info",
        "parent_to_child_monitor_page_gpa",
        "ring_buffer_gpadl",
        "ring_buffer_gpadl_id",
        "selected_version_or_connection_id",
        "status",
        "supported_features",
        "target_vp",
        "version_requested",
    }
)
"""Fields of messages that people read in hexadecimal."""
_SHOWN_BYTES: Final = 16
_SHOWN_RANGES: Final = 4
_GPADL_RANGE: Final = struct.Struct("<II")


@dataclass(slots=True)
class Decoded:
    """A record for people and tests. ``problem`` is empty if nothing is wrong with it."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    cut: bool = False
    """The trace has not all of its bytes."""


def decode(record: Record, *, cut: bool = False) -> Decoded:
    """Decode a record; ``cut``: its body was longer than what is there."""
    match record.kind:
        case Kind.MESSAGE:
            return _message(record, cut)
        case Kind.PACKET:
            return _packet(record, cut)
        case Kind.EVENT:
            return _event(record)
        case Kind.NOTE:
            return Decoded("NOTE", {"text": record.body.decode("utf-8", "replace")})
        case _:
            assert_never(record.kind)


def _message(record: Record, cut: bool) -> Decoded:
    number = int.from_bytes(record.body[:4], "little")
    try:
        name = m.MessageType(number).name if len(record.body) >= 4 else "NO MESSAGE"
    except ValueError:
        name = f"MESSAGE {number}"
    try:
        if record.direction is Direction.FROM_GUEST:
            version, features = known_version(record)
            message: m.Message = m.parse_guest(record.body, version, features)
        else:
            message = m.parse_host(record.body)
    except m.MalformedMessage as error:
        return Decoded(name, problem="" if cut else str(error), cut=cut)
    found = {item.name: getattr(message, item.name) for item in fields(message)}
    return Decoded(name, found, cut=cut)


def known_version(record: Record) -> tuple[Version | None, FeatureFlags]:
    """Return the version and features by which a message of the guest is understood."""
    try:
        return Version(record.bus_version), FeatureFlags(record.features)
    except ValueError:
        return None, FeatureFlags(record.features)


def _packet(record: Record, cut: bool) -> Decoded:
    body = record.body
    if len(body) < DESCRIPTOR_SIZE:
        return Decoded("PACKET", problem="" if cut else f"{len(body)} bytes are no descriptor")
    number, offset8, length8, flags, transaction_id = struct.unpack_from("<HHHHQ", body)
    found: dict[str, Any] = {
        "type": number,
        "offset8": offset8,
        "length8": length8,
        "flags": flags,
        "transaction_id": transaction_id,
    }
    decoded = Decoded(f"PACKET {number}", found, cut=cut)
    try:
        descriptor = decode_descriptor(body[:DESCRIPTOR_SIZE], length8 * 8 + TRAILER_SIZE)
        decoded.name = descriptor.type.name
        if len(body) < descriptor.length:
            decoded.cut = True
            if len(body) < descriptor.data_offset:
                return decoded
        packet = decode_body(descriptor, body[DESCRIPTOR_SIZE : descriptor.length])
    except MalformedPacket as error:
        decoded.problem = str(error)
        return decoded
    if packet.ranges:
        found["ranges"] = packet.ranges
    if packet.transfer is not None:
        found["set_id"] = packet.transfer.set_id
        found["sender_owns_set"] = packet.transfer.sender_owns_set
        found["transfer_ranges"] = packet.transfer.ranges
    found["payload"] = packet.payload
    return decoded


def _event(record: Record) -> Decoded:
    try:
        interface, instance, text = parse_event(record.body)
    except MalformedRecord as error:
        return Decoded(record.event.name, problem=str(error))
    found: dict[str, Any] = {"text": text}
    if interface.int:
        found["interface_id"] = interface
        found["instance_id"] = instance
    return Decoded(record.event.name, found)


def gpadl_pages(tail: bytes, *, header: bool) -> list[str]:
    """Name the GPA ranges, or in a body the page numbers, that are in a piece of a GPADL."""
    if not header:
        pfns = [struct.unpack_from("<Q", tail, at)[0] for at in range(0, len(tail) - 7, 8)]
        return [_pages(tuple(pfns))] if pfns else []
    found: list[str] = []
    position = 0
    while len(tail) - position >= _GPADL_RANGE.size and len(found) < _SHOWN_RANGES:
        length, offset = _GPADL_RANGE.unpack_from(tail, position)
        position += _GPADL_RANGE.size
        here = min(spanned_pages(offset, length), (len(tail) - position) // 8)
        pfns_here = struct.unpack_from(f"<{here}Q", tail, position)
        position += 8 * here
        found.append(f"{length} bytes at {offset:#x} of {_pages(pfns_here)}")
    return found


def _pages(pfns: tuple[int, ...]) -> str:
    if not pfns:
        return "no page"
    if all(second - first == 1 for first, second in pairwise(pfns)):
        return f"pages {pfns[0]:#x}+{len(pfns)}"
    return f"{len(pfns)} pages from {pfns[0]:#x}"


def line(record: Record, *, cut: bool = False) -> str:
    """Return the record as one line, without time and VM; safe to show on a terminal."""
    decoded = decode(record, cut=cut)
    way = {Direction.FROM_GUEST: "guest > host", Direction.TO_GUEST: "host > guest"}
    parts = [f"{way.get(record.direction, '-' * 12)}  {decoded.name}"]
    if record.kind is not Kind.MESSAGE and record.channel_id:
        sub = f" sub {record.subchannel}" if record.subchannel else ""
        parts.append(f"channel {record.channel_id}{sub}")
    if record.kind is Kind.PACKET and record.ring_offset != NO_OFFSET:
        parts.append(f"at {record.ring_offset:#x}")
    for name, value in decoded.fields.items():
        parts.extend(_shown(record, name, value))
    if record.kind is Kind.MESSAGE:
        if record.vp != NO_VP:
            parts.append(f"[VP {record.vp}")
            if record.sint != NO_SINT:
                parts[-1] += f" SINT {record.sint}"
            if record.connection_id:
                parts[-1] += f" port {record.connection_id}"
            parts[-1] += "]"
        if Flags.RESENT in record.flags:
            parts.append("(sent again after the restore)")
    if Flags.MALFORMED in record.flags:
        parts.append("(refused by the host)")
    if decoded.cut:
        parts.append("(cut)")
    if decoded.problem:
        parts.append(f"MALFORMED: {decoded.problem}")
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(parts))


def _shown(record: Record, name: str, value: Any) -> list[str]:
    if record.kind is Kind.PACKET:
        return _packet_field(name, value)
    if name == "text":
        return [value] if value else []
    if name == "tail":
        header = int.from_bytes(record.body[:4], "little") == m.MessageType.GPADL_HEADER
        return gpadl_pages(value, header=header)
    if isinstance(value, bytes):
        used = value.rstrip(bytes(1))
        return [f"{name}={_bytes(used)}"] if used else []
    if name == "version_requested":
        return [f"version={value >> 16}.{value & 0xFFFF}"]
    if isinstance(value, UUID):
        return [f"{name}={value}"]
    return [f"{name}={value:#x}" if name in HEX_FIELDS else f"{name}={value}"]


def _packet_field(name: str, value: Any) -> list[str]:
    match name:
        case "transaction_id":
            return [f"transaction={value:#x}"]
        case "flags":
            return ["completion requested"] if value == 1 else [f"flags={value:#x}"] * bool(value)
        case "ranges":
            return [
                f"{gpa.length} bytes at {gpa.offset:#x} of {_pages(gpa.pfns)}"
                for gpa in value[:_SHOWN_RANGES]
            ]
        case "transfer_ranges":
            return [f"{part.byte_count} at {part.byte_offset:#x}" for part in value[:_SHOWN_RANGES]]
        case "set_id":
            return [f"set={value:#x}"]
        case "payload":
            return [f"payload={_bytes(value)}"]
        case _:
            return []


def _bytes(value: bytes) -> str:
    more = "…" if len(value) > _SHOWN_BYTES else ""
    return f"{len(value)}:{value[:_SHOWN_BYTES].hex()}{more}"
