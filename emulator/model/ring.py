# SPDX-License-Identifier: MIT
"""The guest's ends of a channel's rings: writes guest-to-host, reads host-to-guest.

Written from the tables and from what Linux guests do (`drivers/hv/ring_buffer.c`), in that file's
terms, and not from `emulator.ring`: the two check each other. So it has its own arithmetic (the
space is "the whole ring less what is used" and must be *more* than a packet), its own packet
bytes and its own copy loops.

Every operation is a generator that yields the accesses it makes to the control page and gets the
loaded value back. `GuestRing.run` carries them out at once; the interleaving test carries them
out one by one, and late.
"""

import struct
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

WORD_IN, WORD_OUT, WORD_MASK, WORD_PENDING, WORD_FEATURES = 0, 1, 2, 3, 16


@dataclass(frozen=True)
class Load:
    """Load the control word with this index."""

    word: int


@dataclass(frozen=True)
class Store:
    """Store the control word with this index."""

    word: int
    value: int


@dataclass(frozen=True)
class Fence:
    """Everything before is done before anything after."""


Access = Load | Store | Fence
Steps = Generator[Access, int, T]


@dataclass(frozen=True)
class RawPacket:
    """A packet as it lies on the ring: the descriptor's fields, the bytes after it, the trailer."""

    type: int
    data_offset: int
    flags: int
    transaction_id: int
    body: bytes
    """From byte 16 of the packet to its trailer."""
    trailer: bytes

    @property
    def payload(self) -> bytes:
        """What the VMBus header says is payload, padding to 8 bytes included."""
        return self.body[self.data_offset - 16 :]


def build_packet(
    packet_type: int,
    transaction_id: int,
    payload: bytes = b"",
    *,
    header: bytes = b"",
    flags: int = 0,
    offset8: int | None = None,
    length8: int | None = None,
) -> bytes:
    """Build a packet without its trailer; `offset8` and `length8` may lie."""
    body = header + payload
    while len(body) % 8:
        body += b"\0"
    if offset8 is None:
        offset8 = 2 + len(header) // 8
    if length8 is None:
        length8 = 2 + len(body) // 8
    return struct.pack("<HHHHQ", packet_type, offset8, length8, flags, transaction_id) + body


def gpa_direct_header(*ranges: tuple[int, int, Sequence[int]], count: int | None = None) -> bytes:
    """Build the header of a GPA-direct packet from (length, offset, page numbers)."""
    header = struct.pack("<II", 0xDEAD, len(ranges) if count is None else count)
    for length, offset, pfns in ranges:
        header += struct.pack("<II", length, offset)
        header += b"".join(pfn.to_bytes(8, "little") for pfn in pfns)
    return header


def transfer_header(set_id: int, *ranges: tuple[int, int], count: int | None = None) -> bytes:
    """Build the header of a transfer-page packet from (byte count, byte offset)."""
    header = struct.pack("<HHI", set_id, 0xAB00, len(ranges) if count is None else count)
    return header + b"".join(struct.pack("<II", *pair) for pair in ranges)


