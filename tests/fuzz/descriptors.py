# SPDX-License-Identifier: MIT
"""Descriptors of every kind that a backend could send in place of an eventfd."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Final

EVENTFD: Final = "eventfd"


def _one_of(pair: tuple[int, int], keep: int) -> int:
    os.close(pair[1 - keep])
    return pair[keep]


def _socket() -> int:
    one, other = socket.socketpair()
    other.close()
    return one.detach()


def _epoll() -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


def _pending(value: int) -> int:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    os.eventfd_write(fd, value)
    return fd


MAKERS: Final[dict[str, Callable[[], int]]] = {
    EVENTFD: lambda: os.eventfd(0, os.EFD_NONBLOCK),
    "eventfd, blocking": lambda: os.eventfd(0),
    "eventfd, pending": lambda: _pending(1),
    "eventfd, full": lambda: _pending((1 << 64) - 2),
    "eventfd, semaphore": lambda: os.eventfd(9, os.EFD_SEMAPHORE),
    "memfd": lambda: os.memfd_create("fuzz"),
    "epoll": _epoll,
    "pipe, read end": lambda: _one_of(os.pipe(), 0),
    "pipe, write end": lambda: _one_of(os.pipe(), 1),
    "socket": _socket,
    "terminal": lambda: _one_of(os.openpty(), 1),
    "device": lambda: os.open("/dev/null", os.O_RDWR),
    "folder": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "path": lambda: os.open("/", os.O_PATH),
}
"""Name and maker of each kind."""

GOOD: Final = tuple(name for name in MAKERS if name.startswith("eventfd"))
BAD: Final = tuple(name for name in MAKERS if not name.startswith("eventfd"))


@contextlib.contextmanager
def made(kinds: Sequence[str]) -> Iterator[list[int]]:
    """Make one descriptor of each of ``kinds``; they are closed at the end."""
    fds: list[int] = []
    try:
        for kind in kinds:
            fds.append(MAKERS[kind]())
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
