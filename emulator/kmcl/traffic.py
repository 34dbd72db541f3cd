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

A batch is what one call of C has copied out of the ring. Its packets are consumed one by one, each
before it is delivered, so that what a callback does (pause, close, reach the quota) finds the ring
as if they had been read one by one; what is not delivered then is read anew.

Draining. A VSP that only counts can have the requests completed without seeing them: C does it, and
leaves each packet that is not plain, and each completion that does not fit, to the way above.

Writing. Packets and completions share one FIFO queue; each goes through it, so nothing overtakes.
While a batch is delivered, completions only enter it: they are written, published and signalled
once, at its end, before the next is looked for. Who stops the reading gets them written at once,
and so from then on.
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
from emulator.ring import IncomingRing, OutgoingRing, PacketAhead, PacketTooLarge, RingCorrupt
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import Packet, PacketType, plain_packet

COMPLETION_BACKLOG_LIMIT: Final = 1024
"""Completions queued before reading stops: a guest that never reads must not fill our memory."""

READ_LIMIT: Final = 64
"""Packets read in one go before others have a turn: about 0.1 ms of work, and the VSP's own."""

DRAIN_LIMIT: Final = 1024
"""The same where nothing is done with a packet but to complete it."""

IN_BAND: Final = int(PacketType.IN_BAND)
"""An int, because a comparison with an enum's member costs more."""


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
    deliver_plain: Callable[[int, bytes, bool], bool]
    """The same for one without ranges: transaction id, payload, whether it asks for completion."""
    drained: Callable[[int, int], None]
    """So many requests, with so many bytes of payload, were completed unseen."""
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
        self._batching = False
        self._undisturbed = False
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
        self._unseen = self._unseen_bytes = 0
        self.draining = False
        """Whether requests are completed unseen."""

    # Rings come and go.

    def attach(self, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        """Use these rings; they are initialised or attached already."""
        self._incoming, self._outgoing = incoming, outgoing
        self._undisturbed = False
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
        self.end_batch()
        self._receiving = self._undisturbed = False
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
        self._may_take = DRAIN_LIMIT if self.draining else READ_LIMIT
        try:
            again = True
            while again:
                self._look_again = False
                if self.queue:
                    self.flush()
                ring = self._incoming
                if ring is not None and self._may_read():
                    ring.mask()
                    self._read_batch(ring)
                    again = self._go_idle(ring)
                else:
                    again = self._look_again
        finally:
            self._polling = False

    def _go_idle(self, ring: IncomingRing) -> bool:
        """Have the guest ring from now on; True if there is more to read already."""
        # Callbacks may have paused or closed the channel, and even have opened it again.
        if ring is self._incoming and self._may_read():
            if not self._may_take:
                self._hooks.poll_again()
                return False
            try:
                return ring.unmask() or self._look_again
            except RingCorrupt as error:
                self._incoming_corrupt(error)
        return self._look_again

    def _incoming_corrupt(self, error: RingCorrupt) -> None:
        self.fault(FaultKind.INCOMING_RING, f"the guest-to-host ring is corrupt: {error}")

    def _may_read(self) -> bool:
        if self._hold is None and not self.faults:
            return self._receiving
        return (
            self._receiving
            and self._hold is None
            and not any(fault.kind.stops_reading for fault in self.faults)
        )

    def _read_batch(self, ring: IncomingRing) -> None:
        self._batching = True
        try:
            delivered = self._read_packets(ring)
            if delivered:
                self._hooks.batch_done(delivered)
            if self._unseen:
                self._tell_drained()
        finally:
            self._batching = False
            if self.queue:
                self.flush()

    def end_batch(self) -> None:
        """Write what completions there are, and each at once from now on."""
        if self._batching:
            self._batching = False
            self.flush()

    def _read_packets(self, ring: IncomingRing) -> int:
        """Read until there is a reason not to; returns how many packets went to the VSP."""
        delivered = 0
        could_take = self._may_take
        try:
            while ring is self._incoming and self._may_take and self._may_read():
                room = self.quota - len(self.held)
                if room <= 0:
                    self._hold = Hold.QUOTA
                    break
                if self._backlog >= COMPLETION_BACKLOG_LIMIT:
                    self._hold = Hold.BACKLOG
                    break
                if self.draining:
                    if self._drain(ring):
                        continue
                    room = 1
                packets = ring.read_ahead(room if room < self._may_take else self._may_take)
                if packets is None:
                    break
                if packets:
                    delivered += self._take_plain(ring, packets)
                    if self.queue:
                        # Before the next look: a guest that waits for this answers meanwhile.
                        self.flush()
                    continue
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
        return delivered

    def _take_plain(self, ring: IncomingRing, packets: list[PacketAhead]) -> int:
        """Act on packets one by one, as long as they may be; returns how many went to the VSP."""
        delivered = 0
        deliver = self._hooks.deliver_plain
        self._undisturbed = True
        for number, flags, transaction_id, payload, next_out in packets:
            ring.consume(next_out)
            self._may_take -= 1
            if number == IN_BAND:
                delivered += deliver(transaction_id, payload, flags != 0)
            else:
                delivered += self._take(plain_packet(number, flags, transaction_id, payload))
            if (
                not self._undisturbed
                or self._hold is not None
                or len(self.held) >= self.quota
                or self._backlog >= COMPLETION_BACKLOG_LIMIT
            ):
                break
        return delivered

    def _drain(self, ring: IncomingRing) -> bool:
        """Complete requests unseen; False if the next packet is not for this."""
        outgoing = self._outgoing
        if outgoing is None or self.queue or not self._may_write():
            return False
        try:
            drained = ring.drain(outgoing, self._may_take)
        except RingCorrupt as error:
            self._outgoing_corrupt(error)
            return True
        if not drained.packets:
            return False
        self._may_take -= drained.packets
        self._unseen += drained.packets
        self._unseen_bytes += drained.payload_bytes
        self.meter.packets_out += drained.completions
        if drained.completions and self._publish(outgoing):
            self._hooks.signal()
        return True

    def complete_unseen(self, packet: Packet) -> None:
        """Count a request, and complete it if it asks for that, without a packet object."""
        self._unseen += 1
        self._unseen_bytes += len(packet.payload)
        if packet.completion_requested:
            self.queue_completion(QueuedCompletion(packet.transaction_id, b""))
            if not self._batching:
                self.flush()

    def _tell_drained(self) -> None:
        packets, payload_bytes = self._unseen, self._unseen_bytes
        self._unseen = self._unseen_bytes = 0
        self._hooks.drained(packets, payload_bytes)

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
            # What QueuedCompletion() does, without a call of Python code for each packet.
            item = tuple.__new__(QueuedCompletion, (packet.transaction_id, data))
            self.queue.append(item)
            self._backlog += 1
            if not self._batching:
                self.flush()
        self._release(packet)

    def fail(self, packet: IncomingPacket, reason: str) -> None:
        """Stop the queue."""
        self.fault(FaultKind.PACKET_FAILED, f"a packet was failed: {reason}")
        self._release(packet)

    def _release(self, packet: IncomingPacket) -> None:
        del self.held[packet]
        if self._receiving and self._hold is None:
            # Nearly always: nobody waits for the packet to end.
            return
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
        if self.faults and not self._may_write():
            return False
        written: list[OutgoingPacket | QueuedCompletion] = []
        completions = 0
        try:
            try:
                if isinstance(self.queue[0], QueuedCompletion):
                    completions = ring.write_completions(self.queue)
                    if completions == len(self.queue):
                        # That was all, as it mostly is.
                        self.queue.clear()
                        self.meter.packets_out += completions
                        self._backlog -= completions
                        if ring.publish():
                            self._hooks.signal()
                        if self._space_requested and not self.queue:
                            ring.clear_space_request()
                            self._space_requested = False
                        return bool(self.queue)
                    written = [self.queue.popleft() for _ in range(completions)]
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
        signal = self._publish(ring)
        if self._space_requested and not self.queue:
            ring.clear_space_request()
            self._space_requested = False
        self.meter.packets_out += len(written)
        self._backlog -= completions
        self._written(written[completions:], signal)
        return True

    def _publish(self, ring: OutgoingRing) -> bool:
        """Show the guest what was written; True if it must be signalled."""
        try:
            return ring.publish()
        except RingCorrupt as error:
            self._outgoing_corrupt(error)
            return False

    def _may_write(self) -> bool:
        if not self.faults:
            return self._transmitting
        return self._transmitting and all(fault.kind.stops_reading for fault in self.faults)

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
        self._undisturbed = False
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
