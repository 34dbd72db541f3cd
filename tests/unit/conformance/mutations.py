# SPDX-License-Identifier: MIT
"""Deliberate bugs, to see that they are found. Each is planted by a function of one patcher.

They are planted from outside, at the narrowest place that makes the bug, so that the code under
test has no switches for them. A place that is renamed fails the test that plants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from emulator.conformance.rig import Port
from emulator.kmcl import (
    OutgoingPacket,
    Queue,
    RestoredPacket,
    ServerChannel,
)
from emulator.kmcl import snapshot as snapshots
from emulator.kmcl.delivery import Delivery
from emulator.kmcl.packets import QueuedCompletion, TransactionTable
from emulator.kmcl.save import (
    SavedChannel,
    SavedPlace,
    StreamReader,
    decode_packet_record,
    encode_packet_record,
)
from emulator.kmcl.snapshot import RestoreSession, SaveResult, SaveSession, Snapshots
from emulator.kmcl.states import OutgoingState, Restore
from emulator.kmcl.traffic import Traffic
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

Patcher = pytest.MonkeyPatch
Items = Sequence[OutgoingPacket | QueuedCompletion]

MUTATIONS: dict[str, Callable[[Patcher], None]] = {}


def mutation(plant: Callable[[Patcher], None]) -> Callable[[Patcher], None]:
    MUTATIONS[plant.__name__] = plant
    return plant


def _saving_only(patch: Patcher, keep: Callable[[Items], Items]) -> None:
    """Have a save be of ``keep(items)``, with a head that agrees."""
    original = SaveSession.__init__

    def init(
        self: SaveSession, channel: ServerChannel, head: SavedChannel, items: Items, save: Any
    ) -> None:
        items = keep(items)
        packets = sum(isinstance(item, OutgoingPacket) for item in items)
        head = replace(head, packets=packets, completions=len(items) - packets)
        original(self, channel, head, items, save)

    patch.setattr(SaveSession, "__init__", init)


def _queued(item: OutgoingPacket | QueuedCompletion) -> bool:
    return isinstance(item, QueuedCompletion) or item.state is OutgoingState.QUEUED


@mutation
def lost_queued_packet(patch: Patcher) -> None:
    """The last queued packet without a completion to come is not saved."""

    def keep(items: Items) -> Items:
        last = [
            item
            for item in items
            if isinstance(item, OutgoingPacket) and _queued(item) and not item.waits_for_completion
        ][-1:]
        return [item for item in items if item not in last]

    _saving_only(patch, keep)


@mutation
def lost_queued_completion(patch: Patcher) -> None:
    """Completions that wait for room are not saved."""
    _saving_only(patch, lambda items: [x for x in items if not isinstance(x, QueuedCompletion)])


@mutation
def order_swap(patch: Patcher) -> None:
    """The first two in the queue change places in the save."""

    def keep(items: Items) -> Items:
        queue = [item for item in items if _queued(item)]
        return [item for item in items if not _queued(item)] + queue[1::-1] + queue[2:]

    _saving_only(patch, keep)


@mutation
def completions_before_packets(patch: Patcher) -> None:
    """The queue is saved as two queues."""
    _saving_only(
        patch, lambda items: sorted(items, key=lambda item: isinstance(item, QueuedCompletion))
    )


@mutation
def reused_transaction_id(patch: Patcher) -> None:
    """The counter starts anew after a restore, and does not look what is in use."""

    def add(self: TransactionTable, packet: OutgoingPacket) -> int:
        transaction_id = self._next
        self._packets[transaction_id] = packet
        self._advance()
        return transaction_id

    patch.setattr(TransactionTable, "reserve", lambda self, next_id: None)
    patch.setattr(TransactionTable, "add", add)


@mutation
def double_completion(patch: Patcher) -> None:
    """A completion that waited for room at the save is queued twice at the restore."""
    original = Traffic.queue_completion

    def queue(self: Traffic, completion: QueuedCompletion) -> None:
        original(self, completion)
        if not self._transmitting:
            original(self, completion)

    patch.setattr(Traffic, "queue_completion", queue)


@mutation
def packet_in_the_ring_sent_again(patch: Patcher) -> None:
    """A packet that is in the ring already is queued at the restore."""
    original = RestoreSession.accept

    def accept(self: RestoreSession, packet: OutgoingPacket, lib_buffer: bytes) -> NtStatus:
        status = original(self, packet, lib_buffer)
        record = decode_packet_record(lib_buffer)
        if status.is_success and record.place is SavedPlace.IN_RING:
            self._channel.traffic.queue.append(packet)
        return status

    patch.setattr(RestoreSession, "accept", accept)


@mutation
def lost_wake_up_of_the_guest(patch: Patcher) -> None:
    """The guest is not signalled when a restored channel starts."""
    original = ServerChannel.port_restored

    def restored(self: ServerChannel, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        original(self, incoming, outgoing)
        self._signal_at_start = False

    patch.setattr(ServerChannel, "port_restored", restored)


@mutation
def lost_wake_up_of_the_host(patch: Patcher) -> None:
    """A restored channel waits for a doorbell before it looks at its ring."""
    original = ServerChannel._go

    def go(self: ServerChannel) -> None:
        if self._signal_at_start:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(self.traffic, "poll", lambda: None)
                original(self)
        else:
            original(self)

    patch.setattr(ServerChannel, "_go", go)


@mutation
def mask_left_set(patch: Patcher) -> None:
    """A reader that goes idle leaves the mask set."""

    def unmask(self: IncomingRing) -> bool:
        return self._load_in() != self._out

    patch.setattr(IncomingRing, "unmask", unmask)


@mutation
def space_not_asked_for_again(patch: Patcher) -> None:
    """After a restore a full ring is not asked for room."""
    original = Traffic._wait_for_room
    restored: set[Traffic] = set()

    def wait(self: Traffic, ring: OutgoingRing) -> bool:
        return self not in restored and original(self, ring)

    attach = Traffic.attach_in_use

    def attach_in_use(self: Traffic, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        attach(self, incoming, outgoing)
        restored.add(self)

    patch.setattr(Traffic, "_wait_for_room", wait)
    patch.setattr(Traffic, "attach_in_use", attach_in_use)


@mutation
def skipped_post_started(patch: Patcher) -> None:
    """EvtPostStarted does not run after a restore."""
    original = ServerChannel.port_restored

    def restored(self: ServerChannel, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        original(self, incoming, outgoing)
        self._state_callbacks = replace(self._state_callbacks, post_started=None)

    patch.setattr(ServerChannel, "port_restored", restored)


@mutation
def skipped_completion_routine(patch: Patcher) -> None:
    """A restored packet without a completion to come ends without its routine."""
    original = OutgoingPacket.finish

    def finish(self: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        if self._waits or self._channel.restore_state is not Restore.COMPLETE:
            original(self, status, data)

    patch.setattr(OutgoingPacket, "finish", finish)


@mutation
def stale_gpadl_of_the_rings(patch: Patcher) -> None:
    """A channel that is opened again goes on with the rings of its first GPADL."""
    original = Traffic.attach
    first: dict[Traffic, tuple[IncomingRing, OutgoingRing]] = {}

    def attach(self: Traffic, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        original(self, *first.setdefault(self, (incoming, outgoing)))

    patch.setattr(Traffic, "attach", attach)


@mutation
def stale_external_memory(patch: Patcher) -> None:
    """External data is read from and written to a copy of guest memory."""
    original = Port.external_data

    def external_data(self: Port, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "ram", bytearray(self.ram))
            return original(self, ranges)

    patch.setattr(Port, "external_data", external_data)


@mutation
def wrong_status_of_a_part(patch: Patcher) -> None:
    """RestoreFromBuffer says SUCCESS although more chunks are to come."""
    original = Snapshots.restore_from_buffer

    def restore(self: Snapshots, buffer: bytes) -> NtStatus:
        status = original(self, buffer)
        more = status is NtStatus.MORE_PROCESSING_REQUIRED
        return NtStatus.SUCCESS if more else status

    patch.setattr(Snapshots, "restore_from_buffer", restore)


@mutation
def wrong_status_of_a_full_buffer(patch: Patcher) -> None:
    """SaveContinue says SUCCESS when its buffer is full."""
    original = Snapshots.go_on

    def go_on(self: Snapshots, buffer_size: int) -> SaveResult:
        result = original(self, buffer_size)
        if result.status is NtStatus.BUFFER_OVERFLOW:
            return replace(result, status=NtStatus.SUCCESS)
        return result

    patch.setattr(Snapshots, "go_on", go_on)


@mutation
def wrong_status_of_a_completion(patch: Patcher) -> None:
    """Packets that end with the connection end with SUCCESS."""
    original = Traffic.retire

    patch.setattr(Traffic, "retire", lambda self, _: original(self, NtStatus.SUCCESS))


@mutation
def partial_restore_kept(patch: Patcher) -> None:
    """A channel whose restore failed can be started with what was restored until then."""
    patch.setattr(Snapshots, "restore_unfinished", property(lambda self: False))


@mutation
def damage_not_seen(patch: Patcher) -> None:
    """A stream's checksums are not compared, nor whether it is whole."""
    original = StreamReader._chunk

    def chunk(self: Any, buffer: bytes, offset: int, records: list[Any]) -> int:
        with pytest.MonkeyPatch.context() as inner:
            crc = int.from_bytes(buffer[offset + 16 : offset + 20], "little")
            inner.setattr("emulator.kmcl.save.zlib.crc32", lambda *_: crc)
            return original(self, buffer, offset, records)

    patch.setattr(StreamReader, "_chunk", chunk)


