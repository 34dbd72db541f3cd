# SPDX-License-Identifier: MIT
"""GPADLs: lists of guest pages, received in pieces, used by channels, torn down on request.

A GPADL is known by its channel and its id: the same id on two channels is two GPADLs. Bodies name
the id only; they continue the one that is being received. A guest may make many and large ones, so
their number and their pages are limited.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from emulator.wire.packet import GpaRange

PAGE: Final = 4096
_RANGE = struct.Struct("<II")


class GpadlError(Exception):
    """The guest's GPADL is wrong or too much; the text says how."""


class GpadlPhase(Enum):
    """Where a GPADL is in its life."""

    RECEIVING = "receiving"
    """Its header has come, bodies are missing."""
    ACCEPTED = "accepted"
    """Complete; its channel may use it."""
    TEARING_DOWN = "tearing down"
    """The guest wants it back; its channel has been asked to let go."""
    WAITING_FOR_CLOSE = "waiting for close"
    """The guest wants it back while it is the ring of an open channel: asked when that closes."""


@dataclass(slots=True)
class Gpadl:
    """One GPADL. ``length`` bytes of ``count`` ranges are announced; ``data`` is what has come."""

    channel_id: int
    gpadl_id: int
    length: int
    count: int
    data: bytearray = field(default_factory=bytearray)
    phase: GpadlPhase = GpadlPhase.RECEIVING
    ranges: tuple[GpaRange, ...] = ()

    def receive(self, piece: bytes) -> bool:
        """Take a piece; True when the GPADL is complete. Surplus bytes are ignored.

        Hyper-V pads the last message, so surplus is no error. Raises :class:`GpadlError` when the
        complete data is not what the header announced.
        """
        self.data += piece[: self.length - len(self.data)]
        if len(self.data) < self.length:
            return False
        self.ranges = tuple(self._parse())
        self.phase = GpadlPhase.ACCEPTED
        return True

    @property
    def pages(self) -> int:
        """How many pages it may name at most: for the quota."""
        return self.length // 8

    @property
    def pfns(self) -> tuple[int, ...]:
        """All its pages in order."""
        return tuple(pfn for gpa_range in self.ranges for pfn in gpa_range.pfns)

    def _parse(self) -> Iterator[GpaRange]:
        position = 0
        for _ in range(self.count):
            if self.length - position < _RANGE.size:
                raise GpadlError(f"{self.count} ranges do not fit {self.length} bytes")
            length, offset = _RANGE.unpack_from(self.data, position)
            position += _RANGE.size
            pages = (offset + length + PAGE - 1) // PAGE
            if not length or offset >= PAGE or self.length - position < 8 * pages:
                raise GpadlError(f"a range of {length} bytes at {offset} does not fit its pages")
            yield GpaRange(length, offset, struct.unpack_from(f"<{pages}Q", self.data, position))
            position += 8 * pages
        if position != self.length:
            raise GpadlError(f"{self.length - position} bytes are left after {self.count} ranges")


class GpadlTable:
    """All GPADLs of a guest, within quotas."""

    def __init__(self, max_gpadls: int, max_pages: int) -> None:
        """Allow ``max_gpadls`` GPADLs with ``max_pages`` pages in all."""
        self._max_gpadls = max_gpadls
        self._max_pages = max_pages
        self._pages = 0
        self._table: dict[tuple[int, int], Gpadl] = {}
        self._receiving: dict[int, Gpadl] = {}

    def __iter__(self) -> Iterator[Gpadl]:
        """Iterate over a copy: callers remove what they find."""
        return iter(list(self._table.values()))

    def find(self, channel_id: int, gpadl_id: int) -> Gpadl | None:
        """Return a GPADL or None."""
        return self._table.get((channel_id, gpadl_id))

    def add(self, gpadl: Gpadl) -> None:
        """Add one; raises :class:`GpadlError` when it exists, is empty, or exceeds a quota."""
        key = (gpadl.channel_id, gpadl.gpadl_id)
        if key in self._table:
            raise GpadlError(f"GPADL {gpadl.gpadl_id:#x} exists")
        if gpadl.gpadl_id in self._receiving:
            raise GpadlError(f"GPADL {gpadl.gpadl_id:#x} is still being received")
        if not gpadl.count or not gpadl.length or gpadl.length % 8:
            raise GpadlError(f"{gpadl.count} ranges in {gpadl.length} bytes")
        if len(self._table) >= self._max_gpadls:
            raise GpadlError(f"there are {self._max_gpadls} GPADLs already")
        if self._pages + gpadl.pages > self._max_pages:
            raise GpadlError(f"more than {self._max_pages} pages are in use")
        self._table[key] = gpadl
        self._pages += gpadl.pages
        if gpadl.phase is GpadlPhase.RECEIVING:
            self._receiving[gpadl.gpadl_id] = gpadl

    def receive(self, gpadl: Gpadl, piece: bytes) -> bool:
        """Give a piece to a GPADL; True when complete. A wrong one is removed and raised."""
        try:
            complete = gpadl.receive(piece)
        except GpadlError:
            self.remove(gpadl)
            raise
        if complete:
            self._receiving.pop(gpadl.gpadl_id, None)
        return complete

    def being_received(self, gpadl_id: int) -> Gpadl | None:
        """Return the GPADL that a body continues."""
        return self._receiving.get(gpadl_id)

    def remove(self, gpadl: Gpadl) -> None:
        """Remove one; idempotent."""
        if self._table.pop((gpadl.channel_id, gpadl.gpadl_id), None) is not None:
            self._pages -= gpadl.pages
        if self._receiving.get(gpadl.gpadl_id) is gpadl:
            del self._receiving[gpadl.gpadl_id]
