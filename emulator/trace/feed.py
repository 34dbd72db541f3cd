# SPDX-License-Identifier: MIT
"""What one reader of a trace wants, and the bytes that wait for it: never more than a bound.

The writer of records is the backend's loop and must not wait; the reader is a file or a person's
terminal and may. So a record that finds the queue full is dropped and counted, and the next one
that has room comes after a note that says how many were lost (in its text and as epb_dropcount).
No I/O is done here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from emulator.trace import pcapng
from emulator.trace.record import HEADER_SIZE, MAX_NAME, Kind, Record

QUEUE_BYTES: Final = 4 << 20
"""Bytes that wait for one reader, at most: some ten thousand small packets."""
MIN_LIMIT: Final = 16
"""Bytes of a descriptor: a packet is not cut to less."""
MAX_LIMIT: Final = pcapng.MAX_CAPTURED - HEADER_SIZE - MAX_NAME - 1
"""Bytes of a packet that Wireshark still reads with our header before it."""
DEFAULT_LIMIT: Final = 65_536
APPLICATION: Final = "vmbus trace (vmbus-emulator)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader wants to see. Control messages and events always are.

    ``packets`` of every channel, or of ``channel`` alone; of each, at most ``limit`` bytes.
    """

    packets: bool = False
    channel: int | None = None
    limit: int = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        """Refuse limits that cannot be kept; raises ValueError."""
        if not MIN_LIMIT <= self.limit <= MAX_LIMIT:
            raise ValueError(
                f"the limit of bytes per packet is {MIN_LIMIT} to {MAX_LIMIT}, not {self.limit}"
            )

    def wants(self, channel_id: int) -> bool:
        """Whether packets of this channel are wanted."""
        return self.packets and self.channel in (None, channel_id)


class Feed:
    """A pcapng file in the making: records in, bytes out, one VM."""

    def __init__(self, vm: str, wanted: Wanted, *, queue_bytes: int = QUEUE_BYTES) -> None:
        """Begin the file; ``queue_bytes`` is how much may wait to be taken."""
        self.wanted = wanted
        self._vm = vm
        self.received = 0
        self.dropped = 0
        self.ready: Callable[[], None] = lambda: None
        """Called when there is something to take after there was nothing."""
        self._bound = queue_bytes
        self._queue: deque[bytes] = deque()
        self._waiting = 0
        self._unsaid = 0
        self.closed = False
        self._push(pcapng.section(APPLICATION) + pcapng.interface(vm))

    def put(self, time_ns: int, direction: int, header: bytes, body: bytes, cut: int = -1) -> None:
        """Add a record; of its body the first ``cut`` bytes, if that is not negative."""
        if self.closed:
            return
        self.received += 1
        if self._waiting >= self._bound:
            self.dropped += 1
            self._unsaid += 1
            return
        data = header + (body if cut < 0 else body[:cut])
        length = len(header) + len(body)
        self._confess(time_ns)
        self._push(pcapng.packet(0, time_ns, data, length, flags=direction))

    def close(self, time_ns: int) -> None:
        """End the file with its counts; nothing is added any more. Idempotent."""
        if not self.closed:
            self.closed = True
            self._confess(time_ns)
            self._push(pcapng.statistics(0, time_ns, received=self.received, dropped=self.dropped))

    @property
    def waiting(self) -> int:
        """Bytes that wait to be taken."""
        return self._waiting

    def take(self, most: int) -> bytes:
        """Return what waits, oldest first, up to about ``most`` bytes; b"" if nothing does."""
        taken: list[bytes] = []
        size = 0
        while self._queue and size < most:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        self._waiting -= size
        return b"".join(taken)

    def _confess(self, time_ns: int) -> None:
        """Say how many records were dropped since the last one that was not."""
        if self._unsaid:
            dropped, self._unsaid = self._unsaid, 0
            text = f"{dropped} records were dropped: the reader of the trace was too slow"
            note = Record(Kind.NOTE, text.encode(), vm=self._vm).pack()
            self._push(pcapng.packet(0, time_ns, note, len(note), dropped=dropped))

    def _push(self, block: bytes) -> None:
        was_empty = not self._queue
        self._queue.append(block)
        self._waiting += len(block)
        if was_empty:
            self.ready()
