# SPDX-License-Identifier: MIT
"""Guest file copy: a file of the host's is written into the guest, 6 KiB a message.

Linux: drivers/hv/hv_fcopy.c (to 6.9; a daemon over uio from 6.10) and hv_fcopy_daemon. A copy is
the device's, not its asker's: it goes on after a restore, in another process.
"""

from __future__ import annotations

import os
import stat
import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Final, Self

import msgspec

from emulator.devices.base import Command
from emulator.devices.ic.base import Answer, IcDevice, IcError, Request
from emulator.devices.ic.clock import Clock
from emulator.devices.ic.layout import IcStatus, IcType, IcVersion, from_utf16, status_name, utf16
from emulator.kmcl import ChannelPort

FRAGMENT: Final = 6 * 1024
"""Bytes of data in one message (DATA_FRAGMENT)."""
PATH_UNITS: Final = 260
"""W_MAX_PATH."""

_HEAD: Final = struct.Struct("<I32x")
"""``struct hv_fcopy_hdr``, 36 bytes: the operation, and two GUIDs that no guest looks at."""


class FcopyOp(IntEnum):
    """``enum hv_fcopy_op``."""

    START = 0
    WRITE = 1
    COMPLETE = 2
    CANCEL = 3


class CopyFlags(IntFlag):
    """Of START."""

    OVERWRITE = 1
    CREATE_PATH = 2


@dataclass(frozen=True, slots=True)
class Start:
    """``struct hv_start_fcopy``, 1,088 bytes, packed."""

    name: str
    folder: str
    flags: CopyFlags
    size: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<I32x520s520sIQ")

    def pack(self) -> bytes:
        """Encode; raises ValueError for names that are too long."""
        name = utf16(self.name, PATH_UNITS, "the file's name")
        folder = utf16(self.folder, PATH_UNITS, "the folder")
        return self.LAYOUT.pack(FcopyOp.START, name, folder, self.flags, self.size)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 1,088 bytes."""
        _, name, folder, flags, size = cls.LAYOUT.unpack_from(body)
        return cls(from_utf16(name), from_utf16(folder), CopyFlags(flags), size)


@dataclass(frozen=True, slots=True)
class Write:
    """``struct hv_do_fcopy``, 6,196 bytes, packed; the guest reads them all, whatever the size."""

    offset: int
    data: bytes

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(f"<I32x4xQI{FRAGMENT}s")

    def pack(self) -> bytes:
        """Encode."""
        return self.LAYOUT.pack(FcopyOp.WRITE, self.offset, len(self.data), self.data)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Decode at least 6,196 bytes."""
        _, offset, size, data = cls.LAYOUT.unpack_from(body)
        return cls(offset, data[:size])


class Copy(msgspec.Struct):
    """A copy under way, or the last one; ``error`` is empty unless it failed.

    ``modified_ns`` is the source's, so that after a restore it is known to be the same.
    """

    source: str
    dest: str
    size: int
    modified_ns: int
    offset: int = 0
    finished: bool = False
    error: str = ""


