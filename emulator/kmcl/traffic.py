# SPDX-License-Identifier: MIT
"""The data path of a channel: one reader, one queue, two rings. It knows nothing of the life cycle.

Reading. The ring is read until it is empty, with the guest's signals masked; unmasking looks once
more, so a packet that came in between is not slept on. Reading stops short of empty for one of two
holds: the VSP has as many packets as the quota allows, or completions pile up because the guest
does not read its ring. While it is held nothing is read, completions included, as in KMCL. The
mask stays set then: what ends a hold is not the guest's signal but our own completion or our own
write.

A guest that writes as fast as it is read would keep the reader busy for ever, and everybody else
waiting. After ``READ_LIMIT`` packets the reader stops, leaves the mask set, so that no doorbell is
needed or sent, and asks its provider to be polled again.

Writing. Packets and completions share one FIFO queue; each goes through it, so nothing overtakes.
When the head does not fit, the ring is asked to have the guest signal us when there is room, and
looks once more.

Reentrancy. Callbacks may call anything. Both loops are guarded: a nested call leaves a note and the
outer loop looks again, so the depth of the stack does not grow with traffic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from emulator.kmcl.errors import ChannelFault, FaultKind
from emulator.kmcl.meter import Meter
from emulator.kmcl.packets import (
    IncomingPacket,
    OutgoingPacket,
    QueuedCompletion,
    TransactionTable,
)
from emulator.kmcl.states import OutgoingState
from emulator.ring import IncomingRing, OutgoingRing, PacketTooLarge, RingCorrupt
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import Packet, PacketType

COMPLETION_BACKLOG_LIMIT: Final = 1024
"""Completions queued before reading stops: a guest that never reads must not fill our memory."""

READ_LIMIT: Final = 64
"""Packets read in one go before others have a turn: about half a millisecond of work."""


class Hold(Enum):
    """Why reading stands still although the ring may have packets."""

    QUOTA = "quota"
    """The VSP holds as many packets as the transaction quota; a completion ends it."""
    BACKLOG = "backlog"
    """Too many completions wait for room in the guest's ring; the guest ends it by reading."""
    RETRY = "retry"
    """A packet was deferred; it is delivered once more before any other."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the data path tells its channel."""

    signal: Callable[[], None]
    poll_again: Callable[[], None]
    """Have :meth:`Traffic.poll` called once more, later, without a doorbell."""
    deliver: Callable[[Packet], bool]
    """Hand a request to the VSP; False if the channel refused it."""
    batch_done: Callable[[int], None]
    released: Callable[[], None]
    """An incoming packet has ended."""
    faulted: Callable[[ChannelFault], None]


@dataclass(frozen=True, slots=True)
class UnreadPacket:
    """A packet that the guest has written and the channel has not read."""

    transaction_id: int
    is_completion: bool


