# SPDX-License-Identifier: MIT
"""GPADLs as data: lists of guest pages, received in pieces, and a table of them with quotas.

A GPADL is known by its channel and its id: the same id on two channels is two GPADLs. Bodies name
the id only; they continue the one that is being received. A guest may make many and large ones, so
their number and their pages are limited, and counted when they are announced: what a guest
announces and never sends costs it quota and us nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from emulator.wire.packet import PAGE_SIZE, GpaRange

_RANGE: Final = struct.Struct("<II")
_PFN_SIZE: Final = 8


class GpadlError(Exception):
    """The guest's GPADL is wrong or too much; the text says how."""


class GpadlPhase(Enum):
    """Where a GPADL is in its life."""

    RECEIVING = "receiving"
    """Its header has come, bodies are missing."""
    ACCEPTED = "accepted"
    """Complete; its channel may use it."""
    WAITING_FOR_CLOSE = "waiting for close"
    """The guest wants it back while it is the ring of an open channel: asked when that closes."""
    TEARING_DOWN = "tearing down"
    """The guest wants it back; the owner has been asked to let go."""
    DROPPED = "dropped"
    """The guest has let go of the channel; the owner has been asked, and nobody waits."""


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
        """Take a piece; True when the GPADL is complete. What follows the announced length is
        padding of the message.

        Raises :class:`GpadlError` when the complete data is not what the header announced.
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
        return self.length // _PFN_SIZE

    @property
    def pfns(self) -> tuple[int, ...]:
        """All its pages in order."""
        return tuple(pfn for gpa_range in self.ranges for pfn in gpa_range.pfns)

    @property
    def is_whole_pages(self) -> bool:
        """Whether the ranges are the pages and nothing but the pages, as a ring's are."""
        return all(
            gpa_range.offset == 0 and gpa_range.length % PAGE_SIZE == 0 for gpa_range in self.ranges
        )

    def _parse(self) -> Iterator[GpaRange]:
        position = 0
        for _ in range(self.count):
            if self.length - position < _RANGE.size:
                raise GpadlError(f"{self.count} ranges do not fit {self.length} bytes")
            length, offset = _RANGE.unpack_from(self.data, position)
            position += _RANGE.size
            pages = (offset + length + PAGE_SIZE - 1) // PAGE_SIZE
            if not length or offset >= PAGE_SIZE or self.length - position < _PFN_SIZE * pages:
                raise GpadlError(f"a range of {length} bytes at {offset} does not fit its pages")
            yield GpaRange(length, offset, struct.unpack_from(f"<{pages}Q", self.data, position))
            position += _PFN_SIZE * pages
        if position != self.length:
            raise GpadlError(f"{self.length - position} bytes are left after {self.count} ranges")


class GpadlTable:
    """All GPADLs of a guest, within quotas."""

    def __init__(self, max_per_channel: int, max_pages: int) -> None:
        """Allow ``max_per_channel`` GPADLs on each channel and ``max_pages`` pages in all."""
        self._max_per_channel = max_per_channel
        self._max_pages = max_pages
        self._pages = 0
        self._channels: dict[int, dict[int, Gpadl]] = {}
        self._receiving: dict[int, Gpadl] = {}

    def __len__(self) -> int:
        return sum(map(len, self._channels.values()))

    def __iter__(self) -> Iterator[Gpadl]:
        """Iterate over a copy: callers remove what they find."""
        return iter([gpadl for table in self._channels.values() for gpadl in table.values()])

    @property
    def pages(self) -> int:
        """How many pages are counted against the quota."""
        return self._pages

    def of(self, channel_id: int) -> list[Gpadl]:
        """Return the GPADLs of a channel, in the order in which they were made."""
        return list(self._channels.get(channel_id, {}).values())

    def find(self, channel_id: int, gpadl_id: int) -> Gpadl | None:
        """Return a GPADL or None."""
        return self._channels.get(channel_id, {}).get(gpadl_id)

    def add(self, gpadl: Gpadl) -> None:
        """Add one; raises :class:`GpadlError` when it exists, is empty, or exceeds a quota."""
        table = self._channels.get(gpadl.channel_id, {})
        if gpadl.gpadl_id in table:
            raise GpadlError("it exists already")
        if gpadl.phase is GpadlPhase.RECEIVING and gpadl.gpadl_id in self._receiving:
            # A body could not say which of the two it continues. One that is whole already, as
            # another channel's may be in a snapshot, continues with none.
            raise GpadlError("one with this id is still being received")
        if not gpadl.count or not gpadl.length or gpadl.length % _PFN_SIZE:
            raise GpadlError(f"{gpadl.count} ranges in {gpadl.length} bytes")
        if len(table) >= self._max_per_channel:
            raise GpadlError(f"the channel has {self._max_per_channel} GPADLs already")
        if self._pages + gpadl.pages > self._max_pages:
            raise GpadlError(f"more than {self._max_pages} pages would be shared")
        self._channels.setdefault(gpadl.channel_id, table)[gpadl.gpadl_id] = gpadl
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
        """Remove one that is in the table."""
        table = self._channels[gpadl.channel_id]
        del table[gpadl.gpadl_id]
        if not table:
            del self._channels[gpadl.channel_id]
        self._pages -= gpadl.pages
        if self._receiving.get(gpadl.gpadl_id) is gpadl:
            del self._receiving[gpadl.gpadl_id]
