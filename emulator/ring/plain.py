# SPDX-License-Identifier: MIT
"""Which code moves plain packets: C for the views of the C extension, Python for all others.

A plain packet has no header between descriptor and payload. `emulator.ring._native` reads or writes
one in a call. The ring ends do the same in Python for any view, and all else for both.
"""

from typing import Protocol

from emulator.memory import PageView

__all__ = ["PlainPackets", "plain_packets"]


class PlainPackets(Protocol):
    """The functions of `emulator.ring._native`. Offsets are of the ring's data, in bytes."""

    def read_plain(
        self, view: PageView, released: int, out_offset: int, in_offset: int, /
    ) -> tuple[int, int, int, bytes, int, int] | None:
        """Copy the packet at `out_offset` out of a ring that is published up to `in_offset`.

        If that is nothing, `in` is loaded anew; `released` is the `out` that the writer sees.
        Returns type, flags, transaction id, payload, the offset after the packet, and `in`; None if
        there is no packet, if it is not plain, or if a rule is broken.
        """

    def write_plain(
        self,
        view: PageView,
        in_offset: int,
        packet_type: int,
        flags: int,
        transaction_id: int,
        payload: bytes,
        /,
    ) -> int:
        """Write a packet with its trailer; return the offset after it.

        The caller knows that there is room. Raises ValueError for what is not plain.
        """

    def publish(self, view: PageView, in_offset: int, /) -> int:
        """Store `in`, fence, and return `out`, unchecked, or -1 if the reader masks."""


def plain_packets(view: PageView) -> PlainPackets | None:
    """Return the C functions, if they are there and can work on `view`."""
    try:
        from emulator.memory._native import PageView as NativeView
        from emulator.ring import _native
    except ImportError:
        return None
    return _native if type(view) is NativeView else None
