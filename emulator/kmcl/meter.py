# SPDX-License-Identifier: MIT
"""What a channel counts and times, for people who look at it while it runs.

Nothing in here decides anything. Counting must cost next to nothing, so packets are counted a batch
at a time, bytes by what a ring's offsets advance, and of every eighth doorbell the first request is
timed. `python -m bench.metering` measures what is left.
"""

from __future__ import annotations

import time
from typing import Final

BUCKETS: Final = 24
"""Buckets of a histogram: up to 1 us, 2 us, 4 us, ... 2**22 us (4.2 s), and the rest."""


TIMED_DOORBELLS: Final = 8
"""One doorbell in so many is timed, the first among them: a look at the clock is not free."""


class Histogram:
    """Durations in buckets whose upper bounds are powers of two of a microsecond, inclusive."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        """Start empty."""
        self.counts = [0] * BUCKETS
        self.sum_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration, in nanoseconds."""
        self.sum_ns += duration_ns
        whole_us = (duration_ns + 999) // 1000
        self.counts[min((whole_us - 1).bit_length(), BUCKETS - 1) if whole_us > 1 else 0] += 1


class Meter:
    """The counters of one channel since the backend started: they outlive its guests."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "callback",
        "completion",
        "doorbells",
        "interrupts",
        "packets_in",
        "packets_out",
        "rung_ns",
    )

    def __init__(self) -> None:
        """Start at zero."""
        self.doorbells = 0
        self.interrupts = 0
        self.packets_in = 0
        self.packets_out = 0
        self.bytes_in = 0
        """Bytes of rings that are closed; an open one counts its own (``RingEnd.moved``)."""
        self.bytes_out = 0
        self.callback = Histogram()
        """From a doorbell to EvtChannelProcessPacket for the first request that it brought."""
        self.completion = Histogram()
        """From that call to the completion of that request."""
        self.rung_ns = 0
        """When the doorbell rang that is being timed."""

    def rung(self) -> None:
        """Begin to time the doorbell that rings."""
        self.rung_ns = time.perf_counter_ns()

    def delivering(self) -> int:
        """Note that the first request after the doorbell goes to the VSP; returns when, in ns."""
        now = time.perf_counter_ns()
        self.callback.add(now - self.rung_ns)
        return now
