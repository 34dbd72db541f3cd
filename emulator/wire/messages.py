# SPDX-License-Identifier: MIT
"""Channel messages: one dataclass for each form a message has, one table for all of them.

A message is an 8-byte header (type, padding) and a body. Where a message has several sizes, the
longer form is a class of its own; it is chosen when the bytes fill it and the negotiated version
knows it, so that the surplus bytes of a shorter form are never taken for fields. Surplus bytes are
tolerated, as Hyper-V does; missing bytes are malformed.

Source: Linux include/linux/hyperv.h, ``struct vmbus_channel_*``; what only 6.0 has is from the
public sources of Microsoft's OpenVMM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

from emulator.wire.guid import GUID_SIZE
from emulator.wire.message import (
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE,
    MalformedMessage,
    Message,
    MessageStatus,
    MessageType,
)
from emulator.wire.version import Version

USER_DEFINED_SIZE: Final = 120
"""Bytes that a device may put into its offer, and a guest into its open."""

__all__ = [
    "MAX_MESSAGE",
    "TABLE",
    "USER_DEFINED_SIZE",
    "AllOffersDelivered",
    "CloseChannel",
    "CloseReservedChannel",
    "CloseReservedChannelResponse",
    "GpadlBody",
    "GpadlCreated",
    "GpadlHeader",
    "GpadlTeardown",
    "GpadlTorndown",
    "GuestMessage",
    "InitiateContact",
    "InitiateContact2",
    "MalformedMessage",
    "Message",
    "MessageStatus",
    "MessageType",
    "ModifyChannel",
    "ModifyChannelResponse",
    "ModifyConnection",
    "ModifyConnectionResponse",
    "OfferChannel",
    "OpenChannel",
    "OpenChannel2",
    "OpenReservedChannel",
    "OpenResult",
    "Pause",
    "PauseResponse",
    "RelIdReleased",
    "RequestOffers",
    "RescindChannelOffer",
    "Resume",
    "TlConnectRequest",
    "TlConnectRequest2",
    "TlConnectResult",
    "Unload",
    "UnloadComplete",
    "VersionResponse",
    "VersionResponse2",
    "VersionResponse3",
    "parse_guest",
    "parse_host",
]


@dataclass(frozen=True, slots=True)
class OfferChannel(Message):
    """A channel is there to be opened. ``user_defined`` is 120 bytes; MMIO in MiB."""

    TYPE = MessageType.OFFER_CHANNEL
    FROM_GUEST = False
    LAYOUT = struct.Struct(f"<{GUID_SIZE}s{GUID_SIZE}s16xHH{USER_DEFINED_SIZE}sHHIBBHI")

    interface_id: UUID
    instance_id: UUID
    flags: int
    mmio_megabytes: int
    user_defined: bytes
    subchannel_index: int
    mmio_megabytes_optional: int
    channel_id: int
    monitor_id: int
    monitor_allocated: int
    is_dedicated: int
    connection_id: int


@dataclass(frozen=True, slots=True)
class RescindChannelOffer(Message):
    """The channel is gone; the guest answers with RelIdReleased when it has let go of it."""

    TYPE = MessageType.RESCIND_CHANNEL_OFFER
    FROM_GUEST = False
    LAYOUT = struct.Struct("<I")

    channel_id: int


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    """Send all offers, then AllOffersDelivered."""

    TYPE = MessageType.REQUEST_OFFERS
    FROM_GUEST = True


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    """The end of the answer to RequestOffers."""

    TYPE = MessageType.ALL_OFFERS_DELIVERED
    FROM_GUEST = False


@dataclass(frozen=True, slots=True)
class OpenChannel(Message):
    """Open: pages [0, offset) of the GPADL are the guest's ring, the rest is the downstream one."""

    TYPE = MessageType.OPEN_CHANNEL
    FROM_GUEST = True
    LAYOUT = struct.Struct(f"<IIIII{USER_DEFINED_SIZE}s")

    channel_id: int
    open_id: int
    ring_buffer_gpadl_id: int
    target_vp: int
    downstream_ring_buffer_page_offset: int
    user_data: bytes


