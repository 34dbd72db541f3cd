# SPDX-License-Identifier: MIT
"""What keeps the devices from coming to rest: told when a stop takes long, and with a refusal.

QEMU waits ``stop-timeout-ms`` for a stop (5,000 ms unless it is told otherwise) and refuses to save
after that without asking. So whoever looks into the log has to find there which packets it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

TELL_SECONDS: Final = 2.0
"""How long a stop may take before it is told: well within QEMU's time."""

NAMED: Final = 8
"""Packets that are named; of the others their number is told."""


class Draining:
    """The stop of one host, if there is one under way."""

    def __init__(
        self,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        undrained: Callable[[], list[str]],
    ) -> None:
        """No stop is under way; ``undrained`` says what one would wait for."""
        self._log = log
        self._undrained = undrained
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The devices are about to be paused."""
        self.over()
        self._timer = asyncio.get_running_loop().call_later(TELL_SECONDS, self._tell)

    def over(self) -> None:
        """They have come to rest, or nobody waits for that any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def waits_for(self) -> str:
        """Name what they wait for; empty if nothing."""
        waits = self._undrained()
        more = f", and {len(waits) - NAMED} more" if len(waits) > NAMED else ""
        return ", ".join(waits[:NAMED]) + more

    def _tell(self) -> None:
        self._timer = None
        self._log.warning(
            "the machine has not stopped within %g s; it waits for %s",
            TELL_SECONDS,
            self.waits_for() or "no packet",
        )
