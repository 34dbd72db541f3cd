# SPDX-License-Identifier: MIT
"""The VMBus host state machine: connection, offers, channels, GPADLs. Floor 3, sans-IO.

:class:`BusHost` takes guest messages and the calls of channels' owners, and returns effects.
"""

from emulator.bus.channel import ChannelState
from emulator.bus.config import BusConfig
from emulator.bus.effects import (
    BusConnected,
    BusDisconnected,
    ChannelClosing,
    ChannelMoved,
    ChannelOpening,
    ChannelReleased,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    GuestError,
    Offer,
    OfferKey,
    OpenParams,
    SendMessage,
    SubchannelOrphaned,
)
from emulator.bus.host import BusHost
from emulator.bus.restoring import RestoredChannel, RestoreMismatch
from emulator.bus.state import BusState

__all__ = [
    "BusConfig",
    "BusConnected",
    "BusDisconnected",
    "BusHost",
    "BusState",
    "ChannelClosing",
    "ChannelMoved",
    "ChannelOpening",
    "ChannelReleased",
    "ChannelState",
    "Effect",
    "GpadlCreated",
    "GpadlTearingDown",
    "GuestError",
    "Offer",
    "OfferKey",
    "OpenParams",
    "RestoreMismatch",
    "RestoredChannel",
    "SendMessage",
    "SubchannelOrphaned",
]
