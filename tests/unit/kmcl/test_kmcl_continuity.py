# SPDX-License-Identifier: MIT
"""Callbacks (D) and traffic (E) over a save: scenarios 39 to 52 and 67 of the conformance list."""

from __future__ import annotations

import pytest

from emulator.conformance.rig import PAGE, Rig, nothing
from emulator.conformance.scenarios.support import guest_reads
from emulator.kmcl import (
    Connection,
    FaultKind,
    IncomingPacket,
    ServerChannel,
)
from emulator.model.driver import request
from emulator.model.ring import WORD_IN, WORD_MASK, WORD_OUT, WORD_PENDING
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy

OK = NtStatus.SUCCESS
MORE = NtStatus.MORE_PROCESSING_REQUIRED

# D. Callbacks around a restore.


def test_scenario_39_40_a_restored_channel_starts_without_being_opened() -> None:
    rig = busy().saved_and_restored()
    assert rig.channel.connection is Connection.OPEN
    assert rig.vsp.trace == []
    rig.channel.start()
    assert rig.vsp.trace == ["started", "post_started"]


def test_a_restored_channel_can_be_closed_before_it_starts() -> None:
    rig = busy().saved_and_restored()
    rig.channel.port_closed(nothing)
    assert rig.vsp.trace == ["closed"]
    assert {status for _, status, _ in rig.vsp.completed} == {NtStatus.DEVICE_REMOVED}
    rig.guest.reopen()
    rig.channel.start()
    assert rig.open() is OK
    rig.guest.request(1, b"12345678")
    rig.ring()
    assert rig.vsp.received == [b"12345678"]


# E. Traffic over a save.


def test_scenario_44_requests_left_unread_are_delivered_once_and_in_order() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(2)
    rig.guest.put(*[request(n, bytes([n] * 8)) for n in range(1, 7)])
    rig.ring()
    assert len(rig.vsp.held) == 2
    first = list(rig.vsp.received)
    rig.saved_and_restored()
    assert rig.channel.stats().unread_requests == 4
    assert rig.vsp.received == []
    rig.channel.start()
    assert first + rig.vsp.received == [bytes([n] * 8) for n in range(1, 7)]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [*range(1, 7)]


def test_scenario_45_queued_packets_leave_in_order_behind_what_is_in_the_ring() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(500)
    rig.ring()
    names: list[str | int] = [*rig.fill()]
    for number in range(4):
        rig.send(f"q{number}", wait=bool(number % 2), size=100)
    rig.saved_and_restored()
    assert rig.channel.stats().queued_completions == 1, "Pause has drained the held request"
    rig.send("new")
    rig.channel.start()
    assert guest_reads(rig) == [*names, "q0", "q1", "q2", "q3", 500, "new"]
    assert [name for name, _, _ in rig.vsp.completed] == [names[-1], "q0", "q2", "new"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_scenario_46_a_completion_meets_its_packet_before_or_after_start(when: str) -> None:
    rig = Rig().running()
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.saved_and_restored()
    if when == "after":
        rig.channel.start()
    rig.guest.complete(asked.transaction_id, b"answer__")
    if when == "before":
        rig.channel.start()
    rig.ring()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]
    assert rig.channel.stats().awaiting_completion == 0


def test_scenario_46_a_completion_that_arrives_inside_started() -> None:
    rig = Rig().running()
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.saved_and_restored()

    def guest_answers(_: ServerChannel) -> None:
        rig.guest.complete(asked.transaction_id, b"answer__")
        rig.ring()
        assert rig.vsp.completed == [], "nothing is delivered inside EvtStarted"

    rig.vsp.hooks["started"] = guest_answers
    rig.channel.start()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]


def test_scenario_47_a_completion_in_the_ring_at_the_save_meets_its_restored_packet() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    rig.send("ask", wait=True)
    (asked,) = rig.guest.take_all()
    rig.guest.put(request(1))
    rig.ring()
    rig.guest.complete(asked.transaction_id, b"answer__")
    rig.ring()
    stats = rig.channel.stats()
    assert (stats.held, stats.unread_completions, stats.awaiting_completion) == (1, 1, 1)
    rig.saved_and_restored()
    assert rig.channel.stats().unread_completions == 1
    rig.channel.start()
    assert rig.vsp.completed == [("ask", OK, b"answer__")]
    assert rig.channel.fault is None


def test_scenario_48_new_ids_do_not_collide_with_restored_ones() -> None:
    rig = Rig(pages=2).running()
    old = {rig.send(f"old{n}", wait=True).transaction_id for n in range(5)}
    rig.guest.take_all()
    rig.saved_and_restored()
    rig.channel.start()
    new = {rig.send(f"new{n}", wait=True).transaction_id for n in range(5)}
    assert not old & new
    for transaction in sorted(old | new, reverse=True):
        rig.guest.complete(transaction)
    rig.ring()
    assert {name for name, _, _ in rig.vsp.completed} == {
        f"{age}{n}" for age in ("old", "new") for n in range(5)
    }
    assert rig.channel.fault is None


