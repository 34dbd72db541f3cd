# SPDX-License-Identifier: MIT
"""Deliberate bugs in what only some runs have: sub-channels, pipes, GPADLs, the switches.

As in :mod:`tests.unit.conformance.mutations`; with each is what the runs are played with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from emulator.kmcl import OfferParams, ServerChannel, delivery, snapshot
from emulator.kmcl.delivery import Delivery
from emulator.kmcl.gpadls import MappedGpadls
from emulator.kmcl.inferred import DEFAULTS
from emulator.kmcl.lifecycle import LifeCycle
from emulator.kmcl.packets import IncomingPacket
from emulator.kmcl.pipe import frame
from emulator.kmcl.save import (
    PacketRecord,
    SavedChannel,
    SavedOutgoing,
    decode_packet_record,
)
from emulator.kmcl.snapshot import RestoreSession, SaveSession, Snapshots
from emulator.kmcl.states import Queue
from emulator.kmcl.traffic import Traffic
from emulator.kmcl.writing import Hold
from emulator.memory import PageView, ReadOnlyPageView
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import Packet

Patcher = pytest.MonkeyPatch
Plant = Callable[[Patcher], None]

AREA_MUTATIONS: dict[str, tuple[tuple[str, ...], int, Plant]] = {}
"""By name: what the runs are played with (nothing: what their seeds draw), the first run (not 0
where 5,000 points from there on find it too, but take long), and the planting."""


def mutation(*words: str, seed: int = 0) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        AREA_MUTATIONS[plant.__name__] = words, seed, plant
        return plant

    return register


@contextmanager
def _without_subchannels(channel: LifeCycle) -> Iterator[None]:
    kept, channel._subchannels = channel._subchannels, []
    try:
        yield
    finally:
        channel._subchannels = kept


@contextmanager
def _by_default(channel: LifeCycle) -> Iterator[None]:
    """Have a channel do what it does without settings."""
    kept, channel.inferred = channel.inferred, DEFAULTS
    try:
        yield
    finally:
        channel.inferred = kept


# Sub-channels.


@mutation()
def subchannel_not_paused(patch: Patcher) -> None:
    """A pause of the primary leaves its sub-channel running."""
    original = LifeCycle.pause

    def pause(self: LifeCycle, done: Callable[[], None]) -> None:
        with _without_subchannels(self):
            original(self, done)

    patch.setattr(LifeCycle, "pause", pause)


@mutation()
def subchannel_left_open(patch: Patcher) -> None:
    """A close of the primary does not disable its sub-channel."""
    original = LifeCycle._close

    def close(self: LifeCycle) -> None:
        with _without_subchannels(self):
            original(self)

    patch.setattr(LifeCycle, "_close", close)


@mutation(seed=23)
def subchannel_not_started(patch: Patcher) -> None:
    """A start of the primary does not start its sub-channel."""
    original = LifeCycle.start

    def start(self: LifeCycle) -> None:
        with _without_subchannels(self):
            original(self)

    patch.setattr(LifeCycle, "start", start)


@mutation()
def subchannel_restored_as_another(patch: Patcher) -> None:
    """A stream says of each channel that it is a primary."""
    original = snapshot._head

    def head(channel: ServerChannel, packets: Any, items: Any) -> SavedChannel:
        return replace(original(channel, packets, items), subchannel_index=0)

    patch.setattr(snapshot, "_head", head)


# Pipes.


@mutation("pipe")
def message_framed_twice(patch: Patcher) -> None:
    """A queued message gets another header at the restore."""
    original = decode_packet_record

    def decode(data: bytes) -> PacketRecord:
        record = original(data)
        return replace(record, payload=frame(record.payload)) if record.payload else record

    patch.setattr(snapshot, "decode_packet_record", decode)


@mutation("pipe")
def message_with_its_padding(patch: Patcher) -> None:
    """The VSP gets a message with what the ring has padded it with."""
    patch.setattr(delivery, "unframe", lambda payload: payload[8:])


# Packets that come once more.


@mutation()
def deferred_packet_overtaken(patch: Patcher) -> None:
    """Others are delivered while a deferred packet waits."""
    patch.setattr(Traffic, "hold_for_retry", lambda self: None)


@mutation()
def deferred_packet_forgotten_at_suspend(patch: Patcher) -> None:
    """EvtSuspend comes before a packet that was deferred."""
    patch.setattr(Delivery, "owes_a_delivery", property(lambda self: False))


@mutation()
def pending_packet_not_retried(patch: Patcher) -> None:
    """Nobody asks for another turn for a packet whose external data were not there."""

    def pend(self: Delivery, packet: IncomingPacket) -> None:
        self.deferred = packet
        self._channel.traffic.hold_for_retry()

    patch.setattr(Delivery, "pend", pend)


# The quota.


@mutation()
def quota_ignored(patch: Patcher) -> None:
    """The quota is noted and not kept."""
    original = ServerChannel.set_transaction_quota

    def quota(self: ServerChannel, quota: int) -> None:
        original(self, quota)
        self.traffic.quota = 1024

    patch.setattr(ServerChannel, "set_transaction_quota", quota)


@mutation()
def doubled_doorbell_goes_beyond_the_quota(patch: Patcher) -> None:
    """A doorbell that comes to a queue the quota has stopped sets it going for a packet."""
    original = ServerChannel.port_interrupt

    def interrupt(self: ServerChannel) -> None:
        quota = self.traffic.quota
        if self.traffic.hold is Hold.QUOTA:
            self.traffic._hold = None
            self.traffic.quota = len(self.traffic.held) + 1
        original(self)
        self.traffic.quota = quota

    patch.setattr(ServerChannel, "port_interrupt", interrupt)


@mutation()
def quota_blocks_for_ever(patch: Patcher) -> None:
    """A completion does not start a queue again that the quota has stopped."""
    original = Traffic._release

    def release(self: Traffic, packet: IncomingPacket) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "poll", lambda: None)
            original(self, packet)

    patch.setattr(Traffic, "_release", release)


# GPADLs.


@mutation(seed=23)
def gpadl_given_back_while_mapped(patch: Patcher) -> None:
    """A teardown does not wait for the unmap."""
    patch.setattr(MappedGpadls, "torn_down", lambda self, handle, released: released())


@mutation(seed=23)
def gpadl_never_given_back(patch: Patcher) -> None:
    """An unmap forgets the teardown that waits for it."""
    patch.setattr(MappedGpadls, "unmap", lambda self, handle: self._mapped.remove(handle))


@mutation(seed=23)
def gpadl_mapped_twice(patch: Patcher) -> None:
    """A GPADL that is mapped can be mapped again."""
    original = MappedGpadls.map

    def again(self: MappedGpadls, handle: int, *, read_only: bool = False) -> PageView:
        self._mapped.discard(handle)
        return original(self, handle, read_only=read_only)

    patch.setattr(MappedGpadls, "map", again)


@mutation(seed=23)
def read_only_mapping_written(patch: Patcher) -> None:
    """A mapping for reading only can be written."""

    def store(self: ReadOnlyPageView, offset: int, value: int, /) -> None:
        self._view.store_u32(offset, value)

    patch.setattr(ReadOnlyPageView, "store_u32", store)


@mutation("force-new")
def force_new_channel_forgotten(patch: Patcher) -> None:
    """The offer of a channel that is to be new does not say so."""
    original = ServerChannel.offer_params

    def params(self: ServerChannel) -> OfferParams:
        return replace(original(self), force_new=False)

    patch.setattr(ServerChannel, "offer_params", params)


# The other reading of each switch, done wrongly.


@mutation("pause=outgoing-too")
def patient_pause_never_ends(patch: Patcher) -> None:
    """A Pause that waits for the guest's answers does not notice the last."""
    patch.setattr(
        LifeCycle, "_settling", lambda self: bool(self._pausing) or bool(self.traffic.table)
    )


