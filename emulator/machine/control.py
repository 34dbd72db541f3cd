# SPDX-License-Identifier: MIT
"""The backend's control socket: one JSON object a line, a command in, a result out.

A request is ``{"id": n, "command": "probe.counts", "args": {...}}``; its answer
``{"id": n, "result": ...}`` or ``{"id": n, "error": "text"}``. Commands may take long (wait for the
guest) and are answered in the order in which they end.

The socket is for the machine's owner alone. It is made with mode 0600, and because a mode can be
changed and a descriptor be handed on, the server asks the kernel who connects (unix(7),
SO_PEERCRED) and closes the connection of any other user, root included: root has other ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

log = logging.getLogger(__name__)

_LINE_LIMIT: Final = 16 * 1024 * 1024
_UCRED: Final = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


class ControlError(Exception):
    """A command failed; the text is for the person who gave it."""


class ControlGone(ControlError):
    """The backend has closed the connection: most often because it has ended."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The result of a command that makes the connection its own: ``result`` is the answer's.

    After the answer ``run`` writes whatever it wants, until it returns or is cancelled because the
    other end has nothing more to say (it closed its half). The connection is closed then.
    """

    result: Any
    run: Callable[[asyncio.StreamWriter], Awaitable[None]]


class Request(msgspec.Struct, frozen=True):
    """One command."""

    id: int
    command: str
    args: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Its outcome: ``error`` is empty when it succeeded."""

    id: int
    result: Any = None
    error: str = ""


Runner = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Carries out a command; raises :class:`ControlError`. A :class:`Stream` is a result as well."""


class ControlServer:
    """Serves commands on a UNIX socket."""

    def __init__(self, runner: Runner, owner: int | None = None) -> None:
        """Carry out commands with ``runner`` for the user ``owner``; by default, our own."""
        self._runner = runner
        self._owner = os.geteuid() if owner is None else owner
        self._streaming: set[asyncio.Task[None]] = set()

    async def listen(self, sock: socket.socket) -> asyncio.Server:
        """Serve connections to ``sock``, a listening UNIX socket."""
        return await asyncio.start_unix_server(self._serve, sock=sock, limit=_LINE_LIMIT)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _peer(writer.get_extra_info("socket"))
        if user != self._owner:
            log.warning("user %d tried to give commands; only user %d may", user, self._owner)
            writer.close()
            return
        tasks: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._run(line, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            log.debug("control connection ended", exc_info=True)
        finally:
            for task in tasks:
                task.cancel()
            # One that streams says how it ended, before the connection goes.
            await asyncio.gather(*(tasks & self._streaming), return_exceptions=True)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _run(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        ident = 0
        stream: Stream | None = None
        try:
            request = msgspec.json.decode(line, type=Request)
            ident = request.id
            result = await self._runner(request.command, request.args)
            if isinstance(result, Stream):
                stream, result = result, result.result
            answer = Answer(ident, result=result)
        except (ControlError, msgspec.DecodeError, UnicodeDecodeError) as error:
            answer = Answer(ident, error=str(error))
        except Exception as error:
            log.exception("command failed: %s", line[:200])
            answer = Answer(ident, error=f"internal error: {error!r}")
        writer.write(msgspec.json.encode(answer) + b"\n")
        with contextlib.suppress(ConnectionError):
            if stream is None:
                await writer.drain()
                return
            task = asyncio.current_task()
            assert task is not None
            self._streaming.add(task)
            task.add_done_callback(self._streaming.discard)
            await stream.run(writer)
            writer.close()


def _peer(sock: socket.socket) -> int:
    """Return the user id of the process that connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


class ControlClient:
    """The other end, in the process that owns the machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Use a connected pair; prefer :meth:`connect`."""
        self._reader = reader
        self._writer = writer
        self._next = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._gone: str = ""
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: Path) -> ControlClient:
        """Connect to the socket at ``path``; raises OSError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=_LINE_LIMIT)
        return cls(reader, writer)

    async def call(self, command: str, **args: Any) -> Any:
        """Run a command; raises :class:`ControlError` if it fails or the backend goes away."""
        if self._gone:
            raise ControlGone(self._gone)
        self._next += 1
        ident = self._next
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = future
        self._writer.write(msgspec.json.encode(Request(ident, command, args)) + b"\n")
        try:
            return await future
        finally:
            del self._waiting[ident]

    async def close(self) -> None:
        """Close the connection; calls that wait fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                answer = msgspec.json.decode(line, type=Answer)
                future = self._waiting.get(answer.id)
                if future is None or future.done():
                    continue
                if answer.error:
                    future.set_exception(ControlError(answer.error))
                else:
                    future.set_result(answer.result)
        except ConnectionError:
            log.debug("control connection reset", exc_info=True)
        finally:
            self._gone = "the backend process has ended"
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ControlGone(self._gone))
