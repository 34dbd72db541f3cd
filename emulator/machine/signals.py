# SPDX-License-Identifier: MIT
"""Signals that guest and host give by bits in a page, and not by an event of each channel.

Below VMBus 2.4 all channels share one event flag and one event connection, and bits in the
interrupt page say whose the event is. At any version a channel may have a trigger in the guest's
monitor page (``emulator.machine.monitor``). ``emulator.bus.pages`` has the pages and their rules;
this file gives them their eventfds and asks the channels to look.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from emulator.bus import OpenParams
from emulator.bus.pages import EVENT_CONNECTION, InterruptPage, MonitorPage, SignalPages
from emulator.kmcl import ServerChannel
from emulator.link import Session, Status
from emulator.machine.doorbells import add_doorbell, remove_doorbell
from emulator.machine.monitor import DEFAULT_LATENCY, MonitorTriggers
from emulator.memory import GpaError, GuestMemory
from emulator.wire.packet import PAGE_SIZE

STUCK_SECONDS: Final = 0.1
"""How long after an open the guest has to begin reading before it is interrupted once more."""


class GuestSignals:
    """The pages of bits of one guest, and the open channels that they are for."""

    def __init__(self, memory: GuestMemory) -> None:
        """Start without a guest; its pages are in ``memory``."""
        self._memory = memory
        self._pages = SignalPages()
        self._interrupts: InterruptPage | None = None
        self.shares_interrupt = False
        """Whether the guest looks at one event flag only, and then at the interrupt page."""
        self._doorbell = -1
        self._channels: dict[int, Callable[[], None]] = {}
        self.triggers = MonitorTriggers()

    def is_ram(self, gpa: int) -> bool:
        """Whether the page at ``gpa`` is the guest's memory."""
        try:
            self._memory.slices(gpa, PAGE_SIZE)
        except GpaError:
            return False
        return True

    def interrupt(self, params: OpenParams) -> None:
        """The guest is about to be interrupted: say in the interrupt page, if there is one, which
        channel it is for; look for its answer, if it will be a trigger.
        """
        if self._interrupts is not None:
            self._interrupts.set(params.channel_id)
        if params.monitor_id is not None:
            self.triggers.expect()

    def add(
        self, params: OpenParams, rung: Callable[[], None], latency: int = DEFAULT_LATENCY
    ) -> None:
        """Call ``rung`` when the guest signals this channel by a bit.

        A trigger that it has been offered is looked at with ``latency`` in units of 100 ns.
        """
        self._channels[params.channel_id] = rung
        if params.monitor_id is not None:
            self.triggers.add(params.monitor_id, params.channel_id, rung, latency)

    def remove(self, params: OpenParams) -> None:
        """Forget a channel; idempotent."""
        self._channels.pop(params.channel_id, None)
        if params.monitor_id is not None:
            self.triggers.remove(params.monitor_id, params.channel_id)

    def follow(self, pages: SignalPages, session: Session | None) -> None:
        """Use ``pages`` from now on, and no others; the guest has just named or left them."""
        if pages == self._pages:
            return
        before, self._pages = self._pages, pages
        if pages.interrupt != before.interrupt:
            self._leave_interrupt_page(session)
            if pages.interrupt is not None:
                self._use_interrupt_page(pages.interrupt, session)
        if pages.monitor != before.monitor:
            self.triggers.use(
                MonitorPage(self._memory.pages([pages.monitor // PAGE_SIZE]))
                if pages.monitor is not None
                else None
            )

    def _use_interrupt_page(self, gpa: int, session: Session | None) -> None:
        self._interrupts = InterruptPage(self._memory.pages([gpa // PAGE_SIZE]))
        self.shares_interrupt = True
        if session is None:
            return
        self._doorbell = doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

        def registered(status: Status) -> None:
            # A signal that came before the registration was lost: look once.
            if status is Status.DONE and doorbell == self._doorbell:
                self._scan_interrupt_page()

        add_doorbell(doorbell, self._scan_interrupt_page)
        session.add_doorbell(EVENT_CONNECTION, doorbell, registered)

    def _leave_interrupt_page(self, session: Session | None) -> None:
        self._interrupts = None
        self.shares_interrupt = False
        if self._doorbell < 0:
            return
        remove_doorbell(self._doorbell)
        os.close(self._doorbell)
        self._doorbell = -1
        if session is not None:
            session.del_doorbell(EVENT_CONNECTION)

    def _scan_interrupt_page(self) -> None:
        if self._interrupts is None or not self._channels:
            return
        # All bits first: what a channel does when it looks may end the connection.
        for channel_id in [*self._interrupts.take(max(self._channels))]:
            if (rung := self._channels.get(channel_id)) is not None:
                rung()


def looks_stuck(channel: ServerChannel) -> bool:
    """Whether a channel that has just been opened has packets for the guest that it does not read.

    A VSP may send as soon as it has accepted the open, and so before the guest has its OpenResult.
    A guest that drops what interrupts it until then reads nothing, and the host, who signals a ring
    only when it was empty before, would never signal it again: one interrupt more, a little later,
    sets both going. It costs nothing, for a guest has to bear spurious interrupts anyway.
    """
    ring = channel.traffic.outgoing_ring
    if ring is None:
        return False
    words = ring.words()
    return words.used != 0 and not words.interrupt_mask
