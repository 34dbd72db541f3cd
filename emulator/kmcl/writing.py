# SPDX-License-Identifier: MIT
"""The writing half of a channel's data path: one queue for all that goes to the guest.

Writing. Packets and completions share one FIFO queue; each goes through it, so nothing overtakes.
While a batch is delivered, completions only enter it: they are written, published and signalled
once, at its end, before the next is looked for. Who stops the reading gets them written at once,
and so from then on.
When the head does not fit, the ring is asked to have the guest signal us when there is room, and
looks once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from emulator.kmcl.errors import ChannelFault, FaultKind
from emulator.kmcl.meter import Meter
from emulator.kmcl.packets import OutgoingPacket, QueuedCompletion, TransactionTable
from emulator.kmcl.states import OutgoingState
from emulator.ring import OutgoingRing, PacketTooLarge, RingCorrupt
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange, Packet, PacketType

COMPLETION_BACKLOG_LIMIT: Final = 1024
"""Completions queued before reading stops: a guest that never reads must not fill our memory."""


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
    deliver_ranged: Callable[[int, bytes, bool, tuple[GpaRange, ...]], bool]
    """The same for a GPA-direct one."""
    drained: Callable[[int, int], None]
    """So many requests, with so many bytes of payload, were completed unseen."""
    batch_done: Callable[[int], None]
    released: Callable[[], None]
    """An incoming packet has ended."""
    settled: Callable[[], None]
    """No packet waits for the guest's completion any more."""
    faulted: Callable[[ChannelFault], None]


class Writer:
    """The queue, and what it writes; :class:`~emulator.kmcl.traffic.Traffic` is the whole."""

    def __init__(self, hooks: Hooks) -> None:
        """Make it without a ring, transmitting nothing."""
        self._hooks = hooks
        self._outgoing: OutgoingRing | None = None
        self._receiving = False
        self._transmitting = False
        self._flushing = False
        self._space_requested = False
        self._backlog = 0
        self._hold: Hold | None = None
        self.queue: deque[OutgoingPacket | QueuedCompletion] = deque()
        self.table = TransactionTable()
        self.faults: list[ChannelFault] = []
        self.meter = Meter()

    def poll(self) -> None:
        """Write what fits and read what is there."""
        raise NotImplementedError

    def fault(self, kind: FaultKind, text: str) -> None:
        """Stop one direction and report it."""
        raise NotImplementedError

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
        if not self.table:
            self._hooks.settled()

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

    def in_ring(self) -> list[OutgoingPacket]:
        """Return the packets whose completion is awaited, by transaction id."""
        waiting = [packet for packet in self.table if packet.state is OutgoingState.IN_RING]
        return sorted(waiting, key=lambda packet: packet.transaction_id)
