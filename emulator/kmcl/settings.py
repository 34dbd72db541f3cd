# SPDX-License-Identifier: MIT
"""The setters of a server channel, for while it is Disabled.

Each is one VmbChannelInitSet* or VmbServerChannelInitSet* function. Their common rule: the channel
must be Disabled, else INVALID_PARAMETER_1; a bad argument is INVALID_PARAMETER_2 (its first
argument after the channel) and so on. A setter that fails leaves the earlier setting.

The Ex variants (interface V5) pass a context as the second argument of the callback. Of a pair,
the last valid registration counts, whichever variant it was.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from emulator.kmcl.config import (
    DESCRIPTOR_SIZE,
    KMCL_MTU,
    MAXIMUM_OFFER_DATA,
    Drain,
    FaultCallback,
    InitFlags,
    OfferParams,
    ProcessingComplete,
    ProcessPacket,
    RestoredPacket,
    RestorePacket,
    SavedPacket,
    SavePacket,
    ServerInitFlags,
    StateChangeCallbacks,
    offer_flags,
)
from emulator.kmcl.errors import KmclError
from emulator.wire.ntstatus import NtStatus

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel
    from emulator.kmcl.packets import IncomingPacket, OutgoingPacket

_PAGE: Final = 4096
_PIPE_MESSAGE: Final = struct.pack("<I", 4)
"""The pipe type at the head of the offer data (Linux and OpenVMM: 0 byte, 4 message)."""
_ALL_SERVER_FLAGS: Final = 0x1F
_HIGHEST_VTL: Final = 2


class ConfiguredChannel:
    """The configuration half of :class:`~emulator.kmcl.ServerChannel`."""

    def __init__(self) -> None:
        self.friendly_name = "unnamed"
        self._interface: uuid.UUID | None = None
        self._instance: uuid.UUID | None = None
        self._user_defined = b""
        self._flags = InitFlags(0)
        self._server_flags = ServerInitFlags(0)
        self._primary: ServerChannel | None = None
        self._subchannel_index = 0
        self._mmio = (0, 0)
        self._maximum_packet_size = KMCL_MTU - DESCRIPTOR_SIZE
        self._maximum_packet_count: int | None = None
        self._maximum_external: tuple[int, int] | None = None
        self._state_callbacks = StateChangeCallbacks()
        self._process_packet: ProcessPacket | None = None
        self._drain: Drain | None = None
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
        A pipe's offer has room for 4 bytes less: the pipe type comes first.
        """
        self._configuring("the offer data")
        as_pipe = self._server_flags & ServerInitFlags.OFFER_AS_PIPE
        self._check_offer_data(data, len(_PIPE_MESSAGE) if as_pipe else 0)
        self._user_defined = bytes(data)

    def _check_offer_data(self, data: bytes, taken: int) -> None:
        if len(data) > MAXIMUM_OFFER_DATA - taken:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: {len(data)} bytes of offer data; "
                f"at most {MAXIMUM_OFFER_DATA - taken} fit",
            )

    def server_init_set_flags(self, flags: int) -> None:
        """VmbServerChannelInitSetFlags, of :class:`ServerInitFlags`."""
        self._configuring("the server flags")
        if flags & ~_ALL_SERVER_FLAGS:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: unknown server flags {flags:#x}",
            )
        if flags & ServerInitFlags.LOOPBACK_OFFER:
            raise KmclError(
                NtStatus.NOT_SUPPORTED,
                f"{self.friendly_name}: there is no loopback VMBus here; offer it to a guest",
            )
        wanted = ServerInitFlags(flags)
        if wanted & ServerInitFlags.OFFER_AS_PIPE:
            self._check_offer_data(self._user_defined, len(_PIPE_MESSAGE))
        self._server_flags = wanted

    def init_set_flags(self, flags: int) -> None:
        """VmbChannelInitSetFlags, of :class:`InitFlags`."""
        self._configuring("the flags")
        if flags & ~int(InitFlags.IS_PIPE):
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2, f"{self.friendly_name}: unknown flags {flags:#x}"
            )
        self._flags = InitFlags(flags)

    @property
    def force_new_channel(self) -> bool:
        """Whether a restore offers the channel anew, with nothing to restore into it."""
        return bool(self._server_flags & ServerInitFlags.FORCE_NEW_CHANNEL)

    @property
    def is_pipe(self) -> bool:
        """Whether payloads are framed as those of a pipe."""
        return bool(self._flags & InitFlags.IS_PIPE)

    def server_init_set_target_vtl(self, vtl: int) -> None:
        """VmbServerChannelInitSetTargetVtl: INVALID_PARAMETER_2 for what is no VTL.

        NOT_SUPPORTED beyond 0: QEMU's guests have no other virtual trust level.
        """
        self._configuring("the target VTL")
        if not 0 <= vtl <= _HIGHEST_VTL:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2, f"{self.friendly_name}: there is no VTL {vtl}"
            )
        if vtl:
            raise KmclError(
                NtStatus.NOT_SUPPORTED,
                f"{self.friendly_name}: the guest has no VTL {vtl}; offer it to VTL 0",
            )

    def init_set_bounce_buffer_sizes(self, initial: int, increment: int, maximum: int) -> None:
        """VmbChannelInitSetBounceBufferSizes: bytes, multiples of a page; 0 is a default.

        Checked and without further effect: a server bounces nothing, its data are the guest's own.
        """
        self._configuring("the bounce buffer")
        statuses = (
            NtStatus.INVALID_PARAMETER_2,
            NtStatus.INVALID_PARAMETER_3,
            NtStatus.INVALID_PARAMETER_4,
        )
        for size, status in zip((initial, increment, maximum), statuses, strict=True):
            if size < 0 or size % _PAGE:
                raise KmclError(
                    status, f"{self.friendly_name}: {size} bytes are not a number of pages"
                )

    def init_set_primary_channel(self, primary: ServerChannel, index: int) -> None:
        """VmbChannelInitSetPrimaryChannel: be sub-channel ``index`` (1 to 65,535) of ``primary``.

        It takes its interface and instance from the primary, can be enabled while that is open,
        pauses and starts with it, and is disabled when it closes. INVALID_PARAMETER_2: it has a
        primary already, or the primary is one itself; INVALID_PARAMETER_3: a bad index.
        """
        self._configuring("the primary channel")
        if self._primary is not None or primary.primary is not None or primary is self:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_2,
                f"{self.friendly_name}: it cannot be a sub-channel of {primary.friendly_name}",
            )
        if not 0 < index <= 0xFFFF:
            raise KmclError(
                NtStatus.INVALID_PARAMETER_3,
                f"{self.friendly_name}: sub-channel {index}; give 1 to 65535",
            )
        self._primary, self._subchannel_index = primary, index

    @property
    def primary(self) -> ServerChannel | None:
        """The channel that this one is a sub-channel of."""
        return self._primary

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
        self._process_packet, self._drain = process_packet, None
        self._processing_complete = processing_complete

    def init_set_drain(self, drain: Drain) -> None:
        """Have each request completed without data and without a packet object, and ``drain`` told
        how many there were, once for a batch: not a DDI, but for a VSP that throws its requests
        away, or only counts them.

        There is no process callback then: the last of the two that is set counts. Requests are
        completed in order, and no faster than the guest takes the completions; its own completions,
        and faults, are as on any channel. A pipe cannot be drained.
        """
        self._configuring("the drain")
        self._drain, self._process_packet = drain, None

    def init_set_save_restore_packet_callbacks(
        self, save_packet: SavePacket, restore_packet: RestorePacket
    ) -> None:
        """VmbServerChannelInitSetSaveRestorePacketCallbacks; the last registration counts."""
        self._configuring("the save and restore callbacks")
        self._save_packet = save_packet
        self._restore_packet = restore_packet

    def init_set_process_packet_callbacks_ex(
        self,
        context: Any,
        process_packet: Callable[[ServerChannel, Any, IncomingPacket], None],
        processing_complete: Callable[[ServerChannel, Any, int], None] | None = None,
    ) -> None:
        """VmbChannelInitSetProcessPacketCallbacksEx: as above, with a context."""
        complete = processing_complete
        self.init_set_process_packet_callbacks(
            lambda channel, packet: process_packet(channel, context, packet),
            None if complete is None else lambda channel, count: complete(channel, context, count),
        )

    def init_set_save_restore_packet_callbacks_ex(
        self,
        context: Any,
        save_packet: Callable[[ServerChannel, Any, OutgoingPacket, int], SavedPacket],
        restore_packet: Callable[[ServerChannel, Any, RestoredPacket], NtStatus],
    ) -> None:
        """VmbServerChannelInitSetSaveRestorePacketCallbacksEx: as above, with a context."""
        self.init_set_save_restore_packet_callbacks(
            lambda channel, packet, size: save_packet(channel, context, packet, size),
            lambda channel, restored: restore_packet(channel, context, restored),
        )

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
        named: ConfiguredChannel = self if self._primary is None else self._primary
        if named._interface is None or named._instance is None:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self.friendly_name}: set the target interface id before enabling the channel",
            )
        as_pipe = self._server_flags & ServerInitFlags.OFFER_AS_PIPE
        return OfferParams(
            interface=named._interface,
            instance=named._instance,
            subchannel_index=self._subchannel_index,
            user_defined=(_PIPE_MESSAGE if as_pipe else b"") + self._user_defined,
            flags=offer_flags(self._server_flags),
            mmio_megabytes=self._mmio[0],
            mmio_megabytes_optional=self._mmio[1],
            force_new=self.force_new_channel,
        )
