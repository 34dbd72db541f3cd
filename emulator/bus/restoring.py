# SPDX-License-Identifier: MIT
"""A restore between its two halves: owners claim the channels of the snapshot, and offer others.

What nobody claims is rescinded, what is new is offered if the guest has asked for offers, and what
is offered with other contents than the guest knows is refused, all at once, unless its owner says
that it begins anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from emulator.bus.channel import ChannelState
from emulator.bus.channels import Channels
from emulator.bus.effects import Offer, OfferKey, OpenParams
from emulator.wire.messages import USER_DEFINED_SIZE


class RestoreMismatch(Exception):
    """The snapshot does not fit this host; ``problems`` names every way in which it does not."""

    def __init__(self, problems: list[str]) -> None:
        """Join the problems into one text."""
        super().__init__("the VMBus state does not fit: " + "; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RestoredChannel:
    """A channel in the snapshot, for its owner to claim with ``offer``; ``open`` if it had rings.

    A channel that was opening is restored open, and the guest is told so at the end of the restore.
    """

    key: OfferKey
    open: OpenParams | None


class Restoring:
    """A restore between its two halves: which channels are claimed, which are new."""

    def __init__(self, table: Channels) -> None:
        """Wait for claims of the channels that ``table`` has now."""
        self._table = table
        self._unclaimed = {channel.offer.key for channel in table}
        self._new: list[OfferKey] = []
        self._anew: list[Offer] = []
        self._problems: list[str] = []
        self.restored = [
            RestoredChannel(
                channel.offer.key, channel.open.params if channel.open is not None else None
            )
            for channel in table
        ]

    def claim(self, offer: Offer, anew: bool) -> bool:
        """Take an offer; False if the table has to deal with it."""
        if anew and offer.key in self._unclaimed:
            # It stays unclaimed: what the guest knows is rescinded with the rest.
            self._anew.append(offer)
            return True
        if offer.key in self._unclaimed:
            self._unclaimed.remove(offer.key)
            channel = self._table.table[offer.key]
            if channel.state.is_revoked:
                # The guest will see a new offer in any case, so it may differ.
                channel.offer, channel.state = offer, ChannelState.REOFFERED
                channel.orphaned = False
            elif channel.state.guest_knows:
                self._problems += _differences(channel.offer, offer)
                channel.offer = dataclasses.replace(channel.offer, monitored=offer.monitored)
            else:
                channel.offer = offer
            return True
        if offer.key not in self._table.table:
            # New to the guest; told of it by the end of the restore.
            self._table.add(offer)
            self._new.append(offer.key)
            return True
        return False

    def has_changed(self, offer: Offer) -> bool:
        """Whether the guest knows the channel with other contents."""
        channel = self._table.table.get(offer.key)
        return (
            channel is not None
            and channel.state.guest_knows
            and not channel.state.is_revoked
            and bool(_differences(channel.offer, offer))
        )

    def check_claimed(self, key: OfferKey) -> None:
        """Raise ValueError if nobody has offered ``key`` since the restore began."""
        if key in self._unclaimed:
            raise ValueError(f"{key} is not offered")

    def check(self) -> None:
        """Raise :class:`RestoreMismatch` if claims did not fit."""
        problems = self._problems + [
            f"{key} is offered without its primary channel"
            for unclaimed in sorted(self._unclaimed)
            if not self._table.table[unclaimed].state.is_revoked
            for key in self._table.families.of(unclaimed)
            if key not in self._unclaimed
        ]
        if problems:
            raise RestoreMismatch(problems)

    def drop_unclaimed(self) -> None:
        """Rescind what nobody claimed, sub-channels before their primary."""
        for key in sorted(self._unclaimed, key=lambda key: (-key.subchannel_index, key)):
            channel = self._table.table[key]
            if channel.state.is_revoked:
                channel.state = ChannelState.REVOKED
            else:
                self._table.rescind(key)

    def offer_anew(self) -> None:
        """Offer what was rescinded because its owner begins anew."""
        for offer in self._anew:
            self._table.offer(offer)

    def tell_new(self) -> None:
        """Offer what is new, if the guest has asked for offers."""
        for key in self._new:
            if key in self._table.table:
                self._table.tell(self._table.table[key])


def _differences(known: Offer, offered: Offer) -> list[str]:
    """Say how an offer differs from the one that the guest knows."""
    fields = {
        "data": (_padded(known), _padded(offered)),
        "flags": (known.flags, offered.flags),
        "MMIO": (known.mmio_megabytes, offered.mmio_megabytes),
        "optional MMIO": (known.mmio_megabytes_optional, offered.mmio_megabytes_optional),
    }
    differ = [name for name, (ours, theirs) in fields.items() if ours != theirs]
    if not differ:
        return []
    return [f"{offered.key} is offered with other {', '.join(differ)} than the guest knows"]


def _padded(offer: Offer) -> bytes:
    return offer.user_defined.ljust(USER_DEFINED_SIZE, b"\0")
