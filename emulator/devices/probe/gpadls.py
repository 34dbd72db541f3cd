# SPDX-License-Identifier: MIT
"""GPADLs that the guest makes for the probe on request, and what is in them.

The guest fills one with the pattern of its number, which the probe finds when it maps the GPADL;
the probe writes each byte back changed, which the guest finds when it looks. As KMCL asks of a VSP,
nothing stays mapped when the channel is suspended, unless the probe is told to forget that.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from emulator.devices.base import DeviceStateError
from emulator.devices.probe.protocol import GUEST_SALT, gpadl_pattern, write_back
from emulator.kmcl import KmclError, ServerChannel
from emulator.memory import PageView

PAGE: Final = 4096


class GpadlNote(msgspec.Struct):
    """One GPADL: the handle (gpadl id) that the guest was given for it, and its contents."""

    handle: int
    pages: int
    changed: bool = False
    """Whether the probe has written it back."""


class ProbeGpadls:
    """The GPADLs of the data channel, by the numbers that the probe gives them."""

    def __init__(self, channel: ServerChannel) -> None:
        """Map GPADLs of ``channel``."""
        self._channel = channel
        self.notes: dict[int, GpadlNote] = {}
        self._views: dict[int, PageView] = {}
        self.keep = False
        """Leave them mapped when the channel is suspended, as a VSP must not."""

    def map(self, number: int) -> bool:
        """Map one; returns whether it holds what it should.

        Raises :class:`DeviceStateError` with KMCL's status where it cannot be mapped.
        """
        note = self._note(number)
        try:
            view = self._channel.map_gpadl(note.handle)
        except KmclError as error:
            raise DeviceStateError(f"{error.status.name}: {error}") from error
        self._views[number] = view
        wanted = gpadl_pattern(number, note.pages * PAGE, GUEST_SALT)
        return view.read(0, len(view)) == (write_back(wanted) if note.changed else wanted)

    def write(self, number: int) -> None:
        """Change each byte of one that is mapped; raises :class:`DeviceStateError`."""
        note = self._note(number)
        if number not in self._views:
            raise DeviceStateError(f"GPADL {number} is not mapped; map it first")
        view = self._views[number]
        view.write(0, write_back(view.read(0, len(view))))
        note.changed = not note.changed

    def unmap(self, number: int) -> None:
        """Let go of one; raises :class:`DeviceStateError` if it is not mapped."""
        if self._views.pop(number, None) is None:
            raise DeviceStateError(f"GPADL {number} is not mapped; map it first")
        self._channel.unmap_gpadl(self._note(number).handle)

    def crc(self, number: int) -> int:
        """Return the CRC-32 of what it should hold."""
        note = self._note(number)
        wanted = gpadl_pattern(number, note.pages * PAGE, GUEST_SALT)
        return zlib.crc32(write_back(wanted) if note.changed else wanted)

    def suspend(self) -> None:
        """Let go of all; afterwards they can be mapped again."""
        if not self.keep:
            for number in list(self._views):
                self.unmap(number)

    def closed(self) -> None:
        """Forget all: the channel has ended, and with it every GPADL and mapping."""
        self._views.clear()
        self.notes.clear()

    def _note(self, number: int) -> GpadlNote:
        if number not in self.notes:
            raise DeviceStateError(f"the guest has not made a GPADL {number}")
        return self.notes[number]
