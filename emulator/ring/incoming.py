# SPDX-License-Identifier: MIT
"""The host's end of the guest-to-host ring: reads packets out, and tells when the guest must be
signalled.
"""

from collections.abc import Iterator
from typing import NamedTuple

from emulator.memory import PageView
from emulator.ring.control import IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE, RingEnd
from emulator.ring.errors import RingCorrupt, RingRule
from emulator.ring.outgoing import OutgoingRing
from emulator.ring.plain import PacketAhead
from emulator.wire.packet import (
    DESCRIPTOR_SIZE,
    TRAILER_SIZE,
    Descriptor,
    MalformedPacket,
    Packet,
    PacketSummary,
    decode_body,
    decode_descriptor,
    plain_packet,
)

__all__ = ["Drained", "IncomingRing", "PacketAhead"]


class Drained(NamedTuple):
    """What :meth:`IncomingRing.drain` did: packets read, their payloads, completions written."""

    packets: int
    payload_bytes: int
    completions: int


class IncomingRing(RingEnd):
    """Reads the packets that a guest writes.

    Make one, then `init_at_open` or `attach`, then as often as there is a doorbell::

        ring.mask()
        while True:
            while (packet := ring.read()) is not None:
                ...
            if ring.commit():
                signal the guest
            if not ring.unmask():
                break

    A doorbell without data is harmless. Every method that looks at the ring raises RingCorrupt when
    the guest broke a rule.
    """

    __slots__ = ("_in", "_out", "_released")

    def __init__(self, view: PageView) -> None:
        super().__init__(view)
        # `_released` is `out` as the guest sees it; `_out` is ahead of it by what was read but not
        # committed; `_in` is the last `in` that was loaded and checked. _released <= _out <= _in
        # around the ring.
        self._in = self._out = self._released = 0

    def init_at_open(self) -> None:
        """Take up a ring that a guest just opened: no doorbells until the first `unmask`.

        The offsets are read, not reset: the guest made the ring.
        """
        self._view.store_u32(INTERRUPT_MASK, 1)
        self._load_offsets()

    def attach(self) -> None:
        """Take up a ring as it is, with doorbells on: after a restore.

        Read until empty afterwards, without waiting for a doorbell: one from before the attach may
        have been lost, and one that comes now may be without data.
        """
        self._view.store_u32(INTERRUPT_MASK, 0)
        self._view.fence()
        self._load_offsets()

    def _load_offsets(self) -> None:
        self._out = self._released = self._start = self._load_offset(OUT)
        self._in = self._load_offset(IN)

    def read(self) -> Packet | None:
        """Copy the next packet out; None if there is none.

        The guest may reuse its space only after `commit`.
        """
        out = self._out
        if self._plain is not None:
            plain = self._plain.read_plain(self._view, self._released, out, self._in)
            if plain is not None:
                number, flags, transaction_id, payload, self._out, self._in = plain
                return plain_packet(number, flags, transaction_id, payload)
        available = self._in - out
        if not available:
            available = self._refresh()
            if not available:
                return None
        elif available < 0:
            available += self._size
        if available < DESCRIPTOR_SIZE + TRAILER_SIZE:
            raise self._no_whole_packet(out, available)
        # Each byte is copied once, and only the copy is looked at.
        head = self._read_data(out, DESCRIPTOR_SIZE)
        body = b""
        try:
            descriptor = decode_descriptor(head, available)
            length = descriptor[4]
            body = self._read_data(out + DESCRIPTOR_SIZE, length - DESCRIPTOR_SIZE)
            packet = decode_body(descriptor, body)
        except MalformedPacket as error:
            if self._tap is not None:
                self._tap(out, head + body, True)
            raise RingCorrupt(error.rule, f"at {out:#x}: {error.detail}") from error
        if self._tap is not None:
            self._tap(out, head + body, False)
        # The trailer is left unread: it repeats what the reader knows, and other hosts ignore it
        # too.
        out += length + TRAILER_SIZE
        self._out = out if out < self._size else out - self._size
        return packet

    def read_ahead(self, limit: int) -> list[PacketAhead] | None:
        """Copy up to `limit` of the next packets, and consume none: see `consume`.

        None if the ring is empty. An empty list if the next packet is for `read`: it has more than
        one range, breaks a rule, or the view is none of the C extension's.
        """
        if self._plain is None:
            return []
        found = self._plain.read_ahead(self._view, self._released, self._out, self._in, limit)
        if found is None:
            return None
        packets, self._in = found
        return packets

    def mark(self) -> int:
        """Return where the next packet begins, for :meth:`go_back`."""
        return self._out

    def go_back(self, mark: int) -> None:
        """Take what was read since :meth:`mark` as unread; not after a `commit`."""
        self._out = mark

    def consume(self, next_out: int) -> None:
        """Take the next packet of `read_ahead` as read; `next_out` came with it.

        To be called in their order, and not after the next `read`, `read_ahead` or `drain`.
        """
        self._out = next_out

    def drain(self, outgoing: OutgoingRing, limit: int) -> Drained:
        """Read up to `limit` in-band packets unseen, and complete each that asks for it in
        `outgoing`, without data; neither is published.

        It ends where the ring does, before a packet that is for `read`, and before one whose
        completion does not fit; at once, if a view is none of the C extension's. Raises RingCorrupt
        if the guest broke a rule in `outgoing`; what it broke in this ring, `read` tells.
        """
        if self._plain is None or not outgoing.has_plain:
            return Drained(0, 0, 0)
        position, room, view = outgoing.begin_drain(limit)
        count, payload_bytes, self._out, self._in, position = self._plain.drain(
            self._view, self._released, self._out, self._in, view, position, room, limit
        )
        return Drained(count, payload_bytes, outgoing.end_drain(position))

    def commit(self) -> bool:
        """Release the space of all packets read so far; True if the guest must be signalled.

        The guest waits when it could not write a packet; `pending_send_size` is then the free space
        it waits for. It is signalled once, when the free space reaches that. Windows guests wait
        with size - 1, for an empty ring: the low 3 bits do not count, or that could never be
        reached.
        """
        old_out, new_out = self._released, self._out
        if old_out == new_out:
            return False
        self._released = new_out
        if new_out < old_out:
            self._laps += 1
        # The guest stores pending_send_size, fences and looks at `out` again. If that look came
        # before the store below, the load below comes after its store, and the guest is signalled.
        if self._plain is not None:
            pending = self._plain.release(self._view, new_out)
        else:
            self._view.store_u32(OUT, new_out)
            self._view.fence()
            pending = self._view.load_u32(PENDING_SEND_SIZE)
        pending &= ~7
        if not pending:
            return False
        # Not the cached `in`: a guest that waits may have written smaller packets meanwhile.
        guest_in = self._load_in()
        old_free = self._free(guest_in, old_out)
        return old_free < pending <= self._free(guest_in, new_out)

    def mask(self) -> None:
        """Ask the guest for no doorbells. A guest may send one all the same."""
        self._view.store_u32(INTERRUPT_MASK, 1)

    def unmask(self) -> bool:
        """Ask the guest for doorbells; True if data came meanwhile, and reading must go on.

        Everything read must be committed (else RuntimeError): a guest rings only if it sees the
        ring go from empty to not empty, and it takes what is uncommitted for unread.
        """
        if self._out != self._released:
            raise RuntimeError("unmask() with packets read but not committed: call commit() first")
        # A guest that stored `in` before it could see the mask cleared does not ring, so look once
        # more.
        if self._plain is not None:
            # That one has been seen before. Any other is checked.
            if self._plain.unmask(self._view) == self._in == self._out:
                return False
        else:
            self._view.store_u32(INTERRUPT_MASK, 0)
            self._view.fence()
        return self._load_in() != self._out

    @property
    def moved(self) -> int:
        """Bytes of packets read and released since the ring was taken up."""
        return self._laps * self._size + self._released - self._start

    @property
    def unread_bytes(self) -> int:
        """Bytes of packets in the ring that were not read, with their descriptors and trailers."""
        return (self._load_in() - self._out) % self._size

    def scan(self) -> Iterator[PacketSummary]:
        """Look at the unread packets, oldest first, and consume none."""
        position, left = self._out, (self._load_in() - self._out) % self._size
        while left:
            descriptor = self._descriptor(position, left)
            yield PacketSummary(descriptor.type, descriptor.flags, descriptor.transaction_id)
            taken = descriptor.length + TRAILER_SIZE
            position = (position + taken) % self._size
            left -= taken

    def _descriptor(self, position: int, available: int) -> Descriptor:
        if available < DESCRIPTOR_SIZE + TRAILER_SIZE:
            raise self._no_whole_packet(position, available)
        try:
            return decode_descriptor(self._read_data(position, DESCRIPTOR_SIZE), available)
        except MalformedPacket as error:
            raise RingCorrupt(error.rule, f"at {position:#x}: {error.detail}") from error

    @staticmethod
    def _no_whole_packet(position: int, available: int) -> RingCorrupt:
        return RingCorrupt(
            RingRule.PACKET_START, f"at {position:#x}: {available} bytes are published"
        )

    def _refresh(self) -> int:
        """Load `in` into the cache; return the unread bytes."""
        self._in = self._load_in()
        return (self._in - self._out) % self._size

    def _load_in(self) -> int:
        """Load `in` and check that it is at or after the last one, and not past `_released`."""
        loaded = self._load_offset(IN)
        if loaded == self._in:
            return loaded
        published = (loaded - self._released) % self._size
        if published < (self._in - self._released) % self._size:
            raise RingCorrupt(
                RingRule.IN_ADVANCE,
                f"`in` went from {self._in:#x} to {loaded:#x}, `out` is {self._released:#x}",
            )
        return loaded
