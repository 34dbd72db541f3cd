# SPDX-License-Identifier: MIT
"""The event loop that answers doorbells itself, and doorbells on a loop that does not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from emulator.machine.doorbells import (
    DoorbellLoop,
    DoorbellSelector,
    add_doorbell,
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
