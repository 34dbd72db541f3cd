# SPDX-License-Identifier: MIT
"""E. Traffic goes on."""

from __future__ import annotations

from emulator.conformance.rig import Rig
from emulator.conformance.scenarios.support import (
    SUCCESS,
    all_answered,
    busy,
    chunks,
    ends_well,
    guest_reads,
    names_in_use,
    paused,
)
from emulator.conformance.suite import Section, expect, same, scenario
from emulator.kmcl import IncomingPacket
from emulator.model.driver import IN_BAND, text
from emulator.model.ring import WORD_IN, WORD_MASK, WORD_PENDING, build_packet


@scenario(
    44,
    Section.TRAFFIC,
    "guest packets that are unread in the ring",
    expected="delivered once and in order after Start; none lost, none twice",
    basis="CI",
    source="mu_msvm RingBuffer.c, Linux ring_buffer.c",
)
def _unread() -> str:
    rig = paused(Rig().running())
    for number in range(8):
        rig.guest.request(number, b"%d" % number)
    rig.restored(chunks(rig))
    rig.channel.start()
    received = [payload.rstrip(b"\0") for payload in rig.vsp.received]
    same(received, [b"%d" % number for number in range(8)], "packets delivered")
    same(guest_reads(rig), list(range(8)), "completions")
    return "8, in order"


@scenario(
    45,
    Section.TRAFFIC,
    "queued host packets",
    expected="sent after the restore in their order, behind what is in the ring",
    basis="DI",
    source="the header's description of packet objects",
)
def _order() -> str:
    rig = busy()
    names = ["asked 1", "asked 2"]
    traffic = [str(context) for context, _, _ in rig.vsp.completed]
    queued = names_in_use(rig)[2:]
    paused(rig)
    rig.restored(chunks(rig))
    rig.channel.start()
    before = len(rig.vsp.completed)
    same(before, 0, "routines that ran before there was room")
    seen = guest_reads(rig)
    same(seen, [*names, *traffic, *queued], "what the guest read")
    return f"{len(queued)} behind {len(names) + len(traffic)} in the ring"


@scenario(
    46,
    Section.TRAFFIC,
    "the guest completes before, while and after the host starts",
    expected="matched by the same id; the routine set at restore runs once, with the guest's bytes",
    basis="DI",
    source="VmbPacketRestore, EVT_VMB_PACKET_COMPLETION_ROUTINE",
)
def _completions() -> str:
    for moment in ("before the save", "while restoring", "after the start"):
        rig = Rig().running()
        for name in ("one", "two"):
            rig.send(name, wait=True)
        packets = rig.guest.take_all()
        paused(rig)

        def answer(rig: Rig = rig, packets: list = packets) -> None:  # type: ignore[type-arg]
            for packet in reversed(packets):
                rig.guest.complete(packet.transaction_id, b"re:" + packet.payload)

        if moment == "before the save":
            answer()
        pieces = chunks(rig)
        rig.restored(pieces)
        if moment == "while restoring":
            answer()
        rig.channel.start()
        if moment == "after the start":
            answer()
            rig.ring()
        ended = [
            (str(context), status, (data or b"").rstrip(b"\0"))
            for context, status, data in rig.vsp.completed
        ]
        same(ended, [("two", SUCCESS, b"re:two"), ("one", SUCCESS, b"re:one")], moment)
        ends_well(rig)
    return "at each of the three moments"


@scenario(
    47,
    Section.TRAFFIC,
    "a completion that lies in the guest-to-host ring at the save",
    expected="it meets its restored packet, and is not dropped as one of an unknown id",
    basis="I",
    source="the key race",
)
def _key_race() -> str:
    rig = Rig().running()
    rig.send("one", wait=True)
    (packet,) = rig.guest.take_all()
    paused(rig)
    rig.guest.complete(packet.transaction_id, b"done")
    rig.restored(chunks(rig))
    rig.channel.start()
    all_answered(rig, ["one"])
    same(rig.vsp.faults, [], "faults")
    ends_well(rig)
    return "met"


@scenario(
    48,
    Section.TRAFFIC,
    "new sends after a restore, with saved ids outstanding",
    expected="no id is used twice",
    basis="I",
    source="VmbPacketSend",
)
def _ids() -> str:
    rig = Rig().running()
    for number in range(4):
        rig.send(f"old {number}", wait=True)
    packets = {packet.transaction_id: text(packet) for packet in rig.guest.take_all()}
    paused(rig)
    rig.restored(chunks(rig))
    rig.channel.start()
    for number in range(4):
        rig.send(f"new {number}", wait=True)
    for packet in rig.guest.take_all():
        expect(packet.transaction_id not in packets, f"id {packet.transaction_id} is used twice")
        packets[packet.transaction_id] = text(packet)
    for number, name in packets.items():
        rig.guest.complete(number, name.encode())
    rig.ring()
    wrong = [
        context
        for context, _, data in rig.vsp.completed
        if (data or b"").rstrip(b"\0").decode() != context
    ]
    same(wrong, [], "completions that met another packet")
    same(len(rig.vsp.completed), 8, "completions")
    return f"ids {sorted(packets)}"


