# SPDX-License-Identifier: MIT
"""What a backend keeps on disk from one run to the next.

The file has 20 bytes of head (the magic, the CRC-32 of what follows, its size; little-endian) and
then the state as a snapshot has it (``HostState``). It is replaced whole or not at all: written
beside its place, flushed, and renamed.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Final

_HEAD: Final = struct.Struct("<8sIQ")
MAGIC: Final = b"VMBUSBE1"
_LIMIT: Final = 1 << 30


class StateFileError(Exception):
    """The file is not one of ours, or is damaged; the text says which."""


def write(path: Path, state: bytes) -> None:
    """Replace the file at ``path`` by ``state``; raises OSError, and leaves the old one then."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(_HEAD.pack(MAGIC, zlib.crc32(state), len(state)) + state)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Without this the new name may be lost with the machine's power, though not the old one.
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> bytes | None:
    """Return what was written, or None if there is no file.

    Raises OSError and :class:`StateFileError`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size or data[: len(MAGIC)] != MAGIC:
        raise StateFileError(f"{path} is not the state of a VMBus backend")
    _, crc, size = _HEAD.unpack_from(data)
    state = data[_HEAD.size :]
    if len(state) != size:
        raise StateFileError(f"{path} is damaged: {len(state)} bytes of state instead of {size}")
    if zlib.crc32(state) != crc:
        raise StateFileError(f"{path} is damaged: its checksum differs")
    return state
