# SPDX-License-Identifier: MIT
"""What a view of guest pages can do, and which of its two implementations serves.

A ring, or a GPADL, is a list of 4 KiB pages anywhere in guest RAM. A `PageView` makes them one
stretch of bytes. The guest changes that memory at any time, so nothing here may be trusted to stay:
callers read each thing once. There are two implementations behind the one interface, and the unit
tests run on both:

* ``native`` is the C extension `emulator.memory._native`. It is what the backend runs on.
* ``pure`` is the reference in Python, `emulator.memory._pure`. It serves where the extension was
  not built, and whenever the environment sets ``VMBUS_PURE_PYTHON=1``.

The reference has a full fence on x86 only (`emulator.memory._pure` tells why). On any other machine
a backend on it could lose a wake-up, so there the extension is required.
"""

import os
import platform
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from emulator.memory._pure import PurePageView

__all__ = ["ATOMIC", "IMPLEMENTATION", "PageView", "page_view"]


class PageView(Protocol):
    """One contiguous view of scattered pages, whose offsets count from 0 over all of them.

    Every method raises ValueError for bytes that are not within the view: offsets that come from a
    guest must be checked before they get here. A view keeps the mapping of its pages alive.
    """

    def __len__(self) -> int:
        """Bytes in the view: a multiple of 4096."""

    def read(self, offset: int, length: int, /) -> bytes:
        """Copy bytes out. Nothing orders the copy but a load or a fence before it."""

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        """Copy bytes in. They are visible to whoever sees a later `store_u32`."""

    def load_u32(self, offset: int, /) -> int:
        """Load one aligned little-endian 32-bit word, whole; later accesses stay after it
        (acquire).
        """

    def store_u32(self, offset: int, value: int, /) -> None:
        """Store one aligned little-endian 32-bit word, whole; earlier accesses stay before it
        (release).
        """

    def swap_u32(self, offset: int, value: int, /) -> int:
        """Store one aligned word and return what was there, as one step for everybody who sees the
        memory (:data:`ATOMIC`); also a full fence.
        """

    def or_u32(self, offset: int, bits: int, /) -> int:
        """Set bits of one aligned word and return what was there, as :meth:`swap_u32` does."""

    def fence(self) -> None:
        """Order every access before this before every access after it: store-to-load fence."""

    def slices(self, offset: int, length: int, /) -> list[memoryview]:
        """Return the memory itself in as few pieces as there are, for os.preadv and os.pwritev."""

    def sub(self, offset: int, length: int, /) -> "PageView":
        """Return a view of whole pages of this one; `offset` and `length` are multiples of 4096."""


def _choose() -> tuple[Literal["native", "pure"], Callable[[Sequence[memoryview]], PageView]]:
    if os.environ.get("VMBUS_PURE_PYTHON") == "1":
        return "pure", PurePageView
    try:
        from emulator.memory import _native
    except ImportError as error:
        if platform.machine() not in ("x86_64", "AMD64", "i686"):
            raise ImportError(
                "the C extension emulator.memory._native is not built, and on "
                f"{platform.machine()} the Python reference has no store-to-load fence; "
                "build it with `python setup.py build_ext --inplace`"
            ) from error
        return "pure", PurePageView
    return "native", _native.PageView


IMPLEMENTATION, page_view = _choose()
ATOMIC = IMPLEMENTATION == "native"
"""Whether ``swap_u32`` and ``or_u32`` are one step for the guest as well. Python has no such
instruction, so on the reference a bit that the guest sets at that moment is lost: a backend on it
must not offer what rests on bits that both sides change (interrupt and monitor pages)."""
"""`IMPLEMENTATION` is "native" or "pure". `page_view(segments)` makes a view of writable memory:
each segment is a positive multiple of 4096 bytes, in the order of the view; anything else is a
ValueError."""
