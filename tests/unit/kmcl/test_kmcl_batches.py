# SPDX-License-Identifier: MIT
"""Batches: many packets in one call of C, as if they had been read and completed one by one.

Each test runs on the views of the C extension, which read ahead, and on those in Python, which do
not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from emulator.conformance import rig as rigs
from emulator.conformance.rig import Rig, nothing
from emulator.kmcl import FaultKind, IncomingPacket, KmclError, ServerChannel
from emulator.kmcl.traffic import DRAIN_LIMIT, READ_LIMIT
from emulator.kmcl.writing import COMPLETION_BACKLOG_LIMIT, Hold
from emulator.memory import _native
from emulator.memory._pure import PurePageView
from emulator.model.driver import CANCEL, COMPLETION, IN_BAND, request
from emulator.model.ring import WORD_IN, WORD_OUT, build_packet
from emulator.wire.ntstatus import NtStatus


@pytest.fixture(params=["native", "pure"], autouse=True)
def view(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    views = {"native": _native.PageView, "pure": PurePageView}
    monkeypatch.setattr(rigs, "page_view", views[request.param])


class Signals:
    """Counts the interrupts of a rig."""

    def __init__(self, rig: Rig) -> None:
        self.count = 0
        rig.port.signalled = self._signalled

    def _signalled(self) -> None:
        self.count += 1


def ids(rig: Rig) -> list[int]:
    """Return the transactions that the guest finds completed."""
    packets = rig.guest.take_all()
    assert all(packet.type == COMPLETION for packet in packets)
    return [packet.transaction_id for packet in packets]


def put(rig: Rig, *numbers: int) -> None:
    """Write requests with these ids at once."""
    assert rig.guest.put(*[request(number, number.to_bytes(8, "little")) for number in numbers])


def test_completions_of_a_batch_are_shown_together_with_one_signal() -> None:
    rig = Rig().running()
    signals = Signals(rig)
    before: list[int] = []

    def process(packet: IncomingPacket) -> None:
        packet.complete(b"ok")
        before.append(rig.guest.down.control[WORD_IN])

    rig.vsp.on_packet = process
    put(rig, *range(1, 21))
    rig.ring()
    assert before == [0] * 20
    assert signals.count == 1
    assert ids(rig) == list(range(1, 21))


def test_what_is_sent_during_a_batch_stays_behind_what_was_completed_before() -> None:
    rig = Rig().running()

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        rig.send(f"after {packet.transaction_id}")

    rig.vsp.on_packet = process
    put(rig, 1, 2)
    rig.ring()
    seen = [
        packet.transaction_id or packet.payload.rstrip(b"\0").decode()
        for packet in rig.guest.take_all()
    ]
    assert seen == [1, "after 1", 2, "after 2"]


def test_a_pause_within_a_batch_leaves_the_rest_unread_and_the_completions_written() -> None:
    rig = Rig().running()
    ended: list[list[int]] = []

    def process(packet: IncomingPacket) -> None:
        if packet.transaction_id == 3:
            # Two are completed and deferred; this one is held.
            rig.channel.pause(lambda: ended.append(ids(rig)))
        packet.complete()

    rig.vsp.on_packet = process
    put(rig, *range(1, 9))
    rig.ring()
    assert len(rig.vsp.received) == 3
    assert ended == [[1, 2, 3]], "the drain is over when all completions are in the ring"
    assert [packet.transaction_id for packet in rig.channel.unread()] == [4, 5, 6, 7, 8]
    rig.channel.start()
    assert len(rig.vsp.received) == 8
    assert ids(rig) == [4, 5, 6, 7, 8]


def test_a_pause_and_start_within_a_batch_deliver_nothing_twice() -> None:
    rig = Rig().running()

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        if packet.transaction_id == 2:
            assert rig.pause()
            rig.channel.start()

    rig.vsp.on_packet = process
    put(rig, *range(1, 6))
    rig.ring()
    assert [payload[0] for payload in rig.vsp.received] == [1, 2, 3, 4, 5]
    assert ids(rig) == [1, 2, 3, 4, 5]


def test_what_was_read_ahead_and_not_delivered_is_in_the_snapshot_of_the_ring() -> None:
    rig = Rig().running()

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        rig.pause()

    rig.vsp.on_packet = process
    put(rig, 1, 2, 3)
    rig.ring()
    assert len(rig.vsp.received) == 1
    restored = rig.restored(rig.save())
    restored.channel.start()
    assert [payload[0] for payload in restored.vsp.received] == [2, 3]
    assert ids(restored) == [1, 2, 3]


def test_a_close_within_a_batch_ends_it() -> None:
    rig = Rig().running()

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        rig.channel.port_closed(nothing)

    rig.vsp.on_packet = process
    put(rig, 1, 2, 3)
    rig.ring()
    assert len(rig.vsp.received) == 1
    assert rig.vsp.trace[-1] == "closed"


def test_the_quota_holds_within_a_batch() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(3)
    put(rig, *range(1, 9))
    rig.ring()
    assert len(rig.vsp.held) == 3
    assert rig.channel.traffic.hold is Hold.QUOTA
    rig.vsp.held.pop(0).complete()
    assert len(rig.vsp.received) == 4
    assert rig.channel.traffic.hold is Hold.QUOTA
    rig.vsp.drain()
    assert [payload[0] for payload in rig.vsp.received] == list(range(1, 9))
    assert ids(rig) == list(range(1, 9))


def test_a_fault_within_a_batch_ends_the_reading_and_not_the_completions() -> None:
    rig = Rig().running()
    rig.guest.put(request(1), build_packet(CANCEL, 2), request(3))
    rig.ring()
    assert [fault.kind for fault in rig.channel.faults] == [FaultKind.PACKET_REFUSED]
    assert len(rig.vsp.received) == 1
    assert ids(rig) == [1]


def test_a_callback_that_raises_loses_no_completion() -> None:
    rig = Rig().running()

    def process(packet: IncomingPacket) -> None:
        packet.complete()
        if packet.transaction_id == 2:
            raise RuntimeError("a bug of the VSP")

    rig.vsp.on_packet = process
    put(rig, 1, 2, 3)
    with pytest.raises(RuntimeError, match="bug"):
        rig.ring()
    assert ids(rig) == [1, 2]
    rig.channel.port_interrupt()
    assert ids(rig) == [3]


def test_a_guest_that_changes_what_was_read_ahead_changes_nothing() -> None:
    rig = Rig().running()
    packet = request(1, b"original")

    def process(incoming: IncomingPacket) -> None:
        # The guest overwrites the whole ring behind the packet that is being processed.
        if incoming.transaction_id == 1:
            for page in rig.guest.up.pages:
                page[len(packet) + 8 :] = bytes(len(page) - len(packet) - 8)
        incoming.complete()

    rig.vsp.on_packet = process
    rig.guest.put(packet, request(2, b"original"))
    rig.ring()
    # As it was copied, or as it is now, which is no packet: never a mixture.
    assert rig.vsp.received in ([b"original"] * 2, [b"original"])
    assert bool(rig.channel.faults) == (len(rig.vsp.received) == 1)


class Counter:
    """A VSP that only counts."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.then: Callable[[], object] = nothing

    def __call__(self, _: ServerChannel, packets: int, payload_bytes: int) -> None:
        self.calls.append((packets, payload_bytes))
        self.then()

    @property
    def packets(self) -> int:
        return sum(packets for packets, _ in self.calls)


