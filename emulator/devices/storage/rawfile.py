# SPDX-License-Identifier: MIT
"""A disk in a raw file or on a block device: preadv and pwritev on the guest's own memory.

With the page cache, what can be done without waiting is done at once (RWF_NOWAIT: reads of what is
cached, and on some file systems writes), and the rest by a thread. With
``direct`` (O_DIRECT) all goes to threads; a buffer of the guest's that is not aligned as the device
wants it is copied. A flush is fdatasync(2), a write with FUA is pwritev2(2) with RWF_DSYNC: both
end when the data is on stable storage, as far as the host's disk keeps its word.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emulator.devices.storage.backend import Backend, BackendError, Done, Pieces, Stamp
from emulator.devices.storage.workers import Workers
from emulator.memory.transfer import ShortFile, read_into, write_from

DIRECT_ALIGNMENT: Final = 4096
"""Bytes: what every device is content with. 512 would do for some."""

_BLKGETSIZE64: Final = 0x80081272
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_NOT_HERE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_ZEROES: Final = memoryview(bytes(1 << 20))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2), which Python has without the mode only; raises OSError."""
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class RawFile(Backend):
    """A regular file or a block device."""

    discard = True
    discard_zeroes = True

    def __init__(self, path: Path, *, read_only: bool, direct: bool = False) -> None:
        """Open it; raises :class:`BackendError`."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            hint = "; direct: false goes through the page cache" if direct else ""
            raise BackendError(f"{path} cannot be opened: {error.strerror}{hint}") from error
        self.path = path
        self.read_only = read_only
        self._direct = direct
        mode = os.fstat(self._fd).st_mode
        self._is_block = stat.S_ISBLK(mode)
        if not (self._is_block or stat.S_ISREG(mode)):
            os.close(self._fd)
            raise BackendError(f"{path} is neither a file nor a block device")
        self.size = self.measure()
        self._workers = Workers(path.name)
        self._now_reads = not direct
        self._now_writes = not direct

    def measure(self) -> int:
        """See :class:`Backend`."""
        if self._is_block:
            answer = fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8))
            self.size = int(struct.unpack("=Q", answer)[0])
        else:
            self.size = os.fstat(self._fd).st_size
        return self.size

    def read_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """See :class:`Backend`: from the page cache."""
        if not self._now_reads:
            return False
        try:
            return os.preadv(self._fd, pieces, offset, os.RWF_NOWAIT) == length
        except BlockingIOError:
            return False
        except OSError as error:
            # Some file systems have no such reads; other errors come once more, to a thread.
            if error.errno in _NOT_HERE:
                self._now_reads = False
            return False

    def write_now(self, pieces: Pieces, offset: int, length: int) -> bool:
        """See :class:`Backend`: into the page cache, where the file system can (XFS, Btrfs)."""
        if not self._now_writes:
            return False
        try:
            return os.pwritev(self._fd, pieces, offset, os.RWF_NOWAIT) == length
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NOT_HERE:
                self._now_writes = False
            return False

    def read(self, pieces: Pieces, offset: int, done: Done) -> None:
        """See :class:`Backend`."""
        self._workers.submit(lambda: self._read(pieces, offset), done)

    def _read(self, pieces: Pieces, offset: int) -> None:
        try:
            if not self._direct or _aligned(pieces, offset):
                read_into(self._fd, pieces, offset)
                return
            with _Bounce(pieces, offset) as bounce:
                bounce.read(self._fd)
                bounce.copy_out()
        except ShortFile as error:
            raise OSError(errno.EIO, str(error)) from error

    def write(self, pieces: Pieces, offset: int, fua: bool, done: Done) -> None:
        """See :class:`Backend`."""
        self._workers.submit(lambda: self._write(pieces, offset, fua), done)

    def _write(self, pieces: Pieces, offset: int, fua: bool) -> None:
        flags = os.RWF_DSYNC if fua else 0
        if not self._direct or _aligned(pieces, offset):
            write_from(self._fd, pieces, offset, flags)
            return
        length = sum(piece.nbytes for piece in pieces)
        if offset % DIRECT_ALIGNMENT or length % DIRECT_ALIGNMENT:
            # Blocks of 512 bytes within one of 4096 would have to be read, changed and written,
            # which another write could come between. The page cache does it under a lock.
            fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
            try:
                write_from(fd, pieces, offset, os.RWF_DSYNC)
            finally:
                os.close(fd)
            return
        with _Bounce(pieces, offset) as bounce:
            bounce.copy_in()
            write_from(self._fd, [bounce.buffer], offset, flags)

    def flush(self, done: Done) -> None:
        """See :class:`Backend`."""
        self._workers.submit(lambda: os.fdatasync(self._fd), done)

    def unmap(self, ranges: Sequence[tuple[int, int]], done: Done) -> None:
        """See :class:`Backend`: a hole; the blocks of a device are given back as it can."""
        self._workers.submit(lambda: self._unmap(ranges), done)

    def _unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for offset, length in ranges:
            self._zero(offset, length, True)

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """See :class:`Backend`."""
        self._workers.submit(lambda: self._zero(offset, length, unmap), done)

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        try:
            hole = _PUNCH_HOLE if unmap else _ZERO_RANGE
            _fallocate(self._fd, hole | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            self._write_zeroes(offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        pieces = [
            _ZEROES[: min(len(_ZEROES), length - at)] for at in range(0, length, len(_ZEROES))
        ]
        self._write(pieces, offset, False)

    def let_go_of_memory(self, seconds: float) -> bool:
        """See :class:`Backend`: a system call under way can only be waited for."""
        return self._workers.quiet(seconds)

    def stamp(self) -> Stamp:
        """See :class:`Backend`; when a block device was written last is not known."""
        written = 0 if self._is_block else os.fstat(self._fd).st_mtime_ns
        return Stamp(self.size, written)

    def close(self) -> None:
        """See :class:`Backend`."""
        self._workers.close()
        os.close(self._fd)


def _aligned(pieces: Pieces, offset: int) -> bool:
    if offset % DIRECT_ALIGNMENT:
        return False
    return all(
        not (piece.nbytes % DIRECT_ALIGNMENT or _address(piece) % DIRECT_ALIGNMENT)
        for piece in pieces
    )


def _address(piece: memoryview) -> int:
    if piece.readonly:
        return 1
    return ctypes.addressof(ctypes.c_char.from_buffer(piece))


class _Bounce:
    """An aligned buffer around a range that is not, or whose pieces are not."""

    def __init__(self, pieces: Pieces, offset: int) -> None:
        self._pieces = pieces
        self.start = offset // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT
        self._skip = offset - self.start
        self._length = sum(piece.nbytes for piece in pieces)
        whole = -(-(self._skip + self._length) // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        self._mapping = mmap.mmap(-1, whole)
        self.buffer = memoryview(self._mapping)

    def __enter__(self) -> _Bounce:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer.release()
        self._mapping.close()

    def read(self, fd: int) -> None:
        """Read whole blocks; the file may end within the last of them, after what is wanted."""
        done = os.preadv(fd, [self.buffer], self.start)
        if done < self._skip + self._length:
            raise ShortFile(self.start + done, self._skip + self._length - done)

    def copy_out(self) -> None:
        position = self._skip
        for piece in self._pieces:
            piece[:] = self.buffer[position : position + piece.nbytes]
            position += piece.nbytes

    def copy_in(self) -> None:
        position = self._skip
        for piece in self._pieces:
            self.buffer[position : position + piece.nbytes] = piece
            position += piece.nbytes