def test_scenario_49_a_masked_waiting_guest_is_woken_after_a_restore() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    count = 0
    while rig.guest.request(count + 1, bytes(1000)):
        count += 1
    assert rig.guest.up.control[WORD_PENDING] > 0
    rig.fill()
    assert rig.guest.down.control[WORD_PENDING] > 0
    rig.saved_and_restored()
    assert not rig.interrupted()
    rig.channel.start()
    assert rig.interrupted(), "the guest may have slept through the interrupt that was lost"
    assert rig.guest.up.control[WORD_MASK] == 0
    assert len(rig.vsp.received) == count
    assert rig.guest.down.control[WORD_PENDING] > 0, "still blocked, so it asks again"
    rig.guest.take_all()
    assert rig.doorbell


def test_scenario_49_the_guest_is_signalled_at_the_start_even_if_nothing_is_sent() -> None:
    rig = Rig().running()
    rig.send("unread, its interrupt lost with the process")
    rig.saved_and_restored()
    assert not rig.interrupted(), "nothing is signalled before the start"
    rig.channel.start()
    assert rig.interrupted()
    rig.pause()
    rig.channel.start()
    assert not rig.interrupted(), "an ordinary start loses no interrupt"


@pytest.mark.parametrize("offset", [PAGE - 8, PAGE - 16, PAGE - 24, PAGE - 40])
def test_scenario_50_a_packet_over_the_end_of_a_wrapped_ring_survives(offset: int) -> None:
    rig = Rig(answer=False)
    for ring in (rig.guest.up, rig.guest.down):
        ring.control[WORD_IN] = ring.control[WORD_OUT] = offset
    rig.guest.writer.position = rig.guest.reader.position = offset
    rig.running()
    rig.pause()
    assert rig.guest.request(1, bytes(range(64)))
    rig.restored(rig.save())
    rig.send("wrapped" * 8, wait=True)
    rig.channel.start()
    assert rig.vsp.received == [bytes(range(64))]
    assert guest_reads(rig) == ["wrapped" * 8, 1]


def test_scenario_50_rings_that_are_full_to_the_last_8_bytes_survive() -> None:
    rig = Rig(answer=False).running()
    rig.pause()
    # Five packets of 816 bytes: 16 are left, of which a writer may use 8, which is no packet.
    for number in range(5):
        assert rig.guest.request(number + 1, bytes([number]) * 792, completion=False)
    assert not rig.guest.request(6)
    rig.channel.start()
    assert len(rig.vsp.received) == 5
    rig.vsp.drain()
    names = [f"{number}" for number in range(5)]
    for name in names:
        rig.send(name, size=792)
    assert rig.channel.stats().queued_no_wait == 0
    rig.send("one more")
    rig.saved_and_restored()
    rig.channel.start()
    assert guest_reads(rig) == [*names, "one more"]


def test_scenario_51_a_queue_at_its_quota_is_drained_by_pause_and_restarts_by_start() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(1)
    rig.guest.put(request(1), request(2), request(3))
    rig.ring()
    rig.saved_and_restored(answer=False)
    rig.channel.set_transaction_quota(2)
    rig.channel.start()
    assert rig.channel.stats().held == 2


@pytest.mark.parametrize("kind", list(FaultKind))
def test_scenario_52_a_faulted_channel_stays_faulted(kind: FaultKind) -> None:
    rig = Rig().running()
    rig.channel.traffic.fault(kind, "why – with a dash")
    rig.saved_and_restored()
    assert [(fault.kind, fault.text) for fault in rig.channel.faults] == [
        (kind, "why – with a dash")
    ]
    rig.guest.request(1, completion=False)
    rig.channel.start()
    rig.send("out")
    assert len(rig.vsp.received) == (not kind.stops_reading)
    assert len(rig.guest.take_all()) == kind.stops_reading


@pytest.mark.parametrize("word", [WORD_IN, WORD_OUT])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_ring_that_is_corrupt_at_the_restore_is_a_fault_of_its_direction(
    direction: str, word: int
) -> None:
    rig = busy()
    rig.pause()
    pieces = rig.save()
    getattr(rig.guest, direction).control[word] = 5
    rig.restored(pieces)
    kind = FaultKind.INCOMING_RING if direction == "up" else FaultKind.OUTGOING_RING
    assert [fault.kind for fault in rig.channel.faults] == [kind]
    rig.channel.start()
    rig.channel.disable(nothing)


def test_scenario_67_two_cycles_before_anybody_moves() -> None:
    rig = busy()
    names = [context for context in ("asked1", "asked2", "queued wait", "queued wait 2")]
    rig.pause()
    first = rig.save()
    rig.restored(first)
    second = rig.save()
    assert second == first
    rig.restored(second)
    rig.channel.start()
    seen = guest_reads(rig)
    assert [name for name in seen if name in names] == names
    assert len(seen) == len(set(seen))


def test_a_pause_from_within_a_packet_saves_a_ring_without_that_packet() -> None:
    rig = Rig().running()
    pieces: list[bytes] = []

    def pause_and_save(packet: IncomingPacket) -> None:
        rig.channel.pause(lambda: pieces.extend(rig.save()))
        packet.complete(b"done")

    rig.vsp.on_packet = pause_and_save
    rig.guest.put(request(1, b"12345678"), request(2, b"23456789"))
    rig.ring()
    rig.restored(pieces)
    rig.channel.start()
    assert rig.vsp.received == [b"23456789"]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1, 2]
