# SPDX-License-Identifier: MIT
"""The storage VSP: VSTOR packets on KMCL channels, to and from the LUNs of a controller.

A guest initialises on the primary channel (begin, version, properties, end) and may ask for
sub-channels, before the end (as documented) or after it (as Linux does); then each channel carries
requests. What comes out of order gets INVALID_DEVICE_STATE.

A request is completed once, when its I/O is over, and not before: a pause waits for that (KMCL
drains what the VSP holds), so a snapshot has no request in it and none is executed twice. While a
pause takes long the log says which requests it waits for.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from emulator.devices.base import (
    Command,
    Device,
    DeviceState,
    DeviceStateError,
    restore_channel,
)
from emulator.devices.storage.commands import LunCommands
from emulator.devices.storage.controller import Controller
from emulator.devices.storage.options import (
    LunOptions,
)
from emulator.devices.storage.protocol import (
    HEADER_SIZE,
    Header,
    MalformedVstor,
    Operation,
    PropertiesFlags,
    StorVersion,
    VstorStatus,
    answer,
    notice,
    properties,
)
from emulator.devices.storage.requests import Requests
from emulator.devices.storage.state import Phase, StorageState
from emulator.kmcl import (
    ChannelPort,
    Connection,
    IncomingPacket,
    OutgoingPacket,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    StateChangeCallbacks,
)
from emulator.wire.ntstatus import NtStatus

log = logging.getLogger(__name__)

QUEUE_DEPTH: Final = 256
"""Requests of one channel that are under way at most; the others wait in the ring."""
LET_GO_SECONDS: Final = 1.0
"""How long the close of a channel waits, with all else, for reads and writes of its memory."""
SLOW_SECONDS: Final = 3.0
"""A pause that takes longer names what it waits for: before QEMU's own patience (5 s) ends."""

_COUNT = struct.Struct("<H")
_READY: Final = Phase.READY