@dataclass(frozen=True, slots=True)
class OpenChannel2(Message):
    """OpenChannel with signal parameters that the guest chooses (6.0 and a feature)."""

    TYPE = MessageType.OPEN_CHANNEL
    SINCE = Version.COPPER
    FROM_GUEST = True
    LAYOUT = struct.Struct(f"<IIIII{USER_DEFINED_SIZE}sIHH")

    channel_id: int
    open_id: int
    ring_buffer_gpadl_id: int
    target_vp: int
    downstream_ring_buffer_page_offset: int
    user_data: bytes
    connection_id: int
    event_flag: int
    flags: int


@dataclass(frozen=True, slots=True)
class OpenResult(Message):
    """Status 0: the channel is open."""

    TYPE = MessageType.OPEN_RESULT
    FROM_GUEST = False
    LAYOUT = struct.Struct("<III")

    channel_id: int
    open_id: int
    status: int


@dataclass(frozen=True, slots=True)
class CloseChannel(Message):
    """Close; has no answer."""

    TYPE = MessageType.CLOSE_CHANNEL
    FROM_GUEST = True
    LAYOUT = struct.Struct("<I")

    channel_id: int


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """Begin a GPADL: ``length`` bytes of ``count`` GPA ranges in all, the first of them here."""

    TYPE = MessageType.GPADL_HEADER
    FROM_GUEST = True
    LAYOUT = struct.Struct("<IIHH")

    channel_id: int
    gpadl_id: int
    length: int
    count: int
    tail: bytes


@dataclass(frozen=True, slots=True)
class GpadlBody(Message):
    """Go on with a GPADL."""

    TYPE = MessageType.GPADL_BODY
    FROM_GUEST = True
    LAYOUT = struct.Struct("<4xI")

    gpadl_id: int
    tail: bytes


@dataclass(frozen=True, slots=True)
class GpadlCreated(Message):
    """Status 0: the GPADL can be used."""

    TYPE = MessageType.GPADL_CREATED
    FROM_GUEST = False
    LAYOUT = struct.Struct("<III")

    channel_id: int
    gpadl_id: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTeardown(Message):
    """The guest wants its pages back."""

    TYPE = MessageType.GPADL_TEARDOWN
    FROM_GUEST = True
    LAYOUT = struct.Struct("<II")

    channel_id: int
    gpadl_id: int


@dataclass(frozen=True, slots=True)
class GpadlTorndown(Message):
    """The host does not use the pages any more."""

    TYPE = MessageType.GPADL_TORNDOWN
    FROM_GUEST = False
    LAYOUT = struct.Struct("<I")

    gpadl_id: int


@dataclass(frozen=True, slots=True)
class RelIdReleased(Message):
    """The guest has let go of a rescinded channel; its id may be used again."""

    TYPE = MessageType.REL_ID_RELEASED
    FROM_GUEST = True
    LAYOUT = struct.Struct("<I")

    channel_id: int


@dataclass(frozen=True, slots=True)
class InitiateContact(Message):
    """The guest's first message. From 5.0 ``interrupt_page_or_target_info`` holds SINT and VTL."""

    TYPE = MessageType.INITIATE_CONTACT
    FROM_GUEST = True
    LAYOUT = struct.Struct("<IIQQQ")

    version_requested: int
    target_message_vp: int
    interrupt_page_or_target_info: int
    parent_to_child_monitor_page_gpa: int
    child_to_parent_monitor_page_gpa: int


@dataclass(frozen=True, slots=True)
class InitiateContact2(Message):
    """InitiateContact with a client id (6.0)."""

    TYPE = MessageType.INITIATE_CONTACT
    SINCE = Version.COPPER
    FROM_GUEST = True
    LAYOUT = struct.Struct(f"<IIQQQ{GUID_SIZE}s")

    version_requested: int
    target_message_vp: int
    interrupt_page_or_target_info: int
    parent_to_child_monitor_page_gpa: int
    child_to_parent_monitor_page_gpa: int
    client_id: UUID


@dataclass(frozen=True, slots=True)
class VersionResponse(Message):
    """Answer to InitiateContact; from 5.0 the last word is the message connection id to use."""

    TYPE = MessageType.VERSION_RESPONSE
    FROM_GUEST = False
    LAYOUT = struct.Struct("<BBxxI")

    version_supported: int
    connection_state: int
    selected_version_or_connection_id: int


