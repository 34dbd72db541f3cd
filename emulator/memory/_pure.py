# SPDX-License-Identifier: MIT
"""The reference implementation of `emulator.memory.PageView`, in Python alone.

It rests on two facts about CPython, both of them measured rather than promised:

* An item of ``memoryview.cast("I")`` is loaded and stored whole. ``struct.pack_into`` is not: it
  stores byte by byte, and a guest that reads a ring index at that moment sees a torn one.
* Taking a free lock is an atomic read-modify-write. On x86 that is a full fence. Elsewhere it is an
  acquire and a release, between which a store may still pass a later load: see
  `emulator.memory.view`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from threading import Lock

__all__ = ["PurePageView"]

_PAGE_SIZE = 4096


class PurePageView:
    """See `emulator.memory.PageView`, whose methods these are."""

    __slots__ = ("_length", "_lock", "_starts", "_views", "_words")

    def __init__(self, segments: Sequence[memoryview], /) -> None:
        views = [memoryview(segment) for segment in segments]
        for view in views:
            if view.itemsize != 1 or not view.nbytes or view.nbytes % _PAGE_SIZE:
                raise ValueError("a segment must be whole pages of aligned bytes")
            if view.readonly:
                raise BufferError("a segment must be writable")
        self._views = [view.cast("B") for view in views]
        self._words = [view.cast("I") for view in self._views]
        *self._starts, self._length = accumulate((view.nbytes for view in views), initial=0)
        self._lock = Lock()

    def __len__(self) -> int:
        return self._length

    def read(self, offset: int, length: int, /) -> bytes:
        """See `emulator.memory.PageView`."""
        return b"".join(self._pieces(offset, length))

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        """See `emulator.memory.PageView`."""
        source = memoryview(data).cast("B")
        position = 0
        for piece in self._pieces(offset, source.nbytes):
            piece[:] = source[position : position + piece.nbytes]
            position += piece.nbytes

    def load_u32(self, offset: int, /) -> int:
        """See `emulator.memory.PageView`."""
        words, index = self._word(offset)
        return words[index]

    def store_u32(self, offset: int, value: int, /) -> None:
        """See `emulator.memory.PageView`."""
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError(f"{value} does not fit 32 bits")
        words, index = self._word(offset)
        words[index] = value

    def swap_u32(self, offset: int, value: int, /) -> int:
        """See `emulator.memory.PageView`; not atomic."""
        before = self.load_u32(offset)
        self.store_u32(offset, value)
        self.fence()
        return before

    def or_u32(self, offset: int, bits: int, /) -> int:
        """See `emulator.memory.PageView`; not atomic."""
        before = self.load_u32(offset)
        self.store_u32(offset, before | bits)
        self.fence()
        return before

    def fence(self) -> None:
        """See `emulator.memory.PageView`."""
        with self._lock:
            pass

    def slices(self, offset: int, length: int, /) -> list[memoryview]:
        """See `emulator.memory.PageView`."""
        return list(self._pieces(offset, length))

    def sub(self, offset: int, length: int, /) -> "PurePageView":
        """See `emulator.memory.PageView`."""
        if offset % _PAGE_SIZE or length % _PAGE_SIZE:
            raise ValueError(f"{length} bytes at {offset} are not whole pages")
        return PurePageView(self.slices(offset, length))

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._length:
            raise ValueError(
                f"{length} bytes at {offset} are not within a view of {self._length} bytes"
            )

    def _pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        self._check(offset, length)
        index = bisect_right(self._starts, offset) - 1
        while length:
            view = self._views[index]
            begin = offset - self._starts[index]
            piece = view[begin : begin + length]
            yield piece
            offset += piece.nbytes
            length -= piece.nbytes
            index += 1

    def _word(self, offset: int) -> tuple[memoryview, int]:
        self._check(offset, 4)
        if offset % 4:
            raise ValueError(f"the word at {offset} is not aligned")
        index = bisect_right(self._starts, offset) - 1
        return self._words[index], (offset - self._starts[index]) // 4
