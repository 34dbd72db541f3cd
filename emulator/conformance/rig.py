# SPDX-License-Identifier: MIT
"""A channel on rings in anonymous memory, a VSP that notes its calls, and a guest.

The rig outlives its channel: :meth:`Rig.save` takes a stream, :meth:`Rig.restored` makes a new
channel, VSP and provider over the same memory, as a new process would.

Signals are not delivered by magic. The channel's interrupt sets ``guest_irq``, the guest's doorbell
sets ``doorbell``; a test that forgets to deliver one, or a channel that forgets to raise one, gets
stuck.
"""

from __future__ import annotations

import mmap
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from emulator.kmcl import (
    ExternalDataPending,
    IncomingPacket,
    Inferred,
    OfferParams,
    OutgoingPacket,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    StateChangeCallbacks,
)
from emulator.kmcl.inferred import DEFAULTS
from emulator.memory import GpaError, PageView, page_view
from emulator.model.driver import GuestEnds
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

INTERFACE = uuid.UUID("b1a1c3f0-5c2e-4b6e-9d53-0d9f5a6c7e21")
INSTANCE = uuid.UUID("00000000-0000-4000-8000-000000000001")
PAGE = 4096


_chosen: Inferred = DEFAULTS


@contextmanager
def choosing(inferred: Inferred) -> Iterator[None]:
    """Have the channels of each :class:`Rig` made in here do this where no document says what."""
    global _chosen
    before, _chosen = _chosen, inferred
    try:
        yield
    finally:
        _chosen = before


def nothing() -> None:
    """Stand in for a ``done`` that a test does not look at."""


