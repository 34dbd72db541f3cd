# SPDX-License-Identifier: MIT
"""What the scenarios have in common: a busy channel, ways to save it, and what must hold after."""

from __future__ import annotations

from collections.abc import Callable

from emulator.conformance.rig import Rig
from emulator.conformance.suite import Mismatch, expect, same
from emulator.kmcl import Connection, KmclError, OutgoingPacket
from emulator.model.driver import COMPLETION, text
from emulator.wire.ntstatus import NtStatus

MORE = NtStatus.MORE_PROCESSING_REQUIRED
SUCCESS = NtStatus.SUCCESS

SMALLEST: Callable[[], int] = lambda: 0  # noqa: E731
"""Buffers that hold one chunk each."""


def busy() -> Rig:
    """Two packets in the ring that wait for their completion; then fillers, and two of them."""
    rig = Rig().running()
    rig.send("asked 1", wait=True)
    rig.send("asked 2", wait=True)
    rig.fill()
    rig.send("queued 1", wait=True)
    rig.send("queued 2", wait=True)
    return rig


def in_use(rig: Rig) -> int:
    """How many packets a save has to ask the VSP about."""
    stats = rig.channel.stats()
    return stats.awaiting_completion + stats.queued_wait + stats.queued_no_wait


def names_in_use(rig: Rig) -> list[str]:
    """Return the names of the packets in use: in the ring, then queued."""
    traffic = rig.channel.traffic
    queued = [item for item in traffic.queue if isinstance(item, OutgoingPacket)]
    return [str(packet.context) for packet in (*traffic.in_ring(), *queued)]


def chunks(rig: Rig) -> list[bytes]:
    """Save chunk by chunk."""
    return rig.save(SMALLEST)


def paused(rig: Rig) -> Rig:
    """Pause a channel whose VSP holds nothing."""
    over = rig.pause()
    expect(over, f"Pause waits for {', '.join(rig.channel.pause_waits_for())}")
    return rig


def guest_reads(rig: Rig) -> list[str | int]:
    """Let the guest read all that comes: names of packets, ids of completions."""
    seen: list[str | int] = []
    while packets := rig.guest.take_all():
        for packet in packets:
            seen.append(packet.transaction_id if packet.type == COMPLETION else text(packet))
        rig.ring()
    return seen


def guest_answers(rig: Rig) -> list[str]:
    """Let the guest read all packets and complete those that ask for it; returns their names."""
    names: list[str] = []
    while packets := rig.guest.take_all():
        for packet in packets:
            names.append(text(packet))
            if packet.flags & 1:
                rig.guest.complete(packet.transaction_id, b"re:" + packet.payload)
        rig.ring()
    return names


def all_answered(rig: Rig, names: list[str]) -> None:
    """Check that exactly the packets ``names`` have ended, each once and well."""
    ended = [str(context) for context, status, _ in rig.vsp.completed if status is SUCCESS]
    same(sorted(ended), sorted(names), "packets whose completion routine ran")


def ends_well(rig: Rig) -> None:
    """Check that the channel can be disabled and cleaned up, and that no packet is left."""
    ended: list[bool] = []
    rig.channel.disable(lambda: ended.append(True))
    for packet in list(rig.vsp.held):
        packet.complete()
    while rig.port.take_turn():
        pass
    expect(bool(ended), "the channel cannot be disabled")
    same(rig.channel.packets_alive, 0, "packet objects that are left")
    rig.channel.cleanup()
    same(rig.channel.connection, Connection.CLEANED_UP, "the state after Cleanup")


def refused(call: Callable[[], object], status: NtStatus) -> str:
    """Check that ``call`` raises with ``status``; returns its text."""
    try:
        call()
    except KmclError as error:
        same(error.status.name, status.name, "the status")
        return error.text
    raise Mismatch(f"it was not refused with {status.name}")
