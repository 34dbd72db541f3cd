# SPDX-License-Identifier: MIT
"""Which code moves plain packets: C for the views of the C extension, Python for all others.

A plain packet has no header between descriptor and payload. `emulator.ring._native` reads or writes
one or many in a call. The ring ends do the same in Python for any view, and all else for both.
"""

from collections.abc import Iterable
from typing import Protocol

from emulator.memory import PageView

__all__ = ["PacketAhead", "PlainPackets", "plain_packets"]

PacketAhead = tuple[int, int, int, bytes, int, tuple[int, int, tuple[int, ...]] | None]
"""Of a packet that was read ahead: type, flags, transaction id, payload, the offset after it; and,
of a GPA-direct one, its range, as the fields of a :class:`~emulator.wire.packet.GpaRange`."""


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

    def read_ahead(
        self, view: PageView, released: int, out_offset: int, in_offset: int, limit: int, /
    ) -> tuple[list[PacketAhead], int] | None:
        """Copy up to `limit` packets from `out_offset` on, as `read_plain` does; those with
        one GPA-direct range are taken as well.

        Returns them and `in`. None if the ring is empty; an empty list if the next packet is of
        another kind, or a rule is broken. The list ends before such a one.
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

    def write_completions(
        self, view: PageView, in_offset: int, room: int, queue: Iterable[object], /
    ) -> tuple[int, int]:
        """Write completions from the front of `queue`, as many as fit `room` bytes.

        A completion is a tuple that begins with transaction id and payload; anything else ends it.
        The caller knows that there is so much room. Returns how many, and the offset after them.
        """

    def drain(
        self,
        up: PageView,
        released: int,
        out_offset: int,
        in_offset: int,
        down: PageView,
        down_in_offset: int,
        room: int,
        limit: int,
        /,
    ) -> tuple[int, int, int, int, int]:
        """Read up to `limit` in-band packets from `up`, and write the empty completion of each that
        asks for one to `down`, as many as fit its `room` bytes.

        Returns how many, the bytes of their payloads, the offset after them in `up`, its `in`, and
        the offset after the completions in `down`. It ends before a packet of another kind, before
        one that breaks a rule, and before one whose completion does not fit.
        """

    def publish(self, view: PageView, in_offset: int, /) -> int:
        """Store `in`, fence, and return `out`, unchecked, or -1 if the reader masks."""

    def release(self, view: PageView, out_offset: int, /) -> int:
        """Store `out`, fence, and return `pending_send_size`."""

    def unmask(self, view: PageView, /) -> int:
        """Clear the interrupt mask, fence, and return `in`, unchecked."""


def plain_packets(view: PageView) -> PlainPackets | None:
    """Return the C functions, if they are there and can work on `view`."""
    try:
        from emulator.memory._native import PageView as NativeView
        from emulator.ring import _native
    except ImportError:
        return None
    return _native if type(view) is NativeView else None
