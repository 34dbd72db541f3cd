# SPDX-License-Identifier: MIT
"""Guest-physical memory: the RAM of the guest, mapped from the descriptors that QEMU passes.

Whoever asks for memory here got the address from a guest. So every address is looked up in the
table of regions, and what is not RAM is a `GpaError`: no address that a guest can name leads
outside its own RAM.
"""

import contextlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from emulator.memory.view import PageView, page_view
from emulator.wire.packet import PAGE_SIZE, GpaRange, spanned_pages

__all__ = ["GpaError", "GuestMemory", "MemoryMapError", "RamRegion", "page_runs"]


class GpaError(Exception):
    """The guest named memory it does not have: `length` bytes at guest-physical address `gpa`."""

    def __init__(self, gpa: int, length: int) -> None:
        super().__init__(f"{length:#x} bytes at guest-physical address {gpa:#x} are not all in RAM")
        self.gpa = gpa
        self.length = length


class MemoryMapError(Exception):
    """A memory table cannot be mapped: QEMU sent one that is wrong, or its RAM is not a shared
    file.
    """


@dataclass(frozen=True, slots=True)
class RamRegion:
    """`size` bytes of RAM at guest-physical address `gpa`, which begin at `fd_offset` of a file."""

    gpa: int
    size: int
    fd_offset: int


@dataclass(frozen=True, slots=True)
class _Mapping:
    """One region that is mapped; `file` is the identity of the file it is mapped from."""

    region: RamRegion
    file: tuple[int, int]
    mapping: mmap.mmap
    memory: memoryview

    def release(self) -> None:
        """Unmap, now or with the last slice that is still held."""
        with contextlib.suppress(BufferError):
            self.memory.release()
        with contextlib.suppress(BufferError):
            self.mapping.close()


