# SPDX-License-Identifier: MIT
"""The guest of an explored run: a driver that can be stopped after any access to a control page.

Each operation is a generator that yields after each load or store of a control word (and between,
at nothing else: the copying of packet data can be seen by nobody before the index is stored). A
generator that is put aside is a virtual CPU that stands still; it outlives the host's processes, as
the guest's memory does.

The driver sleeps unless it is interrupted, or has scheduled itself because it stopped reading
before the ring was empty (a NAPI poll, a tasklet). It writes as much as there is room for and asks
for a signal when there is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

from emulator.conformance.ledger import (
    PAGE,
    External,
    Ledger,
    Request,
    body,
    completion,
    framed,
)
from emulator.model.driver import COMPLETION, GPA_DIRECT, IN_BAND
from emulator.model.ring import (
    WORD_IN,
    WORD_MASK,
    WORD_OUT,
    Fence,
    GuestReader,
    GuestRing,
    GuestWriter,
    RawPacket,
    Steps,
    Store,
    build_packet,
    gpa_direct_header,
)

_NO_TRANSACTION = 0xDEAD_BEEF_0000_0000
"""An id that no host counts up to."""

T = TypeVar("T")
Walk = Generator[None, None, T]


def walk(ring: GuestRing, steps: Steps[T]) -> Walk[T]:
    """Carry an operation out, and yield after each access but fences."""
    try:
        access = next(steps)
        while True:
            answer = ring.perform(access)
            if not isinstance(access, Fence):
                yield
            access = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _store(word: int, value: int) -> Steps[None]:
    yield Store(word, value)


class Guest:
    """A guest's half of one channel; the requests and answers it has not written wait in queues."""

    def __init__(self, ledger: Ledger, doorbell: Callable[[], None], ram: bytearray) -> None:
        """Not open; ``doorbell`` is called when it rings."""
        self.ledger = ledger
        self.irq = 0
        """Interrupts on their way."""
        self.scheduled = False
        """It will run without an interrupt."""
        self._doorbell = doorbell
        self._ram = ram
        self._requests: deque[Request] = deque()
        self._owed: deque[tuple[int, int]] = deque()
        self._answers: deque[tuple[int, int]] = deque()

    def open(self, up: memoryview, down: memoryview, offset: int) -> None:
        """Make both rings, empty, with their indices at ``offset``."""
        self.up, self.down = (GuestRing([memory[:PAGE], memory[PAGE:]]) for memory in (up, down))
        for ring in (self.up, self.down):
            ring.initialise()
            ring.control[WORD_IN] = ring.control[WORD_OUT] = offset
        self._writer, self._reader = GuestWriter(self.up), GuestReader(self.down)

    def closed(self) -> None:
        """Forget all that concerned the connection."""
        self.irq = 0
        self.scheduled = False
        self._requests.clear()
        self._owed.clear()
        self._answers.clear()

    @property
    def owes(self) -> bool:
        """Whether there are packets of the host that it has not begun to complete."""
        return bool(self._owed)

    @property
    def waits_for_room(self) -> bool:
        """Whether requests or answers are not written for want of room."""
        return bool(self._requests or self._answers)

    # Requests.

    def ask(self, count: int, filler: int, wants: bool) -> Walk[None]:
        """Write requests, each published for itself."""
        for _ in range(count):
            self._requests.append(self._new(filler, wants))
        yield from self._write()

    def batch(self, count: int, filler: int, wants: bool) -> Walk[None]:
        """Write requests published together; where they find no room, one by one."""
        requests = [self._new(filler, wants) for _ in range(count)]
        if self.waits_for_room or not (yield from self._put_requests(requests)):
            self._requests.extend(requests)

    def external(self, size: int) -> Walk[None]:
        """Write a GPA-direct request, if a page of RAM is free for it."""
        page = next((page for page in range(1, 5) if page not in self.ledger.slots), None)
        if page is None or self.ledger.pipe:
            return
        self.ledger.slots.add(page)
        external = External(page, size)
        request = self._new(0, True, external)
        self._ram[external.place] = self.ledger.ram[external.place] = (
            bytes([request.number & 0xFF]) * size
        )
        self._requests.append(request)
        yield from self._write()

    def _new(self, filler: int, wants: bool, external: External | None = None) -> Request:
        self.ledger.requests += 1
        wants = wants and not self.ledger.pipe
        return Request(self.ledger.requests, filler, wants, external)

    def stray(self) -> Walk[None]:
        """Complete a transaction that nobody has begun."""
        if (yield from self._put(build_packet(COMPLETION, _NO_TRANSACTION, completion(0)))):
            self.ledger.strays += 1

    # Writing.

    def _write(self) -> Walk[None]:
        while self._answers:
            transaction_id, number = self._answers[0]
            self.ledger.guest_answers(number)
            packet = build_packet(COMPLETION, transaction_id, completion(number))
            if not (yield from self._put(packet)):
                self.ledger.answered.discard(number)
                return
            self._answers.popleft()
        while self._requests:
            if not (yield from self._put_requests([self._requests[0]])):
                return
            self._requests.popleft()

    def _put_requests(self, requests: list[Request]) -> Walk[bool]:
        # Noted first: the host may read them before this guest runs on.
        for request in requests:
            self.ledger.guest_writes(request)
        done = yield from self._put(*(_packet(each, self.ledger.pipe) for each in requests))
        if not done:
            self.ledger.guest_found_no_room(len(requests))
        return done

    def _put(self, *packets: bytes) -> Walk[bool]:
        signal = yield from walk(self.up, self._writer.put_steps(packets))
        if signal is None:
            needed = sum(len(packet) + 8 for packet in packets)
            if not (yield from walk(self.up, self._writer.wait_steps(needed))):
                return False
            signal = yield from walk(self.up, self._writer.put_steps(packets))
            assert signal is not None
        if signal:
            self._doorbell()
        return True

    # Reading.

    def interrupt(self) -> Walk[None]:
        """Take the interrupt: read with the interrupt masked until the ring is empty, then write.

        Does nothing if there is no interrupt and it has not scheduled itself.
        """
        if not (self.irq or self.scheduled):
            return
        self.irq = max(self.irq - 1, 0)
        self.scheduled = False
        while True:
            yield from walk(self.down, _store(WORD_MASK, 1))
            while (yield from self._take()):
                pass
            if not (yield from walk(self.down, self._reader.idle_steps())):
                break
        yield from self._write()

    def read(self, count: int) -> Walk[None]:
        """Read up to ``count`` packets, and schedule itself if that left some."""
        for _ in range(count):
            if not (yield from self._take()):
                return
        self.scheduled = True

    def mask(self) -> Walk[None]:
        """Ask for no interrupts, and schedule itself."""
        self.scheduled = True
        yield from walk(self.down, _store(WORD_MASK, 1))

    def unmask(self) -> Walk[None]:
        """Ask for interrupts, and stay scheduled only if there is something to read."""
        self.scheduled = True
        if not (yield from walk(self.down, self._reader.idle_steps())):
            self.scheduled = self.waits_for_room

    def answer(self, which: int) -> Walk[None]:
        """Complete packets of the host: 0 the oldest, 1 the newest, 2 all."""
        if self._owed:
            if which == 2:
                self._answers.extend(self._owed)
                self._owed.clear()
            else:
                self._answers.append(self._owed.pop() if which else self._owed.popleft())
            yield from self._write()

    def _take(self) -> Walk[bool]:
        taken = yield from walk(self.down, self._reader.take_steps())
        if taken is None:
            return False
        packet, signal = taken
        if signal:
            self._doorbell()
        self._handle(packet)
        return True

    def _handle(self, packet: RawPacket) -> None:
        if packet.type == COMPLETION:
            self.ledger.guest_reads_completion(packet.transaction_id, packet.payload)
            return
        number = self.ledger.guest_reads_packet(
            packet.transaction_id, bool(packet.flags), packet.payload
        )
        if packet.flags:
            self._owed.append((packet.transaction_id, number))


def _packet(request: Request, pipe: bool) -> bytes:
    payload = body(request.number, request.filler)
    if pipe:
        payload = framed(payload)
    flags = int(request.completion)
    if request.external is None:
        return build_packet(IN_BAND, request.number, payload, flags=flags)
    size = request.external.size
    header = gpa_direct_header((size, PAGE - size, [request.external.page]))
    return build_packet(GPA_DIRECT, request.number, payload, header=header, flags=flags)
