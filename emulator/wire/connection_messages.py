# SPDX-License-Identifier: MIT
"""Messages about the connection as a whole: contact, offers as a set, pause, Hyper-V sockets.

Source: Linux include/linux/hyperv.h, ``struct vmbus_channel_*``; what only 6.0 has is from the
public sources of Microsoft's OpenVMM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from emulator.wire.guid import GUID_SIZE
from emulator.wire.message import Message, MessageType
from emulator.wire.version import FeatureFlags, Version


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
    FEATURES = FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
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
class ModifyConnection(Message):
    """Change the monitor pages."""

    TYPE = MessageType.MODIFY_CONNECTION
    SINCE = Version.COPPER
    FEATURES = FeatureFlags.MODIFY_CONNECTION
    FROM_GUEST = True
    LAYOUT = struct.Struct("<QQ")

    parent_to_child_monitor_page_gpa: int
    child_to_parent_monitor_page_gpa: int


@dataclass(frozen=True, slots=True)
class ModifyConnectionResponse(Message):
    """The answer."""

    TYPE = MessageType.MODIFY_CONNECTION_RESPONSE
    SINCE = Version.COPPER
    FEATURES = FeatureFlags.MODIFY_CONNECTION
    FROM_GUEST = False
    LAYOUT = struct.Struct("<B")

    connection_state: int


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """Send no more messages until Resume."""

    TYPE = MessageType.PAUSE
    SINCE = Version.COPPER
    FEATURES = FeatureFlags.PAUSE_RESUME
    FROM_GUEST = True


@dataclass(frozen=True, slots=True)
class PauseResponse(Message):
    """The last message before the pause."""

    TYPE = MessageType.PAUSE_RESPONSE
    SINCE = Version.COPPER
    FEATURES = FeatureFlags.PAUSE_RESUME
    FROM_GUEST = False


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """Messages may come again."""

    TYPE = MessageType.RESUME
    SINCE = Version.COPPER
    FEATURES = FeatureFlags.PAUSE_RESUME
    FROM_GUEST = True
