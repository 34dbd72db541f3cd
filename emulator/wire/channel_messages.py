# SPDX-License-Identifier: MIT
"""Messages about one channel: its offer, its opening and closing, its GPADLs.

Source: Linux include/linux/hyperv.h, ``struct vmbus_channel_*``; what only 6.0 has is from the
public sources of Microsoft's OpenVMM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from emulator.wire.guid import GUID_SIZE
from emulator.wire.message import Message, MessageType
from emulator.wire.version import FeatureFlags, Version

USER_DEFINED_SIZE: Final = 120
"""Bytes that a device may put into its offer, and a guest into its open."""


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
    """OpenChannel with signal parameters that the guest chooses (6.0 and a feature).

    Bit 0 of ``flags`` redirects the interrupt to a paravisor's VTL and SINT.
    """

    TYPE = MessageType.OPEN_CHANNEL
    SINCE = Version.COPPER
    FEATURES = (
        FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
    )
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
class ModifyChannel(Message):
    """Move the channel's interrupt to another VP."""

    TYPE = MessageType.MODIFY_CHANNEL
    SINCE = Version.WIN10_RS3_0
    FROM_GUEST = True
    LAYOUT = struct.Struct("<II")

    channel_id: int
    target_vp: int


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    """From 5.3: the interrupt has moved."""

    TYPE = MessageType.MODIFY_CHANNEL_RESPONSE
    SINCE = Version.IRON
    FROM_GUEST = False
    LAYOUT = struct.Struct("<II")

    channel_id: int
    status: int