class GuestMemory:
    """The RAM of one guest, in ascending regions that do not overlap."""

    def __init__(self, view: Callable[[Sequence[memoryview]], PageView] = page_view) -> None:
        """Start without any memory; `view` makes the views that `pages` returns."""
        self._view = view
        self._mapped: list[_Mapping] = []
        self._regions: list[tuple[int, int, memoryview]] = []
        self._starts: list[int] = []

    @classmethod
    def map(
        cls,
        regions: Sequence[tuple[RamRegion, int]],
        *,
        view: Callable[[Sequence[memoryview]], PageView] = page_view,
    ) -> "GuestMemory":
        """Map each region from its file descriptor; see `replace`."""
        memory = cls(view)
        memory.replace(regions)
        return memory

    def replace(self, regions: Sequence[tuple[RamRegion, int]]) -> None:
        """Make `regions` all the memory there is, each mapped shared and writable.

        A region that was there before, of the same file, keeps its mapping. The mapping of one that
        is gone stays valid for the slices and views that are held, and goes with the last of them.
        The descriptors stay the caller's, who may close them at once.

        Raises MemoryMapError, and changes nothing, if a region is not made of whole pages, overlaps
        another, or is larger than its file (touching that part would kill the process with SIGBUS).
        """
        ordered = sorted(regions, key=lambda pair: pair[0].gpa)
        end = 0
        for region, fd in ordered:
            _check_region(region, fd)
            if region.gpa < end:
                raise MemoryMapError(f"the region at {region.gpa:#x} overlaps the one below it")
            end = region.gpa + region.size
        before = {(old.region, old.file): old for old in self._mapped}
        with contextlib.ExitStack() as undo:
            mapped: list[_Mapping] = []
            for region, fd in ordered:
                # While it is mapped, no other file can have this identity.
                file = _identity(fd)
                kept = before.pop((region, file), None)
                if kept is None:
                    kept = _map_region(region, fd, file)
                    undo.callback(kept.release)
                mapped.append(kept)
            undo.pop_all()
        self._take(mapped)
        for gone in before.values():
            gone.release()

    def _take(self, mapped: list[_Mapping]) -> None:
        self._mapped = mapped
        self._regions = [
            (each.region.gpa, each.region.gpa + each.region.size, each.memory) for each in mapped
        ]
        self._starts = [start for start, _, _ in self._regions]

    @property
    def size(self) -> int:
        """Bytes of RAM in all regions; 0 after `close`."""
        return sum(end - start for start, end, _ in self._regions)

    @property
    def regions(self) -> list[tuple[int, int]]:
        """Address and size of each region, in ascending order."""
        return [(start, end - start) for start, end, _ in self._regions]

    def close(self) -> None:
        """Let go of the memory; may be called twice.

        From then on every address is outside RAM (GpaError). A mapping of which slices or views are
        still held, by an open ring or a transfer under way, goes away with the last of them and
        stays valid until then.
        """
        mapped = self._mapped
        self._take([])
        for each in mapped:
            each.release()

    def slices(self, gpa: int, length: int) -> list[memoryview]:
        """Return the memory itself, without a copy: one piece for each region touched, in order.

        Raises GpaError if any byte is outside RAM.
        """
        if length < 0 or gpa < 0:
            raise GpaError(gpa, length)
        pieces: list[memoryview] = []
        position, left = gpa, length
        index = bisect_right(self._starts, gpa) - 1
        while left:
            if not 0 <= index < len(self._regions):
                raise GpaError(gpa, length)
            start, end, memory = self._regions[index]
            if not start <= position < end:
                raise GpaError(gpa, length)
            piece = memory[position - start : position - start + left]
            pieces.append(piece)
            position += piece.nbytes
            left -= piece.nbytes
            index += 1
        return pieces

    def read(self, gpa: int, length: int) -> bytes:
        """Copy `length` bytes out. Raises GpaError."""
        return b"".join(self.slices(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in, all or none of them. Raises GpaError."""
        source = memoryview(data).cast("B")
        position = 0
        for piece in self.slices(gpa, source.nbytes):
            piece[:] = source[position : position + piece.nbytes]
            position += piece.nbytes

    def pages(self, pfns: Sequence[int]) -> PageView:
        """Return one view of these pages, in this order. Raises GpaError.

        The caller bounds the number of pages; neighbours cost nothing, because they become one
        segment.
        """
        segments: list[memoryview] = []
        for first, count in page_runs(pfns):
            segments += self.slices(first * PAGE_SIZE, count * PAGE_SIZE)
        return self._view(segments)

    def range(self, gpa_range: GpaRange) -> list[memoryview]:
        """Return the memory of one GPA range, fit for os.preadv and os.pwritev.

        Raises GpaError if any page is outside RAM, ValueError if the range does not name as many
        pages as its offset and length span (the packet decoder lets no such range through).
        """
        offset, left = gpa_range.offset, gpa_range.length
        if not 0 <= offset < PAGE_SIZE or spanned_pages(offset, left) != len(gpa_range.pfns):
            raise ValueError(f"a GPA range that contradicts itself: {gpa_range}")
        pieces: list[memoryview] = []
        for first, count in page_runs(gpa_range.pfns):
            length = min(count * PAGE_SIZE - offset, left)
            pieces += self.slices(first * PAGE_SIZE + offset, length)
            left -= length
            offset = 0
        return pieces


def _check_region(region: RamRegion, fd: int) -> None:
    name = f"the region at {region.gpa:#x}"
    if region.gpa < 0 or region.size <= 0 or region.fd_offset < 0:
        raise MemoryMapError(f"{name} has a size or an offset that makes no sense: {region}")
    if (region.gpa | region.size | region.fd_offset) % PAGE_SIZE:
        raise MemoryMapError(f"{name} is not made of whole pages: {region}")
    try:
        file_size = os.fstat(fd).st_size
    except OSError as error:
        raise MemoryMapError(f"{name} has no usable file descriptor: {error}") from error
    if region.fd_offset + region.size > file_size:
        raise MemoryMapError(
            f"{name} ends {region.fd_offset + region.size:#x} bytes into a file of {file_size:#x}"
        )


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _map_region(region: RamRegion, fd: int, file: tuple[int, int]) -> _Mapping:
    # A file of huge pages can be mapped and unmapped in whole ones only, and its block is one. A
    # region need not begin or end with one: the hole below 4 GiB cuts where it likes.
    status = os.fstat(fd)
    block = max(status.st_blksize, PAGE_SIZE)
    start = region.fd_offset // block * block
    skip = region.fd_offset - start
    length = min(-(-(skip + region.size) // block) * block, status.st_size - start)
    try:
        mapping = mmap.mmap(
            fd,
            length,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=start,
        )
    except (OSError, ValueError) as error:
        raise MemoryMapError(
            f"the region at {region.gpa:#x} cannot be mapped, shared and writable: {error}"
        ) from error
    return _Mapping(region, file, mapping, memoryview(mapping)[skip : skip + region.size])


def page_runs(pfns: Iterable[int]) -> list[tuple[int, int]]:
    """Return (first, count) for each stretch of consecutive page numbers."""
    runs: list[tuple[int, int]] = []
    first = count = 0
    for pfn in pfns:
        if count and pfn == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = pfn, 1
    if count:
        runs.append((first, count))
    return runs
