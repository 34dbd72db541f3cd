# SPDX-License-Identifier: MIT
"""What all channel messages have in common: header, types, and how a form packs and parses.

The forms themselves are in ``emulator.wire.messages``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from emulator.wire.guid import guid_from_wire, guid_to_wire
from emulator.wire.version import FeatureFlags, Version

HEADER_SIZE: Final = 8
MAX_MESSAGE: Final = 240
"""Bytes of a message with its header (TLFS 11, HV_MESSAGE_PAYLOAD_BYTE_COUNT)."""

HEADER: Final = struct.Struct("<II")
"""Type, padding. The padding is zero from us and ignored from the guest."""


class MalformedMessage(Exception):
    """A message is too short or too long, or has no known type; the sender is to blame."""


class MessageType(IntEnum):
    """``CHANNELMSG_*`` of Linux, with the types of later versions."""

    OFFER_CHANNEL = 1
    RESCIND_CHANNEL_OFFER = 2
    REQUEST_OFFERS = 3
    ALL_OFFERS_DELIVERED = 4
    OPEN_CHANNEL = 5
    OPEN_RESULT = 6
    CLOSE_CHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    REL_ID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_COMPLETE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_CHANNEL_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFY_CHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFY_CHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


class MessageStatus(IntEnum):
    """What a status field of a channel message says: Hyper-V's failure is E_UNEXPECTED."""

    SUCCESS = 0
    UNSUCCESSFUL = 0x8000_FFFF
    CONNECTION_REFUSED = 0xC000_0236
    """TlConnectResult only; Windows hands it to the program that wanted to connect."""


_M = TypeVar("_M", bound="Message")


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages: ``LAYOUT`` packs the fields in order; UUID fields are 16 bytes.

    ``tail`` of a subclass, if it has one, takes what follows the fixed part. ``LAYOUT.size`` is the
    least size of a body.
    """

    TYPE: ClassVar[MessageType]
    SINCE: ClassVar[Version] = Version.V1
    FEATURES: ClassVar[FeatureFlags] = FeatureFlags.NONE
    """The form exists once one of these is granted; always, if there is none."""
    FROM_GUEST: ClassVar[bool]
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<")

    @classmethod
    def known_at(cls, version: Version, features: FeatureFlags) -> bool:
        """Whether the form is part of a connection of this version with these features."""
        return version >= cls.SINCE and (not cls.FEATURES or bool(features & cls.FEATURES))

    def pack(self) -> bytes:
        """Encode with the header."""
        shape = _shape(type(self))
        values: list[Any] = [getattr(self, name) for name in shape.names]
        tail = values.pop() if shape.tail else b""
        for index in shape.guids:
            values[index] = guid_to_wire(values[index])
        return HEADER.pack(self.TYPE, 0) + self.LAYOUT.pack(*values) + tail

    @classmethod
    def parse(cls: type[_M], body: bytes) -> _M:
        """Decode a body; raises :class:`MalformedMessage` when it is too short."""
        if len(body) < cls.LAYOUT.size:
            raise MalformedMessage(
                f"{cls.TYPE.name} needs {cls.LAYOUT.size} bytes of body, not {len(body)}"
            )
        shape = _shape(cls)
        values: list[Any] = list(cls.LAYOUT.unpack_from(body))
        for index in shape.guids:
            values[index] = guid_from_wire(values[index])
        if shape.tail:
            values.append(body[cls.LAYOUT.size :])
        return cls(*values)


class _Shape(NamedTuple):
    """What the fields of a message are: found once for each type of message, not for each one."""

    names: tuple[str, ...]
    guids: tuple[int, ...]
    """Indices of the UUID fields."""
    tail: bool
    """The last field takes what follows the fixed part."""


_SHAPES: Final[dict[type[Message], _Shape]] = {}


def _shape(form: type[Message]) -> _Shape:
    shape = _SHAPES.get(form)
    if shape is None:
        found = fields(form)
        shape = _SHAPES[form] = _Shape(
            tuple(field.name for field in found),
            tuple(index for index, field in enumerate(found) if field.type == "UUID"),
            bool(found) and found[-1].name == "tail",
        )
    return shape
