# SPDX-License-Identifier: MIT
"""The map of translated code, against a set of page numbers."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.memory import CodeMap
from emulator.wire.packet import PAGE_SIZE, GpaRange

# Two regions with a hole, whose bytes are in another order than their pages.
REGIONS = [(0, 16 * PAGE_SIZE, 40), (32 * PAGE_SIZE, 8 * PAGE_SIZE, 5)]
INDEX = {pfn: 40 + pfn for pfn in range(16)} | {32 + k: 5 + k for k in range(8)}


class Map:
    """What QEMU has, and the map made of it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("code")
        os.ftruncate(self.fd, 64)
        self.bytes = mmap.mmap(self.fd, 64)
        self.code = CodeMap(self.fd, REGIONS)


@pytest.fixture(scope="module")
def made() -> Iterator[Map]:
    made = Map()
    yield made
    made.code.close()
    made.code.close()
    os.close(made.fd)


def of_pages(pfns: list[int]) -> GpaRange:
    return GpaRange(len(pfns) * PAGE_SIZE, 0, tuple(pfns))


PFNS = st.lists(st.integers(0, 45), max_size=20)


@given(code=st.sets(st.sampled_from(sorted(INDEX))), written=st.lists(PFNS, max_size=4))
def test_each_written_page_with_code_is_found_and_nothing_that_was_not_written(
    made: Map, code: set[int], written: list[list[int]]
) -> None:
    made.bytes[:] = bytes(64)
    for pfn in code:
        made.bytes[INDEX[pfn]] = 1
    stretches = made.code.holding([of_pages(pfns) for pfns in written])
    named = {index for first, count in stretches for index in range(first, first + count)}
    pages = {pfn for pfns in written for pfn in pfns}
    assert {INDEX[pfn] for pfn in pages & code} <= named
    assert named <= {INDEX[pfn] for pfn in pages & INDEX.keys()}
    if not pages & code:
        assert stretches == []


def test_a_map_without_a_byte_for_each_page_is_refused(made: Map) -> None:
    with pytest.raises(ValueError, match="no byte for the region at 0x0"):
        CodeMap(made.fd, [(0, 65 * PAGE_SIZE, 0)])


def test_the_map_cannot_be_written(made: Map) -> None:
    with pytest.raises(TypeError):
        made.code._map[0] = 1
