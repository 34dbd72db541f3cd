# SPDX-License-Identifier: MIT
"""The data path: reading, completions, quota, external data, the queue, faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.conformance.rig import PAGE, Rig, nothing
from emulator.kmcl import (
    FaultKind,
    IncomingPacket,
    KmclError,
    OutgoingPacket,
    OutgoingState,
    ServerChannel,
    traffic,
    writing,
)
from emulator.kmcl.traffic import READ_LIMIT
from emulator.memory import GpaError
from emulator.model.driver import CANCEL, COMPLETION, IN_BAND, TRANSFER_PAGES, request, text
from emulator.model.ring import (
    WORD_IN,
    WORD_MASK,
    WORD_OUT,
    WORD_PENDING,
    build_packet,
    transfer_header,
)
from emulator.wire.ntstatus import NtStatus


def kinds(rig: Rig) -> list[FaultKind]:
    return [fault.kind for fault in rig.channel.faults]


def limit_backlog(monkeypatch: pytest.MonkeyPatch, completions: int) -> None:
    """Lower the limit for the half that reads and for the half that writes."""
    for half in (traffic, writing):
        monkeypatch.setattr(half, "COMPLETION_BACKLOG_LIMIT", completions)


def test_a_request_is_completed_with_its_id_only_if_the_guest_asked() -> None:
    rig = Rig().running()
    rig.guest.request(7, b"12345678")
    rig.guest.request(8, b"silent__", completion=False)
    rig.ring()
    assert rig.vsp.received == [b"12345678", b"silent__"]
    (completion,) = rig.guest.take_all()
    assert (completion.type, completion.transaction_id, completion.flags) == (COMPLETION, 7, 0)
    assert completion.payload == b"ok:12345678" + bytes(5)
    assert rig.guest_irq


def test_a_batch_is_announced_with_its_size() -> None:
    rig = Rig().running()
    rig.guest.put(*[request(n) for n in range(1, 6)])
    rig.ring()
    assert rig.vsp.batches == [5]


def test_the_guest_is_not_asked_for_doorbells_while_the_channel_does_not_run() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.open()
    assert rig.guest.up.control[WORD_MASK] == 1
    rig.channel.start()
    assert rig.guest.up.control[WORD_MASK] == 0
    rig.pause()
    assert rig.guest.up.control[WORD_MASK] == 1


def test_the_guest_is_not_asked_for_doorbells_while_its_packets_are_read() -> None:
    rig = Rig().running()
    masks: list[int] = []
    rig.vsp.on_packet = lambda _: masks.append(rig.guest.up.control[WORD_MASK])
    rig.guest.put(request(1), request(2))
    rig.ring()
    assert masks == [1, 1]
    assert rig.guest.up.control[WORD_MASK] == 0


def test_a_request_that_comes_while_the_channel_unmasks_is_not_slept_on() -> None:
    rig = Rig().running()
    rig.vsp.on_packet = lambda packet: packet.complete()
    # The end of the first batch is the last moment at which a guest sees the mask and stays silent.
    more = iter([2, 3])

    def write_more(_: ServerChannel, count: int) -> None:
        if (transaction := next(more, None)) is not None:
            rig.guest.request(transaction)

    rig.channel.delivery._complete = write_more
    rig.guest.request(1)
    rig.channel.port_interrupt()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1, 2, 3]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_spurious_and_repeated_doorbells_are_harmless(times: int) -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    for _ in range(times):
        rig.channel.port_interrupt()
    assert len(rig.vsp.held) == 1
    for state in ("paused", "closed", "disabled"):
        if state == "paused":
            rig.pause()
        elif state == "closed":
            rig.channel.port_closed(nothing)
        else:
            rig.channel.disable(nothing)
        rig.channel.port_interrupt()
    assert len(rig.vsp.received) == 1


def test_a_guest_that_runs_inside_the_signal_is_served_in_order_and_without_recursion() -> None:
    rig = Rig().running()
    depth = deepest = 0

    blocked: list[int] = []

    def guest_runs() -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        blocked.extend(
            packet.transaction_id + 1
            for packet in rig.guest.take_all()
            if packet.type == COMPLETION and packet.transaction_id < 300
        )
        while blocked and rig.guest.request(blocked[0]):
            del blocked[0]
        rig.channel.port_interrupt()
        depth -= 1

    rig.port.signalled = guest_runs
    rig.guest.request(1)
    rig.channel.port_interrupt()
    while rig.port.take_turn():
        pass
    assert len(rig.vsp.received) == 300
    assert deepest <= 3


def test_a_guest_that_never_stops_writing_gives_others_their_turn() -> None:
    rig = Rig(answer=False).running()
    rig.channel.set_transaction_quota(10_000)

    def write_another(packet: IncomingPacket) -> None:
        packet.complete()
        rig.guest.take_all()
        rig.guest.request(packet.transaction_id + 1)

    rig.vsp.on_packet = write_another
    rig.guest.request(1)
    rig.channel.port_interrupt()
    assert len(rig.vsp.received) == READ_LIMIT
    assert rig.vsp.batches == [READ_LIMIT]
    # What is left is read without a doorbell: the guest was told not to ring.
    rig.doorbell = False
    assert rig.port.take_turn()
    assert len(rig.vsp.received) == 2 * READ_LIMIT
    rig.guest.request(0)
    assert not rig.doorbell


@pytest.mark.parametrize("end", ["paused", "closed"])
def test_a_turn_that_comes_when_the_channel_has_stopped_is_harmless(end: str) -> None:
    rig = Rig(pages=8).running()
    for number in range(READ_LIMIT + 1):
        assert rig.guest.request(number + 1)
    rig.channel.port_interrupt()
    if end == "paused":
        rig.pause()
    else:
        rig.channel.port_closed(nothing)
    assert rig.port.take_turn()
    assert len(rig.vsp.received) == READ_LIMIT
    if end == "paused":
        rig.channel.start()
        assert len(rig.vsp.received) == READ_LIMIT + 1
        assert not rig.port.take_turn()


def test_the_limit_counts_packets_and_not_looks_at_the_ring() -> None:
    rig = Rig(pages=8).running()
    for number in range(READ_LIMIT):
        assert rig.guest.request(number + 1)
    rig.channel.port_interrupt()
    assert len(rig.vsp.received) == READ_LIMIT
    # It may have been the last one: the turn finds out, and doorbells are on again after it.
    assert rig.port.take_turn()
    assert not rig.port.take_turn()
    rig.doorbell = False
    rig.guest.request(1000)
    assert rig.doorbell


# Ending an incoming packet.


def test_a_packet_ends_once() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    rig.ring()
    (packet,) = rig.vsp.held
    packet.complete()
    for call in (packet.complete, packet.fail, packet.external_data):
        with pytest.raises(KmclError) as caught:
            call()
        assert caught.value.status is NtStatus.INVALID_PARAMETER
    assert len(rig.guest.take_all()) == 1


def test_a_completion_that_can_never_fit_is_refused_and_the_packet_stays_held() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    rig.ring()
    with pytest.raises(KmclError, match="never fit") as caught:
        rig.vsp.held[0].complete(bytes(PAGE))
    assert caught.value.status is NtStatus.INVALID_BUFFER_SIZE
    assert rig.channel.stats().held == 1
    rig.vsp.drain()


def test_failing_a_packet_stops_the_queue_and_is_reported_once() -> None:
    rig = Rig().running()
    rig.vsp.on_packet = lambda packet: packet.fail("bad magic")
    rig.guest.put(*[request(n) for n in (1, 2)])
    rig.ring()
    rig.channel.port_interrupt()
    assert kinds(rig) == [FaultKind.PACKET_FAILED]
    assert rig.vsp.faults == ["a packet was failed: bad magic"]
    assert rig.channel.fault is rig.channel.faults[0]
    assert len(rig.vsp.received) == 1
    assert rig.channel.stats().unread_requests == 1
    assert rig.guest.take_all() == []
    rig.send("still goes out")
    assert len(rig.guest.take_all()) == 1
    assert rig.pause(), "nothing is held"


def test_a_fault_ends_with_the_connection() -> None:
    rig = Rig().running()
    rig.vsp.on_packet = lambda packet: packet.fail()
    rig.guest.request(1)
    rig.ring()
    rig.channel.port_closed(nothing)
    assert rig.channel.fault is None
    rig.vsp.on_packet = None
    rig.guest.reopen()
    rig.open()
    rig.guest.request(2, b"12345678")
    rig.ring()
    assert rig.vsp.received[-1] == b"12345678"


# The transaction quota.


def test_at_the_quota_reading_stops_and_a_completion_restarts_it() -> None:
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(2)
    rig.running()
    rig.guest.put(*[request(n) for n in range(1, 6)])
    rig.ring()
    stats = rig.channel.stats()
    assert (stats.held, stats.unread_requests) == (2, 3)
    rig.channel.port_interrupt()
    assert rig.channel.stats().held == 2
    rig.vsp.held.pop(0).complete()
    stats = rig.channel.stats()
    assert (stats.held, stats.unread_requests) == (2, 2)


def test_the_quota_holds_back_completions_of_the_guest_too() -> None:
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(1)
    rig.running()
    rig.send("asked", wait=True)
    (request,) = rig.guest.take_all()
    rig.guest.request(1)
    rig.guest.complete(request.transaction_id, b"answer__")
    rig.ring()
    assert rig.vsp.completed == []
    assert rig.channel.stats().unread_completions == 1
    rig.vsp.drain()
    assert rig.vsp.completed == [("asked", NtStatus.SUCCESS, b"answer__")]


def test_raising_the_quota_does_not_restart_a_stopped_queue() -> None:
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(1)
    rig.running()
    rig.guest.put(*[request(n) for n in (1, 2, 3)])
    rig.ring()
    rig.channel.set_transaction_quota(10)
    rig.channel.port_interrupt()
    assert rig.channel.stats().held == 1
    rig.vsp.held.pop().complete()
    assert rig.channel.stats().held == 2


def test_lowering_the_quota_below_what_is_held_waits_for_enough_completions() -> None:
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(3)
    rig.running()
    rig.guest.put(*[request(n) for n in range(1, 6)])
    rig.ring()
    rig.channel.set_transaction_quota(1)
    for left in (2, 1):
        rig.vsp.held.pop(0).complete()
        assert rig.channel.stats().held == left
    rig.vsp.held.pop(0).complete()
    assert (rig.channel.stats().held, len(rig.vsp.received)) == (1, 4)


def test_a_restart_by_completion_inside_the_batch_callback_is_not_lost() -> None:
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(2)
    rig.channel.init_set_process_packet_callbacks(rig.vsp.process, lambda _, __: rig.vsp.drain())
    rig.running()
    rig.guest.put(*[request(n) for n in range(1, 8)])
    rig.ring()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [*range(1, 8)]


def test_a_guest_that_does_not_read_its_completions_stops_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_backlog(monkeypatch, 4)
    rig = Rig().running()
    rig.vsp.on_packet = lambda packet: packet.complete(bytes(1000))
    sent = 0
    while rig.channel.stats().queued_completions < 4:
        sent += 1
        assert rig.guest.request(sent)
        rig.channel.port_interrupt()
    extra = [sent + 1, sent + 2]
    for transaction in extra:
        rig.guest.request(transaction)
    rig.channel.port_interrupt()
    assert rig.channel.stats().queued_completions == 4
    assert rig.channel.stats().unread_requests == 2
    answered: list[int] = []
    while packets := rig.guest.take_all():
        answered += [packet.transaction_id for packet in packets]
        rig.ring()
    assert answered == [*range(1, sent + 3)]


def test_a_backlog_that_a_send_of_the_vsp_works_off_restarts_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_backlog(monkeypatch, 1)
    rig = Rig().running()
    rig.vsp.on_packet = lambda packet: packet.complete(bytes(2000))
    for transaction in (1, 2, 3, 4):
        rig.guest.request(transaction)
        rig.channel.port_interrupt()
    assert rig.channel.stats().unread_requests == 1
    rig.guest.take_all()
    rig.doorbell = False
    rig.send("works it off")
    assert rig.channel.stats().unread_requests == 0


# External data.


def test_external_data_is_guest_memory_and_ends_with_the_packet() -> None:
    rig = Rig(answer=False).running()
    rig.port.ram[PAGE + 8 : PAGE + 12] = b"abcd"
    rig.guest.external(1, (4, 8, [1]), (2, 0, [2]))
    rig.ring()
    (packet,) = rig.vsp.held
    assert [len(view) for view in packet.external_data()] == [4, 2]
    first = packet.external_data()[0]
    assert bytes(first) == b"abcd"
    first[:] = b"ABCD"
    assert rig.port.ram[PAGE + 8 : PAGE + 12] == b"ABCD"
    read_only = packet.external_data(read_only=True)[0]
    with pytest.raises(TypeError):
        read_only[0] = 1
    packet.complete()
    with pytest.raises(ValueError, match="released"):
        bytes(first)


def test_external_data_still_exported_at_completion_is_left_to_its_owner() -> None:
    rig = Rig(answer=False).running()
    rig.guest.external(1, (4, 0, [1]))
    rig.ring()
    (packet,) = rig.vsp.held
    (view,) = packet.external_data()
    with memoryview(view) as exported:
        packet.complete()
        assert bytes(exported) == bytes(4)


def test_external_data_outside_ram_is_the_vsps_to_judge() -> None:
    rig = Rig(answer=False).running()
    rig.guest.external(1, (4, 0, [1 << 40]))
    rig.ring()
    (packet,) = rig.vsp.held
    with pytest.raises(GpaError):
        packet.external_data()
    packet.fail("outside RAM")
    assert kinds(rig) == [FaultKind.PACKET_FAILED]


@pytest.mark.parametrize("ranges", [[(9, 0, [1])], [(1, 0, [1])] * 3], ids=["bytes", "ranges"])
def test_external_data_beyond_the_maximum_is_refused(
    ranges: list[tuple[int, int, list[int]]],
) -> None:
    rig = Rig(answer=False)
    rig.channel.init_set_maximum_external_data(8, 2)
    rig.running()
    rig.guest.external(1, (4, 0, [1]), (4, 0, [2]))
    rig.guest.external(2, *ranges)
    rig.ring()
    assert len(rig.vsp.held) == 1
    assert kinds(rig) == [FaultKind.PACKET_REFUSED]


# Sending.


def test_a_packet_without_completion_is_complete_when_it_is_in_the_ring() -> None:
    rig = Rig().running()
    rig.send("notify")
    assert rig.vsp.completed == [("notify", NtStatus.SUCCESS, None)]
    (packet,) = rig.guest.take_all()
    assert (packet.type, packet.flags, packet.transaction_id) == (IN_BAND, 0, 0)


def test_a_packet_with_completion_waits_for_the_guest() -> None:
    rig = Rig().running()
    packet = rig.send("ask", wait=True)
    assert (packet.state, packet.waits_for_completion) == (OutgoingState.IN_RING, True)
    assert rig.channel.stats().awaiting_completion == 1
    (request,) = rig.guest.take_all()
    assert (request.flags, request.transaction_id) == (1, packet.transaction_id)
    rig.guest.complete(request.transaction_id, b"answer__")
    rig.ring()
    assert rig.vsp.completed == [("ask", NtStatus.SUCCESS, b"answer__")]
    assert packet.state is OutgoingState.FREED


def test_a_packet_without_a_routine_frees_itself() -> None:
    rig = Rig()
    rig.channel.init_set_maximum_packet_count(1)
    rig.running()
    packet = rig.channel.packet_allocate()
    with pytest.raises(KmclError, match="all 1 packets") as caught:
        rig.channel.packet_allocate()
    assert caught.value.status is NtStatus.INSUFFICIENT_RESOURCES
    packet.send(b"x")
    assert packet.state is OutgoingState.FREED
    rig.channel.packet_allocate()


def test_a_packet_can_be_sent_again_when_it_is_complete() -> None:
    rig = Rig().running()
    packet = rig.channel.packet_allocate()
    packet.set_completion_routine(lambda *_: None)
    packet.send(b"once", wait_for_completion=True)
    with pytest.raises(KmclError, match="in ring"):
        packet.send(b"twice")
    with pytest.raises(KmclError, match="in ring"):
        packet.free()
    rig.guest.complete(rig.guest.take_all()[0].transaction_id)
    rig.ring()
    packet.send(b"twice")
    packet.free()
    with pytest.raises(KmclError, match="freed"):
        packet.send(b"thrice")


@pytest.mark.parametrize(("maximum", "size"), [(64, 65), (None, PAGE)], ids=["maximum", "ring"])
def test_a_packet_that_is_too_large_is_refused_at_send(maximum: int | None, size: int) -> None:
    rig = Rig()
    if maximum:
        rig.channel.init_set_maximum_packet_size(maximum)
    rig.running()
    packet = rig.channel.packet_allocate()
    with pytest.raises(KmclError) as caught:
        packet.send(bytes(size))
    assert caught.value.status is NtStatus.INVALID_BUFFER_SIZE
    packet.free()


def test_a_packet_queued_before_open_that_the_ring_can_never_take_ends_with_a_failure() -> None:
    rig = Rig()
    rig.channel.enable()
    rig.send("before", wait=True)
    rig.send("large", size=PAGE, wait=True)
    rig.send("after")
    rig.open()
    rig.channel.start()
    assert [text(packet) for packet in rig.guest.take_all()] == ["before", "after"]
    assert ("large", NtStatus.INVALID_BUFFER_SIZE, None) in rig.vsp.completed
    assert rig.channel.fault is None


def test_packets_and_completions_queue_in_one_order_behind_a_full_ring() -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(77, b"12345678")
    rig.ring()
    filled = rig.fill()
    rig.send("ask", wait=True)
    rig.vsp.drain()
    rig.send("tell")
    stats = rig.channel.stats()
    assert (stats.queued_no_wait, stats.queued_wait, stats.queued_completions) == (2, 1, 1)
    assert rig.guest.down.control[WORD_PENDING] > 1000
    seen: list[str | int] = []
    while packets := rig.guest.take_all():
        for packet in packets:
            seen.append(packet.transaction_id if packet.type == COMPLETION else text(packet))
        rig.ring()
    assert seen == [*filled, "ask", 77, "tell"]
    assert rig.guest.down.control[WORD_PENDING] == 0


def test_a_guest_that_reads_nothing_but_signals_gets_nothing_twice() -> None:
    rig = Rig().running()
    filled = rig.fill()
    for _ in range(3):
        rig.channel.port_interrupt()
    assert [text(packet) for packet in rig.guest.take_all()] == filled[:-1]


def test_a_completion_routine_may_send() -> None:
    rig = Rig().running()
    names = iter(f"more{n}" for n in range(20))

    def send_more(_: OutgoingPacket) -> None:
        if (name := next(names, None)) is not None:
            rig.send(name, size=500)

    rig.vsp.on_completed = send_more
    rig.send("first", size=500)
    seen: list[str] = []
    while packets := rig.guest.take_all():
        seen += [text(packet) for packet in packets]
        rig.ring()
    assert seen == ["first", *(f"more{n}" for n in range(20))]


def test_transaction_ids_are_never_shared_and_never_zero() -> None:
    rig = Rig(pages=4).running()
    ids = [rig.send(str(n), wait=True).transaction_id for n in range(50)]
    assert len(set(ids)) == 50
    assert 0 not in ids


def test_the_counter_of_ids_wraps_around_what_is_outstanding() -> None:
    rig = Rig().running()
    first = rig.send("first", wait=True).transaction_id
    rig.channel.traffic.table.reserve(0xFFFF_FFFF_FFFF_FFFF)
    assert rig.send("last", wait=True).transaction_id == 0xFFFF_FFFF_FFFF_FFFF
    assert rig.send("wrapped", wait=True).transaction_id == first + 1


# What a guest can do wrong.


def corrupt_in(rig: Rig) -> None:
    rig.guest.up.control[WORD_IN] = rig.guest.up.size + 8


def bad_length(rig: Rig) -> None:
    rig.guest.put(build_packet(IN_BAND, 1, b"", length8=0x7FFF))


def bad_type(rig: Rig) -> None:
    rig.guest.put(build_packet(99, 1))


DEEDS: dict[str, Callable[[Rig], None]] = {
    "index": corrupt_in,
    "length": bad_length,
    "type": bad_type,
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
def test_a_corrupt_incoming_ring_stops_reading_only(deed: Callable[[Rig], None]) -> None:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    rig.ring()
    deed(rig)
    rig.channel.port_interrupt()
    rig.channel.port_interrupt()
    assert kinds(rig) == [FaultKind.INCOMING_RING]
    rig.vsp.drain()
    rig.send("still goes out")
    assert len(rig.guest.take_all()) == 2
    assert rig.pause()
    rig.channel.start()
    assert kinds(rig) == [FaultKind.INCOMING_RING]
    rig.channel.disable(nothing)


def test_what_came_before_the_corruption_is_served() -> None:
    rig = Rig().running()
    rig.guest.request(1)
    bad_type(rig)
    rig.channel.port_interrupt()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1]
    assert kinds(rig) == [FaultKind.INCOMING_RING]


@pytest.mark.parametrize("unread", [0, 1])
def test_a_corrupt_outgoing_ring_stops_writing_only(unread: int) -> None:
    rig = Rig().running()
    for _ in range(unread):
        rig.send("unread")
    rig.guest.down.control[WORD_OUT] = 12
    rig.send("lost", wait=True)
    rig.send("queued")
    assert kinds(rig) == [FaultKind.OUTGOING_RING]
    assert rig.channel.stats().queued_no_wait == 1
    rig.guest.request(1, b"12345678", completion=False)
    rig.ring()
    assert rig.vsp.received == [b"12345678"]
    assert rig.pause()
    rig.channel.port_closed(nothing)
    assert rig.channel.fault is None


def test_a_completion_of_nothing_is_a_fault() -> None:
    rig = Rig().running()
    rig.guest.complete(0x1234)
    rig.ring()
    assert kinds(rig) == [FaultKind.UNKNOWN_TRANSACTION]
    assert "0x1234" in rig.vsp.faults[0]


def test_a_completion_sent_twice_is_a_fault() -> None:
    rig = Rig().running()
    transaction = rig.send("ask", wait=True).transaction_id
    rig.guest.complete(transaction)
    rig.guest.complete(transaction)
    rig.ring()
    assert len(rig.vsp.completed) == 1
    assert kinds(rig) == [FaultKind.UNKNOWN_TRANSACTION]


def test_a_guessed_completion_of_a_queued_packet_is_a_fault() -> None:
    rig = Rig().running()
    rig.fill()
    packet = rig.send("queued", wait=True)
    rig.guest.complete(packet.transaction_id)
    rig.channel.port_interrupt()
    assert kinds(rig) == [FaultKind.UNKNOWN_TRANSACTION]
    assert packet.state is OutgoingState.QUEUED


@pytest.mark.parametrize("kind", [TRANSFER_PAGES, CANCEL])
def test_packet_types_that_no_server_takes_are_refused(kind: int) -> None:
    rig = Rig().running()
    header = transfer_header(1, (8, 0)) if kind == TRANSFER_PAGES else b""
    rig.guest.put(build_packet(kind, 1, header=header))
    rig.ring()
    assert kinds(rig) == [FaultKind.PACKET_REFUSED]
    assert rig.vsp.received == []


def test_the_vsp_may_disable_the_channel_from_its_fault_callback() -> None:
    rig = Rig().running()
    done: list[bool] = []
    rig.channel.fault_callback = lambda channel, _: channel.disable(lambda: done.append(True))
    rig.guest.request(1)
    bad_type(rig)
    rig.channel.port_interrupt()
    assert done == [True]


def test_a_process_callback_may_close_and_the_guest_may_reopen_at_once() -> None:
    rig = Rig().running()
    reopened: list[NtStatus] = []

    def reopen() -> None:
        rig.guest.reopen()
        assert rig.guest.request(3, b"at open_")
        reopened.append(rig.open())

    def close(packet: IncomingPacket) -> None:
        packet.complete()
        rig.vsp.on_packet = None
        rig.channel.port_closed(reopen)

    rig.vsp.on_packet = close
    rig.guest.put(*[request(n) for n in (1, 2)])
    rig.channel.port_interrupt()
    assert reopened == [NtStatus.SUCCESS]
    assert rig.vsp.received[-1] == b"at open_", "no doorbell comes for what was there at the open"
    rig.guest.request(4, b"12345678")
    rig.ring()
    assert rig.vsp.received[-1] == b"12345678"
