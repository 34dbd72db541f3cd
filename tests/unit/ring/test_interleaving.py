# SPDX-License-Identifier: MIT
"""No wake-up is lost, whatever the interleaving: the real host code against the model guest,
exhaustively.

Host and guest share a ring and may run at any relative speed. Each one's stores go through a store
buffer, first in first out, that only a fence or time drains (the memory model of x86, the weakest
that matters for a store before a load). The host is the code of `emulator.ring` on a view that lets
the guest run between any two of its accesses. The guest is a script over `emulator.model.ring`.
Every decision, who runs next and how much of a buffer has drained when the other side looks, is a
choice; `explore` replays a scenario once for every sequence of choices.

A schedule is a failure when both sides sleep and work is left. That the search is able to find one
is shown by leaving out the fence of either side: each scenario then has a lost wake-up.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

from emulator.memory import PageView
from emulator.memory._pure import PurePageView
from emulator.model.ring import (
    WORD_MASK,
    Access,
    Fence,
    GuestReader,
    GuestWriter,
    Load,
    Store,
    build_packet,
)
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import PacketType
from tests.unit.ring.support import WrappedView, ring_memory


class LostWakeUp(Exception):
    """Both sides sleep, and work is left."""


class Choices:
    """One sequence of decisions: a prefix to replay, then the first alternative every time."""

    def __init__(self, prefix: list[int]) -> None:
        self.taken = prefix
        self.ways: list[int] = []

    def pick(self, ways: int) -> int:
        position = len(self.ways)
        self.ways.append(ways)
        if position == len(self.taken):
            self.taken.append(0)
        return self.taken[position]


def explore(scenario: Callable[[Choices], None]) -> int:
    """Run the scenario for every sequence of choices; return how many there are."""
    prefix: list[int] = []
    runs = 0
    while True:
        choices = Choices(prefix)
        scenario(choices)
        runs += 1
        prefix, ways = choices.taken, choices.ways
        while prefix and prefix[-1] == ways[len(prefix) - 1] - 1:
            prefix.pop()
        if not prefix:
            return runs
        prefix[-1] += 1


class Sleep:
    """What a guest script yields to sleep until the host signals it."""


Script = Generator[Access | Sleep, int, None]


@dataclass
class Machine:
    """The memory, the two store buffers, the two signals, and the guest."""

    choices: Choices
    host_fences: bool = True
    host_buffer: list[tuple[int, int]] = field(default_factory=list)
    guest_buffer: list[tuple[int, int]] = field(default_factory=list)
    doorbell: bool = False
    interrupt: bool = False

    def __post_init__(self) -> None:
        view, self.guest_ring = ring_memory(PurePageView)
        self.view = HostView(view, self)
        self.script: Script | None = None
        self.next: Access | Sleep | None = None

    def start(self, script: Script) -> None:
        """Let the guest run from now on; nothing of it is carried out yet."""
        self.script = script
        self.next = next(script)

    # Memory.

    def load(self, word: int, own: list[tuple[int, int]], other: list[tuple[int, int]]) -> int:
        for stored, value in reversed(own):
            if stored == word:
                return value
        if any(stored == word for stored, _ in other):
            self.drain(other, self.choices.pick(len(other) + 1))
        return self.guest_ring.control[word]

    def drain(self, buffer: list[tuple[int, int]], count: int) -> None:
        for word, value in buffer[:count]:
            self.guest_ring.control[word] = value
        del buffer[:count]

    # The guest.

    @property
    def guest_can_run(self) -> bool:
        match self.next:
            case None:
                return False
            case Sleep():
                return self.interrupt
            case Load() | Store() | Fence():
                return True

    def run_guest(self) -> None:
        """Carry out the guest's next access that the host can tell the time of: not a store."""
        assert self.script is not None
        while True:
            access, answer = self.next, 0
            match access:
                case Load(word):
                    answer = self.load(word, self.guest_buffer, self.host_buffer)
                case Store(word, value):
                    self.guest_buffer.append((word, value))
                case Fence():
                    self.drain(self.guest_buffer, len(self.guest_buffer))
                case Sleep():
                    self.interrupt = False
                case None:
                    raise AssertionError("the guest has ended")
            try:
                self.next = self.script.send(answer)
            except StopIteration:
                self.next = None
                return
            if not isinstance(access, Store):
                return

    # The host.

    def before_host(self) -> None:
        """Let the guest do as much as the schedule wants."""
        while self.guest_can_run and self.choices.pick(2):
            self.run_guest()

    def host_waits(self) -> None:
        """Sleep until the doorbell rings."""
        while not self.doorbell:
            if not self.guest_can_run:
                raise LostWakeUp
            self.run_guest()
        self.doorbell = False

    def host_ends(self) -> None:
        """Let the guest go on until it sleeps or ends."""
        while self.guest_can_run:
            self.run_guest()


