# SPDX-License-Identifier: MIT
"""One channel as the bus knows it: its offer, its state, how it is open.

Theory. Two parties hold a channel: the *owner*, who offered it, and the guest. Each lets go when it
is ready; the state says who holds what, and who has been asked for what. The guest's hold ends with
RelIdReleased or with its connection, the owner's with ``rescind``, and the hold on the rings with
``close_done``. A state whose name ends in RELEASE has lost its guest and waits for its owner; a
state that is *revoked* has lost its owner and waits for its guest.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import ValuesView
from dataclasses import dataclass
from enum import Enum

from emulator.bus.effects import Offer, OfferKey, OpenParams
from emulator.bus.outbox import Route


class ChannelState(Enum):
    """The state of a channel."""

    RELEASED = "released"
    """Offered, but the guest does not know it: not yet told, or it has let go."""
    CLOSED = "closed"
    """The guest knows it and does not use it."""
    OPENING = "opening"
    """The guest wants it open; the owner has been asked."""
    OPENING_CLOSE = "opening, to be closed"
    """As OPENING, but the guest closed it again before the owner answered."""
    OPENING_RELEASE = "opening, the guest is gone"
    """As OPENING, but the guest has let go, or its connection ended, before the owner answered."""
    OPEN = "open"
    """Open on both sides."""
    CLOSING = "closing"
    """The guest has closed it; the owner has been asked to let go of the rings."""
    CLOSING_REOPEN = "closing, to be opened"
    """As CLOSING, but the guest wants it open again already: a close has no answer to wait for."""
    CLOSING_RELEASE = "closing, the guest is gone"
    """As CLOSING, but the guest has let go of the channel, or its connection has ended."""
    REVOKED = "revoked"
    """Rescinded by the owner; the guest has not let go of it yet."""
    REOFFERED = "revoked, to be offered"
    """As REVOKED, but the owner offers it again: the guest is told when it has let go."""

    @property
    def guest_knows(self) -> bool:
        """Whether the guest was told of it and has not let go."""
        return self not in _NO_GUEST

    @property
    def owner_has_rings(self) -> bool:
        """Whether the owner has the rings, or has been asked to take them."""
        return self in _OWNER_HAS_RINGS

    @property
    def is_revoked(self) -> bool:
        """Whether the owner has taken back what the guest knows."""
        return self in _REVOKED

    @property
    def has_reopen(self) -> bool:
        """Whether a second open request waits."""
        return self is ChannelState.CLOSING_REOPEN


_NO_GUEST = frozenset(
    {ChannelState.RELEASED, ChannelState.OPENING_RELEASE, ChannelState.CLOSING_RELEASE}
)
_OWNER_HAS_RINGS = frozenset(
    {
        ChannelState.OPENING,
        ChannelState.OPENING_CLOSE,
        ChannelState.OPENING_RELEASE,
        ChannelState.OPEN,
        ChannelState.CLOSING,
        ChannelState.CLOSING_REOPEN,
        ChannelState.CLOSING_RELEASE,
    }
)
_REVOKED = frozenset({ChannelState.REVOKED, ChannelState.REOFFERED})


class Ending(Enum):
    """What is owed when the connection that is ending has ended."""

    NOTHING = "nothing"
    """The machine was reset."""
    UNLOAD_COMPLETE = "unload complete"
    """The guest waits for UnloadComplete before it reuses the pages of its rings."""
    VERSION_RESPONSE = "version response"
    """The guest has made a new contact without ending the old one, as a crash kernel does."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """An open, and the GPADL that its ring is in.

    ``reserved`` is where the answer to OpenReservedChannel goes; None after OpenChannel.
    """

    gpadl_id: int
    params: OpenParams
    reserved: Route | None = None


@dataclass(slots=True)
class Channel:
    """One channel. ``open`` is set while the owner has the rings, ``reopen`` in CLOSING_REOPEN.

    ``close_answer`` is where CloseReservedChannelResponse goes when the owner has let go of them.
    ``monitor_id`` is the trigger that the guest has been offered, while it knows the channel.
    ``orphaned`` is whether the owner of a sub-channel has been told that its primary was closed.
    """

    offer: Offer
    channel_id: int
    state: ChannelState = ChannelState.RELEASED
    open: OpenRequest | None = None
    reopen: OpenRequest | None = None
    close_answer: Route | None = None
    monitor_id: int | None = None
    orphaned: bool = False

    def __str__(self) -> str:
        """Describe the channel for people."""
        return f"{self.channel_id} {self.offer.key} {self.state.value}"

    def uses(self, gpadl_id: int) -> bool:
        """Whether its ring is in this GPADL."""
        return any(
            request is not None and request.gpadl_id == gpadl_id
            for request in (self.open, self.reopen)
        )


class ChannelTable(UserDict[OfferKey, Channel]):
    """Channels by key, and by id: a guest names one in each message, and there may be 2,047."""

    def __init__(self) -> None:
        """Start empty."""
        # Before the base class's, which may set items.
        self._by_id: dict[int, Channel] = {}
        super().__init__()

    def __setitem__(self, key: OfferKey, channel: Channel) -> None:
        """Add a channel, whose id does not change from then on."""
        super().__setitem__(key, channel)
        self._by_id[channel.channel_id] = channel

    def __delitem__(self, key: OfferKey) -> None:
        """Remove a channel; raises KeyError."""
        del self._by_id[self[key].channel_id]
        super().__delitem__(key)

    def values(self) -> ValuesView[Channel]:
        """Return the channels; the base class's would look each up."""
        return self.data.values()

    def with_id(self, channel_id: int) -> Channel | None:
        """Return the channel with this id, whatever its state."""
        return self._by_id.get(channel_id)
