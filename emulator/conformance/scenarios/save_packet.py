# SPDX-License-Identifier: MIT
"""B. EvtSavePacket."""

from __future__ import annotations

from collections.abc import Callable

from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    SUCCESS,
    all_answered,
    busy,
    chunks,
    ends_well,
    guest_answers,
    guest_reads,
    names_in_use,
    paused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import SavedPacket
from emulator.wire.ntstatus import NtStatus

_SOURCE = "EVT_VMB_CHANNEL_SAVE_PACKET"
_OBJECT = "the header's description of packet objects"


def _one(wait: bool = True) -> Rig:
    rig = Rig().running()
    rig.send("one", wait=wait)
    return rig


def _answering(rig: Rig, answer: Callable[[int], SavedPacket]) -> Rig:
    rig.vsp.save_hook = lambda _, size: answer(size)
    return rig


@scenario(
    13,
    Section.SAVE_PACKET,
    "one packet with state of the VSP",
    expected="call 1 with size 0 fails and gives BytesNeeded; call 2 with at least that succeeds",
    basis="D",
    source=_SOURCE,
)
def _two_calls() -> str:
    rig = paused(_one())
    pieces = chunks(rig)
    sizes = [size for _, size in rig.vsp.save_calls]
    same(len(sizes), 2, "calls")
    expect(sizes[0] == 0 and sizes[1] >= len("one"), f"sizes {sizes}")
    rig.restored(pieces)
    same([each.save_buffer for each in rig.vsp.restored], [b"one"], "what comes back")
    return f"SaveBufSize {sizes[0]}, then {sizes[1]}"


@scenario(
    14,
    Section.SAVE_PACKET,
    "a packet without state of the VSP",
    expected="call 1 succeeds, and there is no second; SaveBufSize at restore is 0",
    basis="DI",
    source=_SOURCE,
)
def _stateless() -> str:
    rig = _answering(paused(_one()), lambda size: SavedPacket(SUCCESS))
    pieces = chunks(rig)
    same(len(rig.vsp.save_calls), 1, "calls")
    rig.restored(pieces)
    same([each.save_buffer for each in rig.vsp.restored], [b""], "what comes back")
    return "one call; SaveBufSize 0 at restore"


@scenario(
    15,
    Section.SAVE_PACKET,
    "a packet sent without WAIT_FOR_COMPLETION, in the ring",
    expected="its transaction is over: no callback",
    basis="DI",
    source=_OBJECT,
)
def _fire_and_forget() -> str:
    rig = _one(wait=False)
    all_answered(rig, ["one"])
    paused(rig)
    chunks(rig)
    same(rig.vsp.save_calls, [], "calls of EvtSavePacket")
    return "ended when it entered the ring; not asked about"


@scenario(
    16,
    Section.SAVE_PACKET,
    "a packet sent without WAIT_FOR_COMPLETION, queued",
    expected="callback; restored, and sent later",
    basis="D",
    source=_OBJECT,
)
def _queued() -> str:
    rig = Rig().running()
    rig.fill()
    queued = names_in_use(rig)
    expect(bool(queued), "nothing is queued")
    paused(rig)
    pieces = chunks(rig)
    same(sorted({str(name) for name, _ in rig.vsp.save_calls}), queued, "packets asked about")
    rig.restored(pieces)
    rig.channel.start()
    seen = guest_reads(rig)
    same(seen[-len(queued) :], queued, "the last packets that the guest read")
    all_answered(rig, queued)
    ends_well(rig)
    return f"{len(queued)} queued, sent after the restore"


@scenario(
    17,
    Section.SAVE_PACKET,
    "a packet sent with WAIT_FOR_COMPLETION, in the ring and not answered",
    expected="callback; restored as waiting for its completion",
    basis="D",
    source=_OBJECT,
)
def _unanswered() -> str:
    rig = paused(_one())
    rig.restored(chunks(rig))
    same(rig.channel.stats().awaiting_completion, 1, "packets that wait")
    rig.channel.start()
    same(guest_answers(rig), ["one"], "what the guest read")
    all_answered(rig, ["one"])
    ends_well(rig)
    return "completed by the guest after the restore"


