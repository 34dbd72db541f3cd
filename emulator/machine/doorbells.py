# SPDX-License-Identifier: MIT
"""An event loop that answers doorbells without a detour.

A doorbell is an eventfd that QEMU writes when the guest calls HvSignalEvent. What asyncio does
between the readiness of a descriptor and the call of its reader (select a key, queue a handle, run
it in a context) costs as much as reading the guest's packet does, and the guest waits. So the
selector of this loop calls a doorbell's handler itself, when epoll reports it. It watches for edges
(EPOLLET, epoll(7)): each write of an eventfd is one, so that the counter need not be read; many
writes before a look are one event.

Who waits asleep is woken late: where CPUs are virtual that takes as long as all the rest. So, if
it is allowed to (:meth:`DoorbellSelector.poll_for`), the selector looks for a moment before it
sleeps, as KVM does for a halted VP (halt_poll_ns) and QEMU's iothreads for their devices
(poll-max-ns); and only while it pays: a wait that was longer makes the next one sleep at once.

Everything else is asyncio's. Once the doorbells that rang have been answered, each one once, the
loop has its turn: a guest that rings without end does not keep timers and sockets waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import selectors
import time
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any, Final, Protocol

POLL_MICROSECONDS: Final = 150
"""A guest that answers at once is back within this, even where a wake-up takes a third of it."""

_EVENTS_AT_ONCE: Final = 64
_READABLE: Final = ~select.EPOLLOUT
_WRITABLE: Final = ~select.EPOLLIN


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_FileObject = int | _HasFileno


class DoorbellSelector(selectors.BaseSelector):
    """An epoll selector that answers doorbells itself; the rest of it is ``EpollSelector``."""

    def __init__(
        self,
        failed: Callable[[Exception], None],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Watch nothing yet; ``failed`` is told what the handler of a doorbell raises.

        ``clock`` is in nanoseconds.
        """
        self._failed = failed
        self._clock = clock
        self._poll_limit = 0
        self._poll = False
        self._epoll = select.epoll()
        self._keys: dict[int, SelectorKey] = {}
        self._doorbells: dict[int, Callable[[], None]] = {}

    def add_doorbell(self, eventfd: int, rung: Callable[[], None]) -> None:
        """Call ``rung`` inside :meth:`select` when ``eventfd`` was written."""
        self._epoll.register(eventfd, select.EPOLLIN | select.EPOLLET)
        self._doorbells[eventfd] = rung

    def remove_doorbell(self, eventfd: int) -> None:
        """Forget ``eventfd``; idempotent. Call it before closing the descriptor."""
        if self._doorbells.pop(eventfd, None) is not None:
            self._epoll.unregister(eventfd)

    def poll_for(self, microseconds: int) -> None:
        """Look for up to this long before sleeping, while events come as close together."""
        self._poll_limit = microseconds * 1000
        self._poll = False

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait; answer doorbells; return what else is ready. ``timeout`` in seconds."""
        if timeout is not None:
            # epoll counts milliseconds; rounded down, a timer would be polled for until it is due.
            timeout = math.ceil(timeout * 1000) / 1000 if timeout > 0 else 0
        ready: list[tuple[SelectorKey, int]] = []
        try:
            events = self._wait(timeout)
        except InterruptedError:
            return ready
        for fd, mask in events:
            rung = self._doorbells.get(fd)
            if rung is not None:
                try:
                    rung()
                except Exception as error:
                    self._failed(error)
            # A handler may have made the loop forget a descriptor that was ready as well.
            elif (key := self._keys.get(fd)) is not None:
                wanted = (EVENT_READ if mask & _READABLE else 0) | (
                    EVENT_WRITE if mask & _WRITABLE else 0
                )
                if wanted & key.events:
                    ready.append((key, wanted & key.events))
        return ready

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        if timeout == 0 or not self._poll_limit:
            return self._epoll.poll(timeout, _EVENTS_AT_ONCE)
        limit = self._clock() + self._poll_limit
        while self._poll:
            if events := self._epoll.poll(0, _EVENTS_AT_ONCE):
                return events
            self._poll = self._clock() < limit
        events = self._epoll.poll(timeout, _EVENTS_AT_ONCE)
        self._poll = self._clock() < limit
        return events

    def register(self, fileobj: _FileObject, events: int, data: Any = None) -> SelectorKey:
        """See ``selectors.BaseSelector``."""
        key = SelectorKey(fileobj, _fileno(fileobj), events, data)
        if key.fd in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        self._epoll.register(key.fd, _mask(events))
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: _FileObject) -> SelectorKey:
        """See ``selectors.BaseSelector``."""
        key = self._keys.pop(_fileno(fileobj))
        # The kernel has forgotten a descriptor that was closed.
        with contextlib.suppress(OSError):
            self._epoll.unregister(key.fd)
        return key

    def modify(self, fileobj: _FileObject, events: int, data: Any = None) -> SelectorKey:
        """See ``selectors.BaseSelector``."""
        old = self.get_key(fileobj)
        if old.events != events:
            self._epoll.modify(old.fd, _mask(events))
        key = self._keys[old.fd] = SelectorKey(fileobj, old.fd, events, data)
        return key

    def get_key(self, fileobj: _FileObject) -> SelectorKey:
        """See ``selectors.BaseSelector``."""
        try:
            return self._keys[_fileno(fileobj)]
        except KeyError:
            raise KeyError(f"{fileobj!r} is not registered") from None

    def get_map(self) -> Mapping[_FileObject, SelectorKey]:
        """See ``selectors.BaseSelector``; the keys are descriptors."""
        return {fd: key for fd, key in self._keys.items()}

    def close(self) -> None:
        """See ``selectors.BaseSelector``."""
        self._epoll.close()
        self._keys.clear()
        self._doorbells.clear()


def _fileno(fileobj: _FileObject) -> int:
    fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if fd < 0:
        raise ValueError(f"{fileobj!r} is closed")
    return fd


def _mask(events: int) -> int:
    return (select.EPOLLIN if events & EVENT_READ else 0) | (
        select.EPOLLOUT if events & EVENT_WRITE else 0
    )


class DoorbellLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop on a :class:`DoorbellSelector`."""

    def __init__(self) -> None:
        """Make the loop and its selector."""
        self._doorbell_selector = DoorbellSelector(self._doorbell_failed)
        super().__init__(self._doorbell_selector)

    def add_doorbell(self, eventfd: int, rung: Callable[[], None]) -> None:
        """Call ``rung`` when ``eventfd`` was written. What it raises goes to the loop's handler."""
        self._doorbell_selector.add_doorbell(eventfd, rung)

    def remove_doorbell(self, eventfd: int) -> None:
        """Forget ``eventfd``; idempotent."""
        self._doorbell_selector.remove_doorbell(eventfd)

    def poll_for(self, microseconds: int) -> None:
        """See :meth:`DoorbellSelector.poll_for`."""
        self._doorbell_selector.poll_for(microseconds)

    def _doorbell_failed(self, error: Exception) -> None:
        self.call_exception_handler(
            {"message": "the handler of a doorbell failed", "exception": error}
        )


def add_doorbell(eventfd: int, rung: Callable[[], None]) -> None:
    """Call ``rung`` from the running loop, of whatever kind, when ``eventfd`` was written."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, DoorbellLoop):
        loop.add_doorbell(eventfd, rung)
        return

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(eventfd)
        rung()

    loop.add_reader(eventfd, readable)


def remove_doorbell(eventfd: int) -> None:
    """Undo :func:`add_doorbell`; idempotent. Call it before closing the descriptor."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, DoorbellLoop):
        loop.remove_doorbell(eventfd)
    else:
        loop.remove_reader(eventfd)


def poll_for(microseconds: int | None, vcpus: int) -> None:
    """Let the running loop poll for so long before it sleeps; other kinds of loops do not.

    None is for who does not know better: :data:`POLL_MICROSECONDS` where this process may run on
    more CPUs than the machine has virtual ones, and else not at all. A backend that polls where
    there is no CPU to spare takes from the guest what it waits for.
    """
    loop = asyncio.get_running_loop()
    if microseconds is None:
        spare = len(os.sched_getaffinity(0)) > vcpus
        microseconds = POLL_MICROSECONDS if spare else 0
    if isinstance(loop, DoorbellLoop):
        loop.poll_for(microseconds)
