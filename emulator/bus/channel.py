# SPDX-License-Identifier: MIT
"""One channel as the bus knows it: its offer, its state, how it is open."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from emulator.bus.effects import Offer, OpenParams


class ChannelState(Enum):
    """The state of a channel. "The owner" is who offered it."""

    CLOSED = "closed"
    """Offered, or to be offered when the guest asks."""
    OPENING = "opening"
    """The guest wants it open; the owner has been asked."""
    OPENING_CLOSING = "opening, to be closed"
    """As OPENING, but the guest has closed it again, or is gone, before the owner answered."""
    OPEN = "open"
    """Open on both sides."""
    CLOSING = "closing"
    """The guest has closed it or is gone; the owner has been asked to let go."""
    CLOSING_REOPEN = "closing, to be opened"
    """As CLOSING, but the guest wants it open again already."""
    REVOKED = "revoked"
    """Rescinded by the owner; the guest has not let go of it yet."""
    REOFFERED = "revoked, to be offered"
    """As REVOKED, but the owner offers it again: the guest is told when it has let go."""

    @property
    def owner_is_using(self) -> bool:
        """Whether the owner has, or is about to have, the rings."""
        return self in _IN_USE


_IN_USE = frozenset(
    {
        ChannelState.OPENING,
        ChannelState.OPENING_CLOSING,
        ChannelState.OPEN,
        ChannelState.CLOSING,
        ChannelState.CLOSING_REOPEN,
    }
)


class Ending(Enum):
    """What is owed when the connection that is ending has ended."""

    NOTHING = "nothing"
    """The machine was reset."""
    UNLOAD_COMPLETE = "unload complete"
    VERSION_RESPONSE = "version response"
    """The guest has made a new contact without ending the old one."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An open, and the GPADL that its ring is in."""

    gpadl_id: int
    params: OpenParams


@dataclass(slots=True)
class Channel:
    """One channel. ``told``: the guest has been sent the offer."""

    offer: Offer
    channel_id: int
    state: ChannelState = ChannelState.CLOSED
    told: bool = False
    open: OpenRequest | None = None
    reopen: OpenRequest | None = None

    def __str__(self) -> str:
        """Describe the channel for people."""
        return f"{self.channel_id} {self.offer.key} {self.state.value}"

    def uses(self, gpadl_id: int) -> bool:
        """Whether its ring is in this GPADL."""
        return any(
            request is not None and request.gpadl_id == gpadl_id
            for request in (self.open, self.reopen)
        )
