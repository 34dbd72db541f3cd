# SPDX-License-Identifier: MIT
"""The bus in a snapshot.

Rules: a new field has a default that means what older snapshots meant; a field that changes its
meaning changes ``BUS_STATE_VERSION``, and unknown versions and fields are refused.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from emulator.bus.channel import ChannelState, Ending
from emulator.bus.gpadl import GpadlPhase

BUS_STATE_VERSION: Final = 1


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all saved structures have in common."""


class SavedKey(Frozen, frozen=True):
    """An OfferKey."""

    interface: UUID
    instance: UUID
    subchannel_index: int


class SavedOffer(Frozen, frozen=True):
    """What was offered."""

    user_defined: bytes
    flags: int
    mmio_megabytes: int
    mmio_megabytes_optional: int


class SavedOpen(Frozen, frozen=True):
    """OpenParams, and the GPADL that the ring is in."""

    gpadl_id: int
    open_id: int
    target_vp: int | None
    target_sint: int
    ring_pfns: tuple[int, ...]
    downstream_page_offset: int
    user_data: bytes
    connection_id: int
    event_flag: int


class SavedChannel(Frozen, frozen=True):
    """One channel; ``reopen`` is an open request that came while it was closing."""

    key: SavedKey
    offer: SavedOffer
    channel_id: int
    state: ChannelState
    told: bool
    open: SavedOpen | None
    reopen: SavedOpen | None


class SavedGpadl(Frozen, frozen=True):
    """One GPADL; ``data`` is what has been received of its ranges."""

    channel_id: int
    gpadl_id: int
    phase: GpadlPhase
    length: int
    count: int
    data: bytes


class SavedContact(Frozen, frozen=True):
    """A negotiated (or, while disconnecting, awaited) connection."""

    version: int
    vp: int
    sint: int
    connection_id: int


class BusState(Frozen, frozen=True):
    """The whole bus."""

    version: int
    contact: SavedContact | None
    offers_requested: bool
    ending: Ending | None
    next_contact: SavedContact | None
    channels: list[SavedChannel]
    gpadls: list[SavedGpadl]
    ids: list[tuple[SavedKey, int]]
