# SPDX-License-Identifier: MIT
"""A bus with a model guest and owners that answer when they are told to; it outlives its bus.

What the bus says to the guest arrives at once, unless it is held back: then it is in the bus's
outbox, or in the list of what was posted and is not in the guest's slot yet, which a save carries.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import msgspec

from emulator.bus import (
    BusConfig,
    BusHost,
    BusState,
    ChannelClosing,
    ChannelOpening,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    GuestError,
    Offer,
    OfferKey,
    SendMessage,
)
from emulator.model.guest import ModelGuest

INTERFACE = uuid.UUID("6f1d0f2e-93f5-4f2b-9f0c-8d6d4a1f0b12")
PAGES = 2
"""Of each ring: its control page and one of data."""


def offer(number: int, sub: int = 0) -> Offer:
    """Return the offer of device ``number``."""
    return Offer(OfferKey(INTERFACE, uuid.UUID(int=number), sub))


class BusRig:
    """The bus of the current process, and the guest of all of them."""

    def __init__(self, devices: Iterable[int] = (1,), config: BusConfig | None = None) -> None:
        """Offer a channel for each of ``devices``."""
        self.config = config if config is not None else BusConfig()
        self.guest = ModelGuest(self._posted, pages=256)
        self.bus = BusHost(self.config)
        self.held: list[SendMessage] = []
        self.hold = False
        self.release_gpadls = True
        self.asked: list[str] = []
        self.errors: list[str] = []
        for number in devices:
            self.bus.offer(offer(number))
        self._pump()

    def close(self) -> None:
        """Give the guest's memory back."""
        self.guest.close()

    def _posted(self, connection_id: int, payload: bytes) -> None:
        self.bus.guest_message(connection_id, payload)
        self._pump()

    def _pump(self) -> None:
        while effects := self.bus.take_effects():
            for effect in effects:
                self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SendMessage():
                self.held.append(effect)
                if not self.hold:
                    self.deliver()
            case ChannelOpening():
                self.asked.append("open")
            case ChannelClosing():
                self.asked.append("close")
            case GpadlCreated():
                self.asked.append("GPADL created")
            case GpadlTearingDown():
                self.asked.append("GPADL teardown")
                if self.release_gpadls:
                    self.bus.gpadl_released(effect.key, effect.gpadl_id)
            case GuestError():
                self.errors.append(effect.text)
            case _:
                pass

    def deliver(self) -> None:
        """Let the guest have what is held back."""
        waiting, self.held = self.held, []
        for message in waiting:
            self.guest.deliver(message.vp, message.sint, message.payload)

    def key_of(self, channel_id: int) -> OfferKey:
        """Return the key of a channel that the guest knows."""
        heard = self.guest.channels[channel_id].offer
        return OfferKey(
            uuid.UUID(bytes_le=heard.raw("interface_id")),
            uuid.UUID(bytes_le=heard.raw("instance_id")),
            heard["subchannel_index"],
        )

    def connected(self, version: int = 0x50003) -> int:
        """Connect, ask for offers, and return the first channel's id."""
        self.guest.connect(version)
        return min(self.guest.channels)

    def ask_open(self, channel_id: int, *, reuse: bool = False) -> None:
        """Have the guest open a channel, on a new GPADL or the one it has."""
        channel = self.guest.channels[channel_id]
        if not reuse:
            self.guest.make_gpadl(channel_id, 2 * PAGES)
        self.guest.open_channel(channel_id, next(iter(channel.gpadls)), split=PAGES)

    def answer_open(self, channel_id: int, ok: bool = True) -> None:
        """Answer as the owner."""
        self.bus.open_result(self.key_of(channel_id), ok)
        self._pump()

    def open(self, channel_id: int) -> None:
        """Have the guest open a channel, and its owner agree."""
        self.ask_open(channel_id)
        self.answer_open(channel_id)

    def finish_close(self, channel_id: int) -> None:
        """Tell that the owner has closed."""
        self.bus.close_done(self.key_of(channel_id))
        self._pump()

    def finish_teardown(self, channel_id: int, gpadl_id: int) -> None:
        """Tell that the owner has let go of a GPADL."""
        self.bus.gpadl_released(self.key_of(channel_id), gpadl_id)
        self._pump()

    def saved(self) -> bytes:
        """Save the bus."""
        return msgspec.msgpack.encode(self.bus.save())

    def renew(
        self,
        offers: Iterable[Offer] = (offer(1),),
        *,
        state: bytes | None = None,
        config: BusConfig | None = None,
        later: Iterable[Offer] = (),
    ) -> None:
        """Go on in a new process that offers ``offers``, and ``later`` when it has restored.

        What was held back came with the snapshot. Raises ``RestoreMismatch``, and the old bus
        stays.
        """
        state = self.saved() if state is None else state
        bus = BusHost(config if config is not None else self.config)
        bus.restore(msgspec.msgpack.decode(state, type=BusState))
        for each in offers:
            bus.offer(each)
        bus.finish_restore()
        for each in later:
            bus.offer(each)
        self.bus = bus
        self.asked = []
        self._pump()