class GuestRing:
    """One ring in the guest's own pages: a control page and data pages."""

    def __init__(self, pages: Sequence[memoryview]) -> None:
        self.control = pages[0].cast("I")
        self.pages = list(pages[1:])
        self.size = 4096 * len(self.pages)
        self.lock = threading.Lock()

    def initialise(self) -> None:
        """Do what a guest does before it opens a channel (hv_ringbuffer_init)."""
        self.control[:] = memoryview(bytes(4096)).cast("I")
        self.control[WORD_FEATURES] = 1

    def get(self, position: int, length: int) -> bytes:
        """Copy out of the data, around the end."""
        data = b""
        while len(data) < length:
            at = (position + len(data)) % self.size
            wanted = length - len(data)
            data += bytes(self.pages[at // 4096][at % 4096 : at % 4096 + wanted])
        return data

    def put(self, position: int, data: bytes) -> None:
        """Copy into the data, around the end."""
        while data:
            at = position % self.size
            room = min(4096 - at % 4096, len(data))
            self.pages[at // 4096][at % 4096 : at % 4096 + room] = data[:room]
            data = data[room:]
            position += room

    def space(self, in_offset: int, out_offset: int) -> int:
        """What Linux calls bytes_avail_towrite: the ring less what is used."""
        return self.size - (in_offset - out_offset) % self.size

    def run(self, steps: Steps[T]) -> T:
        """Carry an operation out at once; return its result."""
        answer = 0
        started = False
        while True:
            try:
                access = steps.send(answer) if started else next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
            started = True
            answer = self.perform(access)

    def perform(self, access: Access) -> int:
        """Carry one access out; the value loaded, else 0."""
        match access:
            case Load(word):
                return self.control[word]
            case Store(word, value):
                self.control[word] = value
            case Fence():
                # An atomic read-modify-write, which is a full fence on x86.
                with self.lock:
                    pass
        return 0


class GuestWriter:
    """The guest's end of the guest-to-host ring."""

    def __init__(self, ring: GuestRing) -> None:
        self.ring = ring
        self.position = ring.control[WORD_IN]

    def put_steps(self, packets: Sequence[bytes], *, fence: bool = True) -> Steps[bool | None]:
        """Write whole packets as one batch: None without room for all, else whether to signal."""
        total = sum(len(packet) + 8 for packet in packets)
        seen_out = yield Load(WORD_OUT)
        if self.ring.space(self.position, seen_out) <= total:
            return None
        old = self.position
        for packet in packets:
            start = self.position
            self.ring.put(start, packet + b"\0\0\0\0" + start.to_bytes(4, "little"))
            self.position = (start + len(packet) + 8) % self.ring.size
        yield Store(WORD_IN, self.position)
        if fence:
            yield Fence()
        if (yield Load(WORD_MASK)):
            return False
        return (yield Load(WORD_OUT)) == old

    def wait_steps(self, needed: int, *, fence: bool = True) -> Steps[bool]:
        """Ask to be signalled when `needed` bytes are free; True if they are already."""
        yield Store(WORD_PENDING, needed)
        if fence:
            yield Fence()
        seen_out = yield Load(WORD_OUT)
        return self.ring.space(self.position, seen_out) > needed

    def put(self, *packets: bytes) -> bool | None:
        """Carry :meth:`put_steps` out at once."""
        return self.ring.run(self.put_steps(packets))


class GuestReader:
    """The guest's end of the host-to-guest ring."""

    def __init__(self, ring: GuestRing) -> None:
        self.ring = ring
        self.position = ring.control[WORD_OUT]

    def take_steps(self, *, fence: bool = True) -> Steps[tuple[RawPacket, bool] | None]:
        """Take one packet and release its space: the packet, and whether to signal the host."""
        seen_in = yield Load(WORD_IN)
        if seen_in == self.position:
            return None
        start = self.position
        kind, offset8, length8, flags, transaction_id = struct.unpack(
            "<HHHHQ", self.ring.get(start, 16)
        )
        body = self.ring.get(start + 16, length8 * 8 - 16)
        trailer = self.ring.get(start + length8 * 8, 8)
        packet = RawPacket(kind, offset8 * 8, flags, transaction_id, body, trailer)
        taken = length8 * 8 + 8
        self.position = (start + taken) % self.ring.size
        yield Store(WORD_OUT, self.position)
        if fence:
            yield Fence()
        pending = yield Load(WORD_PENDING)
        if not pending:
            return packet, False
        seen_in = yield Load(WORD_IN)
        return packet, linux_reader_signals(pending, self.ring.space(seen_in, self.position), taken)

    def idle_steps(self, *, fence: bool = True) -> Steps[bool]:
        """Unmask before going to sleep; True if a packet came meanwhile."""
        yield Store(WORD_MASK, 0)
        if fence:
            yield Fence()
        return (yield Load(WORD_IN)) != self.position

    def take(self) -> tuple[RawPacket, bool] | None:
        """Carry :meth:`take_steps` out at once."""
        return self.ring.run(self.take_steps())


def linux_reader_signals(pending: int, space_now: int, bytes_read: int) -> bool:
    """Tell whether a reader signals, in the words of Linux's hv_pkt_iter_close."""
    if not pending or space_now <= pending:
        return False
    return not space_now - bytes_read > pending
