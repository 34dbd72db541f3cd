# SPDX-License-Identifier: MIT
"""Where the parts of the bus put their effects, in order."""

from __future__ import annotations

from dataclasses import dataclass

from emulator.bus.effects import Effect, GuestError, SendMessage
from emulator.wire.message import Message


@dataclass(frozen=True, slots=True)
class Route:
    """The SIM slot that a guest reads its messages from."""

    vp: int
    sint: int


class Outbox:
    """Effects that nobody has taken yet.

    ``route`` is None while no guest listens: without a connection, and from the message or reset
    that ends one until whatever it owes is paid. Messages sent in that time vanish, so the parts
    need not ask.
    """

    def __init__(self) -> None:
        """Make an empty one, with no guest."""
        self.route: Route | None = None
        self._effects: list[Effect] = []

    def __len__(self) -> int:
        return len(self._effects)

    def take(self) -> list[Effect]:
        """Return all effects and forget them."""
        effects, self._effects = self._effects, []
        return effects

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def blame(self, text: str) -> None:
        """Record that the guest broke a rule."""
        self._effects.append(GuestError(text))

    def send(self, message: Message) -> None:
        """Send a message to the guest, if there is one."""
        if self.route is not None:
            self._effects.append(SendMessage(self.route.vp, self.route.sint, message.pack()))
