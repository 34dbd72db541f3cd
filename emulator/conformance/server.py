# SPDX-License-Identifier: MIT
"""The host of an explored run: memory, provider and VSP of one process.

The memory outlives the processes. Every stretch of it that the host may use has a guard page of a
known pattern on either side, and two pairs of rings take turns, so that an end of a ring that was
closed is found when it is written to.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

from emulator.conformance.ledger import (
    PAGE,
    Ledger,
    Request,
    Symptom,
    Violation,
    blob,
    body,
    completion,
    number_of,
)
from emulator.conformance.rig import INSTANCE, INTERFACE
from emulator.kmcl import (
    IncomingPacket,
    OutgoingPacket,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    StateChangeCallbacks,
)
from emulator.memory import page_view
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus

MAXIMUM_PACKETS: Final = 256
"""The channel's maximum packet count: more than a run can have in use, few enough to count."""

RAM_PAGES: Final = 6
"""Pages of RAM beside the rings; the first and the last are guards."""

_GUARD: Final = bytes([0xA5]) * PAGE
_RING: Final = 2 * PAGE


class Arena:
    """The guest's memory: two pairs of rings with guard pages between, and some RAM.

    One is used for run after run: :meth:`reset` is cheaper than a new one.
    """

    def __init__(self) -> None:
        """Make it, with every byte that is nobody's set to the guards' pattern."""
        # guard, ring, guard, ring, ... guard
        self._memory = memoryview(mmap.mmap(-1, 4 * (PAGE + _RING) + PAGE))
        self._rings = [
            self._memory[start : start + _RING]
            for start in range(PAGE, len(self._memory) - PAGE, PAGE + _RING)
        ]
        self.ram = bytearray()
        self.pair = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._memory[:] = _GUARD * (len(self._memory) // PAGE)
        # Not in place: views of the RAM may still be around after a failed run.
        self.ram = bytearray(_GUARD) * RAM_PAGES
        self.pair = 0

    def rings(self) -> tuple[memoryview, memoryview]:
        """Return the rings in use: guest to host, host to guest."""
        return self._rings[2 * self.pair], self._rings[2 * self.pair + 1]

    def host_ends(self) -> tuple[IncomingRing, OutgoingRing]:
        """Make the host's ends of the rings in use."""
        up, down = self.rings()
        return IncomingRing(page_view([up])), OutgoingRing(page_view([down]))

    def swap(self) -> None:
        """Use the other pair; the guest takes the old one for something else."""
        for memory in self.rings():
            memory[:] = _GUARD * 2
        self.pair = 1 - self.pair

    def copy(self) -> tuple[bytes, bytes]:
        """Copy all of it."""
        return self._memory.tobytes(), bytes(self.ram)

    def put_back(self, saved: tuple[bytes, bytes]) -> None:
        """Return to a copy."""
        self._memory[:] = saved[0]
        self.ram[:] = saved[1]

    def words(self, saved: tuple[bytes, bytes]) -> list[int]:
        """Return the offsets of the 32-bit words that differ from a copy; RAM counts as one."""
        now = self._memory.tobytes()
        changed = []
        if now != saved[0]:
            changed = [
                at for at in range(0, len(now), 4) if now[at : at + 4] != saved[0][at : at + 4]
            ]
        return changed if self.ram == saved[1] else [*changed, len(now)]

    def host_words(self) -> set[int]:
        """Return the offsets of the words that a host may write when it attaches to the rings."""
        up = PAGE + 2 * self.pair * (PAGE + _RING)
        down = up + PAGE + _RING
        return {up + 8, down + 12, down + 64}

    def check(self, ledger: Ledger) -> None:
        """Check what nobody may have written; raises :class:`Violation`."""
        used = set()
        for number in (2 * self.pair, 2 * self.pair + 1):
            start = 1 + number * 3
            used |= {start, start + 1}
        for page in range(len(self._memory) // PAGE):
            here = self._memory[page * PAGE : (page + 1) * PAGE]
            if here != _GUARD and (page not in used or not ledger.connected):
                raise Violation(Symptom.MEMORY, f"page {page}, outside the rings, was written")
        if self.ram != ledger.ram:
            raise Violation(Symptom.MEMORY, "RAM was written that no request had given")


class Server:
    """A VSP on one channel: it traces its state callbacks, and answers as it is told."""

    def __init__(
        self, ledger: Ledger, boundary: Callable[[], None], *, hold: int, restored_open: bool
    ) -> None:
        """Start as a VSP does in a new process; ``boundary`` is called at the end of callbacks."""
        self.ledger = ledger
        self.hold = hold
        """0: answer at once. 1: hold, and complete in EvtSuspend. 2: hold beyond EvtSuspend too."""
        self.held: list[tuple[IncomingPacket, Request]] = []
        self.phase = "opened" if restored_open else "closed"
        self.restored: list[int] = []
        self._boundary = boundary
        self._spare: list[OutgoingPacket] = []

    def configure(self, channel: ServerChannel) -> None:
        """Make all the settings."""
        channel.init_set_friendly_name("explored")
        channel.init_set_target_interface_id(INTERFACE, INSTANCE)
        channel.init_set_maximum_packet_count(MAXIMUM_PACKETS)
        channel.init_set_state_change_callbacks(
            StateChangeCallbacks(
                opened=self._opened,
                closed=self._closed,
                suspend=self._suspend,
                started=lambda _: self._moves("started", "opened", "suspended"),
                post_started=lambda _: self._moves("running", "started"),
            )
        )
        channel.init_set_process_packet_callbacks(self._process)
        channel.init_set_save_restore_packet_callbacks(self._save, self._restore)

    # State callbacks.

    def _moves(self, to: str, *before: str) -> None:
        if self.phase not in before:
            raise Violation(Symptom.CALLBACK, f"from {self.phase} to {to}")
        self.phase = to

    def _opened(self, _: ServerChannel) -> NtStatus:
        self._moves("opened", "closed")
        return NtStatus.SUCCESS

    def _closed(self, _: ServerChannel) -> None:
        self._moves("closed", "opened", "suspended")
        self.ledger.closed()

    def _suspend(self, _: ServerChannel) -> None:
        self._moves("suspended", "running")
        if self.hold != 2:
            self.complete(2)

    @property
    def may_send(self) -> bool:
        """Whether EvtSuspend has not forbidden it."""
        return self.phase != "suspended" and len(self.ledger.in_use) < MAXIMUM_PACKETS

    # Incoming.

    def _process(self, _: ServerChannel, packet: IncomingPacket) -> None:
        # EvtPostStarted is called with the queue on: packets may come before it.
        if self.phase not in ("started", "running"):
            raise Violation(Symptom.CALLBACK, f"a packet was delivered while {self.phase}")
        request = self.ledger.vsp_gets(packet.payload, packet.completion_requested)
        if request.external is not None:
            data = b"".join(map(bytes, packet.external_data(read_only=True)))
            if data != bytes([request.number & 0xFF]) * request.external.size:
                raise Violation(Symptom.BYTES, f"request {request.number}: other external data")
        if self.hold:
            self.held.append((packet, request))
        else:
            self._complete(packet, request)
        self._boundary()
        if self.phase == "suspended" and self.hold != 2:
            self.complete(2)

    def complete(self, which: int) -> None:
        """Complete held requests: 0 the oldest, 1 the newest, 2 all that are held now or come."""
        while self.held:
            self._complete(*self.held.pop(-1 if which == 1 else 0))
            if which != 2:
                return

    def _complete(self, packet: IncomingPacket, request: Request) -> None:
        if request.external is not None:
            place = request.external.place
            answer = bytes([~request.number & 0xFF]) * request.external.size
            at = 0
            for view in packet.external_data():
                view[:] = answer[at : at + len(view)]
                at += len(view)
            self.ledger.ram[place] = answer
            self.ledger.slots.discard(request.external.page)
        self.ledger.vsp_completes(request)
        packet.complete(completion(request.number))

    def fail(self) -> None:
        """Fail the oldest held request."""
        if self.held:
            packet, request = self.held.pop(0)
            self.ledger.vsp_fails(request)
            packet.fail()

    # Outgoing.

    def send(self, channel: ServerChannel, filler: int, waits: bool) -> None:
        """Send a packet, on a used packet object now and then."""
        packet = self._spare.pop() if self._spare else channel.packet_allocate()
        sent = self.ledger.vsp_sends(filler, waits)
        packet.context = sent.number
        packet.set_completion_routine(self._routine)
        packet.send(body(sent.number, filler), wait_for_completion=waits)

    def _routine(self, packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        self.ledger.routine_runs(packet.context, status, data)
        if packet.context % 3 or self._spare:
            packet.free()
        else:
            self._spare.append(packet)
        self._boundary()

    def _save(self, _: ServerChannel, packet: OutgoingPacket, size: int) -> SavedPacket:
        if packet.context not in self.ledger.in_use:
            raise Violation(Symptom.CALLBACK, f"EvtSavePacket for {packet.context}, not in use")
        data = blob(packet.context)
        if size < len(data):
            return SavedPacket(NtStatus.BUFFER_TOO_SMALL, bytes_needed=len(data))
        return SavedPacket(NtStatus.SUCCESS, data)

    def _restore(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        number = number_of(restored.save_buffer)
        if restored.save_buffer != blob(number):
            raise Violation(Symptom.BYTES, f"packet {number}: SaveBuf is not what was saved")
        if number not in self.ledger.in_use or number in self.restored:
            raise Violation(Symptom.TWICE, f"packet {number} was restored, and is not in use")
        packet = channel.packet_allocate()
        packet.context = number
        packet.set_completion_routine(self._routine)
        status = packet.restore(restored.lib_buffer)
        if status.is_success:
            self.restored.append(number)
        else:
            packet.free()
        return status

    def check_leaks(self, channel: ServerChannel) -> None:
        """Check that every packet object can be had, with the channel Disabled."""
        while self._spare:
            self._spare.pop().free()
        packets = []
        try:
            for _ in range(MAXIMUM_PACKETS):
                packets.append(channel.packet_allocate())
        except Exception as error:
            leaked = MAXIMUM_PACKETS - len(packets)
            raise Violation(Symptom.LEAK, f"{leaked} packet objects are lost: {error}") from error
        for packet in packets:
            packet.free()