@dataclass
class Port:
    """The provider."""

    signalled: Callable[[], None] = nothing
    offers: list[OfferParams] = field(default_factory=list)
    revoking: list[Callable[[], None]] = field(default_factory=list)
    hold_revoke: bool = False
    at_offer: Callable[[ServerChannel], None] | None = None
    waiting_turns: deque[ServerChannel] = field(default_factory=deque)
    ram: bytearray = field(default_factory=lambda: bytearray(4 * PAGE))
    ram_is_there: bool = True
    gpadls: dict[int, PageView] = field(default_factory=dict)

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Note the offer, and do what was planned for it."""
        self.offers.append(params)
        if self.at_offer is not None:
            self.at_offer(channel)

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        """Revoke at once, or when told to if that is held back."""
        self.revoking.append(done)
        if not self.hold_revoke:
            self.finish_revoke()

    def finish_revoke(self) -> None:
        """End the latest revoke."""
        self.revoking.pop()()

    def signal(self, channel: ServerChannel) -> None:
        """Pass the interrupt on."""
        self.signalled()

    def poll_again(self, channel: ServerChannel) -> None:
        """Note who wants another turn."""
        self.waiting_turns.append(channel)

    def take_turn(self) -> bool:
        """Do what one channel asked to be called for again; False if there is none."""
        if not self.waiting_turns:
            return False
        self.waiting_turns.popleft().port_interrupt()
        return True

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """Return the pages of one of :attr:`gpadls`."""
        return self.gpadls[handle]

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Nothing translates code here."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """Return slices of the few pages there are beside the rings, if they are there."""
        if not self.ram_is_there:
            raise ExternalDataPending
        views: list[memoryview] = []
        for gpa_range in ranges:
            start = gpa_range.pfns[0] * PAGE + gpa_range.offset
            if start + gpa_range.length > len(self.ram):
                raise GpaError(start, gpa_range.length)
            views.append(memoryview(self.ram)[start : start + gpa_range.length])
        return views


class Vsp:
    """A VSP that traces its callbacks and holds or answers what comes."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.trace: list[str] = []
        self.received: list[bytes] = []
        self.held: list[IncomingPacket] = []
        self.completed: list[tuple[object, NtStatus, bytes | None]] = []
        self.faults: list[str] = []
        self.batches: list[int] = []
        self.save_calls: list[tuple[object, int]] = []
        self.restored: list[RestoredPacket] = []
        self.open_status = NtStatus.SUCCESS
        self.drain_in_suspend = True
        self.hooks: dict[str, Callable[[ServerChannel], None]] = {}
        self.on_packet: Callable[[IncomingPacket], None] | None = None
        self.on_completed: Callable[[OutgoingPacket], None] | None = None
        self.save_hook: Callable[[OutgoingPacket, int], SavedPacket] | None = None
        self.restore_hook: Callable[[ServerChannel, RestoredPacket], NtStatus] | None = None

    def _called(self, name: str, channel: ServerChannel) -> None:
        self.trace.append(name)
        if hook := self.hooks.get(name):
            hook(channel)

    def opened(self, channel: ServerChannel) -> NtStatus:
        """EvtChannelOpened."""
        self._called("opened", channel)
        return self.open_status

    def suspend(self, channel: ServerChannel) -> None:
        """EvtChannelSuspend."""
        self._called("suspend", channel)
        if self.drain_in_suspend:
            self.drain()

    def process(self, _: ServerChannel, packet: IncomingPacket) -> None:
        """EvtChannelProcessPacket: answer, hold, or do what the hook does."""
        self.trace.append("packet")
        self.received.append(packet.payload)
        if self.on_packet is not None:
            self.on_packet(packet)
        elif self.answer:
            packet.complete(b"ok:" + packet.payload)
        else:
            self.held.append(packet)

    def drain(self) -> None:
        """Complete all that is held, oldest first."""
        while self.held:
            packet = self.held.pop(0)
            packet.complete(b"ok:" + packet.payload)

    def routine(self, packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        """EvtVmbPacketCompletionRoutine: note it and free the packet."""
        self.completed.append((packet.context, status, data))
        packet.free()
        if self.on_completed is not None:
            self.on_completed(packet)

    def save_packet(self, _: ServerChannel, packet: OutgoingPacket, size: int) -> SavedPacket:
        """EvtSavePacket: the packet's name is what the VSP has of its own."""
        self.save_calls.append((packet.context, size))
        if self.save_hook is not None:
            return self.save_hook(packet, size)
        data = str(packet.context).encode()
        if size < len(data):
            return SavedPacket(NtStatus.BUFFER_TOO_SMALL, bytes_needed=len(data))
        return SavedPacket(NtStatus.SUCCESS, data)

    def restore_packet(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        """EvtRestorePacket; SaveBuf may be longer than what was saved."""
        self.restored.append(restored)
        if self.restore_hook is not None:
            return self.restore_hook(channel, restored)
        packet = channel.packet_allocate()
        packet.context = restored.save_buffer.rstrip(b"\0").decode()
        packet.set_completion_routine(self.routine)
        status = packet.restore(restored.lib_buffer)
        if not status.is_success:
            packet.free()
        return status

    def configure(self, channel: ServerChannel) -> None:
        """Make all the settings a VSP makes."""
        channel.init_set_friendly_name("test")
        channel.init_set_target_interface_id(INTERFACE, INSTANCE)
        channel.init_set_state_change_callbacks(
            StateChangeCallbacks(
                opened=self.opened,
                closed=lambda channel: self._called("closed", channel),
                suspend=self.suspend,
                started=lambda channel: self._called("started", channel),
                post_started=lambda channel: self._called("post_started", channel),
            )
        )
        channel.init_set_process_packet_callbacks(
            self.process, lambda _, count: self.batches.append(count)
        )
        channel.init_set_save_restore_packet_callbacks(self.save_packet, self.restore_packet)
        channel.fault_callback = lambda _, text: self.faults.append(text)


class Rig:
    """A guest, and the channel of the current process."""

    def __init__(
        self, pages: int = 1, *, answer: bool = True, inferred: Inferred | None = None
    ) -> None:
        """Make rings of ``pages`` data pages each way, and a configured, Disabled channel.

        ``inferred`` is what :func:`choosing` says, unless it is given.
        """
        self.inferred = inferred or _chosen
        size = (1 + pages) * PAGE
        self.up = memoryview(mmap.mmap(-1, size))
        self.down = memoryview(mmap.mmap(-1, size))
        self.guest_irq = False
        self.doorbell = False
        self.guest = GuestEnds(self.up, self.down, self._ring_doorbell)
        self._process(answer)

    def _process(self, answer: bool) -> None:
        self.port = Port(self._interrupt)
        self.vsp = Vsp(answer)
        self.channel = ServerChannel(self.port, self.inferred)
        self.vsp.configure(self.channel)

    def _interrupt(self) -> None:
        self.guest_irq = True

    def _ring_doorbell(self) -> None:
        self.doorbell = True

    def rings(self) -> tuple[IncomingRing, OutgoingRing]:
        """Make the host's ring ends of this process."""
        return IncomingRing(page_view([self.up])), OutgoingRing(page_view([self.down]))

    def open(self) -> NtStatus:
        """Have the guest open the channel."""
        return self.channel.port_opened(*self.rings())

    def running(self) -> Rig:
        """Enable, open and start."""
        self.channel.enable()
        assert self.open() is NtStatus.SUCCESS
        self.channel.start()
        return self

    def send(self, name: str, *, wait: bool = False, size: int = 0) -> OutgoingPacket:
        """Send a packet that is known by ``name``, padded to ``size`` bytes."""
        packet = self.channel.packet_allocate()
        packet.context = name
        packet.set_completion_routine(self.vsp.routine)
        packet.send(name.encode().ljust(size, b"."), wait_for_completion=wait)
        return packet

    def fill(self) -> list[str]:
        """Send packets of 1000 bytes until one is queued; returns their names."""
        names: list[str] = []
        while not self.channel.stats().queued_no_wait:
            names.append(f"fill{len(names)}")
            self.send(names[-1], size=1000)
        return names

    def ring(self) -> None:
        """Deliver the guest's doorbell, if it rang."""
        rang, self.doorbell = self.doorbell, False
        if rang:
            self.channel.port_interrupt()

    def interrupted(self) -> bool:
        """Take the interrupt of the guest, if there is one."""
        taken, self.guest_irq = self.guest_irq, False
        return taken

    def pause(self) -> bool:
        """Pause; whether that was over at once."""
        ends: list[bool] = []
        self.channel.pause(lambda: ends.append(True))
        return bool(ends)

    def save(self, size: Callable[[], int] = lambda: 1 << 20) -> list[bytes]:
        """Save into buffers whose sizes come from ``size``, larger where it must be."""
        assert self.channel.save_begin() is NtStatus.SUCCESS
        pieces: list[bytes] = []
        needed = 0
        while True:
            result = self.channel.save_continue(max(size(), needed))
            if result.data:
                pieces.append(result.data)
            if result.status is NtStatus.SUCCESS:
                break
            assert result.status in (NtStatus.BUFFER_OVERFLOW, NtStatus.BUFFER_TOO_SMALL)
            needed = result.bytes_required if result.status is NtStatus.BUFFER_TOO_SMALL else 0
        self.channel.save_end()
        return pieces

    def new_process(self, *, was_open: bool = True, answer: bool = True) -> None:
        """Replace channel, VSP and provider; signals on their way are lost."""
        self.doorbell = self.guest_irq = False
        self._process(answer)
        if was_open:
            self.port.at_offer = lambda channel: channel.port_restored(*self.rings())

    def restored(self, pieces: list[bytes], *, was_open: bool = True, answer: bool = True) -> Rig:
        """Restore ``pieces`` in a new process; not started yet."""
        self.new_process(was_open=was_open, answer=answer)
        self.channel.enable()
        for number, piece in enumerate(pieces, 1):
            status = self.channel.restore_from_buffer(piece)
            more = NtStatus.MORE_PROCESSING_REQUIRED
            assert status is (more if number < len(pieces) else NtStatus.SUCCESS), (
                self.channel.restore_failure
            )
        return self

    def saved_and_restored(self, *, answer: bool = True) -> Rig:
        """Pause, save, and restore in a new process; not started yet."""
        assert self.pause()
        return self.restored(self.save(), answer=answer)