class FcopyDevice(IcDevice):
    """The guest service interface."""

    kind: ClassVar[str] = "fcopy"
    interface = uuid.UUID("34d14be3-dee4-41c8-9ae7-6b174977c192")
    instance = uuid.UUID("eb765408-105f-49b6-b4aa-c123b64d17d4")
    ic_type = IcType.FCOPY
    versions = (IcVersion(1, 1),)

    def __init__(self, name: str, vm: str, port: ChannelPort, clock: Clock | None = None) -> None:
        """Make it; see :class:`IcDevice`."""
        self._copy: Copy | None = None
        self._fd = -1
        super().__init__(name, vm, port, clock)

    def gone(self) -> None:
        """Give the copy up: the guest has."""
        if self._copy is not None and not self._copy.finished:
            self._end("the guest closed the channel")

    def close(self) -> None:
        """Close the source too."""
        super().close()
        self._close_source()

    def answered(self, request: Request, answer: Answer) -> None:
        """Go on with the copy."""
        copy = self._copy
        op = FcopyOp(_HEAD.unpack_from(request.body)[0])
        if copy is None or copy.finished or op is FcopyOp.CANCEL:
            return
        if answer.status != IcStatus.OK:
            self._end(f"the guest refused: {status_name(answer.status)}")
            if op is not FcopyOp.START:
                self.post(Request("cancel", _HEAD.pack(FcopyOp.CANCEL)))
            return
        match op:
            case FcopyOp.START:
                pass
            case FcopyOp.WRITE:
                copy.offset += len(Write.parse(request.body).data)
            case FcopyOp.COMPLETE:
                self._end("")
                return
        self._go_on(copy)

    def _go_on(self, copy: Copy) -> None:
        if copy.offset >= copy.size:
            self.post(Request("complete", _HEAD.pack(FcopyOp.COMPLETE)))
            return
        try:
            self._open_source(copy)
            data = os.pread(self._fd, min(FRAGMENT, copy.size - copy.offset), copy.offset)
            if not data:
                raise OSError(0, "it has become shorter")
        except OSError as error:
            self._end(f"{copy.source}: {error.strerror}")
            self.post(Request("cancel", _HEAD.pack(FcopyOp.CANCEL)))
            return
        self.post(Request(f"write at {copy.offset}", Write(copy.offset, data).pack()))

    def _open_source(self, copy: Copy) -> None:
        if self._fd >= 0:
            return
        self._fd = os.open(copy.source, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        if (found.st_size, found.st_mtime_ns) != (copy.size, copy.modified_ns):
            self._close_source()
            raise OSError(0, "it has changed since the copy began")

    def _close_source(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _end(self, error: str) -> None:
        assert self._copy is not None
        self._copy.finished, self._copy.error = True, error
        self._close_source()

    def save_service(self) -> bytes:
        """Encode the copy under way."""
        return msgspec.msgpack.encode(self._copy)

    def restore_service(self, data: bytes) -> None:
        """Take the copy over; its source is opened when it goes on."""
        self._copy = msgspec.msgpack.decode(data, type=Copy | None)

    def commands(self) -> dict[str, Command]:
        """``copy`` (source, dest, overwrite, create_path), ``wait``, ``negotiated``, ``status``."""
        return {
            "copy": self._start,
            "wait": self._wait,
            "negotiated": self.negotiated,
            "status": self._status,
        }

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        copy = msgspec.to_builtins(self._copy) if self._copy else None
        return self.about() | {"copy": copy}

    async def _start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Start a copy; it is over when ``wait`` says so."""
        self.require_ready()
        if self._copy is not None and not self._copy.finished:
            raise IcError(f"{self._copy.source} is being copied; one file at a time")
        source = str(arguments.get("source", ""))
        dest = str(arguments.get("dest", ""))
        cut = max(dest.rfind("/"), dest.rfind("\\")) + 1
        folder, name = dest[:cut], dest[cut:]
        if not name or not folder:
            raise IcError(f"{dest!r} is not the full path of a file in the guest")
        flags = CopyFlags(0)
        if arguments.get("overwrite"):
            flags |= CopyFlags.OVERWRITE
        if arguments.get("create_path"):
            flags |= CopyFlags.CREATE_PATH
        if not os.path.isabs(source):
            raise IcError(f"{source!r} is not the full path of a file of the host's")
        try:
            found = os.stat(source)
            if not stat.S_ISREG(found.st_mode):
                raise IcError(f"{source} is no regular file")
            copy = Copy(source, dest, found.st_size, found.st_mtime_ns)
            self._open_source(copy)
        except OSError as error:
            raise IcError(f"{source}: {error.strerror}") from error
        try:
            start = Start(name, folder, flags, copy.size).pack()
        except ValueError:
            self._close_source()
            raise
        self._copy = copy
        self.post(Request(f"copy {source}", start))
        return {"size": copy.size}

    async def _wait(self, _: dict[str, Any]) -> dict[str, Any]:
        """Wait for the end of the copy; raises :class:`IcError` with its reason if it failed."""
        copy = self._copy
        if copy is None:
            raise IcError("nothing was copied")
        while not copy.finished:
            await self.news()
        if copy.error:
            raise IcError(f"{copy.dest}: {copy.error}")
        return {"size": copy.size}