@mutation("pause=outgoing-too")
def patient_pause_waits_for_a_stopped_queue(patch: Patcher) -> None:
    """It waits for answers although the queue has stopped."""

    def settling(self: LifeCycle) -> bool:
        return self._queue is Queue.ON and bool(self.traffic.table)

    patch.setattr(LifeCycle, "_settling", settling)


@mutation("opened=called")
def opened_not_called(patch: Patcher) -> None:
    """EvtOpened does not run on restore although it was asked for."""
    original = LifeCycle.port_restored

    def restored(self: LifeCycle, incoming: IncomingRing, outgoing: OutgoingRing) -> None:
        with _by_default(self):
            original(self, incoming, outgoing)

    patch.setattr(LifeCycle, "port_restored", restored)


@mutation("save_packet=save-begin")
def asked_early_and_once_more(patch: Patcher) -> None:
    """What SaveBegin has asked for is asked for again, and saved twice."""

    def ask_now(self: SaveSession) -> NtStatus:
        records = list(self._records)
        packets = [record for record in records if isinstance(record, SavedOutgoing)]
        self._records = iter([*records[:-1], *packets[:1], records[-1]])
        return NtStatus.SUCCESS

    patch.setattr(SaveSession, "ask_now", ask_now)


@mutation("unopened=refused")
def unopened_saved(patch: Patcher) -> None:
    """A channel that is not open is saved all the same."""
    original = Snapshots.begin

    def begin(self: Snapshots) -> NtStatus:
        with _by_default(self._channel):
            return original(self)

    patch.setattr(Snapshots, "begin", begin)


