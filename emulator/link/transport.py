# SPDX-License-Identifier: MIT
"""Asyncio transport of vmbus-user: a stream socket that carries messages and file descriptors.

Descriptors arrive with some byte of the stream, not with a message. Since each message type
carries a fixed number of them, a queue of received descriptors and the order of messages pair the
two again. Each outgoing message with descriptors is one ``sendmsg``: QEMU's chardev takes the
descriptors that came with the first bytes of a header and closes any it did not expect. Messages
without descriptors that are sent while messages are being received leave together, in one call: the
frontend then wakes up once for all of them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from emulator.link.protocol import (
    HEADER_SIZE,
    BackendMessage,
    FrontendMessage,
    Header,
    ProtocolError,
    fd_count,
    pack,
    parse,
    parse_header,
)

_READ_SIZE: Final = 65_536
_MAX_FDS: Final = 253
"""What Linux passes at most with one message (unix(7): SCM_MAX_FD)."""
_MAX_WAITING_FDS: Final = 2 * _MAX_FDS
_ANCILLARY_SIZE: Final = socket.CMSG_LEN(_MAX_FDS * array.array("i").itemsize)
_MAX_TOGETHER: Final = 64
"""Messages in one ``sendmsg``; the kernel takes 1024 (IOV_MAX)."""
_MAX_QUEUED: Final = 16 * 1024 * 1024


class Receiver(Protocol):
    """Who gets what arrives."""

    def message_received(self, message: FrontendMessage, fds: list[int]) -> None:
        """Take one message; the descriptors are the receiver's to close."""

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the connection; ``None`` means that the frontend closed it."""


class Transport:
    """One connection to a frontend. Not thread-safe: all methods belong to the event loop."""

    def __init__(self, sock: socket.socket, receiver: Receiver) -> None:
        """Start to read ``sock`` (a connected stream socket, taken over) on the running loop."""
        sock.setblocking(False)
        self._sock = sock
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._inbox = b""
        self._inbox_fds: deque[int] = deque()
        self._ready: deque[tuple[FrontendMessage, list[int]]] = deque()
        self._outbox: deque[tuple[memoryview, tuple[int, ...], Callable[[], None] | None]] = deque()
        self._queued = 0
        self._closed = False
        self._ended = False
        self._error: Exception | None = None
        self._delivering = False
        self._writing = False
        self._loop.add_reader(sock, self._readable)

    def send(
        self,
        message: BackendMessage,
        fds: tuple[int, ...] = (),
        sent: Callable[[], None] | None = None,
    ) -> None:
        """Queue a message; ``sent`` is called when it has left, so that ``fds`` may be closed."""
        if self._closed:
            if sent is not None:
                sent()
            return
        data = memoryview(pack(message))
        self._queued += len(data)
        if self._queued > _MAX_QUEUED:
            self._fail(ProtocolError("the frontend has stopped reading; giving up on it"))
            return
        self._outbox.append((data, fds, sent))
        if not self._delivering and not self._writing:
            self.flush()

    def close(self) -> None:
        """Close the connection without telling the receiver; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, _, sent in self._outbox:
            if sent is not None:
                sent()
        self._outbox.clear()
        while self._inbox_fds:
            os.close(self._inbox_fds.popleft())
        while self._ready:
            close_fds(self._ready.popleft()[1])

    def _fail(self, error: Exception | None) -> None:
        if not self._closed:
            self.close()
            self._receiver.connection_lost(error)

    def flush(self) -> None:
        """Send what is queued; if the socket takes no more, go on when it does."""
        while self._outbox:
            _, fds, _ = self._outbox[0]
            ancillary = (
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            )
            try:
                count = self._sock.sendmsg(self._together(), ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self._sock, self.flush)
                return
            except OSError as error:
                self._fail(error)
                return
            self._sent(count)
        if self._writing and not self._closed:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _together(self) -> list[memoryview]:
        """Return the first message, and those that may follow it in the same ``sendmsg``."""
        first, fds, _ = self._outbox[0]
        parts = [first]
        if fds:
            # Alone: the receiver may take them for those of the last message that it reads.
            return parts
        for data, fds, _ in itertools.islice(self._outbox, 1, _MAX_TOGETHER):
            if fds:
                break
            parts.append(data)
        return parts

    def _sent(self, count: int) -> None:
        """Take ``count`` bytes off the queue; descriptors have left with the first of them."""
        self._queued -= count
        while count:
            data, _, sent = self._outbox[0]
            if count < len(data):
                self._outbox[0] = (data[count:], (), sent)
                return
            count -= len(data)
            self._outbox.popleft()
            if sent is not None:
                sent()

    def deliver_early(self, *kinds: type[FrontendMessage]) -> bool:
        """Take what waits on the socket and deliver the messages of ``kinds`` now, out of turn.

        The others, and the end of the connection, are delivered as ever, by the event loop. Returns
        whether there was any.
        """
        if self._closed:
            return False
        self._receive()
        early = [item for item in self._ready if isinstance(item[0], kinds)]
        self._ready = deque(item for item in self._ready if not isinstance(item[0], kinds))
        for message, fds in early:
            if self._ended:
                close_fds(fds)
            else:
                self._hand_over(message, fds)
        if self._ready or self._ended:
            # The socket need not become readable again for these.
            self._loop.call_soon(self._deliver)
        return bool(early)

    def wait_for(
        self, wanted: Callable[[FrontendMessage], bool], seconds: float
    ) -> FrontendMessage | None:
        """Block until a message that is ``wanted`` has come, and return it, out of turn.

        It and the others are delivered as ever, by the event loop, which stands still meanwhile.
        None if the connection ends first; it is ended if that takes more than ``seconds``.
        """
        deadline = time.monotonic() + seconds
        poll = select.poll()
        looked_at = 0
        while not (self._closed or self._ended):
            self.flush()
            for message, _ in itertools.islice(self._ready, looked_at, None):
                if wanted(message):
                    self._loop.call_soon(self._deliver)
                    return message
            looked_at = len(self._ready)
            poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._outbox else 0))
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                self._end(ProtocolError(f"the frontend did not answer within {seconds:.0f} s"))
                break
            self._receive()
        self._loop.call_soon(self._deliver)
        return None

    def _readable(self) -> None:
        self._receive()
        self._deliver()

    def _receive(self) -> None:
        """Read once, and split what is there into messages."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_SIZE, _ANCILLARY_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._inbox_fds.extend(fds)
        if len(self._inbox_fds) > _MAX_WAITING_FDS:
            self._end(ProtocolError("descriptors came that no message asks for"))
        elif not data:
            self._end(ProtocolError("closed in mid-message") if self._inbox else None)
        else:
            self._inbox += data
            try:
                self._split()
            except ProtocolError as error:
                self._end(error)

    def _end(self, error: Exception | None) -> None:
        """Note that nothing more comes; the first reason counts."""
        if not self._ended:
            self._ended = True
            self._error = error

    def _deliver(self) -> None:
        """Hand over all that is ready; what is sent meanwhile leaves together."""
        self._delivering = True
        try:
            while self._ready and not self._closed:
                self._hand_over(*self._ready.popleft())
        finally:
            self._delivering = False
        if self._ended:
            self._fail(self._error)
        elif self._outbox and not self._writing:
            self.flush()

    def _hand_over(self, message: FrontendMessage, fds: list[int]) -> None:
        try:
            self._receiver.message_received(message, fds)
        except ProtocolError as error:
            while self._ready:
                close_fds(self._ready.popleft()[1])
            self._end(error)

    def _split(self) -> None:
        """Make messages of the inbox, with their descriptors."""
        position = 0
        try:
            while True:
                body = position + HEADER_SIZE
                if len(self._inbox) < body:
                    return
                header = parse_header(self._inbox[position:body])
                end = body + header.size
                if len(self._inbox) < end:
                    return
                position = end
                self._ready.append(self._parse(header, self._inbox[body:end]))
        finally:
            self._inbox = self._inbox[position:]

    def _parse(self, header: Header, body: bytes) -> tuple[FrontendMessage, list[int]]:
        message = parse(header, body)
        wanted = fd_count(header, body)
        if len(self._inbox_fds) < wanted:
            raise ProtocolError(
                f"{header.type.name} came with {len(self._inbox_fds)} descriptors, not {wanted}"
            )
        return message, [self._inbox_fds.popleft() for _ in range(wanted)] if wanted else []


def close_fds(fds: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