class HostView(WrappedView):
    """The host's view of the ring; the guest may run before any load or fence."""

    def __init__(self, inner: PageView, machine: Machine) -> None:
        super().__init__(inner)
        self.machine = machine

    def load_u32(self, offset: int, /) -> int:
        machine = self.machine
        machine.before_host()
        return machine.load(offset // 4, machine.host_buffer, machine.guest_buffer)

    def store_u32(self, offset: int, value: int, /) -> None:
        # No choice here: what the guest can see of a store is chosen when it loads the word.
        self.machine.host_buffer.append((offset // 4, value))

    def fence(self) -> None:
        if self.machine.host_fences:
            self.machine.before_host()
            self.machine.drain(self.machine.host_buffer, len(self.machine.host_buffer))


# Guests.


def reading_guest(machine: Machine, received: list[int], fence: bool) -> Script:
    """Read until empty, unmask, look again, sleep: hv_process_channel, vmbus_on_event."""
    reader = GuestReader(machine.guest_ring)
    while True:
        yield Store(WORD_MASK, 1)
        while (taken := (yield from reader.take_steps(fence=fence))) is not None:
            packet, signal = taken
            received.append(packet.transaction_id)
            machine.doorbell |= signal
        if not (yield from reader.idle_steps(fence=fence)):
            yield Sleep()


def writing_guest(machine: Machine, packets: list[bytes], fence: bool) -> Script:
    """Write each packet; without room, ask for it, look again, sleep."""
    writer = GuestWriter(machine.guest_ring)
    for packet in packets:
        while (signal := (yield from writer.put_steps([packet], fence=fence))) is None:
            if not (yield from writer.wait_steps(len(packet) + 8, fence=fence)):
                yield Sleep()
        machine.doorbell |= signal


# Scenarios. Each builds a machine, plays one schedule, and raises LostWakeUp if that one ends
# badly.


def host_sends(choices: Choices, host_fence: bool = True, guest_fence: bool = True) -> None:
    """The host publishes twice while the guest reads and goes to sleep."""
    machine = Machine(choices, host_fence)
    received: list[int] = []
    machine.start(reading_guest(machine, received, guest_fence))
    ring = OutgoingRing(machine.view)
    for number in (1, 2):
        assert ring.write(PacketType.IN_BAND, number, b"")
        machine.interrupt |= ring.publish()
    machine.host_ends()
    if received != [1, 2]:
        raise LostWakeUp


def host_waits_for_room(
    choices: Choices, host_fence: bool = True, guest_fence: bool = True
) -> None:
    """The host finds the ring full while the guest reads."""
    machine = Machine(choices, host_fence)
    received: list[int] = []
    ring = OutgoingRing(WrappedView(machine.view.inner))
    assert ring.write(PacketType.IN_BAND, 1, bytes(ring.capacity - 24))
    assert ring.publish()
    ring._view = machine.view
    machine.start(reading_guest(machine, received, guest_fence))
    while not ring.write(PacketType.IN_BAND, 2, bytes(1000)):
        if not ring.request_space(1024):
            machine.host_waits()
    ring.clear_space_request()
    machine.interrupt |= ring.publish()
    machine.host_ends()
    if received != [1, 2]:
        raise LostWakeUp


def host_reads_all(machine: Machine, ring: IncomingRing, wanted: int) -> None:
    """Read until empty, unmask, look again, sleep; until everything came."""
    received: list[int] = []
    while True:
        while (packet := ring.read()) is not None:
            received.append(packet.transaction_id)
            machine.interrupt |= ring.commit()
        if not ring.unmask():
            if len(received) == wanted:
                break
            machine.host_waits()
        ring.mask()
    assert received == list(range(1, wanted + 1))


def host_receives(choices: Choices, host_fence: bool = True, guest_fence: bool = True) -> None:
    """The guest writes twice while the host reads and goes to sleep."""
    machine = Machine(choices, host_fence)
    ring = IncomingRing(machine.view)
    machine.start(writing_guest(machine, [build_packet(6, n) for n in (1, 2)], guest_fence))
    ring.mask()
    host_reads_all(machine, ring, 2)


def host_goes_idle(choices: Choices, host_fence: bool = True, guest_fence: bool = True) -> None:
    """The guest writes once more while the host reads a first packet and goes to sleep."""
    machine = Machine(choices, host_fence)
    GuestWriter(machine.guest_ring).put(build_packet(6, 1))
    machine.start(writing_guest(machine, [build_packet(6, 2)], guest_fence))
    ring = IncomingRing(machine.view)
    ring.mask()
    host_reads_all(machine, ring, 2)


def guest_waits_for_room(
    choices: Choices, host_fence: bool = True, guest_fence: bool = True
) -> None:
    """The guest finds the ring full while the host reads."""
    machine = Machine(choices, host_fence)
    full = GuestWriter(machine.guest_ring)
    assert full.put(build_packet(6, 1, bytes(4096 - 8 - 8 - 24)))
    machine.start(writing_guest(machine, [build_packet(6, 2, bytes(1000))], guest_fence))
    host_reads_all(machine, IncomingRing(machine.view), 2)


def host_attaches(choices: Choices, host_fence: bool = True, guest_fence: bool = True) -> None:
    """A new host takes up a ring that the last one left masked, while the guest writes."""
    machine = Machine(choices, host_fence)
    machine.guest_ring.control[WORD_MASK] = 1
    machine.start(writing_guest(machine, [build_packet(6, 1)], guest_fence))
    ring = IncomingRing(machine.view)
    ring.attach()
    packet = ring.read()
    while packet is None:
        machine.host_waits()
        packet = ring.read()
    assert packet.transaction_id == 1


SCENARIOS = [
    host_sends,
    host_waits_for_room,
    host_goes_idle,
    pytest.param(host_receives, marks=pytest.mark.slow),
    guest_waits_for_room,
    host_attaches,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_wake_up_is_lost(scenario: Callable[[Choices], None]) -> None:
    assert explore(scenario) > 10


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(("host_fence", "guest_fence"), [(False, True), (True, False)])
def test_without_a_fence_one_is(
    scenario: Callable[[Choices, bool, bool], None], host_fence: bool, guest_fence: bool
) -> None:
    with pytest.raises(LostWakeUp):
        explore(lambda choices: scenario(choices, host_fence, guest_fence))


def test_without_the_second_look_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of `unmask`, not only its fence, is what the search checks."""

    def unmask_without_looking(ring: IncomingRing) -> bool:
        ring._view.store_u32(8, 0)
        ring._view.fence()
        return False

    monkeypatch.setattr(IncomingRing, "unmask", unmask_without_looking)
    with pytest.raises(LostWakeUp):
        explore(host_goes_idle)
