# SPDX-License-Identifier: MIT
"""The event loop that answers doorbells itself, and doorbells on a loop that does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from emulator.machine.doorbells import (
    POLL_MICROSECONDS,
    DoorbellLoop,
    DoorbellSelector,
    add_doorbell,
    poll_for,
    remove_doorbell,
)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "doorbell loop": DoorbellLoop,
    "plain loop": asyncio.SelectorEventLoop,
}


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def unexpected(error: Exception) -> None:
    raise error


@pytest.fixture
def selector() -> Iterator[DoorbellSelector]:
    selector = DoorbellSelector(unexpected)
    yield selector
    selector.close()


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


def test_each_ring_is_heard_until_the_doorbell_is_removed(
    runner: asyncio.Runner, eventfd: int
) -> None:
    async def main() -> int:
        rings: asyncio.Queue[None] = asyncio.Queue()
        add_doorbell(eventfd, lambda: rings.put_nowait(None))
        for _ in range(3):
            os.eventfd_write(eventfd, 1)
            await rings.get()
        remove_doorbell(eventfd)
        remove_doorbell(eventfd)
        os.eventfd_write(eventfd, 1)
        await turns(3)
        return rings.qsize()

    assert runner.run(main()) == 0


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_ring_before_the_doorbell_is_watched_is_heard(
    runner: asyncio.Runner, eventfd: int
) -> None:
    async def main() -> None:
        rang = asyncio.Event()
        os.eventfd_write(eventfd, 1)
        add_doorbell(eventfd, rang.set)
        await rang.wait()

    runner.run(main())


def test_a_handler_that_fails_is_reported_and_rung_again(eventfd: int) -> None:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        reported: list[str] = []
        rings: asyncio.Queue[None] = asyncio.Queue()

        def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            reported.append(repr(context["exception"]))

        def fails() -> None:
            rings.put_nowait(None)
            raise RuntimeError("broken")

        loop.set_exception_handler(note)
        add_doorbell(eventfd, fails)
        for _ in range(2):
            os.eventfd_write(eventfd, 1)
            await rings.get()
        return reported

    with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
        assert runner.run(main()) == ["RuntimeError('broken')"] * 2


def test_a_guest_that_rings_without_end_does_not_stop_the_loop(eventfd: int) -> None:
    async def main() -> None:
        add_doorbell(eventfd, lambda: os.eventfd_write(eventfd, 1))
        os.eventfd_write(eventfd, 1)
        # A timer, a callback and a socket: what else a loop serves.
        await asyncio.sleep(0.001)
        await turns(3)
        left, right = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=left)
        right.send(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        right.close()
        remove_doorbell(eventfd)

    with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
        runner.run(main())


def test_many_rings_before_a_look_are_one(selector: DoorbellSelector, eventfd: int) -> None:
    rings: list[None] = []
    selector.add_doorbell(eventfd, lambda: rings.append(None))
    for _ in range(5):
        os.eventfd_write(eventfd, 1)
    assert selector.select(0) == []
    assert len(rings) == 1
    assert selector.select(0) == []
    assert len(rings) == 1


def test_a_handler_can_remove_another_that_has_rung(selector: DoorbellSelector) -> None:
    fds = [os.eventfd(0) for _ in range(2)]
    rings: list[int] = []

    def rung(mine: int, other: int) -> Callable[[], None]:
        def handler() -> None:
            rings.append(mine)
            selector.remove_doorbell(other)

        return handler

    selector.add_doorbell(fds[0], rung(*fds))
    selector.add_doorbell(fds[1], rung(*reversed(fds)))
    for fd in fds:
        os.eventfd_write(fd, 1)
    selector.select(0)
    assert len(rings) == 1
    for fd in fds:
        os.close(fd)


def test_the_rest_is_a_selector(selector: DoorbellSelector) -> None:
    left, right = socket.socketpair()
    with left, right:
        key = selector.register(left, EVENT_READ, "data")
        assert (key.fd, key.events, key.data) == (left.fileno(), EVENT_READ, "data")
        with pytest.raises(KeyError):
            selector.register(left, EVENT_READ)
        assert selector.select(0) == []
        right.send(b"x")
        assert selector.select(0) == [(key, EVENT_READ)]
        both = selector.modify(left, EVENT_READ | EVENT_WRITE, "more")
        assert selector.select(0) == [(both, EVENT_READ | EVENT_WRITE)]
        assert selector.get_key(left) is both
        assert dict(selector.get_map()) == {left.fileno(): both}
        assert selector.unregister(left) is both
        assert selector.select(0) == []
        with pytest.raises(KeyError):
            selector.get_key(left)
        with pytest.raises(KeyError):
            selector.unregister(left)
    with pytest.raises(ValueError, match="closed"):
        selector.register(left, EVENT_READ)


def test_a_descriptor_that_was_closed_can_be_unregistered(selector: DoorbellSelector) -> None:
    fd = os.eventfd(0)
    key = selector.register(fd, EVENT_READ)
    os.close(fd)
    assert selector.unregister(fd) is key


def test_a_hangup_is_readable(selector: DoorbellSelector) -> None:
    left, right = socket.socketpair()
    with left:
        key = selector.register(left, EVENT_READ)
        right.close()
        assert selector.select(0) == [(key, EVENT_READ)]


class Waits:
    """Stands before a selector's epoll and notes for how long it was asked to wait."""

    def __init__(self, selector: DoorbellSelector, asleep: Callable[[], None]) -> None:
        self.timeouts: list[float | None] = []
        self._asleep = asleep
        self._epoll = selector._epoll
        selector._epoll = self  # type: ignore[assignment]

    def poll(self, timeout: float | None, most: int) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        if timeout != 0:
            self._asleep()
        return self._epoll.poll(0, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


class Time:
    """A clock in nanoseconds that moves by a microsecond with each look at it."""

    def __init__(self) -> None:
        self.now = 0
        self.at: dict[int, Callable[[], None]] = {}

    def __call__(self) -> int:
        self.now += 1000
        if (act := self.at.pop(self.now // 1000, None)) is not None:
            act()
        return self.now


def test_it_polls_only_after_an_event_that_came_soon(eventfd: int) -> None:
    time = Time()
    selector = DoorbellSelector(unexpected, time)
    selector.add_doorbell(eventfd, lambda: None)
    long_us = 0

    def asleep() -> None:
        time.now += long_us * 1000
        os.eventfd_write(eventfd, 1)

    waits = Waits(selector, asleep)
    with contextlib.closing(selector):
        selector.poll_for(20)
        selector.select(None)
        assert waits.timeouts == [None], "it sleeps at first"

        waits.timeouts.clear()
        time.at[time.now // 1000 + 8] = lambda: os.eventfd_write(eventfd, 1)
        selector.select(None)
        assert len(waits.timeouts) > 5
        assert set(waits.timeouts) == {0}, "the event came while it polled"

        waits.timeouts.clear()
        long_us = 100
        selector.select(None)
        assert waits.timeouts[-1] is None
        assert 15 <= waits.timeouts.count(0) <= 20, "it polled in vain, for as long as it may"

        waits.timeouts.clear()
        selector.select(None)
        assert waits.timeouts == [None], "and not again after such a wait"


def test_without_leave_it_never_polls(eventfd: int) -> None:
    time = Time()
    selector = DoorbellSelector(unexpected, time)
    selector.add_doorbell(eventfd, lambda: None)
    waits = Waits(selector, lambda: os.eventfd_write(eventfd, 1))
    with contextlib.closing(selector):
        for _ in range(5):
            selector.select(None)
    assert waits.timeouts == [None] * 5
    assert time.now == 0


@pytest.mark.parametrize(
    ("cpus", "vcpus", "asked", "granted"),
    [
        (2, 1, None, POLL_MICROSECONDS),
        (2, 2, None, 0),
        (1, 1, None, 0),
        (1, 4, 70, 70),
        (8, 1, 0, 0),
    ],
)
def test_it_polls_where_a_cpu_is_left_for_it_or_as_it_is_told(
    cpus: int, vcpus: int, asked: int | None, granted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    granted_to: list[int] = []
    monkeypatch.setattr(DoorbellLoop, "poll_for", lambda _, us: granted_to.append(us))

    async def main() -> None:
        poll_for(asked, vcpus)

    with asyncio.Runner(loop_factory=DoorbellLoop) as runner:
        runner.run(main())
    assert granted_to == [granted]