@scenario(
    49,
    Section.TRAFFIC,
    "In, Out, InterruptMask and PendingSendSize not zero at the save",
    expected="In and Out stay, the flags are armed anew; no wake-up is lost",
    basis="C",
    source="mu_msvm RingBuffer.c, OpenVMM vmbus_ring",
)
def _control_pages() -> str:
    seen: list[str] = []
    # The guest sleeps, blocked: it has asked for room, and nobody has read yet.
    rig = Rig(answer=True).running()
    paused(rig)
    number = 0
    while rig.guest.request(number, bytes(1000)):
        number += 1
    expect(bool(rig.guest.up.control[WORD_PENDING]), "the guest has not asked for room")
    rig.guest.up.control[WORD_MASK] = 1
    indices = [rig.guest.up.control[WORD_IN], rig.guest.down.control[WORD_IN]]
    rig.restored(chunks(rig))
    same([rig.guest.up.control[WORD_IN], rig.guest.down.control[WORD_IN]], indices, "In")
    rig.channel.start()
    expect(rig.interrupted(), "the guest, which waits for room, is not woken")
    same(len(rig.vsp.received), number, "packets delivered")
    seen.append("guest blocked: woken")
    # The host is blocked, and the guest makes room while nobody is there.
    rig = paused(busy())
    queued = names_in_use(rig)[2:]
    pieces = chunks(rig)
    rig.guest.take_all()
    rig.restored(pieces)
    rig.channel.start()
    expect(rig.interrupted(), "the guest is not told of packets that went into the ring")
    same(guest_reads(rig), queued, "queued packets")
    seen.append("host blocked: goes on")
    return "; ".join(seen)


@scenario(
    50,
    Section.TRAFFIC,
    "a ring that has wrapped, a packet over its end, a ring full to the last 8 bytes",
    expected="read after the restore as before",
    basis="C",
    source="mu_msvm RingBuffer.c, Linux ring_buffer.c",
)
def _wrapped() -> str:
    rig = Rig().running()
    # Leave the indices near the end of the page, so that the next packet goes over it.
    for number in range(3):
        rig.guest.request(number, bytes(1264))
        rig.ring()
        rig.guest.take_all()
    paused(rig)
    position = rig.guest.up.control[WORD_IN]
    expect(position > 3000, f"the ring is at {position}")
    rig.guest.request(10, b"over the end".ljust(1200, b"."))
    expect(rig.guest.up.control[WORD_IN] < position, "the packet does not go over the end")
    # The rest: all but 8 bytes, which stay free so that full is not empty.
    free = (rig.guest.up.control[1] - rig.guest.up.control[WORD_IN] - 1) % 4096 // 8 * 8
    rig.guest.put(build_packet(IN_BAND, 11, bytes(free - 24), flags=1))
    left = (rig.guest.up.control[1] - rig.guest.up.control[WORD_IN]) % 4096
    same(left, 8, "bytes left")
    rig.restored(chunks(rig))
    rig.channel.start()
    same([len(payload) for payload in rig.vsp.received], [1200, free - 24], "payloads")
    expect(rig.vsp.received[0].startswith(b"over the end"), "another payload")
    return f"from offset {position} over the end, then to 8 bytes"


@scenario(
    51,
    Section.TRAFFIC,
    "a deferred packet, and a queue at its quota, at the save",
    expected="Pause drains; the quota is the new channel's; only a completion restarts the queue",
    basis="DI",
    source="VmbChannelPacketDeferToPassive, VmbChannelSetTransactionQuota",
)
def _deferred() -> str:
    rig = Rig(answer=False).running()
    levels: list[bool] = []

    def defer_first(packet: IncomingPacket) -> None:
        levels.append(packet.at_passive)
        if packet.at_passive:
            packet.complete(b"passive")
        else:
            packet.defer()

    rig.vsp.on_packet = defer_first
    rig.guest.request(1)
    rig.ring()
    over: list[bool] = []
    rig.channel.pause(lambda: over.append(True))
    expect(not over, "Pause is over with a packet deferred")
    while rig.port.take_turn():
        pass
    expect(bool(over), "Pause is not over when the packet was completed at PASSIVE")
    same(levels, [False, True], "the levels")
    same(rig.vsp.trace[-1], "suspend", "the last callback")
    same(guest_reads(rig), [1], "completions")
    # At the quota.
    rig = Rig(answer=False)
    rig.channel.set_transaction_quota(2)
    rig.running()
    for number in range(5):
        rig.guest.request(number)
    rig.ring()
    same(len(rig.vsp.held), 2, "packets held")
    paused(rig)
    rig.restored(chunks(rig), answer=False)
    rig.channel.set_transaction_quota(1)
    rig.channel.start()
    same(len(rig.vsp.held), 1, "packets held by the new channel")
    rig.channel.set_transaction_quota(5)
    rig.channel.port_interrupt()
    same(len(rig.vsp.held), 1, "packets held after the quota was raised")
    rig.vsp.held.pop().complete()
    same(len(rig.vsp.held), 2, "packets held after a completion")
    rig.vsp.drain()
    same(guest_reads(rig), [0, 1, 2, 3, 4], "completions")
    return "the deferred packet comes at PASSIVE before EvtSuspend; quota 2, then 1"


@scenario(
    52,
    Section.TRAFFIC,
    "VmbChannelPacketFail before the save",
    expected="the stopped queue: stays stopped or starts again (not specified)",
    basis="DI",
    source="VmbChannelPacketFail",
    specified=False,
)
def _failed() -> str:
    rig = Rig(answer=False).running()
    rig.guest.request(1)
    rig.guest.request(2)
    rig.vsp.on_packet = lambda packet: packet.fail("malformed")
    rig.ring()
    same(len(rig.vsp.received), 1, "packets delivered before the save")
    paused(rig)
    rig.restored(chunks(rig))
    rig.channel.start()
    after = len(rig.vsp.received)
    rig.channel.port_closed(lambda: None)
    rig.guest.reopen()
    rig.open()
    rig.guest.request(3)
    rig.ring()
    same(len(rig.vsp.received), after + 1, "packets delivered after the channel was opened anew")
    ends_well(rig)
    how = "starts again" if after else "stays stopped"
    return f"{how} ({after} delivered); works when it was opened anew"
