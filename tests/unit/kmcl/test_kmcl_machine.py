# SPDX-License-Identifier: MIT
"""Random traffic between a model guest and a channel that is saved and restored at any moment.

Invariant: each transaction ends exactly once, in order where order is promised, whatever the buffer
sizes of the save, the fullness of the rings, and the signals that are late, doubled, or lost with
the process. Guest and host act only when they are signalled, so a wake-up that a part forgets shows
as a conversation that does not finish.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emulator.conformance.rig import Rig
from emulator.kmcl import IncomingPacket, OutgoingPacket, Queue, RestoredPacket, ServerChannel
from emulator.model.driver import COMPLETION, IN_BAND
from emulator.wire.ntstatus import NtStatus

SIZES = st.sampled_from([0, 1, 8, 40, 200, 900, 2500])


def number(payload: bytes) -> int:
    """Return the sequence number that each payload of the test begins with."""
    return int.from_bytes(payload[:8], "little")


def body(sequence: int, size: int) -> bytes:
    """Make a payload."""
    return sequence.to_bytes(8, "little") + bytes([sequence & 0xFF]) * size


class Conversation(RuleBasedStateMachine):
    """Both sides' books, and the moves they can make."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(answer=False)
        # The guest's books.
        self.g_next = 1
        self.g_outstanding: set[int] = set()
        self.g_backlog: deque[tuple[int, int, bool]] = deque()
        self.g_received: list[int] = []
        self.g_owed: deque[tuple[int, int]] = deque()
        self.g_answering: deque[tuple[int, int]] = deque()
        self.guest_runs = True
        # The host's books: they stand for the VSP's own saved state.
        self.h_next = 1
        self.h_sent: list[int] = []
        self.h_outstanding: set[int] = set()
        self.h_received: list[int] = []
        self.held: deque[IncomingPacket] = deque()
        self.hold = True
        self.quota = 1024
        self._wire()
        self.rig.running()

    def _wire(self) -> None:
        self.rig.vsp.on_packet = self._request
        self.rig.vsp.drain_in_suspend = False
        self.rig.vsp.hooks["suspend"] = lambda _: self._drain()
        self.rig.vsp.restore_hook = self._restore
        self.rig.channel.set_transaction_quota(self.quota)

    # Host.

    def _request(self, packet: IncomingPacket) -> None:
        self.h_received.append(number(packet.payload))
        if self.hold:
            self.held.append(packet)
        else:
            packet.complete(packet.payload[:8])

    def _drain(self) -> None:
        while self.held:
            packet = self.held.popleft()
            packet.complete(packet.payload[:8])

    def _completed(self, packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        sequence = packet.context
        packet.free()
        assert status is NtStatus.SUCCESS
        assert data is None or number(data) == sequence
        self.h_outstanding.remove(sequence)

    def _restore(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        packet = channel.packet_allocate()
        packet.context = int(restored.save_buffer)
        assert packet.context in self.h_outstanding
        packet.set_completion_routine(self._completed)
        return packet.restore(restored.lib_buffer)

    @property
    def active(self) -> bool:
        return self.rig.channel.queue is Queue.ON

    @precondition(lambda self: self.active)
    @rule(wait=st.booleans(), size=SIZES, count=st.integers(1, 6))
    def host_sends(self, wait: bool, size: int, count: int) -> None:
        for _ in range(count):
            packet = self.rig.channel.packet_allocate()
            packet.context = self.h_next
            packet.set_completion_routine(self._completed)
            self.h_sent.append(self.h_next)
            self.h_outstanding.add(self.h_next)
            self.h_next += 1
            packet.send(body(packet.context, size), wait_for_completion=wait)

    @rule(hold=st.booleans())
    def host_changes_its_mind(self, hold: bool) -> None:
        self.hold = hold

    @rule(quota=st.sampled_from([1, 2, 5, 1024]))
    def host_sets_its_quota(self, quota: int) -> None:
        self.quota = quota
        self.rig.channel.set_transaction_quota(quota)

    @precondition(lambda self: self.held)
    @rule(newest=st.booleans())
    def host_completes(self, newest: bool) -> None:
        packet = self.held.pop() if newest else self.held.popleft()
        packet.complete(packet.payload[:8])

    @rule(times=st.integers(1, 3))
    def doorbell_is_delivered(self, times: int) -> None:
        if self.rig.doorbell:
            self.rig.doorbell = False
            for _ in range(times):
                self.rig.channel.port_interrupt()

    @rule()
    def spurious_doorbell(self) -> None:
        self.rig.channel.port_interrupt()

    # Guest. It is a virtual CPU: it stands still while the machine is paused.

    @precondition(lambda self: self.active)
    @rule(size=SIZES, count=st.integers(1, 8), completion=st.booleans())
    def guest_asks(self, size: int, count: int, completion: bool) -> None:
        for _ in range(count):
            self.g_backlog.append((self.g_next, size, completion))
            self.g_next += 1
        self._guest_writes()

    def _guest_writes(self) -> None:
        """Write answers, then requests, as far as there is room; the host signals when there is."""
        while self.g_answering:
            transaction, sequence = self.g_answering[0]
            if not self.rig.guest.complete(transaction, sequence.to_bytes(8, "little")):
                return
            self.g_answering.popleft()
        while self.g_backlog:
            sequence, size, completion = self.g_backlog[0]
            if not self.rig.guest.request(sequence, body(sequence, size), completion=completion):
                return
            self.g_backlog.popleft()
            if completion:
                self.g_outstanding.add(sequence)

    @precondition(lambda self: self.active and self.rig.guest_irq)
    @rule(answer=st.booleans())
    def guest_takes_its_interrupt(self, answer: bool) -> None:
        self.rig.guest_irq = False
        for packet in self.rig.guest.take_all():
            if packet.type == COMPLETION:
                assert number(packet.payload) == packet.transaction_id
                self.g_outstanding.remove(packet.transaction_id)
            else:
                assert packet.type == IN_BAND
                sequence = number(packet.payload)
                self.g_received.append(sequence)
                if packet.flags:
                    self.g_owed.append((packet.transaction_id, sequence))
        if answer:
            self._guest_pays()
        self._guest_writes()

    def _guest_pays(self) -> None:
        self.g_answering.extend(self.g_owed)
        self.g_owed.clear()

    @precondition(lambda self: self.active and self.g_owed)
    @rule(newest=st.booleans())
    def guest_answers(self, newest: bool) -> None:
        self.g_answering.append(self.g_owed.pop() if newest else self.g_owed.popleft())
        self._guest_writes()

    # The machine.

    @precondition(lambda self: self.active)
    @rule()
    def machine_pauses(self) -> None:
        ended: list[bool] = []
        self.rig.channel.pause(lambda: ended.append(True))
        assert ended == [True]
        assert not self.held

    @precondition(lambda self: not self.active)
    @rule()
    def machine_goes_on(self) -> None:
        self.rig.channel.start()

    @precondition(lambda self: not self.active)
    @rule(data=st.data(), rounds=st.integers(1, 2))
    def machine_is_saved_and_restored(self, data: st.DataObject, rounds: int) -> None:
        sizes = st.integers(0, 3000)
        for _ in range(rounds):
            pieces = self.rig.save(lambda: data.draw(sizes))
            self.rig.new_process()
            self._wire()
            self.rig.channel.enable()
            for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
                status = self.rig.channel.restore_from_buffer(piece)
                assert status is (NtStatus.MORE_PROCESSING_REQUIRED if left else NtStatus.SUCCESS)

    @invariant()
    def in_order_and_once(self) -> None:
        assert self.h_received == [*range(1, len(self.h_received) + 1)]
        assert self.g_received == self.h_sent[: len(self.g_received)]
        assert self.rig.channel.fault is None
        assert len(self.held) == self.rig.channel.stats().held

    def teardown(self) -> None:
        """Let both sides finish, moving only when signalled."""
        if not self.active:
            self.rig.channel.start()
        self.hold = False
        while True:
            self._drain()
            if self.rig.doorbell:
                self.doorbell_is_delivered(times=1)
            elif self.rig.guest_irq:
                self.guest_takes_its_interrupt(answer=True)
            elif self.g_owed:
                self._guest_pays()
                self._guest_writes()
            else:
                break
        assert self.g_received == self.h_sent, "host packets lost"
        assert self.h_received == [*range(1, self.g_next)], "guest requests lost"
        assert self.g_outstanding == set(), "guest requests never answered"
        assert self.h_outstanding == set(), "host packets never completed"


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
