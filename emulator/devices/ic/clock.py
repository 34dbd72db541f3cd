# SPDX-License-Identifier: MIT
"""The time that the integration services go by: given to them, never taken by them.

A machine that is run in virtual time gives its devices a clock of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

TICKS_PER_SECOND: Final = 10_000_000
"""Windows counts time in units of 100 ns."""

UNIX_EPOCH: Final = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601 (Linux, include/linux/hyperv.h: WLTIMEDELTA)."""


class Timer(Protocol):
    """A call that is to be made later."""

    def cancel(self) -> None:
        """Do not make it."""


class Clock(Protocol):
    """What a service asks of time."""

    def wall(self) -> int:
        """Return the time of day, UTC, in 100 ns since 1601."""

    def reference(self) -> int | None:
        """Return the guest's reference counter in 100 ns (TLFS 12.4.1); None if it is not known."""

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call once, so many seconds from now."""


class SystemClock:
    """The host's time and the running loop's timers.

    The reference counter is QEMU's, and the link to it does not carry it.
    """

    def wall(self) -> int:
        """Return the host's time of day."""
        return time.time_ns() // 100 + UNIX_EPOCH

    def reference(self) -> int | None:
        """Return None: not known."""
        return None

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Use the running loop; raises RuntimeError without one."""
        return asyncio.get_running_loop().call_later(seconds, call)
