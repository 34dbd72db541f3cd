# SPDX-License-Identifier: MIT
"""Channel messages: one table of all forms, and how the form of a message is found.

The forms are dataclasses in ``channel_messages`` and ``connection_messages``; all are exported
here. A message is an 8-byte header (type, padding) and a body. Where a message has several sizes,
the longer form is a class of its own; it is chosen when the bytes fill it and the negotiated
version knows it, so that the surplus bytes of a shorter form are never taken for fields. Surplus
bytes are tolerated, as Hyper-V does; missing bytes are malformed.
"""

from __future__ import annotations

from typing import Final, cast

from emulator.wire.channel_messages import (
    USER_DEFINED_SIZE,
    CloseChannel,
    CloseReservedChannel,
    CloseReservedChannelResponse,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    ModifyChannel,
    ModifyChannelResponse,
    OfferChannel,
    OpenChannel,
    OpenChannel2,
    OpenReservedChannel,
    OpenResult,
    RelIdReleased,
    RescindChannelOffer,
)
from emulator.wire.connection_messages import (
    AllOffersDelivered,
    InitiateContact,
    InitiateContact2,
    ModifyConnection,
    ModifyConnectionResponse,
    Pause,
    PauseResponse,
    RequestOffers,
    Resume,
    TlConnectRequest,
    TlConnectRequest2,
    TlConnectResult,
    Unload,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
)
from emulator.wire.message import (
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE,
    MalformedMessage,
    Message,
    MessageStatus,
    MessageType,
)
from emulator.wire.version import ALL_FEATURES, FeatureFlags, Version

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


def parse_guest(
    payload: bytes,
    version: Version | None = None,
    features: FeatureFlags = ALL_FEATURES,
) -> GuestMessage:
    """Decode a message from the guest: the longest form that is known and that the bytes fill.

    What is known is told by the version and the features that were granted; without a version
    every form is. InitiateContact is always chosen by size: it comes before there is a version.
    Raises :class:`MalformedMessage`.
    """
    return cast(GuestMessage, _parse(payload, version, features, from_guest=True))


def parse_host(payload: bytes) -> Message:
    """Decode a message from the host, by size; raises :class:`MalformedMessage`."""
    return _parse(payload, None, ALL_FEATURES, from_guest=False)


def _parse(
    payload: bytes, version: Version | None, features: FeatureFlags, *, from_guest: bool
) -> Message:
    if len(payload) < HEADER_SIZE:
        raise MalformedMessage(f"a message of {len(payload)} bytes has no header")
    if len(payload) > MAX_MESSAGE:
        raise MalformedMessage(f"a message of {len(payload)} bytes; at most {MAX_MESSAGE}")
    number, _ = HEADER.unpack_from(payload)
    forms = _FORMS.get((number, from_guest))
    if forms is None:
        raise MalformedMessage(f"type {number} is not a message of this direction")
    if version is None or number == MessageType.INITIATE_CONTACT:
        version, features = max(Version), ALL_FEATURES
    body = payload[HEADER_SIZE:]
    for form in reversed(forms[1:]):
        if form.known_at(version, features) and len(body) >= form.LAYOUT.size:
            return form.parse(body)
    return forms[0].parse(body)
