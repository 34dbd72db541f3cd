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

    ``held`` is None, or what waits because the guest has paused the connection (6.0).
    """

    def __init__(self) -> None:
        """Make an empty one, with no guest."""
        self.route: Route | None = None
        self.held: list[bytes] | None = None
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
            payload = message.pack()
            if self.held is not None:
                self.held.append(payload)
            else:
                self._effects.append(SendMessage(self.route.vp, self.route.sint, payload))

    def send_to(self, route: Route, message: Message) -> None:
        """Send to the place that the guest named for this answer, connected or not, paused or not:
        who dumps a crashed guest's memory polls for it, and hears nothing else.
        """
        self._effects.append(SendMessage(route.vp, route.sint, message.pack()))

    def pause(self) -> None:
        """Hold messages back from now on."""
        self.held = []

    def resume(self) -> None:
        """Send what was held back, in order; idempotent."""
        held, self.held = self.held, None
        if self.route is not None:
            for payload in held or ():
                self._effects.append(SendMessage(self.route.vp, self.route.sint, payload))

    def drop_guest(self) -> None:
        """Nobody listens any more, nor wants what was held back."""
        self.route = self.held = None