@pytest.fixture(params=[1, 64])
def drained(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, Counter]]:
    rig, counter = Rig(request.param), Counter()
    rig.channel.init_set_drain(counter)
    yield rig.running(), counter
    assert not rig.vsp.received


def test_a_drain_completes_each_request_that_asks_for_it(drained: tuple[Rig, Counter]) -> None:
    rig, counter = drained
    signals = Signals(rig)
    rig.guest.put(request(1, bytes(64)), request(2, bytes(8), completion=False), request(3))
    rig.ring()
    assert counter.calls == [(3, 72)]
    assert signals.count == 1
    first, second = rig.guest.take_all()
    assert (first.transaction_id, first.flags, first.body) == (1, 0, b"")
    assert second.transaction_id == 3
    meter = rig.channel.traffic.meter
    assert (meter.packets_in, meter.packets_out) == (3, 2)


def test_a_drain_takes_packets_with_ranges_as_well(drained: tuple[Rig, Counter]) -> None:
    rig, counter = drained
    rig.guest.request(1, bytes(8))
    rig.guest.external(2, (4096, 0, [1]))
    rig.guest.request(3, bytes(8))
    rig.ring()
    assert counter.packets == 3
    assert ids(rig) == [1, 2, 3]


def test_a_drain_answers_a_guest_that_reads_late(drained: tuple[Rig, Counter]) -> None:
    rig, counter = drained
    sent = answered = 0
    heard: list[int] = []
    while answered < 4 * COMPLETION_BACKLOG_LIMIT:
        while sent < 4 * COMPLETION_BACKLOG_LIMIT and rig.guest.request(sent + 1):
            sent += 1
        rig.ring()
        while rig.port.take_turn():
            pass
        assert len(rig.channel.traffic.queue) <= COMPLETION_BACKLOG_LIMIT
        heard += ids(rig)
        rig.ring()
        assert len(heard) > answered, "neither of the two goes on"
        answered = len(heard)
    assert heard == list(range(1, sent + 1))
    assert counter.packets == sent


