# SPDX-License-Identifier: MIT
"""What the bus wants done, and what it knows of an offer: the types at its border.

An effect that asks names the call that answers it. Effects are taken in order with
``BusHost.take_effects``; nothing happens until they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from emulator.wire.packet import GpaRange
from emulator.wire.version import Version


@dataclass(frozen=True, slots=True, order=True)
class OfferKey:
    """What makes a channel the same one over reboot, hibernation and restore."""

    interface: UUID
    instance: UUID
    subchannel_index: int = 0

    def __str__(self) -> str:
        """Name the channel for people."""
        sub = f" sub {self.subchannel_index}" if self.subchannel_index else ""
        return f"{self.interface}:{self.instance}{sub}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A channel to be offered. ``user_defined`` at most 120 bytes; MMIO in MiB.

    With ``monitored`` the guest is asked to signal it by a bit in its monitor page, if it has one
    and there is a trigger left. This is not a part of what the guest knows a channel by.
    """

    key: OfferKey
    user_defined: bytes = b""
    flags: int = 0
    mmio_megabytes: int = 0
    mmio_megabytes_optional: int = 0
    monitored: bool = False


@dataclass(frozen=True, slots=True)
class OpenParams:
    """How a guest has opened a channel.

    ``ring_pfns`` are the pages of both rings, the guest's first; ``downstream_page_offset`` is the
    index of the first page of the host's. ``target_vp`` is None for a channel without interrupt.
    ``monitor_id`` is the trigger that the guest may set instead of a signal, if it has been offered
    one.
    """

    channel_id: int
    open_id: int
    target_vp: int | None
    target_sint: int
    ring_pfns: tuple[int, ...]
    downstream_page_offset: int
    user_data: bytes
    connection_id: int
    event_flag: int
    monitor_id: int | None = None


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Post ``payload`` to the SIM slot of (``vp``, ``sint``)."""

    vp: int
    sint: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ChannelOpening:
    """The guest opens the channel; answer with ``open_result``."""

    key: OfferKey
    params: OpenParams


@dataclass(frozen=True, slots=True)
class ChannelClosing:
    """The guest has closed the channel, or is gone; answer with ``close_done``."""

    key: OfferKey


@dataclass(frozen=True, slots=True)
class ChannelMoved:
    """The channel's interrupt goes to another VP."""

    key: OfferKey
    target_vp: int | None


@dataclass(frozen=True, slots=True)
class GpadlCreated:
    """The guest has made a GPADL for the channel."""

    key: OfferKey
    gpadl_id: int
    ranges: tuple[GpaRange, ...]


@dataclass(frozen=True, slots=True)
class GpadlTearingDown:
    """The guest wants the pages back, or is gone; answer with ``gpadl_released``."""

    key: OfferKey
    gpadl_id: int


@dataclass(frozen=True, slots=True)
class BusConnected:
    """A guest has negotiated ``version``."""

    version: Version


@dataclass(frozen=True, slots=True)
class BusDisconnected:
    """The guest's connection has ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChannelReleased:
    """The guest has let go of a channel: a rescinded one, or one that it will not use again.

    The owner of a channel that was not rescinded may still be asked for GPADLs of it.
    """

    key: OfferKey


@dataclass(frozen=True, slots=True)
class SubchannelOrphaned:
    """The guest has closed the primary channel of this sub-channel: rescind it.

    Sub-channels are made for one opening of a device. Hyper-V rescinds them when the primary closes
    (KMCL disables them; Linux waits for that before it hibernates, vmbus_bus_suspend()).
    """

    key: OfferKey


@dataclass(frozen=True, slots=True)
class GuestError:
    """The guest broke a rule; the text says which. Its message had no effect but a refusal."""

    text: str


Effect = (
    SendMessage
    | ChannelOpening
    | ChannelClosing
    | ChannelMoved
    | GpadlCreated
    | GpadlTearingDown
    | BusConnected
    | BusDisconnected
    | ChannelReleased
    | SubchannelOrphaned
    | GuestError
)
