# SPDX-License-Identifier: MIT
"""The channels that a host has offered, and what each has while it is open."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from emulator.bus import OfferKey, OpenParams
from emulator.kmcl import ServerChannel
from emulator.machine.doorbells import remove_doorbell
from emulator.memory import GpaError, GuestMemory
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import GpaRange

PAGE: Final = 4096


@dataclass(slots=True)
class Slot:
    """One offered channel. ``doorbell`` and ``interrupt`` are eventfds, or -1."""

    key: OfferKey
    channel: ServerChannel
    params: OpenParams | None = None
    doorbell: int = -1
    interrupt: int = -1
    registered: bool = False
    gpadls: dict[int, tuple[GpaRange, ...]] = field(default_factory=dict)

    def take_rings(
        self, memory: GuestMemory, params: OpenParams
    ) -> tuple[IncomingRing, OutgoingRing]:
        """Make the ends of the rings, and the eventfds.

        Raises :class:`GpaError` for pages that are no RAM or too few, and OSError without a
        descriptor left; :meth:`let_go` undoes what was done.
        """
        view = memory.pages(params.ring_pfns)
        split = params.downstream_page_offset * PAGE
        if not 2 * PAGE <= split <= len(view) - 2 * PAGE:
            raise GpaError(params.ring_pfns[0] * PAGE, len(view))
        self.params = params
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return (
            IncomingRing(view.sub(0, split)),
            OutgoingRing(view.sub(split, len(view) - split)),
        )

    def let_go(self) -> None:
        """Close the eventfds and forget how the channel was opened; idempotent."""
        self.params = None
        if self.doorbell >= 0:
            remove_doorbell(self.doorbell)
            os.close(self.doorbell)
        if self.interrupt >= 0:
            os.close(self.interrupt)
        self.doorbell = self.interrupt = -1
        self.registered = False


class Slots:
    """The slots by what they are looked up with."""

    def __init__(self) -> None:
        """Start empty."""
        self.by_key: dict[OfferKey, Slot] = {}
        self.by_channel: dict[ServerChannel, Slot] = {}

    def add(self, slot: Slot) -> None:
        """Add a slot."""
        self.by_key[slot.key] = slot
        self.by_channel[slot.channel] = slot

    def remove(self, slot: Slot) -> None:
        """Forget a slot."""
        del self.by_key[slot.key]
        del self.by_channel[slot.channel]