@mutation("unregistered=own-state")
def own_state_not_restored(patch: Patcher) -> None:
    """KMCL's own state is saved, and left out at the restore."""
    patch.setattr(RestoreSession, "_restore_unregistered", lambda self, record: None)


@mutation("growing=asked-again")
def asked_twice_only(patch: Patcher) -> None:
    """There is no third call of EvtSavePacket."""
    patch.setattr(snapshot, "_MOST_CALLS", 2)


@mutation("save_size=rounded-up")
def size_not_rounded(patch: Patcher) -> None:
    """SaveBufSize is BytesNeeded to the byte."""
    patch.setattr(snapshot, "_ROUND", 1)


@mutation("unrestored=dropped")
def dropped_packet_sent(patch: Patcher) -> None:
    """A packet that the VSP did not restore is sent all the same."""
    original = RestoreSession._restore_packet

    def restore(self: RestoreSession, record: SavedOutgoing) -> None:
        alive = self._channel.packets_alive
        original(self, record)
        if self._channel.packets_alive == alive:
            self._expected = record.lib_buffer
            self._restore_unregistered(record)

    patch.setattr(RestoreSession, "_restore_packet", restore)


@mutation("failed_queue=starts-again", seed=35)
def stopped_queue_stays_so(patch: Patcher) -> None:
    """A queue that was to start again after a restore does not."""
    original = snapshot._take_head

    def take(channel: ServerChannel, head: SavedChannel) -> None:
        with _by_default(channel):
            original(channel, head)

    patch.setattr(snapshot, "_take_head", take)


@mutation("pending=in-ring")
def pending_packet_lost(patch: Patcher) -> None:
    """A packet that is to stay in the ring is taken out of it."""
    patch.setattr(IncomingRing, "go_back", lambda self, mark: None)


@mutation("pending=in-ring")
def pending_packet_kept_as_well(patch: Patcher) -> None:
    """A packet that is in the ring again is delivered once more as well."""
    original = Traffic.leave_unread

    def leave(self: Traffic, packet: IncomingPacket) -> bool:
        left = original(self, packet)
        self.held[packet] = None
        return left

    patch.setattr(Traffic, "leave_unread", leave)


@mutation("first_packets=before")
def packet_before_started(patch: Patcher) -> None:
    """The first packet comes even before EvtStarted."""
    original = LifeCycle._call

    def call(self: LifeCycle, name: str, callback: Any) -> None:
        if name == "EvtChannelStarted":
            self.traffic.start()
            self.traffic.poll()
        original(self, name, callback)

    patch.setattr(LifeCycle, "_call", call)


@mutation("unknown=dropped")
def known_completion_dropped(patch: Patcher) -> None:
    """Each completion is dropped whose packet was restored."""
    original = Traffic._take_completion

    def take(self: Traffic, packet: Packet) -> None:
        waiting = self.table.find(packet.transaction_id)
        if waiting is None or waiting._channel._snapshots.restore.value != "complete":
            original(self, packet)

    patch.setattr(Traffic, "_take_completion", take)


@mutation("retired=cancelled")
def retired_with_the_other_status(patch: Patcher) -> None:
    """Packets end with DEVICE_REMOVED although CANCELLED was asked for."""
    original = Traffic.retire
    removed = NtStatus.DEVICE_REMOVED
    patch.setattr(Traffic, "retire", lambda self, status: original(self, removed))
