# SPDX-License-Identifier: MIT
"""GPADLs that the VSP has mapped (VmbChannelMapGpadl), and teardowns that wait for them.

A mapping is not saved: it is of this process's memory. The VSP maps the same handle again after a
restore.
"""

from __future__ import annotations

from collections.abc import Callable

from emulator.kmcl.errors import KmclError
from emulator.memory import PageView, ReadOnlyPageView
from emulator.wire.ntstatus import NtStatus


class MappedGpadls:
    """The mappings of one channel."""

    def __init__(self, name: Callable[[], str], pages: Callable[[int], PageView]) -> None:
        """Map with ``pages``, which raises KeyError; ``name`` is for errors."""
        self._name = name
        self._pages = pages
        self._mapped: set[int] = set()
        self._waiting: dict[int, Callable[[], None]] = {}

    def map(self, handle: int, *, read_only: bool = False) -> PageView:
        """Return the pages of a GPADL, with ``read_only`` in a view that refuses writes.

        Raises :class:`KmclError`: INVALID_PARAMETER for a handle that the guest has not given this
        channel, INVALID_DEVICE_STATE for one that is mapped, or that the guest is tearing down.
        """
        if handle in self._mapped:
            raise KmclError(
                NtStatus.INVALID_DEVICE_STATE,
                f"{self._name()}: GPADL {handle:#x} is mapped already; unmap it first",
            )
        try:
            view = self._pages(handle)
        except KeyError:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self._name()}: the guest has no GPADL {handle:#x} for this channel",
            ) from None
        self._mapped.add(handle)
        if read_only:
            return ReadOnlyPageView(view, f"{self._name()}: GPADL {handle:#x}")
        return view

    def unmap(self, handle: int) -> None:
        """End a mapping; a teardown that waited for it goes on.

        Raises :class:`KmclError` INVALID_PARAMETER if there is none.
        """
        if handle not in self._mapped:
            raise KmclError(
                NtStatus.INVALID_PARAMETER, f"{self._name()}: GPADL {handle:#x} is not mapped"
            )
        self._mapped.remove(handle)
        if released := self._waiting.pop(handle, None):
            released()

    def torn_down(self, handle: int, released: Callable[[], None]) -> None:
        """The guest wants its pages back: call ``released`` when the VSP has let go of them."""
        if handle in self._mapped:
            self._waiting[handle] = released
        else:
            released()

    def end(self) -> None:
        """End all mappings: the channel is closed, and EvtClosed is over."""
        self._mapped.clear()
        waiting, self._waiting = self._waiting, {}
        for released in waiting.values():
            released()