class StorageDevice(Device):
    """What the SCSI controller and the IDE accelerator have in common: all but the offer."""

    def __init__(
        self,
        name: str,
        vm: str,
        port: ChannelPort,
        luns: tuple[LunOptions, ...],
        *,
        sub_channels: int,
        max_version: StorVersion,
        anywhere: bool = False,
    ) -> None:
        """Open the disks and make the primary channel; raises :class:`DeviceStateError`."""
        super().__init__(name, vm, port)
        self.controller = Controller(
            name, lambda lun: self.instance_guid(f"lun{lun}"), anywhere=anywhere
        )
        self.controller.changed = self._luns_changed
        self._most_sub_channels = sub_channels
        self._max_version = max_version
        self._phase = Phase.BEGIN
        self._version = StorVersion.WIN6
        self._rescan = False
        try:
            for options in luns:
                self.controller.add(options)
        except DeviceStateError:
            self.controller.close()
            raise
        self._requests = Requests(name, self.controller)
        self._primary = self._make_channel(0)

    @abstractmethod
    def offer_on(self, channel: ServerChannel) -> None:
        """Set the GUIDs of the primary channel, and what its offer says."""

    def _make_channel(self, index: int) -> ServerChannel:
        channel = ServerChannel(self._port)
        channel.init_set_friendly_name(f"{self.name}-{index}" if index else self.name)
        channel.init_set_maximum_packet_size(HEADER_SIZE + 4096)
        channel.init_set_process_packet_callbacks(self._process)
        channel.init_set_save_restore_packet_callbacks(self._save_packet, self._restore_packet)
        channel.fault_callback = self._faulted
        channel.set_transaction_quota(QUEUE_DEPTH)
        if index:
            channel.init_set_primary_channel(self._primary, index)
            self.channels[f"sub{index}"] = channel
        else:
            self.offer_on(channel)
            channel.init_set_state_change_callbacks(
                StateChangeCallbacks(
                    opened=self._opened,
                    closed=self._closed,
                    suspend=self._suspended,
                    post_started=self._post_started,
                )
            )
            self.channels["primary"] = channel
        return channel

    # The life of the channels.

    def _opened(self, _: ServerChannel) -> NtStatus:
        self._phase = Phase.BEGIN
        self._rescan = False
        return NtStatus.SUCCESS

    def _closed(self, _: ServerChannel) -> None:
        self._phase = Phase.BEGIN
        # KMCL has disabled the sub-channels before.
        self.channels = {"primary": self._primary}
        for active in self.controller.luns.values():
            active.unit.removal_prevented = False

    def _suspended(self, channel: ServerChannel) -> None:
        if channel.connection is Connection.CLOSING:
            # After a reset the memory is another guest's as soon as this returns, or before.
            self.controller.let_go_of_memory(LET_GO_SECONDS)
        if self.controller.luns:
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._tell_slow, channel)

    def _tell_slow(self, channel: ServerChannel) -> None:
        if channel.queue.value == "draining":
            for text in self.controller.pending():
                log.error("%s: the stop waits for %s", self.name, text)

    def _post_started(self, _: ServerChannel) -> None:
        if self._rescan:
            self._tell_guest()

    def _faulted(self, channel: ServerChannel, text: str) -> None:
        log.error("%s: %s", channel.friendly_name, text)

    def resume(self) -> None:
        """Run the channels; KMCL starts the sub-channels with their primary."""
        self._primary.start()

    def pause(self, done: Callable[[], None]) -> None:
        """Pause the channels; ``done`` when every request has been completed."""
        self._primary.pause(done)

    def pause_waits_for(self) -> list[str]:
        """Name the requests that have not been answered by what is behind the LUNs."""
        return [f"{self.name}: {text}" for text in self.controller.pending()]

    def close(self) -> None:
        """See :class:`Device`."""
        self.controller.close()

    # Packets.

    def _process(self, channel: ServerChannel, packet: IncomingPacket) -> None:
        if self._phase is _READY and self._requests.quick(packet):
            return
        try:
            self._dispatch(channel, packet)
        except MalformedVstor as error:
            packet.fail(str(error))

    def _dispatch(self, channel: ServerChannel, packet: IncomingPacket) -> None:
        header = Header.parse(packet.payload)
        operation = header.operation
        if operation == Operation.EXECUTE_SRB and self._phase is Phase.READY:
            self._requests.execute(packet)
            return
        if operation in (Operation.RESET_LUN, Operation.RESET_BUS, Operation.RESET_ADAPTER):
            self._requests.reset(packet, operation)
            return
        if channel is not self._primary:
            self._refuse(packet, "on a sub-channel", operation)
            return
        body = packet.payload[HEADER_SIZE:]
        match operation, self._phase:
            case Operation.BEGIN_INITIALIZATION, Phase.BEGIN:
                self._phase = Phase.VERSION
                packet.complete(answer(packet.payload, VstorStatus.SUCCESS))
            case Operation.QUERY_PROTOCOL_VERSION, Phase.VERSION:
                self._negotiate(packet, body)
            case Operation.QUERY_PROPERTIES, Phase.PROPERTIES:
                self._phase = Phase.END
                packet.complete(answer(packet.payload, VstorStatus.SUCCESS, self._properties()))
            case Operation.CREATE_SUB_CHANNELS, Phase.END | Phase.READY:
                self._create_sub_channels(packet, body)
            case Operation.END_INITIALIZATION, Phase.END:
                self._phase = Phase.READY
                packet.complete(answer(packet.payload, VstorStatus.SUCCESS))
            case _:
                self._refuse(packet, f"in phase {self._phase}", operation)

    def _refuse(self, packet: IncomingPacket, when: str, operation: int) -> None:
        log.warning("%s: the guest sent operation %d %s", self.name, operation, when)
        packet.complete(answer(packet.payload, VstorStatus.INVALID_DEVICE_STATE))

    # Initialisation.

    def _negotiate(self, packet: IncomingPacket, body: bytes) -> None:
        if len(body) < _COUNT.size:
            raise MalformedVstor("a version query without a version")
        (wanted,) = _COUNT.unpack_from(body)
        known = wanted in StorVersion._value2member_map_ and wanted <= self._max_version
        if known:
            self._version = StorVersion(wanted)
            self._phase = Phase.PROPERTIES
            log.info("%s: the guest speaks storage protocol %s", self.name, self._version)
        status = VstorStatus.SUCCESS if known else VstorStatus.REVISION_MISMATCH
        packet.complete(answer(packet.payload, status))

    def _properties(self) -> bytes:
        many = self._version >= StorVersion.WIN8 and self._most_sub_channels > 0
        return properties(
            sub_channels=self._most_sub_channels if many else 0,
            flags=PropertiesFlags.MULTI_CHANNEL if many else PropertiesFlags(0),
        )

    def _create_sub_channels(self, packet: IncomingPacket, body: bytes) -> None:
        if len(body) < _COUNT.size:
            raise MalformedVstor("sub-channels are asked for without a number")
        (wanted,) = _COUNT.unpack_from(body)
        if self._version < StorVersion.WIN8 or len(self.channels) > 1:
            packet.complete(answer(packet.payload, VstorStatus.INVALID_DEVICE_STATE))
            return
        if not 0 < wanted <= self._most_sub_channels:
            packet.complete(answer(packet.payload, VstorStatus.INVALID_PARAMETER))
            return
        packet.complete(answer(packet.payload, VstorStatus.SUCCESS))
        for index in range(1, wanted + 1):
            channel = self._make_channel(index)
            channel.enable()
            channel.start()

    # What the guest is told.

    def _luns_changed(self) -> None:
        self._requests.know_luns()
        self._rescan = self._phase is Phase.READY
        if self._rescan and self._primary.queue.value == "on":
            self._tell_guest()

    def _tell_guest(self) -> None:
        self._rescan = False
        packet = self._primary.packet_allocate()
        packet.send(notice(Operation.ENUMERATE_BUS))

    def _save_packet(self, _: ServerChannel, packet: OutgoingPacket, size: int) -> SavedPacket:
        # A notice says the same whenever it is read, and its bytes are KMCL's.
        return SavedPacket(NtStatus.SUCCESS, b"", 0)

    def _restore_packet(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        packet = channel.packet_allocate()
        status = packet.restore(restored.lib_buffer)
        if not status.is_success:
            packet.free()
        return status

    # Save and restore.

    def save_own(self) -> bytes:
        """Encode the negotiation and the LUNs; raises DeviceStateError."""
        return msgspec.msgpack.encode(
            StorageState(
                phase=self._phase,
                version=self._version,
                sub_channels=len(self.channels) - 1,
                luns=self.controller.saved(),
                rescan=self._rescan,
            )
        )

    def restore(self, state: DeviceState) -> None:
        """Restore, with the sub-channels that the guest has been offered.

        Raises DeviceStateError, with all disks that are not those of the snapshot.
        """
        subs = sorted(int(role.removeprefix("sub")) for role in state.channels if role != "primary")
        primary_only = msgspec.structs.replace(
            state, channels={"primary": state.channels.get("primary", [])}
        )
        super().restore(primary_only)
        for index in subs:
            channel = self._make_channel(index)
            if self._primary.connection is not Connection.OPEN:
                raise DeviceStateError(
                    f"device {self.name}: the snapshot has sub-channels of a closed channel"
                )
            channel.enable()
            role = f"sub{index}"
            restore_channel(f"{self.name}/{role}", channel, state.channels[role])

    def restore_own(self, data: bytes) -> None:
        """Take over; raises DeviceStateError."""
        try:
            state = msgspec.msgpack.decode(data, type=StorageState)
            version = StorVersion(state.version)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise DeviceStateError(f"device {self.name}: {error}") from error
        if version > self._max_version:
            raise DeviceStateError(
                f"device {self.name}: the guest of the snapshot speaks storage protocol {version}, "
                f"max_version is {self._max_version}"
            )
        self.controller.restore(state.luns)
        self._phase, self._version, self._rescan = state.phase, version, state.rescan
        self._requests.know_luns()

    def commands(self) -> Mapping[str, Command]:
        """Return what can be asked of the controller."""
        return {**LunCommands(self.controller).table(), "negotiated": self._cmd_negotiated}

    async def _cmd_negotiated(self, _: dict[str, Any]) -> Any:
        """Say how far the guest has come."""
        return {
            "phase": str(self._phase),
            "version": str(self._version),
            "sub_channels": len(self.channels) - 1,
        }
