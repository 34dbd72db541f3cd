# SPDX-License-Identifier: MIT
"""A guest driver on one channel, on the ring ends of the test model."""

from __future__ import annotations

from collections.abc import Callable

from emulator.model.ring import (
    WORD_MASK,
    GuestReader,
    GuestRing,
    GuestWriter,
    RawPacket,
    build_packet,
    gpa_direct_header,
)

IN_BAND, TRANSFER_PAGES, GPA_DIRECT, CANCEL, COMPLETION = 6, 7, 9, 10, 11
PAGE = 4096


def _pages(memory: memoryview) -> list[memoryview]:
    return [memory[start : start + PAGE] for start in range(0, len(memory), PAGE)]


class GuestEnds:
    """Writes requests and completions, reads what the host sends, rings the doorbell."""

    def __init__(self, up: memoryview, down: memoryview, doorbell: Callable[[], None]) -> None:
        """Initialise both rings, as a guest does before it opens a channel."""
        self.up, self.down = GuestRing(_pages(up)), GuestRing(_pages(down))
        self._doorbell = doorbell
        self.reopen()

    def reopen(self) -> None:
        """Make the rings anew."""
        self.up.initialise()
        self.down.initialise()
        self.writer, self.reader = GuestWriter(self.up), GuestReader(self.down)

    def put(self, *packets: bytes) -> bool:
        """Write packets at once; False without room, and the host is asked to signal then."""
        signal = self.writer.put(*packets)
        if signal is None:
            needed = sum(len(packet) + 8 for packet in packets)
            if not self.up.run(self.writer.wait_steps(needed)):
                return False
            signal = self.writer.put(*packets)
            assert signal is not None
        if signal:
            self._doorbell()
        return True

    def request(
        self, transaction_id: int, payload: bytes = b"", *, completion: bool = True
    ) -> bool:
        """Send an in-band request."""
        return self.put(request(transaction_id, payload, completion=completion))

    def external(self, transaction_id: int, *ranges: tuple[int, int, list[int]]) -> bool:
        """Send a GPA-direct request."""
        header = gpa_direct_header(*ranges)
        return self.put(build_packet(GPA_DIRECT, transaction_id, header=header, flags=1))

    def complete(self, transaction_id: int, payload: bytes = b"") -> bool:
        """Send a completion."""
        return self.put(build_packet(COMPLETION, transaction_id, payload))

    def take(self) -> RawPacket | None:
        """Read one packet."""
        taken = self.reader.take()
        if taken is None:
            return None
        packet, signal = taken
        if signal:
            self._doorbell()
        return packet

    def take_all(self) -> list[RawPacket]:
        """Read until the ring is empty, with the interrupt masked meanwhile, as drivers do."""
        packets: list[RawPacket] = []
        while True:
            self.down.control[WORD_MASK] = 1
            while (packet := self.take()) is not None:
                packets.append(packet)
            if not self.down.run(self.reader.idle_steps()):
                return packets


def request(transaction_id: int, payload: bytes = b"", *, completion: bool = True) -> bytes:
    """Build an in-band request."""
    return build_packet(IN_BAND, transaction_id, payload, flags=int(completion))


def text(packet: RawPacket) -> str:
    """Return the name in a packet of :meth:`Rig.send`, without padding."""
    return packet.payload.rstrip(b"\0").rstrip(b".").decode()
