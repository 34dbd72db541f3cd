# SPDX-License-Identifier: MIT
"""The socket: what leaves together, what leaves alone, and what arrives in pieces."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import pytest_asyncio

from emulator.link.protocol import (
    AddDoorbell,
    BackendMessage,
    FrontendMessage,
    GuestMessageDone,
    PostMessage,
    Resume,
    pack,
)
from emulator.link.transport import Transport

pytestmark = pytest.mark.asyncio

RESUME = struct.pack("<IIII", 4, 1, 0, 0)


class Receiver:
    """Notes what comes, and does what a test wants at each message."""

    def __init__(self) -> None:
        self.received: list[FrontendMessage] = []
        self.ended: list[Exception | None] = []
        self.at_message: Callable[[], None] = lambda: None

    def message_received(self, message: FrontendMessage, fds: list[int]) -> None:
        assert not fds
        self.received.append(message)
        self.at_message()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.append(error)


class Rig:
    """A transport on a socket that keeps the bounds of each ``sendmsg``."""

    def __init__(self, kind: socket.SocketKind) -> None:
        self.peer, ours = socket.socketpair(socket.AF_UNIX, kind)
        self.peer.setblocking(False)
        self.receiver = Receiver()
        self.transport = Transport(ours, self.receiver)

    def records(self) -> list[tuple[bytes, int]]:
        """Take what was sent: the bytes and the number of descriptors of each ``sendmsg``."""
        found: list[tuple[bytes, int]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.peer, 1 << 20, 8)
            except BlockingIOError:
                return found
            found.append((data, len(fds)))
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self.transport.close()
        self.peer.close()


@pytest_asyncio.fixture
async def records() -> AsyncIterator[Rig]:
    rig = Rig(socket.SOCK_SEQPACKET)
    yield rig
    rig.close()


@pytest_asyncio.fixture
async def stream() -> AsyncIterator[Rig]:
    rig = Rig(socket.SOCK_STREAM)
    yield rig
    rig.close()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_message_sent_out_of_turn_leaves_at_once(records: Rig) -> None:
    records.transport.send(GuestMessageDone(1))
    assert records.records() == [(pack(GuestMessageDone(1)), 0)]


async def test_answers_leave_together_when_all_is_taken_in(records: Rig) -> None:
    answers: list[BackendMessage] = [PostMessage(1, 0, 2, 1, b"answer"), GuestMessageDone(1)]

    def answer() -> None:
        for message in answers:
            records.transport.send(message)
        assert records.records() == []

    records.receiver.at_message = answer
    records.peer.send(RESUME + RESUME)
    await turns()
    assert records.receiver.received == [Resume(), Resume()]
    assert records.records() == [(b"".join(map(pack, answers * 2)), 0)]


async def test_a_message_with_descriptors_leaves_alone_and_in_its_place(records: Rig) -> None:
    fds = [os.eventfd(0), os.eventfd(0)]
    sent: list[int] = []

    def answer() -> None:
        records.transport.send(GuestMessageDone(1))
        for fd in fds:
            records.transport.send(AddDoorbell(fd, fd), (fd,), partial(sent.append, fd))
        records.transport.send(GuestMessageDone(2))

    records.receiver.at_message = answer
    records.peer.send(RESUME)
    await turns()
    assert sent == fds
    assert records.records() == [
        (pack(GuestMessageDone(1)), 0),
        (pack(AddDoorbell(fds[0], fds[0])), 1),
        (pack(AddDoorbell(fds[1], fds[1])), 1),
        (pack(GuestMessageDone(2)), 0),
    ]
    for fd in fds:
        os.close(fd)


async def test_flush_sends_in_the_middle_of_taking_in(records: Rig) -> None:
    def answer() -> None:
        records.transport.send(GuestMessageDone(1))
        records.transport.flush()
        assert records.records() == [(pack(GuestMessageDone(1)), 0)]

    records.receiver.at_message = answer
    records.peer.send(RESUME)
    await turns()
    assert records.receiver.received == [Resume()]
    assert records.records() == []


async def test_what_the_socket_does_not_take_follows_in_order(stream: Rig) -> None:
    messages = [PostMessage(number, 0, 2, 1, bytes(240)) for number in range(1, 3000)]
    left: list[int] = []
    eventfd = os.eventfd(0)
    for number, message in enumerate(messages):
        fds = (eventfd,) if number % 1000 == 999 else ()
        stream.transport.send(message, fds, partial(left.append, number))
    assert len(left) < len(messages)
    got = b""
    while len(left) < len(messages):
        got += b"".join(data for data, _ in stream.records())
        await asyncio.sleep(0)
    got += b"".join(data for data, _ in stream.records())
    assert got == b"".join(map(pack, messages))
    assert left == list(range(len(messages)))
    os.close(eventfd)


async def test_messages_arrive_in_any_pieces(stream: Rig) -> None:
    data = RESUME * 7
    for start in range(0, len(data), 5):
        stream.peer.send(data[start : start + 5])
        await turns(1)
    await turns()
    assert stream.receiver.received == [Resume()] * 7


async def test_a_receiver_may_close_at_a_message(stream: Rig) -> None:
    stream.receiver.at_message = stream.transport.close
    stream.peer.send(RESUME * 3)
    await turns()
    assert stream.receiver.received == [Resume()]
    assert stream.receiver.ended == []


async def test_descriptors_that_no_message_asks_for_end_the_connection(stream: Rig) -> None:
    eventfd = os.eventfd(0)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [eventfd] * 200))]
    for _ in range(3):
        stream.peer.sendmsg([RESUME[:4]], ancillary)
        await turns()
    (error,) = stream.receiver.ended
    assert "descriptors" in str(error)
    os.close(eventfd)
