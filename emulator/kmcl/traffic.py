# SPDX-License-Identifier: MIT
"""The data path of a channel: one reader, one queue, two rings. It knows nothing of the life cycle.

Writing, and the queue, are in :mod:`emulator.kmcl.writing`.

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

Reentrancy. Callbacks may call anything. Both loops are guarded: a nested call leaves a note and the
outer loop looks again, so the depth of the stack does not grow with traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from emulator.kmcl.errors import ChannelFault, FaultKind
from emulator.kmcl.packets import IncomingPacket, OutgoingPacket, QueuedCompletion
from emulator.kmcl.states import OutgoingState
from emulator.kmcl.writing import COMPLETION_BACKLOG_LIMIT, Hold, Hooks, Writer
from emulator.ring import IncomingRing, OutgoingRing, PacketAhead, RingCorrupt
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange, Packet, PacketType, plain_packet

READ_LIMIT: Final = 64
"""Packets read in one go before others have a turn: about 0.1 ms of work, and the VSP's own."""

DRAIN_LIMIT: Final = 1024
"""The same where nothing is done with a packet but to complete it."""

IN_BAND: Final = int(PacketType.IN_BAND)
"""An int, because a comparison with an enum's member costs more."""


@dataclass(frozen=True, slots=True)
class UnreadPacket:
    """A packet that the guest has written and the channel has not read."""

    transaction_id: int
    is_completion: bool


class Traffic(Writer):
    """Moves packets between the rings and the VSP; see the head of the file."""

    def __init__(self, hooks: Hooks, quota: int, *, drop_unknown: bool = False) -> None:
        """Make it without rings, receiving and transmitting nothing.

        ``drop_unknown`` is :attr:`UnknownCompletion.DROPPED`.
        """
        super().__init__(hooks)
        self._drop_unknown = drop_unknown
        self.unknown_completions = 0
        """Completions of unknown transactions that were dropped."""
        self._reading_at: int | None = None
        self._incoming: IncomingRing | None = None
        self._polling = False
        self._look_again = False
        self._batching = False
        self._undisturbed = False
        self._may_take = 0
        self.quota = quota
        self.held: dict[IncomingPacket, None] = {}
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

    def leave_unread(self, packet: IncomingPacket) -> bool:
        """Put the packet that is being delivered back; False if it is not to be read any more.

        That is one without external data, or one whose callback has returned.
        """
        if self._reading_at is None or self._incoming is None or packet not in self.held:
            return False
        del self.held[packet]
        self._incoming.go_back(self._reading_at)
        return True

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
                self._reading_at = ring.mark()
                packet = ring.read()
                if packet is None:
                    break
                self._may_take -= 1
                delivered += self._take(packet)
        except RingCorrupt as error:
            self._incoming_corrupt(error)
        finally:
            self._reading_at = None
            self.meter.packets_in += could_take - self._may_take
            if ring is self._incoming and self._receiving:
                self._commit(ring)
        return delivered

    def _take_plain(self, ring: IncomingRing, packets: list[PacketAhead]) -> int:
        """Act on packets one by one, as long as they may be; returns how many went to the VSP."""
        delivered = 0
        deliver, deliver_ranged = self._hooks.deliver_plain, self._hooks.deliver_ranged
        self._undisturbed = True
        for number, flags, transaction_id, payload, next_out, fields in packets:
            # Only a packet with external data can be put back.
            self._reading_at = None if fields is None else ring.mark()
            ring.consume(next_out)
            self._may_take -= 1
            if number == IN_BAND:
                delivered += deliver(transaction_id, payload, flags != 0)
            elif fields is not None:
                # What GpaRange() does, without a call of Python code for each packet.
                gpa_range = tuple.__new__(GpaRange, fields)
                delivered += deliver_ranged(transaction_id, payload, flags != 0, (gpa_range,))
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
            if self._drop_unknown:
                self.unknown_completions += 1
                return
            self.fault(
                FaultKind.UNKNOWN_TRANSACTION,
                f"the guest completed transaction {packet.transaction_id:#x}, which is not waiting",
            )
            return
        self.table.remove(packet.transaction_id)
        waiting.finish(NtStatus.SUCCESS, packet.payload)
        if not self.table:
            self._hooks.settled()

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

    # Faults, the end, and what others look at.

    def fault(self, kind: FaultKind, text: str) -> None:
        """Stop one direction and report it."""
        fault = ChannelFault(kind, text)
        self._undisturbed = False
        self.faults.append(fault)
        if kind.stops_reading and self._incoming is not None:
            self._incoming.mask()
        self._hooks.faulted(fault)

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
