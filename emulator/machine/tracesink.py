# SPDX-License-Identifier: MIT
"""Where a trace goes: to whoever asked for it over the control socket, or to a file.

Both wait for their reader, the loop and the bus never do: what the reader does not take in time is
dropped by the feed, which counts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from emulator.machine.control import ControlError, Stream
from emulator.trace.feed import DEFAULT_LIMIT, Feed, Wanted

if TYPE_CHECKING:
    from emulator.machine.host import VmbusHost
    from emulator.machine.tracing import Tracing

log = logging.getLogger(__name__)

CHUNK: Final = 65_536
_PATIENCE: Final = 2.0
"""Seconds that a reader has, when the trace ends, to take what waits."""


class TraceArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the command ``trace``: see :class:`~emulator.trace.feed.Wanted`."""

    packets: bool = False
    channel: int | None = None
    limit: int = DEFAULT_LIMIT


def trace_command(host: VmbusHost, args: dict[str, Any]) -> Stream:
    """Begin a trace for a control connection; raises :class:`ControlError`.

    After the answer, whose result is the name of the VM, come the bytes of a pcapng file. The
    client closes its half of the connection to end it, and gets what waits and the counts.
    """
    from emulator.machine.tracing import TooManyTraces

    try:
        asked = msgspec.convert(args, TraceArguments)
        wanted = Wanted(asked.packets or asked.channel is not None, asked.channel, asked.limit)
        known = [channel.channel_id for channel in host.bus.table]
        if wanted.channel is not None and wanted.channel not in known:
            ids = ", ".join(map(str, known)) or "none"
            raise ControlError(
                f"{host.config.vm} has no channel {wanted.channel}; its channels: {ids}"
            )
        feed = host.tracing.subscribe(wanted)
    except (msgspec.ValidationError, ValueError, TooManyTraces) as error:
        raise ControlError(f"trace: {error}") from error

    async def run(writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        host.tracing.senders.add(task)
        task.add_done_callback(host.tracing.senders.discard)
        try:
            await _stream(feed, writer)
        finally:
            host.tracing.unsubscribe(feed)
            await _finish(feed, writer)

    return Stream({"vm": host.config.vm}, run)


async def _stream(feed: Feed, writer: asyncio.StreamWriter) -> None:
    ready = asyncio.Event()
    feed.ready = ready.set
    while True:
        while chunk := feed.take(CHUNK):
            writer.write(chunk)
            await writer.drain()
        if feed.closed:
            return
        ready.clear()
        await ready.wait()


async def _finish(feed: Feed, writer: asyncio.StreamWriter) -> None:
    """Send what waits; a reader that does not take it in time loses the rest."""
    try:
        async with asyncio.timeout(_PATIENCE):
            while chunk := feed.take(CHUNK):
                writer.write(chunk)
                await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (TimeoutError, ConnectionError):
        writer.transport.abort()


class FileTrace:
    """A trace that is written to a file from the start of the backend to its end.

    The file is opened at once, so that what is wrong with it ends the program before anything is
    served; for a FIFO that waits for a reader. It is written by a thread of its own: a disk, or
    what is behind a FIFO, may take its time. A file that can no longer be written ends the trace,
    not the backend.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        """Open ``path``, for its owner alone if it is made; raises OSError."""
        self._path = path
        self._wanted = wanted
        self._file = FileIO(path, "wb", opener=_private)
        self._feed: Feed | None = None
        self._tracing: Tracing | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, tracing: Tracing) -> None:
        """Begin: the records of now and later go to the file."""
        self._tracing = tracing
        self._feed = tracing.subscribe(self._wanted)
        self._task = asyncio.create_task(self._write(self._feed))

    async def finish(self) -> None:
        """Wait until the file has everything; the trace has been closed before."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._task

    async def _write(self, feed: Feed) -> None:
        ready = asyncio.Event()
        feed.ready = ready.set
        writer = _ThreadWriter(self._file)
        try:
            while not feed.closed or feed.waiting:
                while chunk := feed.take(CHUNK):
                    await writer.write(chunk)
                if not feed.closed:
                    ready.clear()
                    await ready.wait()
        except OSError as error:
            log.error("the trace ends, %s: %s", self._path, error.strerror)
            assert self._tracing is not None
            self._tracing.unsubscribe(feed)
        finally:
            writer.close()


class _ThreadWriter:
    """Writes chunks to a file in a daemon thread, which a stuck FIFO cannot make us wait for."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._todo: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="trace", daemon=True).start()

    async def write(self, chunk: bytes) -> None:
        """Write a chunk whole; raises OSError."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._todo.put((chunk, done))
        await done

    def close(self) -> None:
        """Close the file when all chunks are written."""
        self._todo.put(None)

    def _run(self) -> None:
        with self._file as file:
            while (item := self._todo.get()) is not None:
                chunk, done = memoryview(item[0]), item[1]
                problem: OSError | None = None
                try:
                    while chunk:
                        chunk = chunk[file.write(chunk) or 0 :]
                except OSError as error:
                    problem = error
                # The loop may have ended meanwhile, and whoever waited with it.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(_settle, done, problem)


def _settle(done: asyncio.Future[None], problem: OSError | None) -> None:
    if done.done():
        return
    if problem is None:
        done.set_result(None)
    else:
        done.set_exception(problem)


def _private(path: str, flags: int) -> int:
    """Open for the owner alone: what guests send is nobody else's."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
