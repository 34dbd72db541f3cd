# SPDX-License-Identifier: MIT
"""What is behind a disk: the interface that the VSP does I/O through, and one without any.

A request is given a ``done`` that is called once, on the event loop, with None or with what went
wrong; never from within the call. What can be had at once, without waiting, is asked for with
:meth:`Backend.read_now` and :meth:`Backend.write_now` first. Pieces are the guest's memory itself.

A backend keeps no order among requests that are under way at one time, and needs none: a guest
counts on what was completed only. :meth:`Backend.flush` covers all that was completed before it was
called.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

Done = Callable[[OSError | None], None]
Pieces = Sequence[memoryview]


class BackendError(Exception):
    """A backend cannot be opened; one line for the person who asked for it."""


class Stamp(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a snapshot knows of the contents of a disk, so that another disk is noticed."""

    size: int
    """Bytes."""
    written_ns: int = 0
    """When it was written last, in ns since 1970; 0 if that is not known."""


class Backend(ABC):
    """One medium. ``size`` is in bytes."""

    size: int
    read_only: bool
    discard: bool = False
    """Whether :meth:`unmap` gives anything back."""
    discard_zeroes: ClassVar[bool] = False
    """Whether what was given back reads as zeroes."""

    def read_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """Read without waiting; False if that cannot be, and it has to be asked for."""
        return False

    def write_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """Write without waiting; False if that cannot be, and it has to be asked for."""
        return False

    @abstractmethod
    def read(self, pieces: Pieces, offset: int, done: Done) -> None:
        """Fill the pieces from ``offset``."""

    @abstractmethod
    def write(self, pieces: Pieces, offset: int, fua: bool, done: Done) -> None:
        """Write the pieces to ``offset``; with ``fua`` on stable storage when it is done."""

    @abstractmethod
    def flush(self, done: Done) -> None:
        """Put all that was completed on stable storage."""

    @abstractmethod
    def unmap(self, ranges: Sequence[tuple[int, int]], done: Done) -> None:
        """Give ranges back (offset, length)."""

    @abstractmethod
    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """Make a range read as zeroes."""

    @abstractmethod
    def let_go_of_memory(self, seconds: float) -> bool:
        """Have nothing that is under way touch the guest's memory any more.

        It may wait so long; False if something still does then. Each request ends all the same, and
        those that have ended by then may end from within this call.
        """

    @abstractmethod
    def stamp(self) -> Stamp:
        """Return what a snapshot has to know of the contents; raises OSError."""

    def measure(self) -> int:
        """Look how large the medium is now, and return it; raises OSError."""
        return self.size

    @abstractmethod
    def close(self) -> None:
        """Let go of it; nothing may be under way."""


class NullBackend(Backend):
    """Reads nothing and throws writes away: what remains is what the host itself costs."""

    discard = True

    def __init__(self, size: int) -> None:
        self.size = size
        self.read_only = False

    def read_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """Leave the guest's buffer as it is."""
        return True

    def write_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """Throw it away."""
        return True

    def read(self, pieces: Pieces, offset: int, done: Done) -> None:
        """Leave the guest's buffer as it is."""
        _soon(done)

    def write(self, pieces: Pieces, offset: int, fua: bool, done: Done) -> None:
        """Throw it away."""
        _soon(done)

    def flush(self, done: Done) -> None:
        """There is nothing to put anywhere."""
        _soon(done)

    def unmap(self, ranges: Sequence[tuple[int, int]], done: Done) -> None:
        """There is nothing to give back."""
        _soon(done)

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """It is nothing already."""
        _soon(done)

    def let_go_of_memory(self, seconds: float) -> bool:
        """It never has."""
        return True

    def stamp(self) -> Stamp:
        """There are no contents."""
        return Stamp(self.size)

    def close(self) -> None:
        """There is nothing to let go of."""


def _soon(done: Done) -> None:
    asyncio.get_running_loop().call_soon(done, None)
