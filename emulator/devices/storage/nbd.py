# SPDX-License-Identifier: MIT
"""A disk behind an NBD server on a UNIX socket: what QEMU's block layer can open, a guest can use.

``qemu-storage-daemon`` exports qcow2, VHDX, VHD and all else it knows in this way; nothing of these
formats is known here. The protocol is that of the NBD project's ``doc/proto.md``: fixed newstyle
handshake with NBD_OPT_GO, simple replies, many requests under way. Data go between the socket and
the guest's memory without a copy of ours.

The handshake blocks, for :data:`PATIENCE_SECONDS` at most; everything after it is done by the event
loop. A server that has gone away fails what is under way and all that comes. It has to take two
connections at a time: a restore opens its disks before it lets go of those that there were.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from emulator.devices.storage.backend import Backend, BackendError, Done, Pieces, Stamp
from emulator.devices.storage.scsi import BLOCK

PATIENCE_SECONDS: Final = 5.0

_MAGIC: Final = b"NBDMAGICIHAVEOPT"
_OPTION_MAGIC: Final = 0x49484156454F5054
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_REP_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_INFO_BLOCK_SIZE: Final = 3
_MOST_OPTION_DATA: Final = 65_536
_MOST_PIECES: Final = min(os.sysconf("SC_IOV_MAX"), 256)

_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class Flags(IntFlag):
    """Transmission flags of an export."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


_FUA: Final = 1
_NO_HOLE: Final = 2


class Export(NamedTuple):
    """What the server says of an export."""

    size: int
    flags: Flags


class _UnderWay(NamedTuple):
    done: Done
    into: list[memoryview]
    """What a READ fills; empty for all others."""


def parse_uri(uri: str) -> tuple[str, str]:
    """Return socket path and export name of ``nbd+unix:///NAME?socket=PATH`` (NBD's doc/uri.md).

    Raises ValueError.
    """
    parts = urlsplit(uri)
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.scheme != "nbd+unix" or len(sockets) != 1 or parts.netloc:
        raise ValueError(f"{uri!r} is not of the form nbd+unix:///NAME?socket=PATH")
    return sockets[0], unquote(parts.path.removeprefix("/"))


