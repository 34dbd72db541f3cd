# SPDX-License-Identifier: MIT
"""``vmbus trace``: the messages and packets between a guest and its VMBus host, as they pass."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

if TYPE_CHECKING:
    from emulator.trace.feed import Wanted
    from emulator.trace.pcapng import Captured, Counts

_CHUNK: Final = 65_536
_STDOUT: Final = "-"
_ENDING: Final = 5.0
"""Seconds that the backend has to send the rest after Ctrl-C."""


def trace(
    vm: Annotated[str, typer.Argument(help="name, or process id, as `vmbus ps` shows it")] = "",
    packets: Annotated[bool, typer.Option("--packets", help="packets of the channels too")] = False,
    channel: Annotated[
        int | None, typer.Option(help="packets of this channel only; implies --packets")
    ] = None,
    write: Annotated[
        str, typer.Option(metavar="FILE", help="write pcapng there; - is standard output")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(metavar="BYTES", help="of each packet, keep at most so much")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="with --write: do not print the records")
    ] = False,
    read: Annotated[
        Path | None, typer.Option(metavar="FILE", help="print a trace that was written before")
    ] = None,
    dissector: Annotated[
        bool, typer.Option("--dissector", help="print the path of Wireshark's dissector and end")
    ] = False,
) -> None:
    """Show every message between guest and host, and write it for Wireshark, until Ctrl-C."""
    from emulator.cli.asking import fail
    from emulator.machine.registry import RegistryError, find
    from emulator.trace.dissector import PATH
    from emulator.trace.feed import DEFAULT_LIMIT, Wanted
    from emulator.trace.pcapng import NotPcapng

    if dissector:
        print(PATH)
        return
    if read is not None and (vm or write or packets or channel is not None or limit is not None):
        fail("--read prints a file and takes neither VM nor other options")
    if read is None and not vm:
        fail("which VM? `vmbus ps` lists them; or give --read FILE")
    if quiet and not write:
        fail("--quiet leaves nothing to do without --write")
    try:
        if read is not None:
            show_file(read)
            return
        wanted = Wanted(
            packets or channel is not None, channel, DEFAULT_LIMIT if limit is None else limit
        )
        entry = find(vm)
        with contextlib.ExitStack() as stack:
            out = _target(write, stack)
            printing = not quiet and write != _STDOUT
            follower = Follower(out, printing)
            asyncio.run(follower.follow(Path(entry.control), wanted))
    except (RegistryError, TraceError, NotPcapng, ValueError) as error:
        fail(str(error))
    except BrokenPipeError:
        # Whoever read our output, such as Wireshark or head, has enough.
        _leave(0)
    except KeyboardInterrupt:
        _leave(128 + signal.SIGINT)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


class TraceError(Exception):
    """The trace cannot be had; the text is for the user."""


def show_file(path: Path) -> None:
    """Print a file; raises OSError and :class:`~emulator.trace.pcapng.NotPcapng`."""
    from emulator.trace.pcapng import NotPcapng, Reader

    reader, printer = Reader(), Printer()
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                printer.show(reader.feed(data))
        reader.finish()
    except NotPcapng as error:
        raise NotPcapng(f"{path}: {error}") from error
    if printer.foreign:
        print(f"{printer.foreign} packets of other interfaces are not shown", file=sys.stderr)
    if printer.dropped:
        print(f"{printer.dropped} records were dropped when it was written", file=sys.stderr)


class Printer:
    """Prints records as lines, with the seconds since the first; counts what it is shown."""

    def __init__(self, *, printing: bool = True) -> None:
        """Print nothing and only count unless ``printing``."""
        self.printing = printing
        self.records = 0
        self.dropped = 0
        self.foreign = 0
        self._began: int | None = None

    def show(self, items: list[Captured | Counts]) -> None:
        """Print what was read; raises BrokenPipeError."""
        from emulator.trace.pcapng import LINKTYPE_USER0, Counts

        lines: list[str] = []
        for item in items:
            if isinstance(item, Counts):
                # Of the whole file: more than the notes say only if another tool has cut it.
                self.dropped = max(self.dropped, item.dropped)
                continue
            if item.link_type != LINKTYPE_USER0:
                self.foreign += 1
                continue
            # Only a note says that records were dropped, and is none itself.
            self.dropped += item.dropped
            self.records += not item.dropped
            if self.printing:
                lines.append(self._line(item))
        if lines:
            print("\n".join(lines), flush=True)

    def _line(self, item: Captured) -> str:
        from emulator.trace.decode import line
        from emulator.trace.record import MalformedRecord, Record

        if self._began is None:
            self._began = item.time_ns
        since = (item.time_ns - self._began) / 1e9
        try:
            text = line(Record.parse(item.data), cut=len(item.data) < item.length)
        except MalformedRecord as error:
            text = f"not a record: {error}"
        return f"{since:12.6f}  {text}"


class Follower:
    """Takes the trace of a running backend: writes the bytes as they are, and prints them."""

    def __init__(self, out: FileIO | None, printing: bool) -> None:
        """Write to ``out``, if it is there, and print the records if ``printing``."""
        self._out = out
        self._printer = Printer(printing=printing)

    async def follow(self, control: Path, wanted: Wanted) -> None:
        """Follow until Ctrl-C, the end of the backend, or of whoever reads what we write.

        Raises :class:`TraceError`, OSError, BrokenPipeError.
        """
        import msgspec

        from emulator.machine.control import Answer, Request

        reader, writer = await asyncio.open_unix_connection(control, limit=1 << 20)
        try:
            arguments = {
                "packets": wanted.packets,
                "channel": wanted.channel,
                "limit": wanted.limit,
            }
            writer.write(msgspec.json.encode(Request(1, "trace", arguments)) + b"\n")
            answer = msgspec.json.decode(await reader.readline() or b"{}", type=Answer)
            if answer.error:
                raise TraceError(answer.error)
            try:
                await self._copy(reader, writer)
            finally:
                self._say()
        except msgspec.DecodeError as error:
            raise TraceError("the backend has ended, or speaks another language") from error
        finally:
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from emulator.trace.pcapng import Reader

        loop = asyncio.get_running_loop()
        parser = Reader()
        patience: asyncio.TimerHandle | None = None

        def end() -> None:
            nonlocal patience
            if patience is None:
                # The backend sends what waits, and its counts; then it closes.
                with contextlib.suppress(OSError):
                    writer.write_eof()
                patience = loop.call_later(_ENDING, writer.transport.abort)

        asked = False

        def asked_to_end(*_: object) -> None:
            nonlocal asked
            if asked:
                # We may be stuck in a write to a pipe that nobody reads: the loop would not know.
                raise KeyboardInterrupt
            asked = True
            loop.call_soon_threadsafe(end)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, asked_to_end)
        try:
            while data := await reader.read(_CHUNK):
                if self._out is not None:
                    _write_all(self._out, data)
                self._printer.show(parser.feed(data))
        except ConnectionResetError:
            pass
        finally:
            if patience is not None:
                patience.cancel()

    def _say(self) -> None:
        printer = self._printer
        dropped = f", {printer.dropped} dropped" if printer.dropped else ""
        print(f"{printer.records} records{dropped}", file=sys.stderr)


def _target(write: str, stack: contextlib.ExitStack) -> FileIO | None:
    """Open what ``--write`` names, without a buffer; raises OSError."""
    if not write:
        return None
    if write == _STDOUT:
        return stack.enter_context(FileIO(os.dup(sys.stdout.fileno()), "wb"))
    return stack.enter_context(FileIO(write, "wb", opener=_private))


def _private(path: str, flags: int) -> int:
    """Open for the owner alone: what guests send is nobody else's."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def _leave(status: int) -> NoReturn:
    """End, and leave unwritten what nobody reads."""
    # At its end Python flushes standard output: it would complain about a pipe that is closed, and
    # wait for one that is full.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(status)