@dataclass(frozen=True, slots=True)
class VersionResponse2(Message):
    """VersionResponse with the features granted (6.0)."""

    TYPE = MessageType.VERSION_RESPONSE
    SINCE = Version.COPPER
    FROM_GUEST = False
    LAYOUT = struct.Struct("<BBxxII")

    version_supported: int
    connection_state: int
    selected_version_or_connection_id: int
    supported_features: int


@dataclass(frozen=True, slots=True)
class VersionResponse3(Message):
    """VersionResponse with monitor pages that the host chose (6.0 and a feature)."""

    TYPE = MessageType.VERSION_RESPONSE
    SINCE = Version.COPPER
    FROM_GUEST = False
    LAYOUT = struct.Struct("<BBxxII4xQQ")

    version_supported: int
    connection_state: int
    selected_version_or_connection_id: int
    supported_features: int
    parent_to_child_monitor_page_gpa: int
    child_to_parent_monitor_page_gpa: int


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """The guest ends the connection."""

    TYPE = MessageType.UNLOAD
    FROM_GUEST = True


@dataclass(frozen=True, slots=True)
class UnloadComplete(Message):
    """The answer, from 1.1 on."""

    TYPE = MessageType.UNLOAD_COMPLETE
    SINCE = Version.WIN7
    FROM_GUEST = False


@dataclass(frozen=True, slots=True)
class OpenReservedChannel(Message):
    """Open a channel reserved for crash dumps."""

    TYPE = MessageType.OPEN_RESERVED_CHANNEL
    SINCE = Version.WIN10
    FROM_GUEST = True
    LAYOUT = struct.Struct("<IIIII")

    channel_id: int
    target_vp: int
    target_sint: int
    ring_buffer_gpadl: int
    downstream_page_offset: int


@dataclass(frozen=True, slots=True)
class CloseReservedChannel(Message):
    """Close a reserved channel; the answer goes to the VP and SINT named here."""

    TYPE = MessageType.CLOSE_RESERVED_CHANNEL
    SINCE = Version.WIN10
    FROM_GUEST = True
    LAYOUT = struct.Struct("<III")

    channel_id: int
    target_vp: int
    target_sint: int


@dataclass(frozen=True, slots=True)
class CloseReservedChannelResponse(Message):
    """The reserved channel is closed."""

    TYPE = MessageType.CLOSE_RESERVED_CHANNEL_RESPONSE
    SINCE = Version.WIN10
    FROM_GUEST = False
    LAYOUT = struct.Struct("<I")

    channel_id: int


@dataclass(frozen=True, slots=True)
class TlConnectRequest(Message):
    """Connect a Hyper-V socket."""

    TYPE = MessageType.TL_CONNECT_REQUEST
    SINCE = Version.WIN10
    FROM_GUEST = True
    LAYOUT = struct.Struct(f"<{GUID_SIZE}s{GUID_SIZE}s")

    endpoint_id: UUID
    service_id: UUID


@dataclass(frozen=True, slots=True)
class TlConnectRequest2(Message):
    """TlConnectRequest with a silo id (5.2)."""

    TYPE = MessageType.TL_CONNECT_REQUEST
    SINCE = Version.WIN10_RS5
    FROM_GUEST = True
    LAYOUT = struct.Struct(f"<{GUID_SIZE}s{GUID_SIZE}s{GUID_SIZE}s")

    endpoint_id: UUID
    service_id: UUID
    silo_id: UUID


@dataclass(frozen=True, slots=True)
class ModifyChannel(Message):
    """Move the channel's interrupt to another VP."""

    TYPE = MessageType.MODIFY_CHANNEL
    SINCE = Version.WIN10_RS3_0
    FROM_GUEST = True
    LAYOUT = struct.Struct("<II")

    channel_id: int
    target_vp: int


@dataclass(frozen=True, slots=True)
class TlConnectResult(Message):
    """A Hyper-V socket could not be connected."""

    TYPE = MessageType.TL_CONNECT_RESULT
    SINCE = Version.WIN10_RS3_0
    FROM_GUEST = False
    LAYOUT = struct.Struct(f"<{GUID_SIZE}s{GUID_SIZE}sI")

    endpoint_id: UUID
    service_id: UUID
    status: int


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    """From 5.3: the interrupt has moved."""

    TYPE = MessageType.MODIFY_CHANNEL_RESPONSE
    SINCE = Version.IRON
    FROM_GUEST = False
    LAYOUT = struct.Struct("<II")

    channel_id: int
    status: int


