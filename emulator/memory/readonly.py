# SPDX-License-Identifier: MIT
"""A view of guest pages that refuses to be written through."""

from __future__ import annotations

from typing import NoReturn

from emulator.memory.view import PageView

__all__ = ["ReadOnlyMemory", "ReadOnlyPageView"]


class ReadOnlyMemory(Exception):
    """The host was about to write to guest memory that it has mapped for reading only."""


class ReadOnlyPageView:
    """A `PageView` whose writes raise `ReadOnlyMemory`, and whose slices cannot be written.

    It keeps this host from changing pages by mistake. The guest can still change them.
    """

    def __init__(self, view: PageView, name: str) -> None:
        """Refuse writes to `view`; `name` is for the error."""
        self._view = view
        self._name = name

    def __len__(self) -> int:
        """Bytes in the view."""
        return len(self._view)

    def _refuse(self, offset: int) -> NoReturn:
        raise ReadOnlyMemory(
            f"{self._name} is mapped for reading only: nothing may be written at {offset:#x}; "
            "map it for writing"
        )

    def read(self, offset: int, length: int, /) -> bytes:
        """Copy bytes out."""
        return self._view.read(offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        """Raise ReadOnlyMemory."""
        self._refuse(offset)

    def load_u32(self, offset: int, /) -> int:
        """Load one aligned word (acquire)."""
        return self._view.load_u32(offset)

    def store_u32(self, offset: int, value: int, /) -> None:
        """Raise ReadOnlyMemory."""
        self._refuse(offset)

    def swap_u32(self, offset: int, value: int, /) -> int:
        """Raise ReadOnlyMemory."""
        self._refuse(offset)

    def or_u32(self, offset: int, bits: int, /) -> int:
        """Raise ReadOnlyMemory."""
        self._refuse(offset)

    def fence(self) -> None:
        """Order every access before this before every access after it."""
        self._view.fence()

    def slices(self, offset: int, length: int, /) -> list[memoryview]:
        """Return the memory itself in read-only pieces, for os.pwritev but not os.preadv."""
        return [piece.toreadonly() for piece in self._view.slices(offset, length)]

    def sub(self, offset: int, length: int, /) -> PageView:
        """Return a view of whole pages of this one, for reading only as well."""
        return ReadOnlyPageView(self._view.sub(offset, length), self._name)
