# SPDX-License-Identifier: MIT
"""The bus in a snapshot.

Rules: a new field has a default that means what older snapshots meant; a field that changes its
meaning changes ``BUS_STATE_VERSION``, and unknown versions and fields are refused. Nothing is saved
that follows from something else: the pages of a ring are those of its GPADL.
"""

from __future__ import annotations

from typing import Annotated, Final
from uuid import UUID

import msgspec

from emulator.bus.channel import ChannelState, Ending
from emulator.bus.contact import NO_CLIENT, SINT_COUNT, Verdict
from emulator.bus.gpadl import GpadlPhase
from emulator.bus.pages import MONITOR_IDS
from emulator.wire.message import HEADER_SIZE, MAX_MESSAGE
from emulator.wire.messages import USER_DEFINED_SIZE

BUS_STATE_VERSION: Final = 1

U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
# MessagePack has no larger integers.
U64 = Annotated[int, msgspec.Meta(ge=0)]
Payload = Annotated[bytes, msgspec.Meta(min_length=HEADER_SIZE, max_length=MAX_MESSAGE)]
Sint = Annotated[int, msgspec.Meta(ge=1, lt=SINT_COUNT)]
MonitorId = Annotated[int, msgspec.Meta(ge=0, lt=MONITOR_IDS)]
UserDefined = Annotated[bytes, msgspec.Meta(max_length=USER_DEFINED_SIZE)]


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all saved structures have in common."""


class SavedKey(Saved, frozen=True):
    """An OfferKey."""

    interface: UUID
    instance: UUID
    subchannel_index: U16


class SavedOffer(Saved, frozen=True):
    """What was offered."""

    user_defined: UserDefined
    flags: U16
    mmio_megabytes: U16
    mmio_megabytes_optional: U16


class SavedOpen(Saved, frozen=True):
    """An open request; ``target_vp`` is None for a channel without interrupt.

    ``signal`` is connection id and event flag if the guest chose them (6.0).
    ``reserved`` is VP and SINT that the answer to OpenReservedChannel goes to.
    """

    gpadl_id: U32
    open_id: U32
    target_vp: U32 | None
    target_sint: Sint
    downstream_page_offset: U32
    user_data: UserDefined
    signal: tuple[U32, U16] | None = None
    reserved: tuple[U32, Sint] | None = None


class SavedChannel(Saved, frozen=True):
    """One channel. ``open`` is set while its owner has the rings or is asked to take them;
    ``reopen`` is an open request that came while it was closing; ``close_answer`` VP and
    SINT that the answer to CloseReservedChannel goes to; ``monitor_id`` the trigger that the guest
    was offered; ``orphaned`` whether its owner has been asked to rescind a sub-channel.
    """

    key: SavedKey
    offer: SavedOffer
    state: ChannelState
    open: SavedOpen | None
    reopen: SavedOpen | None
    close_answer: tuple[U32, Sint] | None = None
    monitor_id: MonitorId | None = None
    orphaned: bool = False


class SavedGpadl(Saved, frozen=True):
    """One GPADL; ``data`` is what has been received of the ``length`` bytes of its ranges."""

    channel_id: U32
    gpadl_id: U32
    phase: GpadlPhase
    length: U16
    count: U16
    data: bytes


class SavedContact(Saved, frozen=True):
    """A connection; ``version`` is what the guest asked for, and got if the verdict says so."""

    version: U32
    vp: U32
    sint: Sint
    connection_id: U32
    verdict: Verdict
    features: U32 = 0
    client_id: UUID = NO_CLIENT
    monitor_pages: tuple[U64, U64] | None = None
    interrupt_page: U64 | None = None


class BusState(Saved, frozen=True):
    """The whole bus.

    ``ending`` is what is owed while a connection ends, ``next_contact`` the contact that ended it.
    ``ids[n]`` is the key of the channel with id n + 1, for every channel there ever was.
    ``held`` are messages that wait because the guest has paused the connection, if it has.
    """

    version: U32
    contact: SavedContact | None
    offers_requested: bool
    ending: Ending | None
    next_contact: SavedContact | None
    channels: list[SavedChannel]
    gpadls: list[SavedGpadl]
    ids: list[SavedKey]
    held: list[Payload] | None = None