@mutation
def leaked_packet(patch: Patcher) -> None:
    """A packet that a restore gave back and the VSP freed is not counted as free."""
    original = ServerChannel.packet_freed

    def freed(self: ServerChannel) -> None:
        if self.restore_state is not Restore.COMPLETE:
            original(self)

    patch.setattr(ServerChannel, "packet_freed", freed)


@mutation
def fault_forgotten(patch: Patcher) -> None:
    """A queue that a failed packet had stopped goes on after a restore."""
    original = snapshots._head

    def head(channel: ServerChannel, packets: Any, items: Any) -> SavedChannel:
        return replace(original(channel, packets, items), faults=())

    patch.setattr(snapshots, "_head", head)


@mutation
def payload_cut(patch: Patcher) -> None:
    """The payload of a queued packet is saved without its last byte."""
    original = encode_packet_record

    def encode(record: Any) -> bytes:
        return original(replace(record, payload=record.payload[:-1]))

    patch.setattr(snapshots, "encode_packet_record", encode)


@mutation
def other_save_buffer(patch: Patcher) -> None:
    """EvtRestorePacket gets SaveBuf with a byte too much."""
    name = "restore_packet_callback"
    owner = next(part for part in ServerChannel.__mro__ if name in vars(part))
    original: Any = vars(owner)[name]

    def wrapped(self: ServerChannel) -> Any:
        callback = original.fget(self)

        def restore(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
            longer = replace(restored, save_buffer=restored.save_buffer + b"\0")
            result = callback(channel, longer)
            assert isinstance(result, NtStatus)
            return result

        return restore if callback is not None else None

    patch.setattr(owner, name, property(wrapped))


@mutation
def written_while_paused(patch: Patcher) -> None:
    """A doorbell is acted on although the channel is paused."""
    original = ServerChannel.port_interrupt

    def interrupt(self: ServerChannel) -> None:
        original(self)
        if self.queue is Queue.OFF and self.traffic.incoming_ring is not None:
            self.traffic.incoming_ring.mask()
            self.traffic._transmitting = True
            self.traffic.flush()

    patch.setattr(ServerChannel, "port_interrupt", interrupt)


@mutation
def read_but_not_released(patch: Patcher) -> None:
    """What was read in the batch that a pause ends is not published as read."""

    def stop_receiving(self: Traffic) -> None:
        self._receiving = False
        if self._incoming is not None:
            self._incoming.mask()

    patch.setattr(Traffic, "stop_receiving", stop_receiving)


@mutation
def pause_does_not_wait(patch: Patcher) -> None:
    """A pause ends although the VSP holds packets, and forgets them."""
    original = ServerChannel._check_drained

    def check(self: ServerChannel) -> None:
        if self.queue is Queue.DRAINING and not self.in_a_callback:
            self.traffic.held.clear()
        original(self)

    patch.setattr(ServerChannel, "_check_drained", check)


@mutation
def delivered_after_the_pause(patch: Patcher) -> None:
    """A batch that is being read when the channel is paused is delivered to its end."""
    packet = Delivery.packet

    def and_the_next(name: str) -> None:
        original = getattr(Delivery, name)

        def deliver(self: Delivery, *arguments: Any) -> bool:
            result: bool = original(self, *arguments)
            channel = self._channel
            if channel.queue is not Queue.ON and channel.traffic.incoming_ring is not None:
                later = channel.traffic.incoming_ring.read()
                if later is not None:
                    packet(self, later)
            return result

        patch.setattr(Delivery, name, deliver)

    for name in ("packet", "plain", "ranged"):
        and_the_next(name)


@mutation
def read_too_little(patch: Patcher) -> None:
    """A reader that stops after its share does not ask for another turn."""
    patch.setattr(Port, "poll_again", lambda self, channel: None)


@mutation
def answer_without_its_bytes(patch: Patcher) -> None:
    """A restored packet ends without what the guest answered."""
    original = OutgoingPacket.finish

    def finish(self: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        restored = self._channel.restore_state is Restore.COMPLETE
        original(self, status, None if restored else data)

    patch.setattr(OutgoingPacket, "finish", finish)