@scenario(
    18,
    Section.SAVE_PACKET,
    "a packet never sent, and one completed and not freed",
    expected="not saved",
    basis="I",
    source='"in use" in EVT_VMB_CHANNEL_SAVE_PACKET',
)
def _not_in_use() -> str:
    rig = Rig().running()
    never = rig.channel.packet_allocate()
    done = rig.channel.packet_allocate()
    done.set_completion_routine(lambda packet, status, data: None)
    done.send(b"done")
    paused(rig)
    chunks(rig)
    same(rig.vsp.save_calls, [], "calls of EvtSavePacket")
    never.free()
    done.free()
    ends_well(rig)
    return "neither is asked about"


@scenario(
    19,
    Section.SAVE_PACKET,
    "k packets queued and m in the ring",
    expected="one series of calls for each, k + m in all",
    basis="D",
    source=_SOURCE,
)
def _one_series_each() -> str:
    rig = paused(busy())
    wanted = names_in_use(rig)
    chunks(rig)
    calls = rig.vsp.save_calls
    order: list[str] = []
    for name, _ in calls:
        if not order or order[-1] != name:
            order.append(str(name))
    same(order, wanted, "the series")
    same(len(calls), 2 * len(wanted), "calls")
    return f"{len(wanted)} series of two calls"


@scenario(
    20,
    Section.SAVE_PACKET,
    "the second call fails",
    expected="the save fails with that status; SaveEnd is due; the channel works afterwards",
    basis="I",
    source=_SOURCE,
)
def _second_fails() -> str:
    def answer(size: int) -> SavedPacket:
        status = NtStatus.INSUFFICIENT_RESOURCES if size else NtStatus.BUFFER_TOO_SMALL
        return SavedPacket(status, b"", 8)

    rig = _answering(paused(_one()), answer)
    rig.channel.save_begin()
    result = rig.channel.save_continue(1 << 16)
    same(result.status, NtStatus.INSUFFICIENT_RESOURCES, "SaveContinue")
    rig.channel.save_end()
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, ["one"])
    ends_well(rig)
    return "SaveContinue returns the callback's status"


@scenario(
    21,
    Section.SAVE_PACKET,
    "BytesNeeded grows between the calls",
    expected="not specified: a third call, or failure",
    basis="I",
    source=_SOURCE,
    specified=False,
)
def _grows() -> str:
    rig = _answering(
        paused(_one()), lambda size: SavedPacket(NtStatus.BUFFER_TOO_SMALL, b"", size + 8)
    )
    rig.channel.save_begin()
    result = rig.channel.save_continue(1 << 16)
    rig.channel.save_end()
    expect(not result.status.is_success, "the save succeeded without the packet's state")
    calls = len(rig.vsp.save_calls)
    rig.channel.start()
    guest_answers(rig)
    all_answered(rig, ["one"])
    return f"{calls} calls, then SaveContinue returns {result.status.name}"


@scenario(
    22,
    Section.SAVE_PACKET,
    "state of the VSP that is larger than the caller's buffer",
    expected="BUFFER_TOO_SMALL with BytesRequired of at least its size: no packet is split",
    basis="I",
    source='"whole chunks" in VmbChannelRestoreFromBuffer',
)
def _large() -> str:
    blob = bytes(100_000)

    def answer(size: int) -> SavedPacket:
        if size < len(blob):
            return SavedPacket(NtStatus.BUFFER_TOO_SMALL, b"", len(blob))
        return SavedPacket(SUCCESS, blob)

    rig = _answering(paused(_one()), answer)
    rig.channel.save_begin()
    pieces: list[bytes] = []
    refusals: list[int] = []
    size = 4096
    while (result := rig.channel.save_continue(size)).status is not SUCCESS:
        if result.status is NtStatus.BUFFER_TOO_SMALL:
            refusals.append(result.bytes_required)
        pieces.append(result.data)
        size = max(4096, result.bytes_required)
    pieces.append(result.data)
    rig.channel.save_end()
    expect(bool(refusals) or any(len(piece) > len(blob) for piece in pieces), "it was split")
    rig.restored([piece for piece in pieces if piece])
    same([len(each.save_buffer) for each in rig.vsp.restored], [len(blob)], "what comes back")
    return f"chunks of up to {max(map(len, pieces))} bytes"
