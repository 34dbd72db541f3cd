# SPDX-License-Identifier: MIT
"""Which pages of guest RAM hold code that QEMU's TCG has translated.

TCG runs what it has translated until it hears of a write to the page, and it does not hear of the
backend's. QEMU keeps a byte for each page, which it sets before it reads the page to translate it.
So who has written a page, and after a full fence finds its byte clear, knows that what is
translated from now on is new. A byte that is set means that QEMU has to be asked
(docs/vmbus-user.md, "Code").
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from emulator.memory.guest import page_runs
from emulator.memory.view import page_view
from emulator.wire.packet import PAGE_SIZE, GpaRange

__all__ = ["CodeMap"]


class CodeMap:
    """The map of one QEMU, for one table of memory."""

    def __init__(self, fd: int, regions: Sequence[tuple[int, int, int]]) -> None:
        """Map ``fd``; ``regions`` are (address, bytes, index of the first page's byte), ascending.

        The descriptor stays the caller's. Raises OSError, and ValueError if the map is too short
        for the regions.
        """
        size = os.fstat(fd).st_size
        for gpa, length, first in regions:
            if first + length // PAGE_SIZE > size:
                raise ValueError(f"the map of code has no byte for the region at {gpa:#x}")
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self._starts = [gpa // PAGE_SIZE for gpa, _, _ in regions]
        self._regions = [
            (gpa // PAGE_SIZE, (gpa + length) // PAGE_SIZE, first) for gpa, length, first in regions
        ]
        # A fence needs some memory to be a method of.
        fence = page_view([memoryview(mmap.mmap(-1, PAGE_SIZE))])
        self._fence: Callable[[], None] = fence.fence

    def close(self) -> None:
        """Unmap; idempotent."""
        self._map.close()

    def holding(self, ranges: Iterable[GpaRange]) -> list[tuple[int, int]]:
        """Return (index of the first byte, pages) of all stretches with a page that may hold code.

        To be called when the ranges have been written. Pages in no region are left out: they have
        been unplugged since.
        """
        self._fence()
        found: list[tuple[int, int]] = []
        for each in ranges:
            for pfn, count in page_runs(each.pfns):
                found += self._in_run(pfn, count)
        return found

    def _in_run(self, pfn: int, count: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        index = max(bisect_right(self._starts, pfn) - 1, 0)
        end = pfn + count
        for start, stop, first in self._regions[index:]:
            if start >= end:
                break
            low, high = max(pfn, start), min(end, stop)
            if low < high and self._map.find(b"\1", low - start + first, high - start + first) >= 0:
                found.append((low - start + first, high - low))
        return found
