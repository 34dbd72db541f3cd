# SPDX-License-Identifier: MIT
"""The switches: each reading does what it says, over a save and restore too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from emulator.conformance.rig import Rig
from emulator.kmcl import (
    Connection,
    ExternalDataPending,
    IncomingPacket,
    Inferred,
    KmclError,
    Queue,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    decode_stream,
    parse_inferred,
)
from emulator.kmcl.inferred import (
    DEFAULTS,
    SWITCHES,
    FailedQueue,
    FirstPackets,
    GrowingPacket,
    OpenedOnRestore,
    PauseWaitsFor,
    PendingPacket,
    RetiredWith,
    SaveBufferSize,
    SavePacketFrom,
    Switch,
    UnknownCompletion,
    UnopenedSave,
    UnregisteredSave,
    UnrestoredPacket,
)
from emulator.model.driver import text
from emulator.wire.ntstatus import NtStatus
from tests.unit.kmcl.scenes import busy

SUCCESS = NtStatus.SUCCESS


def one_in_use(inferred: Inferred) -> Rig:
    """A packet in the ring that the guest has not answered."""
    rig = Rig(inferred=inferred).running()
    rig.send("one", wait=True)
    return rig


def answer(rig: Rig) -> None:
    for packet in rig.guest.take_all():
        if packet.flags & 1:
            rig.guest.complete(packet.transaction_id, b"answer")
    rig.ring()


# Pause and outgoing transactions.

PATIENT = Inferred(pause=PauseWaitsFor.OUTGOING_TOO)


def test_pause_leaves_outgoing_transactions_as_they_are() -> None:
    rig = one_in_use(DEFAULTS)
    assert rig.channel.pause_waits_for() == ()
    assert rig.pause()
    assert rig.channel.stats().awaiting_completion == 1


def test_pause_can_wait_for_outgoing_transactions_while_traffic_goes_on() -> None:
    rig = one_in_use(PATIENT)
    rig.send("two", wait=True)
    over: list[int] = []
    rig.channel.pause(lambda: over.append(1))
    rig.channel.pause(lambda: over.append(2))
    assert len(rig.channel.pause_waits_for()) == 2
    assert "packet 0x1, which the guest has not completed" in rig.channel.pause_waits_for()
    # Traffic goes on: a request is answered, a packet can be sent, and is waited for too.
    rig.guest.request(7, b"request")
    rig.ring()
    rig.send("three", wait=True)
    assert (len(rig.vsp.received), rig.vsp.trace.count("suspend"), over) == (1, 0, [])
    answer(rig)
    assert sorted(over) == [1, 2]
    assert rig.vsp.trace[-1] == "suspend"
    assert rig.channel.queue is Queue.OFF
    assert rig.channel.stats().awaiting_completion == 0
    assert decode_stream(rig.save()).in_ring == ()


def test_a_patient_pause_then_waits_for_what_the_vsp_holds() -> None:
    rig = one_in_use(PATIENT)
    rig.vsp.answer = rig.vsp.drain_in_suspend = False
    rig.guest.request(7, b"request")
    rig.ring()
    over: list[int] = []
    rig.channel.pause(lambda: over.append(1))
    answer(rig)
    assert (over, rig.vsp.trace.count("suspend")) == ([], 1)
    assert rig.channel.pause_waits_for() == ("request 0x7 of the guest, which the VSP holds",)
    rig.vsp.drain()
    assert over == [1]


@pytest.mark.parametrize("how", ["close", "disable", "fail"])
def test_a_patient_pause_does_not_wait_for_what_cannot_come(how: str) -> None:
    rig = one_in_use(PATIENT)
    rig.vsp.answer = False
    rig.guest.request(7, b"request")
    rig.ring()
    over: list[str] = []
    rig.channel.pause(lambda: over.append("pause"))
    assert over == []
    match how:
        case "close":
            rig.channel.port_closed(lambda: over.append(how))
        case "disable":
            rig.channel.disable(lambda: over.append(how))
        case _:
            rig.vsp.held.pop().fail()
            over.append(how)
    assert over == ["pause", how]


def test_a_start_during_a_patient_pause_takes_effect_after_it() -> None:
    rig = one_in_use(PATIENT)
    over: list[int] = []
    rig.channel.pause(lambda: over.append(1))
    rig.channel.start()
    assert over == []
    answer(rig)
    assert over == [1]
    assert rig.vsp.trace[-3:] == ["suspend", "started", "post_started"]


def test_a_patient_channel_takes_the_stream_of_one_that_is_not() -> None:
    rig = busy()
    assert rig.pause()
    pieces = rig.save()
    rig.inferred = PATIENT
    rig.restored(pieces)
    rig.channel.start()
    over: list[int] = []
    rig.channel.pause(lambda: over.append(1))
    for _ in range(3):
        answer(rig)
    assert over == [1]


# EvtOpened on restore.


def test_opened_does_not_run_on_restore_unless_it_is_said_to() -> None:
    for reading in OpenedOnRestore:
        rig = one_in_use(Inferred(opened=reading)).saved_and_restored()
        rig.channel.start()
        ran = ["opened"] if reading is OpenedOnRestore.CALLED else []
        assert rig.vsp.trace == [*ran, "started", "post_started"]
        answer(rig)
        assert [name for name, _, _ in rig.vsp.completed] == ["one"]


def test_opened_that_fails_on_restore_leaves_a_channel_without_a_peer() -> None:
    rig = one_in_use(Inferred(opened=OpenedOnRestore.CALLED))
    assert rig.pause()
    pieces = rig.save()
    rig.new_process()
    rig.vsp.open_status = NtStatus.UNSUCCESSFUL
    rig.channel.enable()
    assert rig.channel.connection is Connection.ENABLED
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is NtStatus.INVALID_PARAMETER
    assert "the guest had it open, here not" in (rig.channel.restore_failure or "")
    rig.channel.disable(lambda: None)
    rig.channel.cleanup()
    assert rig.channel.packets_alive == 0


# EvtSavePacket.


@pytest.mark.parametrize("reading", SavePacketFrom)
def test_save_packet_runs_from_begin_or_continue(reading: SavePacketFrom) -> None:
    rig = busy()
    reference = Rig(inferred=Inferred(save_packet=reading)).restored(_stream(rig))
    assert reference.pause()
    assert reference.channel.save_begin() is SUCCESS
    early = reading is SavePacketFrom.SAVE_BEGIN
    assert len(reference.vsp.save_calls) == (2 * 5 if early else 0)
    pieces = []
    while (result := reference.channel.save_continue(1 << 12)).status is not SUCCESS:
        pieces.append(result.data)
    reference.channel.save_end()
    assert len(reference.vsp.save_calls) == 2 * 5
    assert b"".join([*pieces, result.data]) == b"".join(_stream(rig))


def _stream(rig: Rig) -> list[bytes]:
    if rig.channel.queue is not Queue.OFF:
        assert rig.pause()
    return rig.save()


def test_save_begin_fails_with_what_save_packet_fails_with() -> None:
    rig = one_in_use(Inferred(save_packet=SavePacketFrom.SAVE_BEGIN))
    rig.vsp.save_hook = lambda _, size: SavedPacket(NtStatus.INSUFFICIENT_RESOURCES)
    assert rig.pause()
    assert rig.channel.save_begin() is NtStatus.INSUFFICIENT_RESOURCES
    assert rig.channel.save_continue(1 << 12).status is NtStatus.INVALID_DEVICE_STATE
    rig.vsp.save_hook = None
    assert len(decode_stream(rig.save()).in_ring) == 1
    rig.channel.start()
    answer(rig)
    assert rig.channel.packets_alive == 0


@pytest.mark.parametrize("reading", GrowingPacket)
def test_bytes_needed_that_grow(reading: GrowingPacket) -> None:
    rig = one_in_use(Inferred(growing=reading))
    needed = iter([3, 10, 20])
    sizes: list[int] = []

    def save(_: object, size: int) -> SavedPacket:
        sizes.append(size)
        more = next(needed, 0)
        if more:
            return SavedPacket(NtStatus.BUFFER_TOO_SMALL, bytes_needed=more)
        return SavedPacket(SUCCESS, b"x" * size)

    rig.vsp.save_hook = save
    assert rig.pause()
    assert rig.channel.save_begin() is SUCCESS
    result = rig.channel.save_continue(1 << 12)
    rig.channel.save_end()
    if reading is GrowingPacket.FAILS:
        assert (result.status, sizes) == (NtStatus.BUFFER_TOO_SMALL, [0, 3])
        return
    assert (result.status, sizes) == (SUCCESS, [0, 3, 10, 20])
    ((_, save_buffer),) = decode_stream([result.data]).in_ring
    assert save_buffer == b"x" * 20


def test_bytes_needed_that_grow_for_ever_end_the_save() -> None:
    rig = one_in_use(Inferred(growing=GrowingPacket.ASKED_AGAIN))
    calls: list[int] = []

    def save(_: object, size: int) -> SavedPacket:
        calls.append(size)
        return SavedPacket(NtStatus.BUFFER_TOO_SMALL, bytes_needed=size + 1)

    rig.vsp.save_hook = save
    assert rig.pause()
    assert rig.channel.save_begin() is SUCCESS
    assert rig.channel.save_continue(1 << 12).status is NtStatus.BUFFER_TOO_SMALL
    assert calls == list(range(8))


@pytest.mark.parametrize(("reading", "size"), [*zip(SaveBufferSize, (3, 64), strict=True)])
def test_the_size_of_the_save_buffer(reading: SaveBufferSize, size: int) -> None:
    rig = one_in_use(Inferred(save_size=reading))
    assert rig.pause()
    pieces = rig.save()
    assert rig.vsp.save_calls == [("one", 0), ("one", size)]
    seen: list[bytes] = []

    def restore(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        seen.append(restored.save_buffer)
        packet = channel.packet_allocate()
        packet.context = restored.save_buffer.rstrip(b"\0").decode()
        packet.set_completion_routine(rig.vsp.routine)
        return packet.restore(restored.lib_buffer)

    restored_by(rig, pieces, restore)
    assert seen == [b"one".ljust(size, b"\0")]
    rig.channel.start()
    answer(rig)
    assert [name for name, _, _ in rig.vsp.completed] == ["one"]


def restored_by(
    rig: Rig, pieces: list[bytes], hook: Callable[[ServerChannel, RestoredPacket], NtStatus]
) -> NtStatus:
    """Restore in a new process whose VSP restores packets by ``hook``."""
    rig.new_process()
    rig.vsp.restore_hook = hook
    rig.channel.enable()
    return rig.channel.restore_from_buffer(b"".join(pieces))


# What is not there, or not done.


@pytest.mark.parametrize("reading", UnopenedSave)
def test_a_channel_that_is_not_open(reading: UnopenedSave) -> None:
    rig = Rig(inferred=Inferred(unopened=reading))
    rig.channel.enable()
    rig.send("early")
    if reading is UnopenedSave.REFUSED:
        assert rig.channel.save_begin() is NtStatus.INVALID_DEVICE_STATE
        assert rig.open() is SUCCESS
    else:
        rig.restored(rig.save(), was_open=False)
        assert rig.open() is SUCCESS
    rig.channel.start()
    assert [text(packet) for packet in rig.guest.take_all()] == ["early"]
    # An open one can be saved in any case.
    rig.saved_and_restored()


def unregistered(rig: Rig) -> Rig:
    rig.channel._save_packet = rig.channel._restore_packet = None
    return rig


def test_packets_in_use_without_callbacks_cannot_be_saved_or_restored() -> None:
    rig = busy()
    assert rig.pause()
    pieces = rig.save()
    assert unregistered(rig).channel.save_begin() is NtStatus.NOT_SUPPORTED
    rig.new_process()
    unregistered(rig).channel.enable()
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is NtStatus.INVALID_PARAMETER
    assert "no restore callback is set" in (rig.channel.restore_failure or "")


def test_kmcls_own_state_can_be_saved_without_callbacks() -> None:
    rig = busy()
    assert rig.pause()
    rig.channel.inferred = Inferred(unregistered=UnregisteredSave.OWN_STATE)
    pieces = unregistered(rig).save()
    rig.inferred = rig.channel.inferred
    rig.new_process()
    unregistered(rig).channel.enable()
    assert rig.channel.restore_from_buffer(b"".join(pieces)) is SUCCESS
    assert rig.channel.packets_alive == 5
    rig.channel.start()
    seen: list[str] = []
    while packets := rig.guest.take_all():
        seen += [text(packet) for packet in packets]
        for packet in packets:
            if packet.flags & 1:
                rig.guest.complete(packet.transaction_id)
        rig.ring()
    assert seen[:2] == ["asked1", "asked2"]
    assert seen[-2:] == ["queued wait", "queued wait 2"]
    assert rig.channel.packets_alive == 0
    assert rig.vsp.faults == []


@pytest.mark.parametrize("reading", UnrestoredPacket)
def test_a_packet_that_the_vsp_did_not_restore(reading: UnrestoredPacket) -> None:
    rig = busy()
    assert rig.pause()
    pieces = rig.save()
    rig.inferred = Inferred(unrestored=reading, unknown=UnknownCompletion.DROPPED)
    status = restored_by(rig, pieces, lambda channel, restored: SUCCESS)
    if reading is UnrestoredPacket.REFUSED:
        assert status is NtStatus.UNSUCCESSFUL
        return
    assert status is SUCCESS
    rig.channel.start()
    seen = []
    for packet in rig.guest.take_all():
        seen.append(text(packet))
        if packet.flags & 1:
            rig.guest.complete(packet.transaction_id)
    rig.ring()
    # Those in the ring are the guest's already; those queued are not sent.
    assert seen[:2] == ["asked1", "asked2"]
    assert not any(name.startswith("queued") for name in seen)
    assert rig.channel.traffic.unknown_completions == 2
    assert rig.channel.packets_alive == 0


# Traffic.


@pytest.mark.parametrize("reading", FailedQueue)
def test_a_queue_that_was_stopped(reading: FailedQueue) -> None:
    rig = Rig(answer=False, inferred=Inferred(failed_queue=reading)).running()
    rig.guest.request(1, b"bad")
    rig.ring()
    rig.guest.request(2, b"good")
    rig.vsp.held.pop().fail()
    assert rig.pause()
    pieces = rig.save()
    # What was saved is what happened, whatever the setting.
    assert len(decode_stream(pieces).channel.faults) == 1
    rig.restored(pieces)
    rig.channel.start()
    stays = reading is FailedQueue.STAYS_STOPPED
    assert bool(rig.channel.faults) is stays
    assert [payload[:4] for payload in rig.vsp.received] == ([] if stays else [b"good"])


@pytest.mark.parametrize("reading", UnknownCompletion)
def test_a_completion_that_nobody_waits_for(reading: UnknownCompletion) -> None:
    rig = Rig(inferred=Inferred(unknown=reading)).running()
    rig.guest.complete(99, b"stray")
    rig.guest.request(1, b"next")
    rig.ring()
    dropped = reading is UnknownCompletion.DROPPED
    assert len(rig.vsp.received) == dropped
    assert bool(rig.channel.faults) is not dropped
    assert rig.channel.traffic.unknown_completions == dropped


@pytest.mark.parametrize("reading", FirstPackets)
def test_the_first_packet_and_post_started(reading: FirstPackets) -> None:
    rig = Rig(inferred=Inferred(first_packets=reading))
    rig.channel.enable()
    assert rig.open() is SUCCESS
    rig.guest.request(1, b"early")
    rig.channel.start()
    both = ["post_started", "packet"]
    if reading is FirstPackets.BEFORE:
        both.reverse()
    assert rig.vsp.trace == ["opened", "started", *both]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1]


def test_a_packet_before_post_started_cannot_pause_the_channel() -> None:
    rig = Rig(inferred=Inferred(first_packets=FirstPackets.BEFORE))
    refusals: list[str] = []

    def process(packet: IncomingPacket) -> None:
        with pytest.raises(KmclError) as caught:
            rig.channel.pause(lambda: None)
        refusals.append(caught.value.text)
        packet.complete()

    rig.vsp.on_packet = process
    rig.channel.enable()
    assert rig.open() is SUCCESS
    rig.guest.request(1, b"early")
    rig.channel.start()
    assert len(refusals) == 1
    assert rig.pause()


@pytest.mark.parametrize("reading", RetiredWith)
def test_the_status_of_packets_that_end_with_the_channel(reading: RetiredWith) -> None:
    rig = one_in_use(Inferred(retired=reading))
    rig.channel.port_closed(lambda: None)
    status = NtStatus[reading.name]
    assert rig.vsp.completed == [("one", status, None)]


# A packet whose external data are pending.


def pending(reading: PendingPacket) -> tuple[Rig, list[tuple[int, object]]]:
    """Have a GPA-direct request asked for its data that are not there, between two others."""
    rig = Rig(inferred=Inferred(pending=reading)).running()
    rig.port.ram_is_there = False
    seen: list[tuple[int, object]] = []
    process_in(rig, seen)
    rig.guest.request(1, b"first")
    rig.guest.external(5, (100, 8, [1]))
    rig.guest.request(2, b"last")
    rig.ring()
    return rig, seen


def process_in(rig: Rig, seen: list[tuple[int, object]]) -> None:
    def process(packet: IncomingPacket) -> None:
        try:
            packet.external_data()
        except ExternalDataPending:
            seen.append((packet.transaction_id, packet.context))
            packet.context = "kept"
            return
        seen.append((packet.transaction_id, packet.context))
        packet.complete(b"done")

    rig.vsp.on_packet = process


@pytest.mark.parametrize("reading", PendingPacket)
def test_a_pending_packet_comes_once_more_and_nothing_overtakes_it(reading: PendingPacket) -> None:
    rig, seen = pending(reading)
    held = reading is PendingPacket.HELD
    rig.port.take_turn()
    rig.port.ram_is_there = True
    rig.port.take_turn()
    context = "kept" if held else None
    assert [entry for entry in seen if entry[0] == 5] == [(5, None), (5, context), (5, context)]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1, 5, 2]
    assert not rig.port.waiting_turns


def test_pause_does_not_wait_for_a_packet_that_is_in_the_ring_again() -> None:
    rig, seen = pending(PendingPacket.IN_RING)
    assert rig.channel.stats().unread_requests == 2
    assert rig.pause()
    rig.restored(rig.save())
    seen.clear()
    process_in(rig, seen)
    rig.channel.start()
    assert seen == [(5, None), (2, None)]
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [1, 5, 2]


def test_a_packet_that_is_in_the_ring_again_has_ended() -> None:
    rig = Rig(inferred=Inferred(pending=PendingPacket.IN_RING)).running()
    rig.port.ram_is_there = False
    refusals: list[str] = []

    def process(packet: IncomingPacket) -> None:
        try:
            packet.external_data()
        except ExternalDataPending:
            with pytest.raises(KmclError) as caught:
                packet.complete()
            refusals.append(caught.value.text)
            return
        packet.complete(b"done")

    rig.vsp.on_packet = process
    rig.guest.external(5, (100, 8, [1]))
    rig.ring()
    assert refusals == ["test: a packet that has ended was completed"]
    rig.port.ram_is_there = True
    rig.port.take_turn()
    assert [packet.transaction_id for packet in rig.guest.take_all()] == [5]


# The settings.


def test_each_field_has_a_switch_and_each_switch_says_what_it_rests_on() -> None:
    assert [switch.name for switch in SWITCHES] == [field.name for field in fields(Inferred)]
    for switch in SWITCHES:
        readings = list(switch.kind)
        assert len(readings) == 2
        assert getattr(DEFAULTS, switch.name) is readings[0]
        assert switch.question.endswith("?")
        assert switch.source
        assert switch.noticed


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_settings_are_their_text(switch: Switch) -> None:
    for reading in switch.kind:
        word = f"{switch.name}={reading.value}"
        chosen = parse_inferred([word])
        assert getattr(chosen, switch.name) is reading
        assert parse_inferred(str(chosen).split()) == chosen


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("nothing=at-all", "there is no switch 'nothing'; they are pause, opened,"),
        ("pause=never", "'pause=never': pause is incoming or outgoing-too"),
        ("pause", "pause is incoming or outgoing-too"),
    ],
)
def test_a_setting_that_is_none_is_one_line(word: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_inferred([word])
