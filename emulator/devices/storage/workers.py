# SPDX-License-Identifier: MIT
"""Threads that make blocking calls, and tell the event loop how they ended.

Cheaper than an executor with futures: one queue to the threads, one back, and one wake-up of the
loop by an eventfd for all that has ended meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Final

from emulator.devices.storage.backend import Done

THREADS: Final = 4
"""Of one disk: enough to have several reads of a slow one under way, and few where there are
64."""

_Job = tuple[Callable[[], None], Done]


class Workers:
    """Some threads, started at the first job. To be used from one event loop."""

    def __init__(self, name: str, threads: int = THREADS) -> None:
        self._name = name
        self._most = threads
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[tuple[Done, OSError | None]] = deque()
        self._under_way = 0
        self._unfinished = 0
        self._finished = Condition()
        self._event = -1
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, call: Callable[[], None], done: Done) -> None:
        """Make ``call`` in a thread; ``done`` gets the OSError that it raised, or None."""
        if self._event < 0:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._event, self._deliver)
        self._under_way += 1
        if len(self._threads) < min(self._under_way, self._most):
            thread = Thread(target=self._work, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        with self._finished:
            self._unfinished += 1
        self._jobs.put((call, done))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, done = job
            failure: OSError | None = None
            try:
                call()
            except OSError as error:
                failure = error
            self._ended.append((done, failure))
            with self._finished:
                self._unfinished -= 1
                self._finished.notify_all()
            # Full means that the loop is to wake up anyway.
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._event, 1)

    def _deliver(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while self._ended:
            done, failure = self._ended.popleft()
            self._under_way -= 1
            done(failure)

    def quiet(self, seconds: float) -> bool:
        """Wait until every call has returned, and tell of it; False if that takes longer."""
        with self._finished:
            finished = self._finished.wait_for(lambda: not self._unfinished, seconds)
        if self._ended:
            self._deliver()
        return finished

    def close(self) -> None:
        """End the threads; raises RuntimeError while a job is under way."""
        if self._under_way:
            raise RuntimeError(f"{self._name}: {self._under_way} requests are under way")
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._event >= 0:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._event)
            os.close(self._event)
            self._event = -1
