# SPDX-License-Identifier: MIT
"""What the ring tests share: ring memory seen from both sides, and a view to interfere with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from emulator.memory import PageView, _native
from emulator.memory._pure import PurePageView
from emulator.model.ring import GuestRing

ViewType = Callable[[Sequence[memoryview]], PageView]

# Not optional: a run of the tests that leaves the extension out would say nothing about the
# backend.
VIEW_TYPES: dict[str, ViewType] = {"native": _native.PageView, "pure": PurePageView}


def ring_memory(view_type: ViewType, data_pages: int = 1) -> tuple[PageView, GuestRing]:
    """Make one ring: the host's view of it, and the guest's; its pages lie in no order."""
    memory = memoryview(bytearray(4096 * (2 * data_pages + 2)))
    numbers = list(range(2 * data_pages + 2))
    random.Random(data_pages).shuffle(numbers)
    pages = [memory[n * 4096 : n * 4096 + 4096] for n in numbers[: data_pages + 1]]
    guest = GuestRing(pages)
    guest.initialise()
    return view_type(pages), guest


class WrappedView:
    """Passes everything on to another view; a subclass changes what it wants to."""

    def __init__(self, inner: PageView) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, offset: int, length: int, /) -> bytes:
        return self.inner.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        self.inner.write(offset, data)

    def load_u32(self, offset: int, /) -> int:
        return self.inner.load_u32(offset)

    def store_u32(self, offset: int, value: int, /) -> None:
        self.inner.store_u32(offset, value)

    def swap_u32(self, offset: int, value: int, /) -> int:
        return self.inner.swap_u32(offset, value)

    def or_u32(self, offset: int, bits: int, /) -> int:
        return self.inner.or_u32(offset, bits)

    def fence(self) -> None:
        self.inner.fence()

    def slices(self, offset: int, length: int, /) -> list[memoryview]:
        return self.inner.slices(offset, length)

    def sub(self, offset: int, length: int, /) -> PageView:
        return self.inner.sub(offset, length)
