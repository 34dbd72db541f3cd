# SPDX-License-Identifier: MIT
"""The host's end of the host-to-guest ring: writes packets, and tells when the guest must be
signalled.
"""

from collections.abc import Sequence

from emulator.memory import PageView
from emulator.ring.control import (
    FEATURE_BITS,
    FEATURE_PENDING_SEND_SIZE,
    IN,
    INTERRUPT_MASK,
    OUT,
    PENDING_SEND_SIZE,
    RESERVE,
    RingEnd,
)
from emulator.ring.errors import PacketTooLarge, RingCorrupt, RingRule
from emulator.wire.packet import (
    DESCRIPTOR_SIZE,
    TRAILER_SIZE,
    PacketType,
    TransferPages,
    encode_packet,
    encode_trailer,
    header_size,
    packet_size,
)

__all__ = ["OutgoingRing"]

_MAX_PACKET = 0xFFFF * 8 + TRAILER_SIZE
"""What the 16 bits of length8 can express."""
_FEWEST_BYTES = DESCRIPTOR_SIZE + TRAILER_SIZE
"""What a packet takes that has no payload."""
_LIKELY_BYTES = 256
"""What few completions exceed: with less room for each, `out` is loaded anew before writing."""


class OutgoingRing(RingEnd):
    """Writes packets that a guest reads.

    Make one, then `init_at_open` or `attach`, then::

        while packets and ring.write(...):
            ...
        if ring.publish():
            signal the guest
        if packets and ring.request_space(size of the next one):
            try again at once, else wait for a doorbell

    Every method that looks at the ring raises RingCorrupt when the guest broke a rule.
    """

    __slots__ = ("_capacity", "_in", "_largest_payload", "_out", "_published")

    def __init__(self, view: PageView) -> None:
        super().__init__(view)
        # `_published` is `in` as the guest sees it; `_in` is ahead of it by what was written but
        # not published; `_out` is the last `out` that was loaded and checked. _out <= _published <=
        # _in around the ring.
        self._in = self._out = self._published = 0
        self._capacity = min(self._size - 2 * RESERVE, _MAX_PACKET)
        self._largest_payload = self._capacity - DESCRIPTOR_SIZE - TRAILER_SIZE

    def init_at_open(self) -> None:
        """Take up a ring that a guest just opened.

        The offsets are read, not reset: the guest made the ring.
        """
        self._take_up()

    def attach(self) -> bool:
        """Take up a ring as it is: after a restore. True if the guest must be signalled.

        That is so when it has unread packets and does not mask: the signal for them may have been
        lost, and a guest tolerates one that it does not need. A request for space that an earlier
        host left is withdrawn; whoever has packets to send tries again.
        """
        self._take_up()
        self._view.fence()
        return self._view.load_u32(INTERRUPT_MASK) == 0 and self._out != self._in

    def _take_up(self) -> None:
        self._view.store_u32(PENDING_SEND_SIZE, 0)
        self._view.store_u32(FEATURE_BITS, FEATURE_PENDING_SEND_SIZE)
        self._in = self._published = self._start = self._load_offset(IN)
        self._out = self._load_offset(OUT)

    @property
    def moved(self) -> int:
        """Bytes of packets written and published since the ring was taken up."""
        return self._laps * self._size + self._published - self._start

    @property
    def largest_payload(self) -> int:
        """Bytes of the largest payload that fits an empty ring in a packet without ranges."""
        return self._largest_payload

    @property
    def capacity(self) -> int:
        """Bytes of the largest packet that an empty ring takes, descriptor and trailer included."""
        return self._capacity

    @property
    def free_bytes(self) -> int:
        """Bytes that may be written now, descriptors and trailers included."""
        self._out = self._load_out()
        return self._free(self._in, self._out)

    @property
    def used_bytes(self) -> int:
        """Bytes of packets in the ring that the guest has not released."""
        return self._size - RESERVE - self.free_bytes

    @staticmethod
    def packet_size(payload_len: int, *, transfer_ranges: int = 0) -> int:
        """Return the bytes that a packet with such a payload takes on a ring."""
        return packet_size(payload_len, header_size(transfer_ranges=transfer_ranges))

    def write(
        self,
        packet_type: PacketType,
        transaction_id: int,
        payload: bytes,
        *,
        completion_requested: bool = False,
        transfer: TransferPages | None = None,
    ) -> bool:
        """Write one packet that the guest does not see before `publish`; False if there is no room
        now.

        Raises PacketTooLarge if there will never be room, ValueError if `transfer` is not given for
        a transfer-page packet, or is for another.
        """
        if transfer is None:
            size = DESCRIPTOR_SIZE + (len(payload) + 7 & ~7) + TRAILER_SIZE
        else:
            size = packet_size(len(payload), header_size(transfer_ranges=len(transfer.ranges)))
        if size > self._capacity:
            raise PacketTooLarge(size, self._capacity)
        position = self._in
        # `out` in the cache is behind the real one, so it can only be too careful.
        if size > self._free(position, self._out) and size > self.free_bytes:
            return False
        flags = int(completion_requested)
        if self._plain is not None and transfer is None:
            self._in = self._plain.write_plain(
                self._view, position, packet_type, flags, transaction_id, payload
            )
            return True
        packet = encode_packet(packet_type, transaction_id, payload, flags=flags, transfer=transfer)
        self._in = self._write_data(position, packet + encode_trailer(position))
        if self._tap is not None:
            self._tap(position, packet, False)
        return True

    def write_completions(self, queue: Sequence[object]) -> int:
        """Write completions without header from the front of `queue`; returns how many fitted.

        A completion is a tuple that begins with transaction id and payload. Anything else ends it,
        as does one that never fits: :meth:`write` says so.
        """
        room = self._free(self._in, self._out)
        if room < len(queue) * _LIKELY_BYTES:
            room = self.free_bytes
        if self._plain is not None:
            count, self._in = self._plain.write_completions(self._view, self._in, room, queue)
            return count
        count = 0
        for item in queue:
            if not isinstance(item, tuple):
                break
            size = packet_size(len(item[1]))
            if size > min(room, self._capacity):
                break
            self.write(PacketType.COMPLETION, item[0], item[1])
            room -= size
            count += 1
        return count

    # For IncomingRing.drain.

    @property
    def has_plain(self) -> bool:
        """Whether the C functions work on this ring."""
        return self._plain is not None

    def begin_drain(self, packets: int) -> tuple[int, int, PageView]:
        """Return the offset to write completions at, the bytes that are free, and the view.

        `out` is loaded anew if there seems to be no room for so many `packets`.
        """
        room = self._free(self._in, self._out)
        if room < packets * _FEWEST_BYTES:
            room = self.free_bytes
        return self._in, room, self._view

    def end_drain(self, position: int) -> int:
        """Go on at `position`; returns how many empty completions were written up to there."""
        written = (position - self._in) % self._size // _FEWEST_BYTES
        self._in = position
        return written

    def publish(self) -> bool:
        """Show the guest all packets written so far; True if it must be signalled.

        It must be if it has read everything else and does not mask: then it may be asleep. A guest
        that has not read everything is awake, or was signalled for what it has not read.
        """
        previous = self._published
        if previous == self._in:
            return False
        if self._in < previous:
            self._laps += 1
        if self._plain is not None:
            self._published = self._in
            out = self._plain.publish(self._view, self._in)
            if out < 0:
                return False
            # That one has been seen before. Any other is checked.
            self._out = out if out == previous else self._load_out()
            return self._out == previous
        self._view.store_u32(IN, self._in)
        self._published = self._in
        # A guest that goes idle clears its mask, fences and looks at `in` again. If that look came
        # before the store above, the load below comes after it cleared the mask, and the guest is
        # signalled.
        self._view.fence()
        if self._view.load_u32(INTERRUPT_MASK):
            return False
        self._out = self._load_out()
        return self._out == previous

    def request_space(self, nbytes: int) -> bool:
        """Ask for a doorbell when `nbytes` are free; True if they are, and no doorbell will come.

        `nbytes` is the size of a packet on the ring (`packet_size`). Everything written must be
        published (else RuntimeError), because the guest counts from what it can see. Raises
        PacketTooLarge.
        """
        if self._in != self._published:
            raise RuntimeError("request_space() with unpublished packets: call publish() first")
        if nbytes > self._capacity:
            raise PacketTooLarge(nbytes, self._capacity)
        self._view.store_u32(PENDING_SEND_SIZE, nbytes + 7 & ~7)
        # A guest that stored `out` before it could see the request does not ring, so look once
        # more.
        self._view.fence()
        if self.free_bytes < nbytes:
            return False
        self.clear_space_request()
        return True

    def clear_space_request(self) -> None:
        """Withdraw `request_space`. A doorbell for it may still be on its way."""
        self._view.store_u32(PENDING_SEND_SIZE, 0)

    def _load_out(self) -> int:
        """Load `out` and check that it is at or after the last one, and not past `_published`."""
        loaded = self._load_offset(OUT)
        if loaded == self._out:
            return loaded
        if (loaded - self._out) % self._size > (self._published - self._out) % self._size:
            raise RingCorrupt(
                RingRule.OUT_ADVANCE,
                f"`out` went from {self._out:#x} to {loaded:#x}, `in` is {self._published:#x}",
            )
        return loaded
