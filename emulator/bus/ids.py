# SPDX-License-Identifier: MIT
"""Channel ids, given once for a key and kept for as long as the host lives; and monitor ids, which
a channel has while the guest knows it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

from emulator.bus.channel import Channel
from emulator.bus.effects import OfferKey
from emulator.bus.pages import MONITOR_IDS

MAX_CHANNEL_ID: Final = 2047
"""Event flags are a bitmap of 2,048 bits, and bit 0 is reserved."""
MAX_SHARED_CHANNEL_ID: Final = 255
"""A guest of a version below 2.4 looks at so many bits of its interrupt page (Linux,
vmbus_chan_sched() and MAX_NUM_CHANNELS_SUPPORTED); the page would have room for 16,384."""


def channel_id_of(key: OfferKey, ids: dict[OfferKey, int], in_use: Container[OfferKey]) -> int:
    """Return the id that ``key`` had before, or give it a new one; the stalest when all are given.

    ``ids`` are in the order in which they were given. Raises ValueError when all are ``in_use``.
    """
    if key in ids:
        return ids[key]
    number = len(ids) + 1
    if number > MAX_CHANNEL_ID:
        stale = next((other for other in ids if other not in in_use), None)
        if stale is None:
            raise ValueError(f"all {MAX_CHANNEL_ID} channel ids are in use")
        number = ids.pop(stale)
    ids[key] = number
    return number


def free_monitor_id(channels: Iterable[Channel]) -> int | None:
    """Return a monitor id that the guest knows of no channel; None when all are given."""
    given = {channel.monitor_id for channel in channels if channel.state.guest_knows}
    return next((number for number in range(MONITOR_IDS) if number not in given), None)
