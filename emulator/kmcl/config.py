# SPDX-License-Identifier: MIT
"""The types of a server channel's configuration and callbacks, and what it needs below it.

The setters are in :mod:`emulator.kmcl.settings`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Any, Final, Protocol

from emulator.memory import PageView
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel
    from emulator.kmcl.packets import IncomingPacket, OutgoingPacket

MAXIMUM_OFFER_DATA: Final = 120
"""Bytes of user-defined offer data (VMBUS_SERVER_CHANNEL_INIT_MAXIMUM_OFFER_DATA)."""

KMCL_MTU: Final = 524_280
"""Bytes of the largest packet, descriptor included: 0xFFFF units of 8 (KMCL's documented MTU)."""

DESCRIPTOR_SIZE: Final = 16
"""Bytes of the packet descriptor, which count against the MTU."""

DEFAULT_TRANSACTION_QUOTA: Final = 1024
"""Incoming packets the VSP may hold before reading stops. KMCL's own default is not documented;
there must be one, because a guest could otherwise make the host hold packets without bound."""


class OfferFlags(IntFlag):
    """Flags of an offer on the wire, as far as a server channel can ask for them.

    Values: Linux, include/linux/hyperv.h, VMBUS_CHANNEL_*.
    """

    ENUMERATE_DEVICE_INTERFACE = 0x1
    NAMED_PIPE_MODE = 0x10
    TLNPI_PROVIDER = 0x2000


class InitFlags(IntFlag):
    """VMBUS_CHANNEL_INIT_FLAG_*, of VmbChannelInitSetFlags."""

    IS_PIPE = 0x1
    """Payloads are framed by a pipe header, and there are no transactions
    (:mod:`emulator.kmcl.pipe`)."""


class ServerInitFlags(IntFlag):
    """VMBUS_SERVER_CHANNEL_INIT_FLAG_*, of VmbServerChannelInitSetFlags."""

    LOOPBACK_OFFER = 0x1
    """Refused with NOT_SUPPORTED: there is no VMBus of the root partition to loop back to."""
    ENUMERATE_DEVICE_INTERFACE = 0x2
    OFFER_AS_PIPE = 0x4
    """The offer says named-pipe mode, and its data begin with the pipe type "message"."""
    FORCE_NEW_CHANNEL = 0x8
    """After a save and restore the channel is offered anew, and the old instance abandoned."""
    TLNPI_PROVIDER_OFFER = 0x10
    """The channel belongs to a socket (hv_sock)."""


_OFFER_FLAGS: Final = {
    ServerInitFlags.ENUMERATE_DEVICE_INTERFACE: OfferFlags.ENUMERATE_DEVICE_INTERFACE,
    ServerInitFlags.OFFER_AS_PIPE: OfferFlags.NAMED_PIPE_MODE,
    ServerInitFlags.TLNPI_PROVIDER_OFFER: OfferFlags.TLNPI_PROVIDER,
}


def offer_flags(flags: ServerInitFlags) -> OfferFlags:
    """Return what the offer on the wire says of a channel with these flags."""
    found = OfferFlags(0)
    for init_flag, offer_flag in _OFFER_FLAGS.items():
        if flags & init_flag:
            found |= offer_flag
    return found


@dataclass(frozen=True, slots=True)
class OfferParams:
    """What the provider needs to offer a channel; ``flags`` is :class:`OfferFlags`."""

    interface: uuid.UUID
    instance: uuid.UUID
    subchannel_index: int = 0
    user_defined: bytes = b""
    flags: int = 0
    mmio_megabytes: int = 0
    mmio_megabytes_optional: int = 0
    force_new: bool = False
    """Do not claim what a snapshot has of this offer; see ``FORCE_NEW_CHANNEL``."""


StateCallbackEx = Callable[["ServerChannel", Any], None]
"""A state callback of interface V5: the channel, and the context it was registered with."""


@dataclass(frozen=True, slots=True)
class StateChangeCallbacks:
    """VMB_CHANNEL_STATE_CHANGE_CALLBACKS; any may be left out."""

    opened: Callable[[ServerChannel], NtStatus] | None = None
    """EvtChannelOpened: the guest opened the channel; a failure makes its open fail."""
    closed: Callable[[ServerChannel], None] | None = None
    """EvtChannelClosed: there is no peer any more; sends are queued from now on."""
    suspend: Callable[[ServerChannel], None] | None = None
    """EvtChannelSuspend: no packet comes any more; complete what you hold, send nothing."""
    started: Callable[[ServerChannel], None] | None = None
    """EvtChannelStarted: about to run; sends are queued, nothing has been delivered yet."""
    post_started: Callable[[ServerChannel], None] | None = None
    """EvtChannelPostStarted: packets flow; the place to negotiate."""

    @classmethod
    def ex(
        cls,
        context: Any,
        *,
        opened: Callable[[ServerChannel, Any], NtStatus] | None = None,
        closed: StateCallbackEx | None = None,
        suspend: StateCallbackEx | None = None,
        started: StateCallbackEx | None = None,
        post_started: StateCallbackEx | None = None,
    ) -> StateChangeCallbacks:
        """VMB_CHANNEL_STATE_CHANGE_CALLBACKS_V5: each gets ``context`` as its second argument."""

        def bound(callback: StateCallbackEx | None) -> Callable[[ServerChannel], None] | None:
            if callback is None:
                return None
            return lambda channel: callback(channel, context)

        return cls(
            opened=None if opened is None else lambda channel: opened(channel, context),
            closed=bound(closed),
            suspend=bound(suspend),
            started=bound(started),
            post_started=bound(post_started),
        )


@dataclass(frozen=True, slots=True)
class SavedPacket:
    """The answer of EvtSavePacket: a status, what was saved, and BytesNeeded.

    ``data`` longer than the size that was asked for is an error of the VSP.
    """

    status: NtStatus
    data: bytes = b""
    bytes_needed: int = 0


@dataclass(frozen=True, slots=True)
class RestoredPacket:
    """The arguments of EvtRestorePacket.

    ``lib_buffer`` is KMCL's, for VmbPacketRestore; ``save_buffer`` is what the VSP saved, byte for
    byte (empty if its EvtSavePacket succeeded at size 0).
    """

    lib_buffer: bytes
    save_buffer: bytes


ProcessPacket = Callable[["ServerChannel", "IncomingPacket"], None]
"""EvtChannelProcessPacket. Each packet must be completed or failed some time."""

ProcessingComplete = Callable[["ServerChannel", int], None]
"""EvtChannelProcessingComplete: a batch of that many packets is over."""

Drain = Callable[["ServerChannel", int, int], None]
"""A drain(channel, packets, payload_bytes): so many requests were completed since the last call."""

SavePacket = Callable[["ServerChannel", "OutgoingPacket", int], SavedPacket]
"""EvtSavePacket(channel, packet, SaveBufSize): called with size 0 first, then, if that failed, once
more with the BytesNeeded it gave."""

RestorePacket = Callable[["ServerChannel", RestoredPacket], NtStatus]
"""EvtRestorePacket: allocate a packet, set its routine and context, call its ``restore``."""

FaultCallback = Callable[["ServerChannel", str], None]
"""Called once for each fault (not a DDI: Windows reports these by event log and ETW)."""


class ChannelPort(Protocol):
    """What a channel needs of the machine below it."""

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Offer the channel. May call ``port_restored`` or ``port_opened`` before it returns."""

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        """Take the offer back; the channel has closed itself already."""

    def signal(self, channel: ServerChannel) -> None:
        """Interrupt the guest on this channel."""

    def poll_again(self, channel: ServerChannel) -> None:
        """Call the channel's ``port_interrupt`` once, after other work had a turn."""

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """Return the pages of a GPADL of this channel; raises KeyError."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """Return the guest memory of GPA-direct ranges; raises GpaError, or ExternalDataPending."""

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Do what has to be done before the guest learns that these ranges were written."""
