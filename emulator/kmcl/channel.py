# SPDX-License-Identifier: MIT
"""The KMCL server channel: the endpoint on which every VSP is written.

This file is what a VSP does with a channel that has traffic; the life cycle is in
:mod:`~emulator.kmcl.lifecycle` (its theory in :mod:`~emulator.kmcl.states`), the settings in
:mod:`~emulator.kmcl.settings`, the data path in :mod:`~emulator.kmcl.traffic`, saving in
:mod:`~emulator.kmcl.snapshot`. The VSP calls the methods named after the DDI
(vmbuskernelmodeclientlibapi.h); the provider, which owns the bus and the rings, calls ``port_*``.
Everything runs on one thread and nothing waits.

What the documents leave open, and what is done here (inferred; where another reading is as
plausible, :mod:`~emulator.kmcl.inferred` has a switch):

* Sends of an open channel that was not started yet are queued until it starts; on a Disabled
  channel they are refused.
* Packets in use when the channel closes are ended before EvtClosed.
* A Start during the drain of a Pause takes effect after it.
* Saving needs an enabled channel without traffic (paused, or never started); restoring one that
  was not started and has no packet in use.
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass
from typing import Any

from emulator.kmcl.config import ChannelPort
from emulator.kmcl.errors import KmclError
from emulator.kmcl.inferred import DEFAULTS, Inferred
from emulator.kmcl.lifecycle import LifeCycle
from emulator.kmcl.meter import TIMED_DOORBELLS
from emulator.kmcl.packets import IncomingPacket, OutgoingPacket, TimedPacket
from emulator.kmcl.pipe import MAXIMUM_PIPE_PAYLOAD, PIPE_HEADER_SIZE, frame
from emulator.kmcl.snapshot import SaveResult
from emulator.kmcl.states import Connection, OutgoingState, Queue
from emulator.kmcl.traffic import UnreadPacket
from emulator.memory import PageView
from emulator.wire.ntstatus import NtStatus


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """What a channel has in flight."""

    held: int
    """Guest requests the VSP has and has not ended."""
    unread_requests: int
    """Guest requests in the ring that were not read."""
    unread_completions: int
    """Guest completions in the ring that were not read."""
    queued_wait: int
    """Packets queued that ask for a completion."""
    queued_no_wait: int
    """Packets queued that ask for none."""
    queued_completions: int
    """Completions of guest requests that wait for room."""
    awaiting_completion: int
    """Packets the guest has or can read and has not answered, as far as was read."""


class ServerChannel(LifeCycle):
    """One server endpoint (VmbChannelAllocate with IsServer)."""

    def __init__(self, port: ChannelPort, inferred: Inferred = DEFAULTS) -> None:
        """Make a Disabled channel that will be offered through ``port``.

        ``inferred`` says what it does where no document does.
        """
        super().__init__(port, inferred)
        self.context: Any = None
        self._packets_alive = 0
        self._meter = self.traffic.meter
        self._wanted_quota = self.traffic.quota
        self._quota_limit = sys.maxsize

    def _this(self) -> ServerChannel:
        return self

    # What is in flight.

    def unread(self) -> tuple[UnreadPacket, ...]:
        """Look at the guest's packets that were not read yet, without reading them."""
        return self.traffic.unread()

    def stats(self) -> ChannelStats:
        """Count what is in flight."""
        unread = self.unread()
        completions = sum(packet.is_completion for packet in unread)
        packets = [item for item in self.traffic.queue if isinstance(item, OutgoingPacket)]
        wait = sum(packet.waits_for_completion for packet in packets)
        return ChannelStats(
            held=len(self.traffic.held),
            unread_requests=len(unread) - completions,
            unread_completions=completions,
            queued_wait=wait,
            queued_no_wait=len(packets) - wait,
            queued_completions=len(self.traffic.queue) - len(packets),
            awaiting_completion=len(self.traffic.in_ring()),
        )

    # GPADLs.

    def map_gpadl(self, handle: int, *, read_only: bool = False) -> PageView:
        """VmbChannelMapGpadl: the guest's pages of a GPADL, until :meth:`unmap_gpadl`.

        With ``read_only`` (VMBUS_CHANNEL_GPADL_FLAG_READ_ONLY) a write through the view raises
        :class:`~emulator.memory.ReadOnlyMemory`. In KMCL the flag is a hint for snapshots and live
        migration, and a writable mapping of a GPADL that the guest has made read-only fails; here
        nobody knows that, because no message of the guest says so.

        Raises :class:`KmclError`: INVALID_PARAMETER for an unknown handle, INVALID_DEVICE_STATE for
        one that is mapped already.
        """
        return self.gpadls.map(handle, read_only=read_only)

    def unmap_gpadl(self, handle: int) -> None:
        """VmbChannelUnmapGpadl: touch the pages no more. A teardown of the guest's goes on then."""
        self.gpadls.unmap(handle)

    def set_incoming_processing_at_passive(self, always: bool) -> None:
        """VmbChannelSetIncomingProcessingAtPassive: packets cannot be deferred then."""
        self.delivery.always_passive = always

    def get_interface_instance(self) -> uuid.UUID:
        """VmbChannelGetInterfaceInstance; raises :class:`KmclError` if none was set."""
        return self.offer_params().instance

    def set_transaction_quota(self, quota: int) -> None:
        """VmbChannelSetTransactionQuota: how many incoming packets the VSP may hold; at any time.

        At the quota reading stops, completions of the guest included. It may be set below what is
        held. Raising it does not restart a queue that has stopped; only the completion of a packet
        does.
        """
        if quota <= 0:
            raise KmclError(
                NtStatus.INVALID_PARAMETER, f"{self.friendly_name}: a transaction quota of {quota}"
            )
        self._wanted_quota = quota
        self.traffic.quota = min(quota, self._quota_limit)

    def limit_transaction_quota(self, limit: int) -> None:
        """Let no transaction quota be larger than ``limit``: the provider's word, not a DDI."""
        self._quota_limit = limit
        self.traffic.quota = min(self._wanted_quota, limit)

    # The VSP's calls: packets.

    def packet_allocate(self) -> OutgoingPacket:
        """VmbPacketAllocate. Raises INSUFFICIENT_RESOURCES beyond the maximum packet count."""
        maximum = self._maximum_packet_count
        if maximum is not None and self._packets_alive >= maximum:
            raise KmclError(
                NtStatus.INSUFFICIENT_RESOURCES,
                f"{self.friendly_name}: all {maximum} packets are allocated; free some, "
                "or raise the maximum packet count",
            )
        self._packets_alive += 1
        return OutgoingPacket(self)

    @property
    def packets_alive(self) -> int:
        """Outgoing packet objects that were allocated and not freed."""
        return self._packets_alive

    def packet_freed(self) -> None:
        """Count a packet object given back."""
        self._packets_alive -= 1

    def send(self, packet: OutgoingPacket, payload: bytes, waits: bool) -> None:
        """VmbPacketSend; see :meth:`OutgoingPacket.send`."""
        if packet.state is not OutgoingState.ALLOCATED:
            raise self._misuse(f"a packet that is {packet.state.value} cannot be sent")
        if self._connection not in (Connection.ENABLED, Connection.OPEN):
            raise self._misuse(f"it is {self._connection.value}; nothing can be sent")
        if self._suspended:
            raise self._misuse("nothing may be sent between EvtSuspend and EvtStarted")
        if self._snapshots.saving or self._snapshots.restore_unfinished:
            raise self._misuse("nothing may be sent during a save or restore")
        if self.is_pipe:
            payload = self._framed(payload, waits)
        elif len(payload) > self._maximum_packet_size:
            raise KmclError(
                NtStatus.INVALID_BUFFER_SIZE,
                f"{self.friendly_name}: a packet of {len(payload)} bytes; the channel's maximum "
                f"packet size is {self._maximum_packet_size}",
            )
        self.check_fits(payload)
        self.traffic.send(packet, payload, waits)

    def _framed(self, message: bytes, waits: bool) -> bytes:
        if waits:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self.friendly_name}: a pipe has no transactions; send without waiting",
            )
        most = min(MAXIMUM_PIPE_PAYLOAD, self._maximum_packet_size)
        if len(message) > most:
            raise KmclError(
                NtStatus.INVALID_BUFFER_SIZE,
                f"{self.friendly_name}: a pipe message of {len(message)} bytes; the most is {most}",
            )
        return frame(message)

    def send_synchronous_request(
        self, payload: bytes, *, timeout: float = 0, wait_for_completion: bool = False
    ) -> NtStatus:
        """VmbChannelSendSynchronousRequest, as far as the root partition may call it.

        SUCCESS: the packet is in the ring. BUFFER_OVERFLOW: it did not fit and is not queued.
        DEVICE_REMOVED: the channel is not open, or about to close. Raises :class:`KmclError`
        INVALID_PARAMETER for a time-out or a completion to wait for: only clients may wait.
        """
        if timeout or wait_for_completion:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self.friendly_name}: a server cannot wait for its guest; "
                "allocate a packet and send it with a completion routine",
            )
        if self._connection is not Connection.OPEN:
            return NtStatus.DEVICE_REMOVED
        # Within a batch there may be completions that have not been tried yet.
        self.traffic.flush()
        if self.traffic.queue or self._queue is not Queue.ON:
            return NtStatus.BUFFER_OVERFLOW
        packet = self.packet_allocate()
        packet.send(payload)
        if packet.state is OutgoingState.QUEUED:
            self.traffic.withdraw(packet)
            packet.free()
            return NtStatus.BUFFER_OVERFLOW
        return NtStatus.SUCCESS

    def check_fits(self, payload: bytes) -> None:
        """Raise :class:`KmclError` for a packet or completion that no wait would make fit."""
        ring = self.traffic.outgoing_ring
        if ring is not None and len(payload) > ring.largest_payload:
            raise KmclError(
                NtStatus.INVALID_BUFFER_SIZE,
                f"{self.friendly_name}: {len(payload)} bytes of payload can never fit the guest's "
                f"ring of {ring.capacity} bytes",
            )

    # The VSP's calls: save and restore.

    def save_begin(self) -> NtStatus:
        """VmbChannelSaveBegin.

        INVALID_DEVICE_STATE: Disabled, running, draining or being saved already. NOT_SUPPORTED:
        packets are in use and no save and restore callbacks are set.
        """
        return self._snapshots.begin()

    def save_continue(self, buffer_size: int) -> SaveResult:
        """VmbChannelSaveContinue with a buffer of ``buffer_size`` bytes, from 0.

        INVALID_DEVICE_STATE without SaveBegin, DEVICE_REMOVED if the channel closed since.
        """
        return self._snapshots.go_on(buffer_size)

    def save_end(self) -> None:
        """VmbChannelSaveEnd: after a save, or to give it up; does nothing without SaveBegin."""
        self._snapshots.end()

    def restore_from_buffer(self, buffer: bytes) -> NtStatus:
        """VmbChannelRestoreFromBuffer: take one or more whole chunks of a saved stream.

        MORE_PROCESSING_REQUIRED: go on with the next. SUCCESS: that was the last. Any other: the
        restore has failed, :attr:`restore_failure` says why, and the channel can only be disabled.
        INVALID_DEVICE_STATE: the channel is not enabled, was started, has packets in use, or was
        restored already.
        """
        return self._snapshots.restore_from_buffer(buffer)

    def restore_packet(self, packet: OutgoingPacket, lib_buffer: bytes) -> NtStatus:
        """VmbPacketRestore; see :meth:`OutgoingPacket.restore`."""
        return self._snapshots.restore_packet(packet, lib_buffer)

    def too_small_for(self, largest_payload: int, packets: int) -> list[str]:
        """Name what a saved channel needs and this one's configuration does not allow."""
        problems: list[str] = []
        if largest_payload > self._maximum_packet_size + (PIPE_HEADER_SIZE if self.is_pipe else 0):
            problems.append(
                f"a packet of {largest_payload} bytes is queued, the maximum packet size is "
                f"{self._maximum_packet_size}"
            )
        maximum = self._maximum_packet_count
        if maximum is not None and self._packets_alive + packets > maximum:
            problems.append(f"{packets} packets are in use, the maximum packet count is {maximum}")
        return problems

    # The provider's calls: doorbells.

    def port_doorbell(self) -> None:
        """As :meth:`port_interrupt`, for a doorbell: count it, and time some."""
        meter = self._meter
        meter.doorbells += 1
        if meter.doorbells % TIMED_DOORBELLS != 1:
            self.port_interrupt()
            return
        meter.rung()
        self.delivery.packet_class = TimedPacket
        self.port_interrupt()
        self.delivery.packet_class = IncomingPacket

    def port_interrupt(self) -> None:
        """Look at both rings: the guest signalled, or may have. Spurious calls are harmless."""
        if self.delivery.deferred is not None:
            self.delivery.retry(self._retried)
        match self._queue:
            case Queue.ON:
                self.traffic.poll()
            case Queue.DRAINING:
                self.traffic.flush()
            case Queue.OFF | Queue.STARTING:
                # The rings are looked at when the queue is switched on.
                pass
