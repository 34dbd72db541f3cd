# SPDX-License-Identifier: MIT
"""A log that a guest cannot flood.

What a guest does wrong is logged, and a guest can do wrong as fast as it can. So the handler of the
process's log lets at most so many lines of each source through in any second, and says how many
it has left out once there is room again. A source is a VM, where a line belongs to one, or else the
module that logs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, TextIO

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(vm_prefix)s%(message)s"


def vm_logger(logger: logging.Logger, vm: str) -> logging.LoggerAdapter[logging.Logger]:
    """Return ``logger`` for lines that belong to a VM: they carry its name, and share its limit."""
    return logging.LoggerAdapter(logger, {"vm": vm, "vm_prefix": f"{vm}: "})


class LineLimit:
    """Lets ``per_second`` lines through in any second of ``clock``, and counts the others."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with room for all."""
        self._clock = clock
        self._times: deque[float] = deque(maxlen=per_second)
        self.suppressed = 0
        self.last: logging.LogRecord | None = None
        """One of the suppressed lines: whose they are."""
        self.will_tell = False
        """Whether a timer runs that will say how many they were."""

    def room(self) -> bool:
        """Whether a line may be written now; it is taken for written then."""
        now = self._clock()
        if len(self._times) == self._times.maxlen and now - self._times[0] < 1:
            return False
        self._times.append(now)
        return True


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes lines within the limits of their sources."""

    def __init__(
        self,
        limits: Mapping[str, int],
        other: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allow ``limits[vm]`` lines a second of each VM, ``other`` of each other source."""
        super().__init__(stream)
        self._per_second = limits
        self._other = other
        self._clock = clock
        self._limits: dict[str, LineLimit] = {}
        self.setFormatter(logging.Formatter(_FORMAT, defaults={"vm_prefix": ""}))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        source = getattr(record, "vm", "")
        key = f"vm {source}" if source else record.name
        limit = self._limits.get(key)
        if limit is None:
            per_second = self._per_second.get(source, self._other)
            limit = self._limits[key] = LineLimit(per_second, self._clock)
        if limit.suppressed and limit.room():
            self._tell(limit)
        if not limit.suppressed and limit.room():
            super().emit(record)
            return
        limit.suppressed += 1
        limit.last = record
        if not limit.will_tell:
            self._tell_later(limit)

    def close(self) -> None:
        """Say what was left out at last: the log ends."""
        for limit in self._limits.values():
            self._tell(limit)
        super().close()

    def _tell(self, limit: LineLimit) -> None:
        """Say how many lines were left out."""
        like = limit.last
        if not limit.suppressed or like is None:
            return
        line = logging.makeLogRecord(
            {
                "name": like.name,
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "vm_prefix": getattr(like, "vm_prefix", ""),
                "msg": "%d more lines were suppressed: too many in a second",
                "args": (limit.suppressed,),
            }
        )
        limit.suppressed = 0
        super().emit(line)

    def _tell_later(self, limit: LineLimit) -> None:
        """See to it that the last lines of a flood are counted too, though nothing follows them."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return

        def tell() -> None:
            if limit.suppressed and limit.room():
                self._tell(limit)
            limit.will_tell = bool(limit.suppressed)
            if limit.will_tell:
                loop.call_later(1, tell)

        limit.will_tell = True
        loop.call_later(1, tell)
