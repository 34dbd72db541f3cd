# SPDX-License-Identifier: MIT
"""The guest's serial console: kept in a file for people, followed line by line by programs."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path


class ConsoleClosed(Exception):
    """The console ended before the line that was waited for; the last lines are in the text."""


class Console:
    """Takes the connection of QEMU's serial port and remembers what the guest printed."""

    def __init__(self, log: Path) -> None:
        """Append everything to ``log``."""
        self._log = log
        self.lines: list[str] = []
        self.tap: Callable[[bytes], None] | None = None
        """Is given what the guest prints as it comes, for a person who looks on."""
        self._partial = b""
        self._news = asyncio.Event()
        self._closed = False
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def listen(self, path: Path) -> None:
        """Listen at ``path`` for QEMU."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    def tail(self, count: int = 10) -> str:
        """Return the last lines."""
        return "\n".join(self.lines[-count:])

    async def wait_for(self, pattern: str, start: int = 0) -> re.Match[str]:
        """Return the first match of ``pattern`` in a line from number ``start`` on.

        Raises :class:`ConsoleClosed` when QEMU ends first. A caller that wants a time limit uses
        ``asyncio.timeout``.
        """
        regex = re.compile(pattern)
        while True:
            while start < len(self.lines):
                if match := regex.search(self.lines[start]):
                    return match
                start += 1
            if self._closed:
                raise ConsoleClosed(f"the guest never printed {pattern!r}; last:\n{self.tail()}")
            self._news.clear()
            await self._news.wait()

    async def send_line(self, line: str) -> None:
        """Type a line at the guest's serial terminal.

        Raises :class:`ConsoleClosed` if QEMU has not connected or has ended.
        """
        if self._writer is None or self._closed:
            raise ConsoleClosed(f"nobody reads {line!r}; last:\n{self.tail()}")
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()

    def type(self, keys: bytes) -> None:
        """Type as a person does; what is typed before QEMU has connected, or after, is lost."""
        if self._writer is not None and not self._closed:
            self._writer.write(keys)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            with self._log.open("ab") as log:
                while data := await reader.read(65_536):
                    log.write(data)
                    log.flush()
                    if self.tap is not None:
                        self.tap(data)
                    self._take(data)
        except ConnectionError:
            pass
        finally:
            self._closed = True
            self._news.set()

    def _take(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        self.lines += [line.decode("utf-8", "replace").rstrip("\r") for line in whole]
        self._news.set()