class Traffic:
    """Moves packets between the rings and the VSP; see the head of the file."""

    def __init__(self, hooks: Hooks, quota: int) -> None:
        """Make it without rings, receiving and transmitting nothing."""
        self._hooks = hooks
        self._incoming: IncomingRing | None = None
        self._outgoing: OutgoingRing | None = None
        self._receiving = False
        self._transmitting = False
        self._polling = False
        self._look_again = False
        self._may_take = 0
        self._flushing = False
        self._space_requested = False
        self._backlog = 0
        self._hold: Hold | None = None
        self.quota = quota
        self.held: dict[IncomingPacket, None] = {}
        self.queue: deque[OutgoingPacket | QueuedCompletion] = deque()
        self.table = TransactionTable()
        self.faults: list[ChannelFault] = []
        self.meter = Meter()

    # Rings come and go.

    def attach(self, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        """Use these rings; they are initialised or attached already."""
        self._incoming, self._outgoing = incoming, outgoing
        self._hold = None
        self._space_requested = False

    def attach_in_use(self, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        """Use these rings as they are; a corrupt one is a fault of its direction."""
        self.attach(incoming, outgoing)
        try:
            incoming.attach()
        except RingCorrupt as error:
            self._incoming_corrupt(error)
        try:
            outgoing.attach()
        except RingCorrupt as error:
            self._outgoing_corrupt(error)

    def detach(self) -> None:
        """Let go of the rings."""
        self.stop()
        self.meter.bytes_in, self.meter.bytes_out = self.bytes_moved
        self._incoming = self._outgoing = None

    def start(self) -> None:
        """Write what is queued, and read from the next :meth:`poll` on."""
        self._transmitting = self._receiving = True
        self._hold = None
        self.flush()

    def stop_receiving(self) -> None:
        """Read no more; what was read is published to the guest as read."""
        self._receiving = False
        if self._incoming is not None:
            self._commit(self._incoming)
            self._incoming.mask()

    def stop(self) -> None:
        """Touch the rings no more."""
        if self._receiving:
            self.stop_receiving()
        self._transmitting = False

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """Bytes read from and written to the rings since the backend started, headers included."""
        return (
            self.meter.bytes_in + (self._incoming.moved if self._incoming else 0),
            self.meter.bytes_out + (self._outgoing.moved if self._outgoing else 0),
        )

    @property
    def incoming_ring(self) -> IncomingRing | None:
        """The guest-to-host ring, if there is a peer."""
        return self._incoming

    @property
    def outgoing_ring(self) -> OutgoingRing | None:
        """The host-to-guest ring, if there is a peer."""
        return self._outgoing

    @property
    def hold(self) -> Hold | None:
        """Why reading stands still, if it does."""
        return self._hold

    # Reading.

    def hold_for_retry(self) -> None:
        """Read nothing until :meth:`retried`: the packet just delivered comes once more."""
        self._hold = Hold.RETRY

    def retried(self) -> None:
        """End the hold of :meth:`hold_for_retry`."""
        if self._hold is Hold.RETRY:
            self._hold = None

    def poll(self) -> None:
        """Write what fits and read what is there."""
        if self._polling:
            self._look_again = True
            return
        self._polling = True
        self._may_take = READ_LIMIT
        try:
            while self._poll_once():
                pass
        finally:
            self._polling = False

    def _poll_once(self) -> bool:
        self._look_again = False
        if self.queue:
            self.flush()
        ring = self._incoming
        if ring is not None and self._may_read():
            ring.mask()
            self._read_batch(ring)
            # Callbacks may have paused or closed the channel, and even have opened it again.
            if ring is self._incoming and self._may_read():
                if not self._may_take:
                    self._hooks.poll_again()
                    return False
                return self._unmask(ring) or self._look_again
        return self._look_again

    def _unmask(self, ring: IncomingRing) -> bool:
        try:
            return ring.unmask()
        except RingCorrupt as error:
            self._incoming_corrupt(error)
            return False

    def _incoming_corrupt(self, error: RingCorrupt) -> None:
        self.fault(FaultKind.INCOMING_RING, f"the guest-to-host ring is corrupt: {error}")

    def _may_read(self) -> bool:
        return (
            self._receiving
            and self._hold is None
            and not (self.faults and any(fault.kind.stops_reading for fault in self.faults))
        )

    def _read_batch(self, ring: IncomingRing) -> None:
        delivered = 0
        could_take = self._may_take
        try:
            while ring is self._incoming and self._may_take and self._may_read():
                if len(self.held) >= self.quota:
                    self._hold = Hold.QUOTA
                    break
                if self._backlog >= COMPLETION_BACKLOG_LIMIT:
                    self._hold = Hold.BACKLOG
                    break
                packet = ring.read()
                if packet is None:
                    break
                self._may_take -= 1
                delivered += self._take(packet)
        except RingCorrupt as error:
            self._incoming_corrupt(error)
        finally:
            self.meter.packets_in += could_take - self._may_take
            if ring is self._incoming and self._receiving:
                self._commit(ring)
        if delivered:
            self._hooks.batch_done(delivered)

    def _commit(self, ring: IncomingRing) -> None:
        try:
            signal = ring.commit()
        except RingCorrupt as error:
            self._incoming_corrupt(error)
            return
        if signal:
            self._hooks.signal()

    def _take(self, packet: Packet) -> bool:
        """Act on one packet; True if it went to the VSP."""
        match packet.type:
            case PacketType.IN_BAND | PacketType.GPA_DIRECT:
                return self._hooks.deliver(packet)
            case PacketType.COMPLETION:
                self._take_completion(packet)
            case PacketType.TRANSFER_PAGES | PacketType.CANCEL:
                self.fault(
                    FaultKind.PACKET_REFUSED,
                    f"the guest sent a packet of type {packet.type.name}, which no server takes",
                )
            case _:
                assert_never(packet.type)
        return False

    def _take_completion(self, packet: Packet) -> None:
        waiting = self.table.find(packet.transaction_id)
        # A packet still queued has not been seen by the guest, so its id was guessed.
        if waiting is None or waiting.state is not OutgoingState.IN_RING:
            self.fault(
                FaultKind.UNKNOWN_TRANSACTION,
                f"the guest completed transaction {packet.transaction_id:#x}, which is not waiting",
            )
            return
        self.table.remove(packet.transaction_id)
        waiting.finish(NtStatus.SUCCESS, packet.payload)

    # The end of an incoming packet.

    def complete(self, packet: IncomingPacket, data: bytes) -> None:
        """Send the completion, if the guest asked for it, and go on reading if that was held up."""
        if packet.completion_requested:
            self.queue_completion(QueuedCompletion(packet.transaction_id, data))
            self.flush()
        self._release(packet)

    def fail(self, packet: IncomingPacket, reason: str) -> None:
        """Stop the queue."""
        self.fault(FaultKind.PACKET_FAILED, f"a packet was failed: {reason}")
        self._release(packet)

    def _release(self, packet: IncomingPacket) -> None:
        del self.held[packet]
        go_on = self._hold is Hold.QUOTA and len(self.held) < self.quota
        if go_on:
            self._hold = None
        self._hooks.released()
        if go_on and self._receiving:
            self.poll()

    # Writing.

    def send(self, packet: OutgoingPacket, payload: bytes, waits: bool) -> None:
        """Queue a packet and write as much of the queue as fits."""
        packet.begin(payload, waits, self.table.add(packet) if waits else 0)
        self.queue.append(packet)
        self.flush()

    def withdraw(self, packet: OutgoingPacket) -> None:
        """Take a packet without a transaction out of the queue; its routine does not run."""
        self.queue.remove(packet)
        packet.withdrawn()
        if not self.queue and self._space_requested and self._outgoing is not None:
            self._outgoing.clear_space_request()
            self._space_requested = False

    def queue_completion(self, completion: QueuedCompletion) -> None:
        """Queue a completion without writing it."""
        self.queue.append(completion)
        self._backlog += 1

    def flush(self) -> None:
        """Write as much of the queue as fits."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._flush_once():
                pass
        finally:
            self._flushing = False
        if self._hold is Hold.BACKLOG and self._backlog < COMPLETION_BACKLOG_LIMIT:
            # Our own write has ended the hold; the guest owes no signal for it.
            self._hold = None
            if self._receiving:
                self.poll()

    def _flush_once(self) -> bool:
        """Write, publish and signal once; True if there may be more to do."""
        ring = self._outgoing
        if ring is None or not self.queue or not self._transmitting:
            return False
        if self.faults and not all(fault.kind.stops_reading for fault in self.faults):
            return False
        written: list[OutgoingPacket | QueuedCompletion] = []
        try:
            try:
                while self.queue and self._write(ring, self.queue[0]):
                    written.append(self.queue.popleft())
            except PacketTooLarge as error:
                if not written:
                    self._drop_head(str(error))
                    return True
            if not written:
                return self._wait_for_room(ring)
        except RingCorrupt as error:
            # What is not published the guest has not seen: it stays queued, and is saved as such.
            self.queue.extendleft(reversed(written))
            self._outgoing_corrupt(error)
            return False
        signal = False
        try:
            signal = ring.publish()
        except RingCorrupt as error:
            self._outgoing_corrupt(error)
        if self._space_requested and not self.queue:
            ring.clear_space_request()
            self._space_requested = False
        self._written(written, signal)
        return True

    def _outgoing_corrupt(self, error: RingCorrupt) -> None:
        self.fault(FaultKind.OUTGOING_RING, f"the host-to-guest ring is corrupt: {error}")

    def _drop_head(self, reason: str) -> None:
        """End what can never fit: a packet queued before the guest chose the size of its ring."""
        item = self.queue.popleft()
        if isinstance(item, QueuedCompletion):
            self._backlog -= 1
            self.fault(FaultKind.OUTGOING_RING, f"a completion can never be sent: {reason}")
            return
        if item.transaction_id:
            self.table.remove(item.transaction_id)
        item.finish(NtStatus.INVALID_BUFFER_SIZE, None)

    @staticmethod
    def _write(ring: OutgoingRing, item: OutgoingPacket | QueuedCompletion) -> bool:
        if isinstance(item, QueuedCompletion):
            return ring.write(PacketType.COMPLETION, item.transaction_id, item.payload)
        return ring.write(
            PacketType.IN_BAND,
            item.transaction_id,
            item.payload,
            completion_requested=item.waits_for_completion,
        )

    def _wait_for_room(self, ring: OutgoingRing) -> bool:
        self._space_requested = True
        return ring.request_space(ring.packet_size(len(self.queue[0].payload)))

    def _written(self, items: list[OutgoingPacket | QueuedCompletion], signal: bool) -> None:
        self.meter.packets_out += len(items)
        # All states first: the guest may answer from within the signal.
        complete: list[OutgoingPacket] = []
        for item in items:
            if isinstance(item, QueuedCompletion):
                self._backlog -= 1
            else:
                item.inserted()
                if not item.waits_for_completion:
                    complete.append(item)
        if signal:
            self._hooks.signal()
        for packet in complete:
            packet.finish(NtStatus.SUCCESS, None)

    # Faults, the end, and what others look at.

    def fault(self, kind: FaultKind, text: str) -> None:
        """Stop one direction and report it."""
        fault = ChannelFault(kind, text)
        self.faults.append(fault)
        if kind.stops_reading and self._incoming is not None:
            self._incoming.mask()
        self._hooks.faulted(fault)

    def in_ring(self) -> list[OutgoingPacket]:
        """Return the packets whose completion is awaited, by transaction id."""
        waiting = [packet for packet in self.table if packet.state is OutgoingState.IN_RING]
        return sorted(waiting, key=lambda packet: packet.transaction_id)

    def retire(self, status: NtStatus) -> None:
        """End every outgoing packet with a failure, and drop completions nobody will read."""
        packets = self.in_ring() + [item for item in self.queue if isinstance(item, OutgoingPacket)]
        self.queue.clear()
        self._backlog = 0
        self._hold = None
        for packet in packets:
            if packet.transaction_id:
                self.table.remove(packet.transaction_id)
            packet.finish(status, None)

    def unread(self) -> tuple[UnreadPacket, ...]:
        """Look at the packets that were not read, up to the first that is corrupt."""
        found: list[UnreadPacket] = []
        if self._incoming is not None:
            try:
                for summary in self._incoming.scan():
                    completion = summary.type is PacketType.COMPLETION
                    found.append(UnreadPacket(summary.transaction_id, completion))
            except RingCorrupt:
                # Reported when reading comes to it.
                pass
        return tuple(found)
