# SPDX-License-Identifier: MIT
"""The KMCL server channel: the endpoint on which every VSP is written.

This file is the life cycle; :mod:`emulator.kmcl.states` has its theory. The data path is in
:mod:`~emulator.kmcl.traffic`, saving in :mod:`~emulator.kmcl.snapshot`. The VSP calls the methods
named after the DDI (vmbuskernelmodeclientlibapi.h); the provider, which owns the bus and the
rings, calls ``port_*``. Everything runs on one thread and nothing waits.

What the documents leave open, and what is done here (inferred):

* Sends of an open channel that was not started yet are queued until it starts; on a Disabled
  channel they are refused.
* EvtPostStarted runs before the first packet is read; KMCL says that packets *may* come before it.
* Packets in use when the channel closes are ended with DEVICE_REMOVED before EvtClosed.
* A Start during the drain of a Pause takes effect after it.
* Saving needs an enabled channel without traffic (paused, or never started); restoring one that
  was not started and has no packet in use.
* EvtOpened does not run for a channel that is restored open.
* A channel that was faulted when saved is faulted when restored.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from emulator.kmcl.config import DEFAULT_TRANSACTION_QUOTA, ChannelPort
from emulator.kmcl.countdown import countdown
from emulator.kmcl.delivery import Delivery
from emulator.kmcl.errors import ChannelFault, KmclError
from emulator.kmcl.gpadls import MappedGpadls
from emulator.kmcl.meter import TIMED_DOORBELLS
from emulator.kmcl.packets import IncomingPacket, OutgoingPacket, TimedPacket
from emulator.kmcl.pipe import (
    MAXIMUM_PIPE_PAYLOAD,
    PIPE_HEADER_SIZE,
    frame,
)
from emulator.kmcl.settings import ConfiguredChannel
from emulator.kmcl.snapshot import SaveResult, Snapshots
from emulator.kmcl.states import Connection, OutgoingState, Queue, Restore, Run
from emulator.kmcl.traffic import Traffic, UnreadPacket
from emulator.kmcl.writing import Hooks
from emulator.memory import PageView
from emulator.ring import IncomingRing, OutgoingRing, RingCorrupt
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


class ServerChannel(ConfiguredChannel):
    """One server endpoint (VmbChannelAllocate with IsServer)."""

    def __init__(self, port: ChannelPort) -> None:
        """Make a Disabled channel that will be offered through ``port``."""
        super().__init__()
        self.port = port
        self._connection = Connection.DISABLED
        self._run = Run.STOPPED
        self._queue = Queue.OFF
        self._callback: str | None = None
        self._suspended = False
        self._signal_at_start = False
        self._packets_alive = 0
        self._drained: list[Callable[[], None]] = []
        self._closed: list[Callable[[], None]] = []
        self._disabled: list[Callable[[], None]] = []
        self._suspend_after_retry = False
        self._subchannels: list[ServerChannel] = []
        self.gpadls = MappedGpadls(lambda: self.friendly_name, partial(port.gpadl_pages, self))
        self._snapshots = Snapshots(self)
        self.context: Any = None
        self.delivery = Delivery(self)
        self.traffic = Traffic(
            Hooks(
                signal=partial(port.signal, self),
                poll_again=partial(port.poll_again, self),
                deliver=self.delivery.packet,
                deliver_plain=self.delivery.plain,
                drained=self.delivery.drained,
                batch_done=self.delivery.batch_done,
                released=self._check_drained,
                faulted=self._faulted,
            ),
            DEFAULT_TRANSACTION_QUOTA,
        )
        self._meter = self.traffic.meter
        self._wanted_quota = self.traffic.quota
        self._quota_limit = sys.maxsize

    # What state it is in.

    @property
    def connection(self) -> Connection:
        """Whether there is a peer."""
        return self._connection

    @property
    def run(self) -> Run:
        """Whether the VSP wants traffic."""
        return self._run

    @property
    def queue(self) -> Queue:
        """Whether there is traffic."""
        return self._queue

    @property
    def restore_state(self) -> Restore:
        """How far a restore has come."""
        return self._snapshots.restore

    @property
    def restore_failure(self) -> str | None:
        """Why the last ``restore_from_buffer`` failed, in words."""
        return self._snapshots.failure

    @property
    def faults(self) -> tuple[ChannelFault, ...]:
        """What the guest has done to this channel since it was opened."""
        return tuple(self.traffic.faults)

    @property
    def fault(self) -> ChannelFault | None:
        """The first of :attr:`faults`."""
        return self.traffic.faults[0] if self.traffic.faults else None

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

    # The VSP's calls: life cycle.

    def enable(self) -> None:
        """VmbChannelEnable (T3): offer the channel. The queue stays off until :meth:`start`.

        Raises :class:`KmclError` if it is not Disabled or has no interface id or process callback.
        """
        self._refuse_in_callback("VmbChannelEnable")
        if self._connection is not Connection.DISABLED:
            raise self._misuse("it is enabled already")
        if self._process_packet is None and self._drain is None:
            raise self._misuse("set the process packet callback or a drain before enabling it")
        if self._drain is not None and self.is_pipe:
            raise self._misuse("a pipe cannot be drained; set the process packet callback")
        self.traffic.draining = self._drain is not None
        self.delivery.enable(
            self._process_packet, self._processing_complete, self._drain, self._maximum_external
        )
        params = self.offer_params()
        primary = self.primary
        if primary is not None:
            primary.subchannel_enabling(self, params.subchannel_index)
        self._connection = Connection.ENABLED
        try:
            self.port.offer(self, params)
        except BaseException:
            self._connection = Connection.DISABLED
            if primary is not None:
                primary.subchannel_gone(self)
            raise

    def disable(self, done: Callable[[], None]) -> None:
        """VmbChannelDisable (T9): drain, close, revoke the offer, then call ``done``.

        It does not wait for the guest. Outgoing packets in use end with DEVICE_REMOVED.
        """
        self._refuse_in_callback("VmbChannelDisable")
        match self._connection:
            case Connection.DISABLED | Connection.CLEANED_UP:
                done()
            case Connection.ENABLED:
                self._disabled.append(done)
                self._revoke()
            case Connection.OPEN:
                self._disabled.append(done)
                self._close()
            case Connection.CLOSING | Connection.REVOKING:
                self._disabled.append(done)

    def start(self) -> None:
        """VmbChannelStart (T5, T7). A channel without a peer starts when it is opened.

        Raises :class:`KmclError` on a Disabled channel, inside a state callback, between SaveBegin
        and SaveEnd, and when a restore was begun and is not complete.
        """
        self._refuse_in_callback("VmbChannelStart")
        if self._connection in (Connection.DISABLED, Connection.REVOKING, Connection.CLEANED_UP):
            raise self._misuse("it must be enabled before it is started")
        if self._snapshots.saving:
            raise self._misuse("a save is under way; end it before starting")
        if self._snapshots.restore_unfinished:
            raise self._misuse(f"its restore is {self.restore_state.value}; it cannot be started")
        self._run = Run.STARTED
        self._go()
        for subchannel in list(self._subchannels):
            if subchannel.run is not Run.STARTED:
                subchannel.start()

    def pause(self, done: Callable[[], None]) -> None:
        """VmbChannelPause (T6, T6'): stop, and call ``done`` when the VSP holds no incoming packet.

        Outgoing packets stay as they are, answered or not. On a Disabled channel it is remembered:
        the channel comes up paused.
        """
        self._refuse_in_callback("VmbChannelPause")
        if self._connection is Connection.CLEANED_UP:
            raise self._misuse("it was cleaned up")
        self._run = Run.PAUSED
        done = countdown(1 + len(self._subchannels), done)
        for subchannel in list(self._subchannels):
            subchannel.pause(done)
        if self._queue is Queue.OFF:
            done()
        else:
            self._suspend(done)

    def cleanup(self) -> None:
        """VmbChannelCleanup (T11); the channel must be Disabled."""
        if self._connection is not Connection.DISABLED:
            raise self._misuse("disable it before cleaning it up")
        self._connection = Connection.CLEANED_UP

    # Sub-channels.

    @property
    def subchannels(self) -> tuple[ServerChannel, ...]:
        """The sub-channels that are enabled."""
        return tuple(self._subchannels)

    def subchannel_enabling(self, subchannel: ServerChannel, index: int) -> None:
        """Take a sub-channel; raises :class:`KmclError` if this is not open, or has its index."""
        if self._connection is not Connection.OPEN:
            raise self._misuse(
                f"it is {self._connection.value}; a sub-channel can be enabled while it is open"
            )
        if any(other.offer_params().subchannel_index == index for other in self._subchannels):
            raise self._misuse(f"it has a sub-channel {index} already")
        self._subchannels.append(subchannel)

    def subchannel_gone(self, subchannel: ServerChannel) -> None:
        """Forget a sub-channel that is Disabled."""
        self._subchannels.remove(subchannel)

    # GPADLs.

    def map_gpadl(self, handle: int, *, read_only: bool = False) -> PageView:
        """VmbChannelMapGpadl: the guest's pages of a GPADL, until :meth:`unmap_gpadl`.

        ``read_only`` is a promise that is not enforced, as in KMCL. Raises :class:`KmclError`:
        INVALID_PARAMETER for an unknown handle, INVALID_DEVICE_STATE for one that is mapped
        already.
        """
        return self.gpadls.map(handle)

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

    # The provider's calls.

    def port_opened(self, incoming: IncomingRing, outgoing: OutgoingRing) -> NtStatus:
        """T4: the guest opened the channel on these rings. A failure makes its open fail."""
        if self._connection is not Connection.ENABLED or self._disabled or self._callback:
            return NtStatus.INVALID_DEVICE_STATE
        try:
            incoming.init_at_open()
            outgoing.init_at_open()
        except RingCorrupt:
            return NtStatus.DATA_ERROR
        if self._state_callbacks.opened is not None:
            with self.in_callback("EvtChannelOpened"):
                status = self._state_callbacks.opened(self)
            if not status.is_success:
                return status
        self.traffic.attach(incoming, outgoing)
        self._connection = Connection.OPEN
        self._go()
        return NtStatus.SUCCESS

    def port_restored(self, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        """Make it Open on rings that were in use when the machine was saved.

        EvtOpened does not run. The guest is signalled once when the channel starts: an interrupt
        on its way at the save was lost.
        """
        if self._connection is not Connection.ENABLED or self._callback:
            raise self._misuse("only an enabled channel without a peer can be restored open")
        self._connection = Connection.OPEN
        self._signal_at_start = True
        self.traffic.attach_in_use(incoming, outgoing)

    def port_closed(self, done: Callable[[], None]) -> None:
        """T8: the guest closed the channel. ``done`` is called when the VSP has let go of it."""
        self._refuse_in_callback("the guest's close")
        match self._connection:
            case Connection.OPEN:
                self._closed.append(done)
                self._close()
            case Connection.CLOSING:
                self._closed.append(done)
            case _:
                done()

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

    # The transitions.

    def _go(self) -> None:
        """T5, if both axes allow it."""
        if (
            self._connection is not Connection.OPEN
            or self._run is not Run.STARTED
            or self._queue is not Queue.OFF
        ):
            return
        self._queue = Queue.STARTING
        self._suspended = False
        try:
            self._call("EvtChannelStarted", self._state_callbacks.started)
        except BaseException:
            self._queue = Queue.OFF
            raise
        self._queue = Queue.ON
        if self._signal_at_start:
            self._signal_at_start = False
            self.port.signal(self)
        with self.in_callback("EvtChannelPostStarted"):
            self.traffic.start()
            if self._state_callbacks.post_started is not None:
                self._state_callbacks.post_started(self)
        self.traffic.poll()

    def _suspend(self, then: Callable[[], None]) -> None:
        """T6: stop reading, tell the VSP, and call ``then`` when it holds nothing any more."""
        self._drained.append(then)
        if self._queue is Queue.ON:
            # Completion routines may run in here, and do what they like.
            self.traffic.end_batch()
        if self._queue is not Queue.ON:
            self._check_drained()
        elif self.delivery.deferred is not None:
            # A packet that was promised another process callback gets it before EvtSuspend.
            self._suspend_after_retry = True
            self.traffic.stop_receiving()
        else:
            self._suspend_now()

    def _retried(self) -> None:
        if self._suspend_after_retry:
            self._suspend_now()

    def _suspend_now(self) -> None:
        self._suspend_after_retry = False
        self._queue = Queue.DRAINING
        self._suspended = True
        self.traffic.stop_receiving()
        try:
            self._call("EvtChannelSuspend", self._state_callbacks.suspend)
        finally:
            self._check_drained()

    def _check_drained(self) -> None:
        if self._queue is not Queue.DRAINING or self._callback or self.traffic.held:
            return
        self.traffic.stop()
        self._queue = Queue.OFF
        waiting, self._drained = self._drained, []
        for then in waiting:
            then()
        self._go()

    def _close(self) -> None:
        """T8 and T9: disable the sub-channels, drain if traffic flows, then end the connection."""
        self._connection = Connection.CLOSING
        gone = countdown(1 + len(self._subchannels), self._close_self)
        for subchannel in list(self._subchannels):
            subchannel.disable(gone)
        gone()

    def _close_self(self) -> None:
        if self._queue is Queue.OFF:
            self._finish_close()
        else:
            self._suspend(self._finish_close)

    def _finish_close(self) -> None:
        self.traffic.detach()
        self._forget_peer()
        self._connection = Connection.ENABLED
        self._call("EvtChannelClosed", self._state_callbacks.closed)
        self.gpadls.end()
        closed, self._closed = self._closed, []
        for done in closed:
            done()
        if self._disabled and self._connection is Connection.ENABLED:
            self._revoke()

    def _forget_peer(self) -> None:
        """Drop all that concerned this peer: packets, faults, and a save or restore under way."""
        self._snapshots.forget()
        self.traffic.retire(NtStatus.DEVICE_REMOVED)
        self._suspended = False
        self._signal_at_start = False
        self.traffic.faults.clear()

    def _revoke(self) -> None:
        self._connection = Connection.REVOKING
        self._forget_peer()
        self.port.revoke(self, self._revoked)

    def _revoked(self) -> None:
        self._connection = Connection.DISABLED
        self._run = Run.STOPPED
        self._snapshots.end()
        if self.primary is not None:
            self.primary.subchannel_gone(self)
        disabled, self._disabled = self._disabled, []
        for done in disabled:
            done()

    # Callbacks.

    @contextmanager
    def in_callback(self, name: str) -> Iterator[None]:
        """Run a callback in which Start, Pause, Enable and Disable are refused."""
        before, self._callback = self._callback, name
        try:
            yield
        finally:
            self._callback = before

    @property
    def in_a_callback(self) -> bool:
        """Whether a state or save callback is running."""
        return self._callback is not None

    def _call(self, name: str, callback: Callable[[ServerChannel], None] | None) -> None:
        if callback is not None:
            with self.in_callback(name):
                callback(self)

    def _refuse_in_callback(self, what: str) -> None:
        if self._callback is not None:
            raise self._misuse(f"{what} inside {self._callback}")

    def _misuse(self, text: str) -> KmclError:
        return KmclError(NtStatus.INVALID_DEVICE_STATE, f"{self.friendly_name}: {text}")

    def _may_configure(self) -> bool:
        return self._connection is Connection.DISABLED

    def _faulted(self, fault: ChannelFault) -> None:
        if self.fault_callback is not None:
            self.fault_callback(self, fault.text)
