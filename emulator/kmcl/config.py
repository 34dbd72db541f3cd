# SPDX-License-Identifier: MIT
"""A server channel's configuration, set while it is Disabled, and the types of its callbacks.

Each setter is one VmbChannelInitSet* or VmbServerChannelInitSet* function. Their common rule: the
channel must be Disabled, else INVALID_PARAMETER_1; a bad argument is INVALID_PARAMETER_2 (its
first argument after the channel) and so on. A setter that fails leaves the earlier setting.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Final, Protocol

from emulator.kmcl.errors import KmclError
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
    """Flags of an offer on the wire, as far as a server channel can ask for them."""

    ENUMERATE_DEVICE_INTERFACE = 0x1


class ServerInitFlags(IntFlag):
    """VMBUS_SERVER_CHANNEL_INIT_FLAG_*, as far as they are carried out.

    Pipes, loopback, socket and force-new offers are refused with NOT_SUPPORTED until something
    carries them out.
    """

    ENUMERATE_DEVICE_INTERFACE = 0x2


_KNOWN_SERVER_FLAGS: Final = 0x1F


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
        """Return the guest memory of GPA-direct ranges; raises GpaError."""


class ConfiguredChannel:
    """The configuration half of :class:`~emulator.kmcl.ServerChannel`."""

    def __init__(self) -> None:
        self.friendly_name = "unnamed"
        self._interface: uuid.UUID | None = None
        self._instance: uuid.UUID | None = None
        self._user_defined = b""
        self._offer_flags = OfferFlags(0)
        self._mmio = (0, 0)
        self._maximum_packet_size = KMCL_MTU - DESCRIPTOR_SIZE
        self._maximum_packet_count: int | None = None
        self._maximum_external: tuple[int, int] | None = None
        self._state_callbacks = StateChangeCallbacks()
        self._process_packet: ProcessPacket | None = None
        self._processing_complete: ProcessingComplete | None = None
        self._save_packet: SavePacket | None = None
        self._restore_packet: RestorePacket | None = None
        self._named = False
        self.fault_callback: FaultCallback | None = None

    def _may_configure(self) -> bool:
        raise NotImplementedError

    def _configuring(self, what: str) -> None:
        if not self._may_configure():
            raise KmclError(
                NtStatus.INVALID_PARAMETER_1,
                f"{self.friendly_name}: {what} can only be set while the channel is Disabled",
            )

    def init_set_friendly_name(self, name: str) -> None:
        """VmbChannelInitSetFriendlyName: the name in errors and statistics; can be set once."""
        self._configuring("the friendly name")
        if self._named:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2, f"{self.friendly_name}: the channel is named already"
            )
        self.friendly_name = name
        self._named = True

    def init_set_target_interface_id(self, interface: uuid.UUID, instance: uuid.UUID) -> None:
        """VmbServerChannelInitSetTargetInterfaceId: the offer's class and instance GUID."""
        self._configuring("the interface id")
        self._interface, self._instance = interface, instance

    def init_set_user_defined(self, data: bytes) -> None:
        """Set the offer's user-defined bytes, at most 120.

        Not a DDI: the header has the limit (MAXIMUM_OFFER_DATA), but no public function to use it.
        """
        self._configuring("the offer data")
        if len(data) > MAXIMUM_OFFER_DATA:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: {len(data)} bytes of offer data; "
                f"at most {MAXIMUM_OFFER_DATA} fit",
            )
        self._user_defined = bytes(data)

    def server_init_set_flags(self, flags: int) -> None:
        """VmbServerChannelInitSetFlags, of :class:`ServerInitFlags`."""
        self._configuring("the server flags")
        if flags & ~_KNOWN_SERVER_FLAGS:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: unknown server flags {flags:#x}",
            )
        if flags & ~int(ServerInitFlags.ENUMERATE_DEVICE_INTERFACE):
            raise KmclError(
                NtStatus.NOT_SUPPORTED,
                f"{self.friendly_name}: server flags {flags:#x} are not made yet",
            )
        self._offer_flags = OfferFlags.ENUMERATE_DEVICE_INTERFACE if flags else OfferFlags(0)

    def server_init_set_mmio_megabytes(self, required: int, optional: int) -> None:
        """VmbServerChannelInitSetMmioMegabytes: guest MMIO space, in MiB; not both 0."""
        self._configuring("the MMIO space")
        if not (0 <= required <= 0xFFFF and 0 <= optional <= 0xFFFF) or not required + optional:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: {required}+{optional} MiB of MMIO space: give 1 to 65535",
            )
        self._mmio = (required, optional)

    def init_set_maximum_packet_size(self, size: int) -> None:
        """VmbChannelInitSetMaximumPacketSize: the largest payload a send may have, in bytes."""
        self._configuring("the maximum packet size")
        if not 0 < size <= KMCL_MTU - DESCRIPTOR_SIZE:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: a maximum packet size of {size} bytes; "
                f"give 1 to {KMCL_MTU - DESCRIPTOR_SIZE}",
            )
        self._maximum_packet_size = size

    def init_set_maximum_packet_count(self, count: int) -> None:
        """VmbChannelInitSetMaximumPacketCount: the most outgoing packet objects at a time.

        KMCL sizes its table of transactions by it. Because an allocated packet's send cannot fail
        for want of memory, the limit bites in ``packet_allocate`` (inferred).
        """
        self._configuring("the maximum packet count")
        if count <= 0:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: a maximum packet count of {count}",
            )
        self._maximum_packet_count = count

    def init_set_maximum_external_data(self, data_size: int, chain_length: int) -> None:
        """VmbChannelInitSetMaximumExternalData: bytes and ranges of a GPA-direct packet.

        A packet beyond either stops the channel's queue with PACKET_REFUSED (inferred).
        """
        self._configuring("the maximum external data")
        if data_size <= 0:
            raise KmclError(NtStatus.INVALID_PARAMETER_2, f"{self.friendly_name}: size {data_size}")
        if chain_length <= 0:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_3, f"{self.friendly_name}: chain length {chain_length}"
            )
        self._maximum_external = (data_size, chain_length)

    def init_set_state_change_callbacks(self, callbacks: StateChangeCallbacks) -> None:
        """VmbChannelInitSetStateChangeCallbacks."""
        self._configuring("the state callbacks")
        self._state_callbacks = callbacks

    def init_set_process_packet_callbacks(
        self, process_packet: ProcessPacket, processing_complete: ProcessingComplete | None = None
    ) -> None:
        """VmbChannelInitSetProcessPacketCallbacks."""
        self._configuring("the process callbacks")
        self._process_packet = process_packet
        self._processing_complete = processing_complete

    def init_set_save_restore_packet_callbacks(
        self, save_packet: SavePacket, restore_packet: RestorePacket
    ) -> None:
        """VmbServerChannelInitSetSaveRestorePacketCallbacks; the last registration counts."""
        self._configuring("the save and restore callbacks")
        self._save_packet = save_packet
        self._restore_packet = restore_packet

    @property
    def save_packet_callback(self) -> SavePacket | None:
        """EvtSavePacket, if set."""
        return self._save_packet

    @property
    def restore_packet_callback(self) -> RestorePacket | None:
        """EvtRestorePacket, if set."""
        return self._restore_packet

    def offer_params(self) -> OfferParams:
        """Return the offer; raises :class:`KmclError` if no interface id is set."""
        if self._interface is None or self._instance is None:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self.friendly_name}: set the target interface id before enabling the channel",
            )
        return OfferParams(
            interface=self._interface,
            instance=self._instance,
            user_defined=self._user_defined,
            flags=self._offer_flags,
            mmio_megabytes=self._mmio[0],
            mmio_megabytes_optional=self._mmio[1],
        )
