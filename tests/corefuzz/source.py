# SPDX-License-Identifier: MIT
"""Where a fuzz target takes its choices from: bytes, read from the front, then zeroes for ever.

Of our own, so that an input that was found once can be run without the fuzzer that found it. The
zeroes make every prefix of an input an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Choices made by ``data``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def more(self) -> bool:
        """Whether there are bytes left that nobody has read."""
        return self._position < len(self._data)

    def take(self, count: int) -> bytes:
        """Return ``count`` bytes, the last of them zero if there are not as many."""
        piece = self._data[self._position : self._position + count]
        self._position += count
        return piece.ljust(count, b"\0")

    def number(self, size: int) -> int:
        """Return a number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, limit: int) -> int:
        """Return 0 to ``limit`` - 1; ``limit`` is at most 65,536."""
        return self.number(1 if limit <= 256 else 2) % limit

    def choice(self, among: Sequence[T]) -> T:
        """Return one of these."""
        return among[self.below(len(among))]

    def word(self, likely: Sequence[int], size: int = 4) -> int:
        """Return one of the ``likely`` numbers, or now and then any of ``size`` bytes."""
        index = self.below(len(likely) + 1)
        return likely[index] if index < len(likely) else self.number(size)