def test_a_drain_gives_others_their_turn() -> None:
    rig, counter = Rig(64), Counter()
    rig.channel.init_set_drain(counter)
    rig.channel.enable()
    rig.open()
    total = DRAIN_LIMIT + READ_LIMIT
    assert rig.guest.put(*[request(number + 1, completion=False) for number in range(total)])
    rig.channel.start()
    assert counter.packets == DRAIN_LIMIT
    assert rig.port.take_turn()
    assert counter.packets == total


def test_a_drain_may_pause_its_channel(drained: tuple[Rig, Counter]) -> None:
    rig, counter = drained
    counter.then = rig.pause
    put(rig, 1, 2)
    rig.ring()
    assert ids(rig) == [1, 2]
    put(rig, 3)
    rig.ring()
    assert counter.packets == 2
    counter.then = nothing
    rig.channel.start()
    assert counter.packets == 3
    assert ids(rig) == [3]


def test_what_is_sent_on_a_drained_channel_is_answered_as_on_any(
    drained: tuple[Rig, Counter],
) -> None:
    rig, counter = drained
    rig.send("question", wait=True)
    (question,) = rig.guest.take_all()
    put(rig, 1)
    rig.guest.complete(question.transaction_id, b"answer__")
    put(rig, 2)
    rig.ring()
    assert rig.vsp.completed == [("question", NtStatus.SUCCESS, b"answer__")]
    assert ids(rig) == [1, 2]
    assert counter.packets == 2


def test_a_drain_sees_what_a_guest_does_to_its_rings(drained: tuple[Rig, Counter]) -> None:
    rig, counter = drained
    put(rig, 1)
    rig.guest.put(build_packet(IN_BAND, 2, bytes(8), length8=0x4000))
    rig.ring()
    assert counter.packets == 1
    assert [fault.kind for fault in rig.channel.faults] == [FaultKind.INCOMING_RING]
    assert ids(rig) == [1]


def test_a_drain_writes_no_more_to_a_ring_that_is_corrupt(drained: tuple[Rig, Counter]) -> None:
    rig, _ = drained
    rig.guest.down.control[WORD_OUT] = 4
    while not rig.channel.faults:
        if not rig.guest.request(1):
            rig.guest.down.control[WORD_OUT] = 4
        rig.ring()
    assert FaultKind.OUTGOING_RING in [fault.kind for fault in rig.channel.faults]


def test_the_last_of_drain_and_process_callback_counts() -> None:
    rig, counter = Rig(), Counter()
    rig.channel.init_set_drain(counter)
    rig.channel.init_set_process_packet_callbacks(rig.vsp.process)
    rig.running()
    put(rig, 1)
    rig.ring()
    assert len(rig.vsp.received) == 1
    assert not counter.calls


def test_a_drain_can_only_be_set_while_disabled() -> None:
    rig = Rig().running()
    with pytest.raises(KmclError, match="Disabled"):
        rig.channel.init_set_drain(Counter())
