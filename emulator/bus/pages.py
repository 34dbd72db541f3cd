# SPDX-License-Identifier: MIT
"""The pages of bits that a guest shares with the host to signal, beside the event connections.

Both sides change these bits at any time, so each is set and taken in one step (``or_u32`` and
``swap_u32`` of a page view), and what is read is never believed: it is a hint to look at a ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from emulator.memory import PageView

EVENT_CONNECTION: Final = 2
"""The one event connection of versions below 2.4 (Linux, VMBUS_EVENT_CONNECTION_ID)."""
SHARED_EVENT_FLAG: Final = 0
"""The one event flag that those guests look at (Linux 5.4, vmbus_isr())."""
MONITOR_IDS: Final = 128
MONITORS_IN_GROUP: Final = 32
_WORD_BITS: Final = 32
_TRIGGER_GROUPS: Final = 8
_LATENCIES: Final = 576
"""Offsets in HV_MONITOR_PAGE (TLFS; Linux, struct hv_monitor_page)."""
_TO_HOST: Final = 2048
"""Offset of the half that is the guest's to set (Linux, vmbus_connect(): send_int_page)."""


@dataclass(frozen=True, slots=True)
class SignalPages:
    """Guest-physical addresses of the interrupt page (below 2.4) and the guest's monitor page."""

    interrupt: int | None = None
    monitor: int | None = None


class InterruptPage:
    """The interrupt page: in the first half a bit for each channel that the host has signalled, in
    the second one for each that the guest has. A channel's bit is its id.

    No signal is lost. The sender sets the bit and then raises the event; the receiver is woken by
    the event, takes the bits, and then looks at the rings. A bit set after its word was taken is
    followed by an event of its own. Setting and taking are full fences, so who takes a bit sees the
    packets that were written before it was set.
    """

    def __init__(self, page: PageView) -> None:
        """Use one page of guest memory."""
        self._page = page

    def set(self, channel_id: int) -> None:
        """Tell the guest which channel the next event is for."""
        self._page.or_u32(channel_id // _WORD_BITS * 4, 1 << channel_id % _WORD_BITS)

    def take(self, last: int) -> Iterator[int]:
        """Return the channels up to ``last``, or some more, that the guest has signalled."""
        for word in range(last // _WORD_BITS + 1):
            yield from _take(self._page, _TO_HOST + 4 * word, word * _WORD_BITS)


def _take(page: PageView, offset: int, first: int) -> Iterator[int]:
    """Clear one word; return the numbers of its bits, of which the lowest is ``first``."""
    if not page.load_u32(offset):
        return
    bits = page.swap_u32(offset, 0)
    while bits:
        lowest = bits & -bits
        yield first + lowest.bit_length() - 1
        bits ^= lowest


class MonitorPage:
    """The guest's monitor page (HV_MONITOR_PAGE): 128 triggers in 4 groups, set by the guest.

    A trigger is a notification that need not come at once: the guest sets a bit, which costs it no
    hypercall, and who is to be notified looks at the page from time to time. Linux' writers set the
    bits in ``pending`` only (vmbus_setevent()) and never those in ``armed``, by which one
    hypervisor keeps a trigger back for its latency.
    """

    def __init__(self, page: PageView) -> None:
        """Use one page of guest memory."""
        self._page = page

    def take(self, group: int) -> Iterator[int]:
        """Return the monitor ids of a group of 32 that were triggered."""
        return _take(self._page, _TRIGGER_GROUPS + 8 * group, MONITORS_IN_GROUP * group)

    def set_latency(self, monitor_id: int, latency: int) -> None:
        """Tell the guest how often a trigger is looked at, in units of 100 ns, up to 6.5 ms."""
        self._page.write(_LATENCIES + 2 * monitor_id, min(latency, 0xFFFF).to_bytes(2, "little"))
