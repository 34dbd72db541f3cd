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
from emulator.conformance.steps import Setup
from emulator.kmcl import (
    ExternalDataPending,
    IncomingPacket,
    InitFlags,
    KmclError,
    OutgoingPacket,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    ServerInitFlags,
    StateChangeCallbacks,
)
from emulator.kmcl.inferred import (
    FirstPackets,
    GrowingPacket,
    OpenedOnRestore,
    PendingPacket,
    SaveBufferSize,
    UnknownCompletion,
    UnregisteredSave,
    UnrestoredPacket,
)
from emulator.kmcl.save import SavedPlace, decode_packet_record
from emulator.memory import PageView, ReadOnlyMemory, page_view
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus

MAXIMUM_PACKETS: Final = 256
"""The channel's maximum packet count: more than a run can have in use, few enough to count."""

RAM_PAGES: Final = 6
"""Pages of RAM beside the rings; the first and the last are guards."""

Copy = tuple[bytes, bytes, bytes]
"""The rings and their guards, the RAM of requests, and the page of the GPADL."""

_GUARD: Final = bytes([0xA5]) * PAGE
_RING: Final = 2 * PAGE


class Arena:
    """The guest's memory: two pairs of rings with guard pages between, and some RAM.

    There is a page more, for a GPADL. One is used for run after run: :meth:`reset` is cheaper than
    a new one.
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
        self.gpadl = bytearray()
        self.pair = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._memory[:] = _GUARD * (len(self._memory) // PAGE)
        # Not in place: views of the RAM may still be around after a failed run.
        self.ram = bytearray(_GUARD) * RAM_PAGES
        self.gpadl = bytearray(_GUARD)
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

    def take_back(self) -> None:
        """The guest takes the page of its GPADL for something else."""
        self.gpadl[:] = _GUARD

    def copy(self) -> Copy:
        """Copy all of it."""
        return self._memory.tobytes(), bytes(self.ram), bytes(self.gpadl)

    def put_back(self, saved: Copy) -> None:
        """Return to a copy."""
        self._memory[:] = saved[0]
        self.ram[:] = saved[1]
        self.gpadl[:] = saved[2]

    def words(self, saved: Copy) -> list[int]:
        """Return the offsets of the 32-bit words that differ from a copy; RAM counts as one."""
        now = self._memory.tobytes()
        changed = []
        if now != saved[0]:
            changed = [
                at for at in range(0, len(now), 4) if now[at : at + 4] != saved[0][at : at + 4]
            ]
        beside = bytes(self.ram), bytes(self.gpadl)
        return changed if beside == saved[1:] else [*changed, len(now)]

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
        word = ledger.gpadl_word.to_bytes(4, "little") if ledger.gpadl else _GUARD[:4]
        if self.gpadl != word + _GUARD[4:]:
            raise Violation(Symptom.MEMORY, "the page of a GPADL was written, or was not")


class Server:
    """A VSP on one channel: it traces its state callbacks, and answers as it is told."""

    def __init__(
        self,
        ledger: Ledger,
        setup: Setup,
        boundary: Callable[[], None],
        *,
        hold: int,
        restored_open: bool,
    ) -> None:
        """Start as a VSP does in a new process; ``boundary`` is called at the end of callbacks."""
        self.ledger = ledger
        self.setup = setup
        self.hold = hold
        """0: answer at once. 1: hold, and complete in EvtSuspend. 2: hold beyond EvtSuspend too."""
        self.held: list[tuple[IncomingPacket, Request, list[memoryview]]] = []
        self.quota = 1024
        self.deferring = 0
        """How many requests are to be deferred."""
        self.again: tuple[IncomingPacket, Request] | None = None
        """The request that has to come once more, and before any other."""
        self.view: PageView | None = None
        """The mapped GPADL."""
        called = setup.inferred.opened is OpenedOnRestore.CALLED
        self.phase = "opened" if restored_open and not called else "closed"
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
        if self.setup.pipe:
            channel.init_set_flags(InitFlags.IS_PIPE)
        if self.setup.force_new:
            channel.server_init_set_flags(ServerInitFlags.FORCE_NEW_CHANNEL)
        if self.registered:
            channel.init_set_save_restore_packet_callbacks(self._save, self._restore)

    @property
    def registered(self) -> bool:
        """Whether it has save and restore callbacks."""
        return self.setup.inferred.unregistered is UnregisteredSave.REFUSED

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
        self.view = None
        self.ledger.closed()

    def _suspend(self, _: ServerChannel) -> None:
        self._moves("suspended", "running")
        if self.again is not None:
            raise Violation(
                Symptom.CALLBACK, f"request {self.again[1].number} was to come before EvtSuspend"
            )
        if self.hold != 2:
            self.complete(2)

    @property
    def may_send(self) -> bool:
        """Whether EvtSuspend has not forbidden it."""
        return self.phase != "suspended" and len(self.ledger.in_use) < MAXIMUM_PACKETS

    # Incoming.

    def _process(self, _: ServerChannel, packet: IncomingPacket) -> None:
        early = self.setup.inferred.first_packets is FirstPackets.BEFORE
        if self.phase != "running" and not (early and self.phase == "started"):
            raise Violation(Symptom.CALLBACK, f"a packet was delivered while {self.phase}")
        request = self._request(packet)
        views: list[memoryview] = []
        if self._puts_off(packet, request):
            self._boundary()
            return
        if request.external is not None:
            try:
                views = self._external_data(packet, request)
            except ExternalDataPending:
                self._pends(packet, request)
                self._boundary()
                return
        if self.hold:
            self.held.append((packet, request, views))
        else:
            self._complete(packet, request, views)
        self._boundary()
        if self.phase == "suspended" and self.hold != 2:
            self.complete(2)

    def _request(self, packet: IncomingPacket) -> Request:
        if self.again is not None:
            before, request = self.again
            if packet is not before:
                raise Violation(
                    Symptom.ORDER, f"a packet came, request {request.number} was to come once more"
                )
            if not packet.at_passive:
                raise Violation(Symptom.CALLBACK, "a deferred packet did not come at PASSIVE")
            self.again = None
            return request
        if len(self.held) >= self.quota:
            raise Violation(Symptom.CALLBACK, f"a packet came beyond the quota of {self.quota}")
        return self.ledger.vsp_gets(packet.payload, packet.completion_requested)

    def _puts_off(self, packet: IncomingPacket, request: Request) -> bool:
        """Defer a packet, if it was told to."""
        if not self.deferring or packet.at_passive:
            return False
        self.deferring -= 1
        packet.defer()
        self.again = packet, request
        return True

    def _pends(self, packet: IncomingPacket, request: Request) -> None:
        if self.setup.inferred.pending is PendingPacket.HELD:
            self.again = packet, request
        else:
            self.ledger.vsp_has_it_not_yet(request)

    @staticmethod
    def _external_data(packet: IncomingPacket, request: Request) -> list[memoryview]:
        assert request.external is not None
        views = packet.external_data()
        data = b"".join(map(bytes, views))
        if data != bytes([request.number & 0xFF]) * request.external.size:
            raise Violation(Symptom.BYTES, f"request {request.number}: other external data")
        return views

    def complete(self, which: int) -> None:
        """Complete held requests: 0 the oldest, 1 the newest, 2 all that are held now or come."""
        while self.held:
            self._complete(*self.held.pop(-1 if which == 1 else 0))
            if which != 2:
                return

    def _complete(self, packet: IncomingPacket, request: Request, views: list[memoryview]) -> None:
        if request.external is not None:
            answer = bytes([~request.number & 0xFF]) * request.external.size
            at = 0
            for view in views:
                view[:] = answer[at : at + len(view)]
                at += len(view)
            self.ledger.ram[request.external.place] = answer
            self.ledger.slots.discard(request.external.page)
        self.ledger.vsp_completes(request)
        packet.complete(completion(request.number))

    def fail(self) -> None:
        """Fail the oldest held request."""
        if self.held:
            packet, request, _ = self.held.pop(0)
            self.ledger.vsp_fails(request)
            packet.fail()

    # Outgoing.

    def send(self, channel: ServerChannel, filler: int, waits: bool) -> None:
        """Send a packet, on a used packet object now and then."""
        waits = waits and not self.setup.pipe
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
            # The first answer is too small where a third call is allowed.
            grows = self.setup.inferred.growing is GrowingPacket.ASKED_AGAIN and not size
            return SavedPacket(
                NtStatus.BUFFER_TOO_SMALL, bytes_needed=len(data) // 2 if grows else len(data)
            )
        return SavedPacket(NtStatus.SUCCESS, data)

    def _restore(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        number = number_of(restored.save_buffer)
        self._check_save_buffer(number, restored.save_buffer)
        if number not in self.ledger.in_use or number in self.restored:
            raise Violation(Symptom.TWICE, f"packet {number} was restored, and is not in use")
        if self._drops(number, restored.lib_buffer):
            return NtStatus.SUCCESS
        packet = channel.packet_allocate()
        packet.context = number
        packet.set_completion_routine(self._routine)
        status = packet.restore(restored.lib_buffer)
        if status.is_success:
            self.restored.append(number)
        else:
            packet.free()
        return status

    def _check_save_buffer(self, number: int, data: bytes) -> None:
        wanted = blob(number)
        if self.setup.inferred.save_size is SaveBufferSize.ROUNDED_UP:
            wanted += bytes(-len(wanted) % 64)
        if data != wanted:
            raise Violation(Symptom.BYTES, f"packet {number}: SaveBuf is not what was saved")

    def _drops(self, number: int, lib_buffer: bytes) -> bool:
        """Do without a packet now and then, where that is allowed."""
        inferred = self.setup.inferred
        if inferred.unrestored is UnrestoredPacket.REFUSED or number % 3:
            return False
        queued = decode_packet_record(lib_buffer).place is SavedPlace.QUEUED
        if not queued and inferred.unknown is UnknownCompletion.FAULT:
            # The guest's completion would stop the queue.
            return False
        self.ledger.disown(number, unsent=queued)
        return True

    # The GPADL.

    def map(self, channel: ServerChannel, mapping: str) -> None:
        """Map the guest's GPADL, which has to fail if it is mapped, or being torn down."""
        ledger = self.ledger
        possible = bool(ledger.gpadl) and not ledger.torn_down and self.view is None
        try:
            view = channel.map_gpadl(ledger.gpadl, read_only=mapping == "r")
        except KmclError as error:
            if possible:
                raise Violation(Symptom.STATUS, f"the GPADL cannot be mapped: {error}") from error
            return
        if not possible:
            raise Violation(Symptom.STATUS, "a GPADL was mapped twice, or is the guest's again")
        self.view, ledger.mapping = view, mapping

    def touch(self) -> None:
        """Read the mapped page, and write to it, or be refused."""
        if self.view is None:
            return
        ledger = self.ledger
        if self.view.load_u32(0) != ledger.gpadl_word:
            raise Violation(Symptom.MEMORY, "a mapped GPADL does not show the guest's page")
        try:
            self.view.store_u32(0, ledger.gpadl_word + 1)
        except ReadOnlyMemory:
            if ledger.mapping != "r":
                raise
            return
        if ledger.mapping == "r":
            raise Violation(Symptom.MEMORY, "a mapping for reading only was written")
        ledger.gpadl_word += 1

    def unmap(self, channel: ServerChannel, *, for_good: bool) -> None:
        """Unmap; unless ``for_good`` it wants to map again after the restore."""
        if self.view is not None:
            # First: a teardown that waits goes on within the call.
            self.view = None
            channel.unmap_gpadl(self.ledger.gpadl)
            if self.ledger.torn_down:
                raise Violation(Symptom.STUCK, "a teardown does not go on after the unmap")
            if for_good:
                self.ledger.mapping = ""

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
