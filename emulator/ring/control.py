# SPDX-License-Identifier: MIT
"""What both ring ends share: the control page, copying with wrap-around, the arithmetic of offsets.

A ring is one control page and then `size` bytes of data. The writer owns `in`, `pending_send_size`
and `feature_bits`; the reader owns `out` and `interrupt_mask` (Linux ``struct hv_ring_buffer``).
`in` and `out` are byte offsets into the data, multiples of 8; equal means empty. The peer of each
end here is a guest that may write anything at any time, so a word is loaded once, checked, and only
then used.

The order of accesses is what keeps a wake-up from being lost. Each of the four protocols below is
the same handshake: *store mine, fence, load yours*. Both parties do it, so at least one of them
sees the other's store.

=====================  =============================  ===================================
writer, new data       store `in`                     load `interrupt_mask`, then `out`
reader, going idle     store `interrupt_mask` = 0     load `in`
writer, blocked        store `pending_send_size`      load `out`
reader, made room      store `out`                    load `pending_send_size`, then `in`
=====================  =============================  ===================================
"""

from collections.abc import Callable
from typing import NamedTuple

from emulator.memory import PageView
from emulator.ring.errors import RingCorrupt, RingRule
from emulator.ring.plain import plain_packets
from emulator.wire.packet import PAGE_SIZE

__all__ = [
    "FEATURE_BITS",
    "FEATURE_PENDING_SEND_SIZE",
    "IN",
    "INTERRUPT_MASK",
    "OUT",
    "PENDING_SEND_SIZE",
    "RESERVE",
    "PacketTap",
    "RingEnd",
    "RingWords",
]

# Byte offsets in the control page.
IN = 0
OUT = 4
INTERRUPT_MASK = 8
PENDING_SEND_SIZE = 12
FEATURE_BITS = 64

FEATURE_PENDING_SEND_SIZE = 1
"""Bit of `feature_bits`: the writer sets `pending_send_size` and waits for the signal."""

RESERVE = 8
"""Bytes that always stay free, so that a full ring does not look empty."""


PacketTap = Callable[[int, bytes, bool], None]
"""Sees a packet: its offset in the ring's data, its bytes without the trailer, and whether it was
refused as malformed; the bytes are as far as it was read then."""


class RingWords(NamedTuple):
    """The words of a control page, each as it was loaded once: a guest may have put anything there.

    ``used`` is the bytes between ``out`` and ``in``, or None if they are not offsets in the ring.
    """

    in_offset: int
    out_offset: int
    interrupt_mask: int
    pending_send_size: int
    feature_bits: int
    used: int | None


class RingEnd:
    """The part of a ring end that does not depend on the direction."""

    __slots__ = ("_laps", "_plain", "_size", "_start", "_tap", "_view")

    def __init__(self, view: PageView) -> None:
        """Take a view of the control page and the data pages; nothing is read or written yet.

        Raises ValueError if there is no data page: the caller checks where a guest splits its
        GPADL.
        """
        if len(view) < 2 * PAGE_SIZE:
            raise ValueError(f"a ring of {len(view)} bytes has no data page")
        self._view = view
        self._plain = plain_packets(view)
        self._tap: PacketTap | None = None
        self._size = len(view) - PAGE_SIZE
        # For counting: where the own offset began, and how often it came around the end.
        self._start = self._laps = 0

    def words(self) -> RingWords:
        """Look at the control page, for inspection: nothing is checked, kept or changed."""
        load = self._view.load_u32
        in_offset, out_offset = load(IN), load(OUT)
        valid = max(in_offset, out_offset) < self._size and not (in_offset | out_offset) & 7
        return RingWords(
            in_offset,
            out_offset,
            load(INTERRUPT_MASK),
            load(PENDING_SEND_SIZE),
            load(FEATURE_BITS),
            (in_offset - out_offset) % self._size if valid else None,
        )

    def tap(self, tap: PacketTap | None) -> None:
        """Have ``tap`` see each packet from now on, as it is read or written; None ends that.

        C shows nobody the bytes it moves, so a ring with a tap does without; one that has none does
        not even ask whether it has.
        """
        self._tap = tap
        self._plain = plain_packets(self._view) if tap is None else None

    @property
    def size(self) -> int:
        """Bytes of data in the ring, a multiple of 4096; the control page does not count."""
        return self._size

    def _free(self, in_offset: int, out_offset: int) -> int:
        """Return the bytes a writer at `in_offset` may still fill."""
        if out_offset > in_offset:
            return out_offset - in_offset - RESERVE
        return self._size - (in_offset - out_offset) - RESERVE

    def _load_offset(self, word: int) -> int:
        offset = self._view.load_u32(word)
        if offset >= self._size or offset & 7:
            name, rule = ("in", RingRule.IN_RANGE) if word == IN else ("out", RingRule.OUT_RANGE)
            raise RingCorrupt(rule, f"`{name}` is {offset:#x} in a ring of {self._size:#x} bytes")
        return offset

    def _read_data(self, offset: int, length: int) -> bytes:
        """Copy bytes out from a data offset that may be up to twice the ring size."""
        if offset >= self._size:
            offset -= self._size
        first = self._size - offset
        if length <= first:
            return self._view.read(PAGE_SIZE + offset, length)
        return self._view.read(PAGE_SIZE + offset, first) + self._view.read(
            PAGE_SIZE, length - first
        )

    def _write_data(self, offset: int, data: bytes) -> int:
        """Copy bytes in at a data offset; return the offset after them."""
        first = self._size - offset
        if len(data) < first:
            self._view.write(PAGE_SIZE + offset, data)
            return offset + len(data)
        self._view.write(PAGE_SIZE + offset, data[:first])
        self._view.write(PAGE_SIZE, data[first:])
        return len(data) - first
