# SPDX-License-Identifier: MIT
"""What a logical unit asks for when it has understood a command: the engine's only output.

The engine does no I/O. Whoever runs it carries a step out, and tells the guest how that ended; all
offsets and lengths are bytes of the medium, and within it.
"""

from __future__ import annotations

from typing import NamedTuple


class Reply(NamedTuple):
    """The command is over: these are its data for the guest, cut to what it allocated."""

    data: bytes = b""


class Read(NamedTuple):
    """Read into the guest's buffer."""

    offset: int
    length: int


class Write(NamedTuple):
    """Write the guest's buffer; with ``fua`` it is on stable storage when the guest is told."""

    offset: int
    length: int
    fua: bool = False


class Flush(NamedTuple):
    """Put all that was completed on stable storage."""


class Unmap(NamedTuple):
    """Give blocks back; what they read as afterwards is the backend's affair."""

    ranges: tuple[tuple[int, int], ...]
    """Offset and length of each."""


class Zero(NamedTuple):
    """Make a range read as zeroes; with ``unmap`` its blocks may be given back."""

    offset: int
    length: int
    unmap: bool


class Fill(NamedTuple):
    """Write one block again and again."""

    offset: int
    length: int
    block: bytes


class Compare(NamedTuple):
    """Read, and end with MISCOMPARE unless it is this."""

    offset: int
    data: bytes


class Check(NamedTuple):
    """Read, and throw it away: an error of the medium shows."""

    offset: int
    length: int


Step = Reply | Read | Write | Flush | Unmap | Zero | Fill | Compare | Check
