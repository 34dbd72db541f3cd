# SPDX-License-Identifier: MIT
"""Which channels are sub-channels of which: those of one device, beside its primary (index 0)."""

from __future__ import annotations

import dataclasses

from emulator.bus.effects import OfferKey


class Families:
    """The sub-channels that are there, by their primary."""

    def __init__(self) -> None:
        """Start without any."""
        self._subchannels: dict[OfferKey, set[OfferKey]] = {}

    def add(self, key: OfferKey) -> None:
        """Note a channel; idempotent."""
        if key.subchannel_index:
            self._subchannels.setdefault(primary_of(key), set()).add(key)

    def remove(self, key: OfferKey) -> None:
        """Forget a channel; idempotent."""
        if family := self._subchannels.get(primary_of(key)):
            family.discard(key)
            if not family:
                del self._subchannels[primary_of(key)]

    def of(self, primary: OfferKey) -> list[OfferKey]:
        """Return the sub-channels of a primary, the last first: as they are to go."""
        return sorted(self._subchannels.get(primary, ()), reverse=True)


def primary_of(key: OfferKey) -> OfferKey:
    """Return the key of the primary channel of the device that ``key`` is of."""
    return dataclasses.replace(key, subchannel_index=0)