class NbdDisk(Backend):
    """One export, on one connection."""

    def __init__(self, uri: str, *, read_only: bool) -> None:
        """Connect and shake hands; raises :class:`BackendError`."""
        path, name = parse_uri(uri)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_SECONDS)
        try:
            self._socket.connect(path)
            export = _handshake(self._socket, name)
            if export.flags & Flags.READ_ONLY and not read_only:
                raise BackendError("the export is read-only; set read_only, or export it writable")
            if not export.flags & Flags.SEND_FLUSH and not read_only:
                raise BackendError("the server has no flush, so nothing would ever be safe")
        except BackendError as error:
            self._socket.close()
            raise BackendError(f"{uri}: {error}") from error
        except (OSError, EOFError) as error:
            self._socket.close()
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BackendError(f"{uri} cannot be opened: {text}") from error
        self._socket.setblocking(False)
        self.size = export.size
        self.read_only = read_only
        self._flags = export.flags
        # Of the instance: servers differ.
        self.discard = bool(export.flags & Flags.SEND_TRIM)
        self._handles = itertools.count()
        self._under_way: dict[int, _UnderWay] = {}
        self._out: deque[memoryview] = deque()
        self._writing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._head = bytearray(_REPLY.size)
        self._wanted: deque[memoryview] = deque([memoryview(self._head)])
        self._answered: _UnderWay | None = None
        self._failed: OSError | None = None

    # Requests.

    def read(self, pieces: Pieces, offset: int, done: Done) -> None:
        """See :class:`Backend`."""
        length = sum(piece.nbytes for piece in pieces)
        self._ask(Command.READ, 0, offset, length, (), _UnderWay(done, list(pieces)))

    def write(self, pieces: Pieces, offset: int, fua: bool, done: Done) -> None:
        """See :class:`Backend`; a server without FUA is asked to flush afterwards."""
        length = sum(piece.nbytes for piece in pieces)
        through = fua and bool(self._flags & Flags.SEND_FUA)
        if fua and not through:
            done = self._then_flush(done)
        self._ask(
            Command.WRITE, _FUA if through else 0, offset, length, pieces, _UnderWay(done, [])
        )

    def _then_flush(self, done: Done) -> Done:
        return lambda error: self.flush(done) if error is None else done(error)

    def flush(self, done: Done) -> None:
        """See :class:`Backend`."""
        self._ask(Command.FLUSH, 0, 0, 0, (), _UnderWay(done, []))

    def unmap(self, ranges: Sequence[tuple[int, int]], done: Done) -> None:
        """See :class:`Backend`: TRIM, one range after the other."""
        left = iter(ranges)

        def following(error: OSError | None) -> None:
            found = next(left, None)
            if error is not None or found is None:
                done(error)
            else:
                self._ask(Command.TRIM, 0, *found, (), _UnderWay(following, []))

        offset, length = next(left)
        self._ask(Command.TRIM, 0, offset, length, (), _UnderWay(following, []))

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """See :class:`Backend`."""
        if self._flags & Flags.SEND_WRITE_ZEROES:
            how = 0 if unmap else _NO_HOLE
            self._ask(Command.WRITE_ZEROES, how, offset, length, (), _UnderWay(done, []))
        else:
            self.write([memoryview(bytes(length))], offset, False, done)

    def _ask(
        self, kind: Command, flags: int, offset: int, length: int, data: Pieces, what: _UnderWay
    ) -> None:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            loop.add_reader(self._socket, self._readable)
        if self._failed is not None:
            loop.call_soon(what.done, self._failed)
            return
        handle = next(self._handles)
        self._under_way[handle] = what
        head = _REQUEST.pack(_REQUEST_MAGIC, flags, kind, handle, offset, length)
        self._out.append(memoryview(head))
        self._out.extend(piece for piece in data if piece.nbytes)
        if not self._writing:
            self._write()

    # The socket.

    def _write(self) -> None:
        try:
            while self._out:
                batch = list(itertools.islice(self._out, _MOST_PIECES))
                _drop(self._out, self._socket.sendmsg(batch))
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        assert self._loop is not None
        if self._out and not self._writing:
            self._loop.add_writer(self._socket, self._write)
        elif self._writing and not self._out:
            self._loop.remove_writer(self._socket)
        self._writing = bool(self._out)

    def _readable(self) -> None:
        try:
            while True:
                batch = list(itertools.islice(self._wanted, _MOST_PIECES))
                size = self._socket.recvmsg_into(batch)[0]
                if not size:
                    self._fail(OSError(errno.EIO, "the NBD server has closed the connection"))
                    return
                _drop(self._wanted, size)
                if not self._wanted:
                    self._whole()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)

    def _whole(self) -> None:
        """Act on a whole head of a reply, or on its data."""
        answered, error = self._answered, None
        if answered is None:
            magic, number, handle = _REPLY.unpack(self._head)
            answered = self._under_way.pop(handle, None) if magic == _REPLY_MAGIC else None
            if answered is None:
                raise OSError(errno.EPROTO, "the NBD server has sent what is no reply")
            if not number and answered.into:
                self._answered = answered
                self._wanted.extend(answered.into)
                return
            if number:
                error = OSError(number, os.strerror(number))
        self._answered = None
        self._wanted.append(memoryview(self._head))
        answered.done(error)

    def _fail(self, error: OSError) -> None:
        """Fail all that is under way; some of it may have been done all the same."""
        if error.errno not in (errno.EIO, errno.EPROTO):
            error = OSError(errno.EIO, str(error))
        self._failed = error
        assert self._loop is not None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._out.clear()
        waiting = list(self._under_way.values())
        if self._answered is not None:
            waiting.append(self._answered)
            self._answered = None
        self._under_way.clear()
        for each in waiting:
            each.done(error)

    def let_go_of_memory(self, seconds: float) -> bool:
        """See :class:`Backend`: what is to be sent is copied, what comes is read and dropped."""
        self._out = deque(memoryview(bytes(piece)) for piece in self._out)
        scratch = {
            handle: _UnderWay(each.done, _like(each.into))
            for handle, each in self._under_way.items()
        }
        self._under_way.update(scratch)
        if self._answered is not None:
            self._wanted = deque(_like(self._wanted))
        return True

    def stamp(self) -> Stamp:
        """See :class:`Backend`; when an export was written last is not known."""
        return Stamp(self.size)

    def close(self) -> None:
        """See :class:`Backend`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        try:
            if self._failed is None:
                bye = _REQUEST.pack(_REQUEST_MAGIC, 0, Command.DISCONNECT, 0, 0, 0)
                self._socket.send(bye)
        except OSError:
            # It has gone already, which is what the message asks for.
            pass
        self._socket.close()


def _drop(pieces: deque[memoryview], size: int) -> None:
    """Take ``size`` bytes off the front."""
    while size:
        first = pieces[0]
        if first.nbytes > size:
            pieces[0] = first[size:]
            return
        size -= first.nbytes
        pieces.popleft()


def _like(pieces: Iterable[memoryview]) -> list[memoryview]:
    """Return memory of ours as large as the pieces."""
    return [memoryview(bytearray(piece.nbytes)) for piece in pieces]


def _handshake(sock: socket.socket, name: str) -> Export:
    """Choose the export; raises :class:`BackendError`, EOFError, OSError."""
    if _receive(sock, 16) != _MAGIC:
        raise BackendError("what listens there is no NBD server of the fixed newstyle")
    (flags,) = struct.unpack(">H", _receive(sock, 2))
    if not flags & _FIXED_NEWSTYLE:
        raise BackendError("the NBD server is too old: it has no fixed newstyle")
    encoded = name.encode()
    data = struct.pack(">I", len(encoded)) + encoded + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    sock.sendall(
        struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES))
        + _OPTION.pack(_OPTION_MAGIC, _OPT_GO, len(data))
        + data
    )
    export: Export | None = None
    while True:
        magic, option, kind, size = _OPTION_REPLY.unpack(_receive(sock, _OPTION_REPLY.size))
        if magic != _OPTION_REPLY_MAGIC or option != _OPT_GO or size > _MOST_OPTION_DATA:
            raise BackendError("the NBD server has answered nonsense")
        body = _receive(sock, size)
        if kind == _REP_ACK:
            if export is None:
                raise BackendError("the NBD server has not told the size of the export")
            return export
        if kind & _REP_ERROR:
            text = body.decode("utf-8", "replace") or f"error {kind & ~_REP_ERROR}"
            raise BackendError(f"the server refuses the export {name!r}: {text}")
        if kind != _REP_INFO or size < 2:
            continue
        (what,) = struct.unpack_from(">H", body)
        if what == _INFO_EXPORT and size == 12:
            total, bits = struct.unpack_from(">QH", body, 2)
            export = Export(total, Flags(bits))
        elif what == _INFO_BLOCK_SIZE and size == 14:
            (least,) = struct.unpack_from(">I", body, 2)
            if least > BLOCK:
                raise BackendError(f"the export has blocks of {least} bytes; {BLOCK} are needed")


def _receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError("the NBD server has closed the connection")
        data += more
    return bytes(data)