@dataclass(frozen=True, slots=True)
class ModifyConnection(Message):
    """Change the monitor pages."""

    TYPE = MessageType.MODIFY_CONNECTION
    SINCE = Version.COPPER
    FROM_GUEST = True
    LAYOUT = struct.Struct("<QQ")

    parent_to_child_monitor_page_gpa: int
    child_to_parent_monitor_page_gpa: int


@dataclass(frozen=True, slots=True)
class ModifyConnectionResponse(Message):
    """The answer."""

    TYPE = MessageType.MODIFY_CONNECTION_RESPONSE
    SINCE = Version.COPPER
    FROM_GUEST = False
    LAYOUT = struct.Struct("<B")

    connection_state: int


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """Send no more messages until Resume."""

    TYPE = MessageType.PAUSE
    SINCE = Version.COPPER
    FROM_GUEST = True


@dataclass(frozen=True, slots=True)
class PauseResponse(Message):
    """The last message before the pause."""

    TYPE = MessageType.PAUSE_RESPONSE
    SINCE = Version.COPPER
    FROM_GUEST = False


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """Messages may come again."""

    TYPE = MessageType.RESUME
    SINCE = Version.COPPER
    FROM_GUEST = True


TABLE: Final[tuple[type[Message], ...]] = (
    OfferChannel,
    RescindChannelOffer,
    RequestOffers,
    AllOffersDelivered,
    OpenChannel,
    OpenChannel2,
    OpenResult,
    CloseChannel,
    GpadlHeader,
    GpadlBody,
    GpadlCreated,
    GpadlTeardown,
    GpadlTorndown,
    RelIdReleased,
    InitiateContact,
    InitiateContact2,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
    Unload,
    UnloadComplete,
    OpenReservedChannel,
    CloseReservedChannel,
    CloseReservedChannelResponse,
    TlConnectRequest,
    TlConnectRequest2,
    ModifyChannel,
    TlConnectResult,
    ModifyChannelResponse,
    ModifyConnection,
    ModifyConnectionResponse,
    Pause,
    PauseResponse,
    Resume,
)
"""Every form of every message, shorter forms first."""

GuestMessage = (
    RequestOffers
    | OpenChannel
    | OpenChannel2
    | CloseChannel
    | GpadlHeader
    | GpadlBody
    | GpadlTeardown
    | RelIdReleased
    | InitiateContact
    | InitiateContact2
    | Unload
    | OpenReservedChannel
    | CloseReservedChannel
    | TlConnectRequest
    | TlConnectRequest2
    | ModifyChannel
    | ModifyConnection
    | Pause
    | Resume
)
"""What a guest may send; a ``match`` over it names every form."""

_FORMS: Final[dict[tuple[int, bool], list[type[Message]]]] = {}
for _form in TABLE:
    _FORMS.setdefault((_form.TYPE, _form.FROM_GUEST), []).append(_form)


def parse_guest(payload: bytes, version: Version | None = None) -> GuestMessage:
    """Decode a message from the guest: the longest form that ``version`` knows and the bytes fill.

    Without a version every form is known. InitiateContact is always chosen by size: it comes
    before there is a version. Raises :class:`MalformedMessage`.
    """
    return cast(GuestMessage, _parse(payload, version, from_guest=True))


def parse_host(payload: bytes) -> Message:
    """Decode a message from the host, by size; raises :class:`MalformedMessage`."""
    return _parse(payload, None, from_guest=False)


def _parse(payload: bytes, version: Version | None, *, from_guest: bool) -> Message:
    if len(payload) < HEADER_SIZE:
        raise MalformedMessage(f"a message of {len(payload)} bytes has no header")
    if len(payload) > MAX_MESSAGE:
        raise MalformedMessage(f"a message of {len(payload)} bytes; at most {MAX_MESSAGE}")
    number, _ = HEADER.unpack_from(payload)
    forms = _FORMS.get((number, from_guest))
    if forms is None:
        raise MalformedMessage(f"type {number} is not a message of this direction")
    if version is None or number == MessageType.INITIATE_CONTACT:
        version = max(Version)
    body = payload[HEADER_SIZE:]
    for form in reversed(forms[1:]):
        if version >= form.SINCE and len(body) >= form.LAYOUT.size:
            return form.parse(body)
    return forms[0].parse(body)
