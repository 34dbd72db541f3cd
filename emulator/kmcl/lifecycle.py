# SPDX-License-Identifier: MIT
"""The life cycle of a server channel: the two axes, the queue between them, and its callbacks.

:mod:`emulator.kmcl.states` has the theory; here the transitions T1 to T11 are carried out. What a
VSP does with a channel that runs is in :mod:`emulator.kmcl.channel`. Nothing here waits: a call
that blocks in the DDI takes a callback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from emulator.kmcl.config import DEFAULT_TRANSACTION_QUOTA, ChannelPort
from emulator.kmcl.countdown import countdown
from emulator.kmcl.delivery import Delivery
from emulator.kmcl.errors import ChannelFault, KmclError
from emulator.kmcl.gpadls import MappedGpadls
from emulator.kmcl.inferred import (
    FirstPackets,
    Inferred,
    OpenedOnRestore,
    PauseWaitsFor,
    RetiredWith,
    UnknownCompletion,
)
from emulator.kmcl.settings import ConfiguredChannel
from emulator.kmcl.snapshot import Snapshots
from emulator.kmcl.states import Connection, Queue, Restore, Run
from emulator.kmcl.traffic import Traffic
from emulator.kmcl.writing import Hooks
from emulator.ring import IncomingRing, OutgoingRing, RingCorrupt
from emulator.wire.ntstatus import NtStatus

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel


class LifeCycle(ConfiguredChannel):
    """The life cycle half of :class:`~emulator.kmcl.ServerChannel`."""

    def __init__(self, port: ChannelPort, inferred: Inferred) -> None:
        """Make a Disabled channel that will be offered through ``port``."""
        super().__init__()
        this = self._this()
        self.port = port
        self.inferred = inferred
        self._connection = Connection.DISABLED
        self._run = Run.STOPPED
        self._queue = Queue.OFF
        self._callback: str | None = None
        self._suspended = False
        self._signal_at_start = False
        self._suspend_after_retry = False
        self._pausing: list[Callable[[], None]] = []
        self._drained: list[Callable[[], None]] = []
        self._closed: list[Callable[[], None]] = []
        self._disabled: list[Callable[[], None]] = []
        self._subchannels: list[ServerChannel] = []
        self.gpadls = MappedGpadls(lambda: self.friendly_name, partial(port.gpadl_pages, this))
        self._snapshots = Snapshots(this)
        self.delivery = Delivery(this)
        self.traffic = Traffic(
            Hooks(
                signal=partial(port.signal, this),
                poll_again=partial(port.poll_again, this),
                deliver=self.delivery.packet,
                deliver_plain=self.delivery.plain,
                deliver_ranged=self.delivery.ranged,
                drained=self.delivery.drained,
                batch_done=self.delivery.batch_done,
                released=self._check_drained,
                settled=self._check_settled,
                faulted=self._faulted,
            ),
            DEFAULT_TRANSACTION_QUOTA,
            drop_unknown=inferred.unknown is UnknownCompletion.DROPPED,
        )

    def _this(self) -> ServerChannel:
        """Return the whole of which this is a half: what callbacks and the provider get."""
        raise NotImplementedError

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

    # The VSP's calls.

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
            primary.subchannel_enabling(self._this(), params.subchannel_index)
        self._connection = Connection.ENABLED
        try:
            self.port.offer(self._this(), params)
        except BaseException:
            self._connection = Connection.DISABLED
            if primary is not None:
                primary.subchannel_gone(self._this())
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
            # A callback of the start may have paused the channel again, and its sub-channels.
            if self._run is Run.STARTED and subchannel.run is not Run.STARTED:
                subchannel.start()

    def pause(self, done: Callable[[], None]) -> None:
        """VmbChannelPause (T6, T6'): stop, and call ``done`` when the VSP holds no incoming packet.

        Outgoing packets stay as they are, answered or not, unless :class:`PauseWaitsFor` says
        otherwise. On a Disabled channel it is remembered: the channel comes up paused.
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
        elif self._settling():
            self._pausing.append(done)
        else:
            self._suspend(done)

    def pause_waits_for(self) -> tuple[str, ...]:
        """Name the packets that a Pause, a Disable or a close waits for; empty if it would not."""
        waits = [
            f"request {packet.transaction_id:#x} of the guest, which the VSP holds"
            for packet in self.traffic.held
        ]
        if self._settling():
            waits += [
                f"packet {packet.transaction_id:#x}, which the guest has not completed"
                for packet in self.traffic.table
            ]
        for subchannel in self._subchannels:
            waits += [
                f"{subchannel.friendly_name}: {what}" for what in subchannel.pause_waits_for()
            ]
        return tuple(waits)

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
        status = self._call_opened()
        if not status.is_success:
            return status
        self.traffic.attach(incoming, outgoing)
        self._connection = Connection.OPEN
        self._go()
        return NtStatus.SUCCESS

    def port_restored(self, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        """Make it Open on rings that were in use when the machine was saved.

        EvtOpened does not run, or, if :class:`OpenedOnRestore` says so, does; where it fails, the
        channel stays without a peer. The guest is signalled once when the channel starts: an
        interrupt on its way at the save was lost.
        """
        if self._connection is not Connection.ENABLED or self._callback:
            raise self._misuse("only an enabled channel without a peer can be restored open")
        if self.inferred.opened is OpenedOnRestore.CALLED and not self._call_opened().is_success:
            return
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
            self.port.signal(self._this())
        with self.in_callback("EvtChannelPostStarted"):
            self.traffic.start()
            if self.inferred.first_packets is FirstPackets.BEFORE:
                self.traffic.poll()
            if self._state_callbacks.post_started is not None:
                self._state_callbacks.post_started(self._this())
        self.traffic.poll()

    def _settling(self) -> bool:
        """Whether a Pause has to wait for answers of the guest, which can still come."""
        return (
            self.inferred.pause is PauseWaitsFor.OUTGOING_TOO
            and self._queue is Queue.ON
            and bool(self.traffic.table)
            and not self.traffic.faults
        )

    def _check_settled(self) -> None:
        if self._pausing and not self._settling():
            self._suspend(self._pausing.pop())

    def _suspend(self, then: Callable[[], None]) -> None:
        """T6: stop reading, tell the VSP, and call ``then`` when it holds nothing any more."""
        self._drained += [*self._pausing, then]
        self._pausing.clear()
        if self._queue is Queue.ON:
            # Completion routines may run in here, and do what they like.
            self.traffic.end_batch()
        if self._queue is not Queue.ON:
            self._check_drained()
        elif self.delivery.owes_a_delivery:
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
        removed = self.inferred.retired is RetiredWith.DEVICE_REMOVED
        self.traffic.retire(NtStatus.DEVICE_REMOVED if removed else NtStatus.CANCELLED)
        self._suspended = False
        self._signal_at_start = False
        self.traffic.faults.clear()

    def _revoke(self) -> None:
        self._connection = Connection.REVOKING
        self._forget_peer()
        self.port.revoke(self._this(), self._revoked)

    def _revoked(self) -> None:
        self._connection = Connection.DISABLED
        self._run = Run.STOPPED
        self._snapshots.end()
        if self.primary is not None:
            self.primary.subchannel_gone(self._this())
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

    def _call_opened(self) -> NtStatus:
        if self._state_callbacks.opened is None:
            return NtStatus.SUCCESS
        with self.in_callback("EvtChannelOpened"):
            return self._state_callbacks.opened(self._this())

    def _call(self, name: str, callback: Callable[[ServerChannel], None] | None) -> None:
        if callback is not None:
            with self.in_callback(name):
                callback(self._this())

    def _refuse_in_callback(self, what: str) -> None:
        if self._callback is not None:
            raise self._misuse(f"{what} inside {self._callback}")
        for subchannel in self._subchannels:
            # What moves a primary moves its sub-channels: all of them or none.
            if subchannel._callback is not None:
                name = subchannel.friendly_name
                raise self._misuse(
                    f"{what} inside {subchannel._callback} of its sub-channel {name}"
                )

    def _misuse(self, text: str) -> KmclError:
        return KmclError(NtStatus.INVALID_DEVICE_STATE, f"{self.friendly_name}: {text}")

    def _may_configure(self) -> bool:
        return self._connection is Connection.DISABLED

    def _faulted(self, fault: ChannelFault) -> None:
        if self.fault_callback is not None:
            self.fault_callback(self._this(), fault.text)
        self._check_settled()
