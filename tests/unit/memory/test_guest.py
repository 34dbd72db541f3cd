# SPDX-License-Identifier: MIT
"""Guest-physical memory: what may be mapped, what a guest may name, what close() leaves."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import GpaError, GuestMemory, MemoryMapError, PageView, RamRegion, _native
from emulator.memory._pure import PurePageView
from emulator.wire.packet import GpaRange, spanned_pages

ViewType = Callable[[Sequence[memoryview]], PageView]
PAGE = 4096
LOW = 16 * PAGE
HIGH = 1 << 32
VIEW_TYPES: dict[str, ViewType] = {"native": _native.PageView, "pure": PurePageView}


@pytest.fixture
def fd() -> Iterator[int]:
    """Return a file of 32 pages, each filled with its number."""
    fd = os.memfd_create("ram")
    os.write(fd, b"".join(bytes([n]) * PAGE for n in range(32)))
    yield fd
    os.close(fd)


@pytest.fixture(params=sorted(VIEW_TYPES))
def ram(fd: int, request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    """Map 16 pages at 0, 8 at 4 GiB and 8 after those: three regions, two of them adjacent."""
    regions = [
        RamRegion(HIGH + 8 * PAGE, 8 * PAGE, 24 * PAGE),
        RamRegion(0, LOW, 0),
        RamRegion(HIGH, 8 * PAGE, 16 * PAGE),
    ]
    memory = GuestMemory.map([(region, fd) for region in regions], view=VIEW_TYPES[request.param])
    yield memory
    memory.close()


def test_reads_and_writes_go_to_the_file(ram: GuestMemory, fd: int) -> None:
    assert ram.size == 32 * PAGE
    assert ram.read(PAGE - 1, 2) == b"\x00\x01"
    ram.write(HIGH + 8 * PAGE - 2, b"over")
    assert os.pread(fd, 4, 24 * PAGE - 2) == b"over"
    os.pwrite(fd, b"back", 100)
    assert ram.read(100, 4) == b"back"


def test_slices_are_few_and_not_copies(ram: GuestMemory, fd: int) -> None:
    assert [len(piece) for piece in ram.slices(0, LOW)] == [LOW]
    pieces = ram.slices(HIGH + 7 * PAGE, 2 * PAGE)
    assert [len(piece) for piece in pieces] == [PAGE, PAGE]
    os.preadv(fd, pieces, 0)
    assert ram.read(HIGH + 8 * PAGE, 1) == b"\x01"
    assert ram.slices(LOW, 0) == []


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (LOW - 1, 2),
        (LOW, 1),
        (HIGH - 1, 2),
        (HIGH, 16 * PAGE + 1),
        (HIGH + 16 * PAGE, 1),
        (0, HIGH + PAGE),
        (2**64 - 1, 1),
        (2**64, 1),
        (2**76, 8),
        (-1, 1),
        (0, -1),
    ],
)
def test_what_is_not_ram_is_a_gpa_error(ram: GuestMemory, gpa: int, length: int) -> None:
    for use in (ram.slices, ram.read):
        with pytest.raises(GpaError) as caught:
            use(gpa, length)
        assert (caught.value.gpa, caught.value.length) == (gpa, length)
    if 0 < length < PAGE:
        with pytest.raises(GpaError):
            ram.write(gpa, b"\xff" * length)
    assert ram.read(LOW - 1, 1) == b"\x0f", "all or nothing"


@given(
    pfns=st.lists(
        st.sampled_from([*range(16), *range(HIGH // PAGE, HIGH // PAGE + 16)]), min_size=1
    )
)
def test_pages_in_any_order(pfns: list[int]) -> None:
    fd = os.memfd_create("ram")
    os.write(fd, b"".join(bytes([n]) * PAGE for n in range(32)))
    regions = [RamRegion(0, LOW, 0), RamRegion(HIGH, 16 * PAGE, LOW)]
    for view_type in VIEW_TYPES.values():
        ram = GuestMemory.map([(region, fd) for region in regions], view=view_type)
        view = ram.pages(pfns)
        assert len(view) == PAGE * len(pfns)
        expected = [pfn if pfn < 16 else pfn - HIGH // PAGE + 16 for pfn in pfns]
        assert [view.read(PAGE * n, 1)[0] for n in range(len(pfns))] == expected
        del view
        ram.close()
    os.close(fd)


def test_neighbouring_pages_become_one_piece(ram: GuestMemory) -> None:
    view = ram.pages([3, 4, 5, 9, 8, 8])
    assert [len(piece) // PAGE for piece in view.slices(0, len(view))] == [3, 1, 1, 1]


@pytest.mark.parametrize("pfns", [[16], [1, 16, 2], [15, 16], [2**52], [2**64 - 1], [-1]])
def test_pages_outside_ram(ram: GuestMemory, pfns: list[int]) -> None:
    with pytest.raises(GpaError):
        ram.pages(pfns)


@given(
    offset=st.integers(0, PAGE - 1),
    length=st.integers(1, 6 * PAGE),
    order=st.permutations(range(8)),
)
def test_ranges_scatter_and_gather(offset: int, length: int, order: list[int]) -> None:
    fd = os.memfd_create("ram")
    content = os.urandom(8 * PAGE)
    os.write(fd, content)
    ram = GuestMemory.map([(RamRegion(0, 8 * PAGE, 0), fd)])
    os.close(fd)
    pfns = tuple(order[: spanned_pages(offset, length)])
    pieces = ram.range(GpaRange(length, offset, pfns))
    whole = b"".join(content[pfn * PAGE : (pfn + 1) * PAGE] for pfn in pfns)
    assert b"".join(pieces) == whole[offset : offset + length]
    assert len(pieces) <= len(pfns)


def test_a_range_of_neighbours_is_one_piece(ram: GuestMemory) -> None:
    assert [len(piece) for piece in ram.range(GpaRange(3 * PAGE, 8, (4, 5, 6, 7)))] == [3 * PAGE]


def test_a_range_with_a_page_outside_ram(ram: GuestMemory) -> None:
    with pytest.raises(GpaError):
        ram.range(GpaRange(2 * PAGE, 0, (3, 2**52 - 1)))


@pytest.mark.parametrize(
    "gpa_range", [GpaRange(PAGE, 1, (1,)), GpaRange(1, 0, (1, 2)), GpaRange(1, PAGE, (1, 2))]
)
def test_a_range_that_contradicts_itself(ram: GuestMemory, gpa_range: GpaRange) -> None:
    with pytest.raises(ValueError, match="contradicts"):
        ram.range(gpa_range)


# What may be mapped.


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([RamRegion(0, 33 * PAGE, 0)], "into a file of"),
        ([RamRegion(0, PAGE, 32 * PAGE)], "into a file of"),
        ([RamRegion(0, PAGE, 2**62)], "into a file of"),
        ([RamRegion(0, PAGE + 8, 0)], "whole pages"),
        ([RamRegion(8, PAGE, 0)], "whole pages"),
        ([RamRegion(0, PAGE, 8)], "whole pages"),
        ([RamRegion(0, 0, 0)], "no sense"),
        ([RamRegion(0, -PAGE, 0)], "no sense"),
        ([RamRegion(0, PAGE, -PAGE)], "no sense"),
        ([RamRegion(-PAGE, PAGE, 0)], "no sense"),
        ([RamRegion(PAGE, PAGE, 0), RamRegion(0, 2 * PAGE, 0)], "overlaps"),
    ],
)
def test_a_table_that_is_wrong_is_refused(fd: int, regions: list[RamRegion], reason: str) -> None:
    with pytest.raises(MemoryMapError, match=reason):
        GuestMemory.map([(region, fd) for region in regions])


def test_a_file_that_is_no_shared_memory_is_refused(tmp_path: Path, fd: int) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(PAGE))
    read_only = os.open(path, os.O_RDONLY)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryMapError, match="shared and writable"):
        GuestMemory.map([(RamRegion(0, PAGE, 0), fd), (RamRegion(PAGE, PAGE, 0), read_only)])
    assert set(os.listdir("/proc/self/fd")) == before, "the region that was mapped is let go"
    os.close(read_only)
    with pytest.raises(MemoryMapError, match="file descriptor"):
        GuestMemory.map([(RamRegion(0, PAGE, 0), read_only)])
    reader, writer = os.pipe()
    with pytest.raises(MemoryMapError, match="into a file of"):
        GuestMemory.map([(RamRegion(0, PAGE, 0), reader)])
    os.close(reader)
    os.close(writer)


def test_the_descriptor_stays_the_callers() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, PAGE)
    ram = GuestMemory.map([(RamRegion(0, PAGE, 0), fd)])
    os.close(fd)
    ram.write(0, b"still here")
    assert ram.read(0, 10) == b"still here"


# What close() leaves.


def mappings_of(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(name)


@pytest.mark.parametrize("view_type", VIEW_TYPES.values(), ids=VIEW_TYPES)
def test_memory_in_use_outlives_close(view_type: ViewType) -> None:
    name = f"ram-{view_type.__module__}-in-use"
    fd = os.memfd_create(name)
    os.ftruncate(fd, 4 * PAGE)
    ram = GuestMemory.map([(RamRegion(0, 4 * PAGE, 0), fd)], view=view_type)
    os.close(fd)
    view, pieces = ram.pages([2, 0]), ram.slices(10, 10)
    ram.close()
    ram.close()
    view.store_u32(PAGE, 0x11111111)
    assert bytes(pieces[0]) == bytes(10)
    assert view.read(PAGE, 4) == b"\x11" * 4
    assert mappings_of(name) == 1
    del view
    gc.collect()
    assert mappings_of(name) == 1
    del pieces
    gc.collect()
    assert mappings_of(name) == 0


def test_after_close_nothing_is_ram(fd: int) -> None:
    ram = GuestMemory.map([(RamRegion(0, PAGE, 0), fd)])
    ram.close()
    assert ram.size == 0
    for use in (
        lambda: ram.read(0, 1),
        lambda: ram.slices(0, 1),
        lambda: ram.write(0, b"x"),
        lambda: ram.pages([0]),
        lambda: ram.range(GpaRange(1, 0, (0,))),
    ):
        with pytest.raises(GpaError):
            use()


def test_an_unused_mapping_goes_at_once() -> None:
    fd = os.memfd_create("ram-unused")
    os.ftruncate(fd, PAGE)
    ram = GuestMemory.map([(RamRegion(0, PAGE, 0), fd)])
    os.close(fd)
    assert mappings_of("ram-unused") == 1
    ram.close()
    assert mappings_of("ram-unused") == 0


def test_a_new_table_keeps_what_stays_and_views_of_what_is_gone(ram: GuestMemory, fd: int) -> None:
    low = (RamRegion(0, LOW, 0), fd)
    dimm = os.memfd_create("dimm")
    os.write(dimm, b"D" * PAGE)
    view = ram.pages([HIGH // PAGE])
    before = ram.slices(0, 1)[0]
    ram.replace([low, (RamRegion(2 * HIGH, PAGE, 0), dimm)])
    assert ram.size == LOW + PAGE
    assert ram.read(2 * HIGH, 4) == b"DDDD"
    # The same mapping, not one more of the same file.
    assert before.obj is ram.slices(0, 1)[0].obj
    with pytest.raises(GpaError):
        ram.read(HIGH, 1)
    view.write(0, b"still there")
    assert os.pread(fd, 11, 16 * PAGE) == b"still there"
    os.close(dimm)


def test_other_memory_at_the_same_address_is_mapped_anew(ram: GuestMemory, fd: int) -> None:
    for content in (b"1", b"2"):
        dimm = os.memfd_create("dimm")
        os.write(dimm, content * PAGE)
        ram.replace([(RamRegion(0, PAGE, 0), dimm)])
        os.close(dimm)
        assert ram.read(0, 1) == content
    ram.replace([(RamRegion(0, PAGE, 0), fd)])
    ram.replace([(RamRegion(0, PAGE, PAGE), fd)])
    assert ram.read(0, 1) == b"\x01"


def test_a_table_that_is_refused_changes_nothing(ram: GuestMemory, fd: int) -> None:
    with pytest.raises(MemoryMapError):
        ram.replace([(RamRegion(0, PAGE, 0), fd), (RamRegion(HIGH, PAGE, 32 * PAGE), fd)])
    assert ram.size == 32 * PAGE
    assert ram.read(HIGH, 1) == b"\x10"


def test_regions_may_begin_and_end_within_a_block(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of huge pages names their size as its block, and can be mapped in whole ones only."""
    fstat = os.fstat
    block = 16 * PAGE

    def of_huge_pages(number: int) -> os.stat_result:
        status = list(fstat(number))
        extra = {"st_blksize": block}
        return os.stat_result(status, extra)

    mapped: list[tuple[int, int]] = []
    real = mmap.mmap

    def only_whole(number: int, length: int, *, offset: int, **rest: int) -> mmap.mmap:
        assert length % block == offset % block == 0
        mapped.append((offset, length))
        return real(number, length, offset=offset, **rest)

    monkeypatch.setattr(os, "fstat", of_huge_pages)
    monkeypatch.setattr("emulator.memory.guest.mmap.mmap", only_whole)
    memory = GuestMemory.map(
        [(RamRegion(0, 9 * PAGE, 0), fd), (RamRegion(HIGH, 23 * PAGE, 9 * PAGE), fd)]
    )
    assert mapped == [(0, 16 * PAGE), (0, 32 * PAGE)]
    assert memory.read(8 * PAGE, 1) == b"\x08"
    assert memory.read(HIGH, 1) == b"\x09"
    assert memory.read(HIGH + 22 * PAGE, 1) == b"\x1f"
    for gpa in (9 * PAGE, HIGH + 23 * PAGE):
        with pytest.raises(GpaError):
            memory.read(gpa, 1)
    memory.close()


def test_a_file_of_huge_pages() -> None:
    """With the real thing, where the machine has some to spare."""
    huge = 2 << 20
    fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, 2 * huge)
    cut = huge // 2
    try:
        memory = GuestMemory.map(
            [(RamRegion(0, cut, 0), fd), (RamRegion(HIGH, 2 * huge - cut, cut), fd)]
        )
    except MemoryMapError as error:
        pytest.skip(f"this machine has no huge pages: {error}")
    finally:
        os.close(fd)
    memory.write(cut - 2, b"ab")
    memory.write(HIGH, b"cd")
    memory.write(HIGH + 2 * huge - cut - 1, b"e")
    assert memory.read(cut - 2, 2) + memory.read(HIGH, 2) == b"abcd"
    memory.close()
