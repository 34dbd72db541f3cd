# SPDX-License-Identifier: MIT
"""One connection of a hostile or erratic backend: reads, checks and answers what QEMU says.

What QEMU sends is held against docs/vmbus-user.md all the time; the first thing that does not fit
is kept in ``fault``. What is answered, and how wrong, is the choice of the episode.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Final

from tests.fuzz import protocol as p
from tests.fuzz.actions import Answer
from tests.fuzz.target import MAX_STATE_SIZE, Failure

_SAVED: Final = b"what a backend that is fuzzing saves "


def _write_result(pipe: int, data: bytes) -> None:
    """Write to the pipe of SAVE_STATE or LOAD_STATE; QEMU has closed it where it waits no longer.

    Both may have been sent long before they are read, to a connection that was not accepted yet.
    """
    with contextlib.suppress(BrokenPipeError):
        os.write(pipe, data)


class Memory:
    """What has been seen and saved over all connections of a run."""

    def __init__(self) -> None:
        self.seen: collections.Counter[str] = collections.Counter()
        self.saved: set[bytes] = set()


class Connection:
    """The backend's end of one connection."""

    def __init__(self, sock: socket.socket, memory: Memory, answer: Answer, vcpus: int) -> None:
        self.sock = sock
        self.answer = answer
        self.epoch = 0
        self.error: str | None = None
        self.closed = asyncio.Event()
        self.opened = asyncio.Event()
        """Set at the first RESET, or at the end of a connection that did not get so far."""
        self.reset = asyncio.Event()
        """Set at each RESET; a request that was on its way then has no answer."""
        self.fault: Failure | None = None
        self.on_message: Callable[[int, bytes], None] | None = None
        """Called with the VP index and the payload of each guest message."""
        self.lock = asyncio.Lock()
        """Held while a message is written, so that answers do not cut it in two."""
        self._memory = memory
        self._vcpus = vcpus
        self._waiting: dict[int, asyncio.Future[int | None]] = {}
        self._cookie = 1 << 31
        self._data = b""
        self._fds: list[int] = []
        self._held: list[int] = []
        self._order: list[int] = []
        self._running = False
        self._window = 0
        self._outstanding = 0
        self._reading = asyncio.Event()
        self._reading.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read())

    async def leave(self) -> None:
        """Close this end."""
        self._reader.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._reader, *self._tasks, return_exceptions=True)
        self.sock.close()
        for fd in (*self._fds, *self._held):
            os.close(fd)
        self._fds.clear()
        self._held.clear()
        self.closed.set()
        self._forget()

    def read(self, on: bool) -> None:
        """Read what QEMU sends, or stop doing so."""
        if on:
            self._reading.set()
        else:
            self._reading.clear()

    @property
    def reads(self) -> bool:
        """Whether what QEMU sends is read."""
        return self._reading.is_set()

    def expect(self) -> tuple[int, asyncio.Future[int | None]]:
        """Return a new cookie, and what becomes the status of the answer that has it.

        The result is None if a reset or the end of the connection came before an answer.
        """
        self._cookie += 1
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting[self._cookie] = future
        return self._cookie, future

    async def credit(self, count: int) -> None:
        """Count ``count`` guest messages as taken."""
        self._outstanding -= count
        async with self.lock:
            data = p.frame(p.GUEST_MESSAGE_DONE, p.words(count))
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def post(self, vp_index: int, sint: int, payload: bytes) -> asyncio.Future[int | None]:
        """Post a message; returns what becomes its status."""
        cookie, status = self.expect()
        async with self.lock:
            data = p.post(vp_index, sint, 1, payload, cookie=cookie)
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        return status

    # Reading.

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            while True:
                await self._reading.wait()
                readable.clear()
                loop.add_reader(self.sock, readable.set)
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(self.sock)
                if not self._reading.is_set():
                    continue
                data, fds, _, _ = socket.recv_fds(self.sock, 65_536, 64)
                self._fds += fds
                if not data:
                    break
                self._data += data
                self._split()
        except ConnectionError:
            pass
        except Failure as failure:
            self.fault = failure
        finally:
            self.closed.set()
            self.opened.set()
            self._forget()

    def _split(self) -> None:
        while len(self._data) >= 16:
            kind, flags, size, cookie = struct.unpack_from("<IIII", self._data)
            shape = p.FRONTEND.get(kind)
            if shape is None or flags != p.VERSION:
                raise Failure(f"QEMU sent type {kind} with flags {flags:#x}")
            if not shape.smallest <= size <= shape.largest:
                raise Failure(f"QEMU sent {shape.name} with {size} bytes")
            if len(self._data) < 16 + size:
                return
            body, self._data = self._data[16 : 16 + size], self._data[16 + size :]
            count = struct.unpack_from("<I", body)[0] if shape.fds < 0 else shape.fds
            fds, self._fds = self._fds[:count], self._fds[count:]
            if len(fds) != count:
                raise Failure(f"QEMU sent {shape.name} with {len(fds)} descriptors of {count}")
            self._memory.seen[f"from QEMU: {shape.name}"] += 1
            self._take(kind, cookie, body, fds)

    def _take(self, kind: int, cookie: int, body: bytes, fds: list[int]) -> None:
        if len(self._order) < 3:
            self._order.append(kind)
            if self._order != [p.HELLO, p.MEM_TABLE, p.RESET][: len(self._order)]:
                raise Failure(f"a connection began with messages of types {self._order}")
        match kind:
            case p.HELLO:
                version, vcpus, _, self._window, posts = struct.unpack("<IIQII", body)
                if (version, vcpus, posts) != (p.VERSION, self._vcpus, p.POST_WINDOW):
                    raise Failure(f"HELLO says {version}, {vcpus} vCPUs, {posts} posts")
            case p.MEM_TABLE:
                self._held += fds
            case p.RESET:
                self._take_reset(struct.unpack("<I", body)[0])
            case p.RESUME:
                if self._running:
                    raise Failure("RESUME while running")
                self._running = True
            case p.STOP:
                if not self._running:
                    raise Failure("STOP while stopped")
                self._running = False
                self._take_stop(fds[0])
            case p.GUEST_MESSAGE:
                self._take_guest_message(body)
            case p.POST_STATUS | p.REPLY:
                (status,) = struct.unpack("<I", body)
                self._memory.seen[f"{p.FRONTEND[kind].name} status {status}"] += 1
                if (waiting := self._waiting.pop(cookie, None)) and not waiting.done():
                    waiting.set_result(status)
            case p.SAVE_STATE:
                self._only_stopped("SAVE_STATE")
                self._take_save(struct.unpack("<Q", body)[0], *fds)
            case p.LOAD_STATE:
                self._only_stopped("LOAD_STATE")
                self._take_load(struct.unpack("<Q", body)[0], *fds)
            case p.ERROR:
                self.error = body.decode()

    def _only_stopped(self, what: str) -> None:
        if self._running:
            raise Failure(f"{what} while running")

    def _take_reset(self, epoch: int) -> None:
        if epoch <= self.epoch:
            raise Failure(f"RESET from epoch {self.epoch} to {epoch}")
        self.epoch = epoch
        self._outstanding = 0
        self._forget()
        self.reset.set()
        self.opened.set()
        if self.answer.reset and len(self._order) == 3 and self._handshaken:
            self._send(epoch, p.frame(p.RESET_DONE, p.words(epoch)))

    _handshaken = False

    def handshaken(self) -> None:
        """From now on answer each RESET, as long as the episode wants it."""
        self._handshaken = True

    def _take_guest_message(self, body: bytes) -> None:
        connection, _, vp_index, size = struct.unpack_from("<IIII", body)
        if connection not in (1, 4) or vp_index >= self._vcpus or size != len(body) - 16:
            raise Failure(f"GUEST_MESSAGE to {connection} from VP {vp_index} of {size} bytes")
        self._outstanding += 1
        if self._outstanding > self._window:
            raise Failure(f"{self._outstanding} guest messages in a window of {self._window}")
        if self.on_message is not None:
            self.on_message(vp_index, body[16:])
        if self.answer.credit:
            self._send(self.epoch, p.frame(p.GUEST_MESSAGE_DONE, p.words(1)), credit=True)

    def _take_stop(self, pipe: int) -> None:
        # QEMU no longer waits if the machine was resumed meanwhile.
        with contextlib.suppress(BrokenPipeError):
            match self.answer.stop:
                case "never":
                    self._held.append(pipe)
                    return
                case "honest":
                    os.write(pipe, b"\1")
                case "twice":
                    os.write(pipe, b"\1")
                    os.write(pipe, b"\0")
                case "huge":
                    os.write(pipe, bytes(4096))
                case "give up":
                    pass
                case "close":
                    self.sock.shutdown(socket.SHUT_RDWR)
        os.close(pipe)

    def _take_save(self, limit: int, memfd: int, pipe: int) -> None:
        if limit != MAX_STATE_SIZE:
            raise Failure(f"SAVE_STATE with room for {limit} bytes")
        how = self.answer.save
        state = b"" if how == "empty" else _SAVED * (len(self._memory.saved) % 50 + 1)
        os.write(memfd, state)
        crc = zlib.crc32(state)
        text = b""
        fields = (0, 0, len(state), crc, 0)
        match how:
            case "honest" | "empty":
                self._memory.saved.add(state)
            case "never":
                self._held += (memfd, pipe)
                return
            case "partial":
                _write_result(pipe, p.RESULT.pack(*fields)[:10])
                self._held += (memfd, pipe)
                return
            case "close":
                self.sock.shutdown(socket.SHUT_RDWR)
            case "refuse":
                text = b"the fuzz does not want to"
                fields = (1, len(text), 0, 0, 0)
            case "refuse in garbage":
                text = b"\xff\x00\x1b[2J%s%n\xc3(\n\"'\\" * 9
                fields = (1, len(text), 0, 0, 0)
            case "bad status":
                fields = (7, 0, len(state), crc, 0)
            case "reserved":
                fields = (0, 0, len(state), crc, 1)
            case "long text":
                fields = (1, 5_000, 0, 0, 0)
            case "short text":
                fields = (1, 100, 0, 0, 0)
            case "bad crc":
                fields = (0, 0, len(state), crc ^ 1, 0)
            case "more than written":
                fields = (0, 0, len(state) + 1, crc, 0)
            case "less than written":
                fields = (0, 0, len(state) - 1, crc, 0)
            case "over the limit":
                os.ftruncate(memfd, limit + 1)
                fields = (0, 0, limit + 1, crc, 0)
            case "no result":
                pass
        if how not in ("no result", "close"):
            _write_result(pipe, p.RESULT.pack(*fields) + text)
        os.close(memfd)
        os.close(pipe)

    def _take_load(self, size: int, memfd: int, pipe: int) -> None:
        state = os.pread(memfd, size + 1, 0)
        if state not in self._memory.saved:
            raise Failure(f"LOAD_STATE of {size} bytes that were never saved")
        fields = (0, 0, 0, 0, 0)
        text = b""
        match self.answer.load:
            case "honest":
                pass
            case "never":
                self._held += (memfd, pipe)
                return
            case "close":
                self.sock.shutdown(socket.SHUT_RDWR)
            case "refuse":
                text = b"the fuzz does not like it"
                fields = (1, len(text), 0, 0, 0)
            case "bad status":
                fields = (99, 0, 0, 0, 0)
            case "no result":
                pass
        if self.answer.load not in ("no result", "close"):
            _write_result(pipe, p.RESULT.pack(*fields) + text)
        os.close(memfd)
        os.close(pipe)

    # Answering.

    async def answered(self) -> None:
        """Return when all answers to what has been read are sent."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _send(self, epoch: int, data: bytes, *, credit: bool = False) -> None:
        task = asyncio.create_task(self._send_in_turn(epoch, data, credit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_in_turn(self, epoch: int, data: bytes, credit: bool) -> None:
        async with self.lock:
            if epoch != self.epoch:
                return
            if credit:
                self._outstanding -= 1
                self._memory.seen["credits"] += 1
            with contextlib.suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def _forget(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
