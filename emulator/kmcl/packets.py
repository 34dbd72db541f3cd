# SPDX-License-Identifier: MIT
"""KMCL's packet objects: what a VSP holds of a guest request, and what it sends with.

The two are different things in KMCL and are saved differently. A VMBPACKETCOMPLETION
(:class:`IncomingPacket`) is never saved: Pause waits until the VSP has completed it. A VMBPACKET
(:class:`OutgoingPacket`) is saved while it is in use, that is queued or waiting for the guest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.kmcl.errors import ExternalDataPending, KmclError
from emulator.kmcl.states import OutgoingState
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel

_LAST_TRANSACTION_ID: Final = 0xFFFF_FFFF_FFFF_FFFF


class IncomingPacket:
    """A guest request in the VSP's hands (VMBPACKETCOMPLETION).

    ``payload`` is a copy without headers; the ring pads it to 8 bytes, so it can be up to 7 bytes
    longer than what the guest meant. ``context`` is the VSP's.
    """

    __slots__ = (
        "_channel",
        "_done",
        "_views",
        "_writable",
        "completion_requested",
        "context",
        "external",
        "payload",
        "transaction_id",
    )

    def __init__(
        self,
        channel: ServerChannel,
        payload: bytes,
        external: tuple[GpaRange, ...],
        transaction_id: int,
        completion_requested: bool,
    ) -> None:
        """Made by the channel only."""
        self._channel = channel
        self._done = False
        self._views: list[memoryview] | None = None
        self._writable = False
        self.payload: Final = payload
        self.external: Final = external
        """The ranges of a GPA-direct packet; empty for an in-band one."""
        self.transaction_id: Final = transaction_id
        self.completion_requested: Final = completion_requested
        self.context: Any = None

    def external_data(self, *, read_only: bool = False) -> list[memoryview]:
        """VmbChannelPacketGetExternalData: the guest memory of the GPA-direct ranges, in order.

        ``read_only`` gives views that cannot be written. The views end when the packet is
        completed. Raises :class:`~emulator.memory.GpaError` if a range lies outside guest RAM; the
        VSP then completes the packet with an error of its protocol, or fails it. Raises
        :class:`~emulator.kmcl.ExternalDataPending` (STATUS_PENDING) if the provider has to wait for
        the memory: return from the process callback, which is called once more for this packet
        (:class:`~emulator.kmcl.inferred.PendingPacket`). Empty for a packet without ranges.
        """
        self._refuse_when_done("asked for its external data")
        if not self.external:
            return []
        try:
            views = self._channel.port.external_data(self.external)
        except ExternalDataPending:
            self._channel.delivery.pend(self)
            raise
        if read_only:
            views = [view.toreadonly() for view in views]
        else:
            self._writable = True
        self._views = [*(self._views or ()), *views]
        return list(views)

    def complete(self, data: bytes = b"") -> None:
        """VmbChannelPacketComplete: end the request; send ``data`` if the guest asked for it.

        It never fails for want of room: a completion that does not fit waits in the channel's
        queue, behind what is there. If the transaction quota had stopped reading, reading goes on
        inside this call.

        Raises :class:`KmclError` if the packet is completed already or ``data`` can never fit the
        ring.
        """
        if self._done:
            self._refuse_when_done("completed")
        channel = self._channel
        data = bytes(data)
        if data:
            channel.check_fits(data)
        self._done = True
        if self._views:
            self._end_views()
        channel.traffic.complete(self, data)

    def defer(self) -> None:
        """VmbChannelPacketDeferToPassive: have the process callback called once more, at PASSIVE.

        Only from within the process callback. Nothing else is read meanwhile, so the order stays.
        Raises :class:`KmclError` INVALID_DEVICE_STATE elsewhere, or if it is :attr:`at_passive`.
        """
        self._refuse_when_done("deferred")
        if self.at_passive:
            raise KmclError(
                NtStatus.INVALID_DEVICE_STATE,
                f"{self._channel.friendly_name}: a packet at PASSIVE was deferred to it",
            )
        self._channel.delivery.defer(self)

    @property
    def at_passive(self) -> bool:
        """Whether the process callback that has this packet counts as one at PASSIVE_LEVEL."""
        return self._channel.delivery.at_passive

    def fail(self, reason: str = "the VSP found a malformed packet") -> None:
        """VmbChannelPacketFail: the packet is malformed beyond recovery; the channel's queue stops.

        No completion is sent. ``reason`` goes into the channel's fault.
        """
        self._refuse_when_done("failed")
        self._done = True
        if self._views:
            self._end_views()
        self._channel.traffic.fail(self, reason)

    def ended_unread(self) -> None:
        """End without a trace: the packet is in the ring again (made by the channel only)."""
        self._done = True

    def _refuse_when_done(self, what: str) -> None:
        if self._done:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self._channel.friendly_name}: a packet that has ended was {what}",
            )

    def _end_views(self) -> None:
        for view in self._views or ():
            # A view that something still exports (a read in flight) is left to its owner.
            with contextlib.suppress(BufferError):
                view.release()
        self._views = None
        if self._writable:
            self._channel.port.memory_written(self.external)


class TimedPacket(IncomingPacket):
    """One of the few requests whose completion is timed; the others need not ask whether."""

    __slots__ = ("_delivered_ns",)

    def __init__(
        self,
        channel: ServerChannel,
        payload: bytes,
        external: tuple[GpaRange, ...],
        transaction_id: int,
        completion_requested: bool,
    ) -> None:
        """Made by the channel only, just before it goes to the VSP."""
        super().__init__(channel, payload, external, transaction_id, completion_requested)
        channel.delivery.packet_class = IncomingPacket
        self._delivered_ns = channel.traffic.meter.delivering()

    def complete(self, data: bytes = b"") -> None:
        """As :meth:`IncomingPacket.complete`, and count how long it took until now."""
        duration_ns = time.perf_counter_ns() - self._delivered_ns
        super().complete(data)
        self._channel.traffic.meter.completion.add(duration_ns)


CompletionRoutine = Callable[["OutgoingPacket", NtStatus, bytes | None], None]
"""EvtPacketCompletionRoutine(packet, status, data).

With ``wait_for_completion``: the guest answered ``data``. Without: the packet is in the ring,
``data`` is None. With a failure status the channel has gone away and ``data`` is None.
"""


def _free_packet(packet: OutgoingPacket, _: NtStatus, __: bytes | None) -> None:
    packet.free()


class OutgoingPacket:
    """A packet object for sending (VMBPACKET); made by ``ServerChannel.packet_allocate``.

    ``context`` is the VSP's. It does not survive a save: EvtSavePacket saves it, EvtRestorePacket
    makes it anew.
    """

    __slots__ = (
        "_channel",
        "_payload",
        "_routine",
        "_state",
        "_transaction_id",
        "_waits",
        "context",
    )

    def __init__(self, channel: ServerChannel) -> None:
        """Made by the channel only."""
        self._channel = channel
        self._payload = b""
        self._routine: CompletionRoutine = _free_packet
        self._state = OutgoingState.ALLOCATED
        self._transaction_id = 0
        self._waits = False
        self.context: Any = None

    @property
    def state(self) -> OutgoingState:
        """Where the packet is."""
        return self._state

    @property
    def transaction_id(self) -> int:
        """The transaction's id on the ring while the packet waits for its completion, else 0."""
        return self._transaction_id

    @property
    def waits_for_completion(self) -> bool:
        """Whether the current send asked for the guest's completion."""
        return self._waits

    @property
    def payload(self) -> bytes:
        """The bytes to be sent while the packet is queued; empty otherwise."""
        return self._payload

    def set_completion_routine(self, routine: CompletionRoutine) -> None:
        """VmbPacketSetCompletionRoutine; without one, the packet frees itself at its end."""
        self._routine = routine

    def set_completion_routine_ex(
        self,
        context: Any,
        routine: Callable[[OutgoingPacket, Any, NtStatus, bytes | None], None],
    ) -> None:
        """VmbPacketSetCompletionRoutineEx: the routine gets ``context`` as its second argument."""
        self._routine = lambda packet, status, data: routine(packet, context, status, data)

    def send(self, payload: bytes, *, wait_for_completion: bool = False) -> None:
        """VmbPacketSend: write ``payload`` to the ring, or queue it behind what waits already.

        The completion routine runs once, perhaps before this returns. Raises :class:`KmclError` if
        the packet is in use, the payload is larger than the channel's maximum packet size or can
        never fit the ring, the channel is Disabled, or EvtSuspend has been called and EvtStarted
        has not.
        """
        self._channel.send(self, bytes(payload), wait_for_completion)

    def restore(self, lib_buffer: bytes) -> NtStatus:
        """VmbPacketRestore: make this the packet that ``lib_buffer`` describes.

        Only inside EvtRestorePacket, with the buffer given there. Set the completion routine and
        the context before: the guest may have answered already. On failure the packet stays the
        VSP's.
        """
        return self._channel.restore_packet(self, lib_buffer)

    def free(self) -> None:
        """VmbPacketFree. Raises :class:`KmclError` for a packet in use or freed already."""
        if self._state is not OutgoingState.ALLOCATED:
            raise KmclError(
                NtStatus.INVALID_PARAMETER,
                f"{self._channel.friendly_name}: a packet {self._state.value} cannot be freed",
            )
        self._state = OutgoingState.FREED
        self._channel.packet_freed()

    # For the channel's data path.

    def begin(self, payload: bytes, waits: bool, transaction_id: int) -> None:
        """Enter the queue."""
        self._payload, self._waits, self._transaction_id = payload, waits, transaction_id
        self._state = OutgoingState.QUEUED

    def inserted(self) -> None:
        """Enter the ring."""
        self._payload = b""
        self._state = OutgoingState.IN_RING

    def withdrawn(self) -> None:
        """Leave the queue without an end."""
        self._payload = b""
        self._state = OutgoingState.ALLOCATED

    def finish(self, status: NtStatus, data: bytes | None) -> None:
        """Give the packet back to the VSP and run its completion routine."""
        self._payload, self._transaction_id = b"", 0
        self._state = OutgoingState.ALLOCATED
        self._routine(self, status, data)


class QueuedCompletion(NamedTuple):
    """The completion of a guest request that waits for room in the ring."""

    transaction_id: int
    payload: bytes


class TransactionTable:
    """The host's outstanding transactions by id.

    Ids count up from 1 and are never 0, which packets without a completion carry. The counter is
    saved, so that an id which the guest may still answer is not given out again after a restore;
    an id in use is skipped when the counter wraps.
    """

    __slots__ = ("_next", "_packets")

    def __init__(self) -> None:
        """Start empty."""
        self._next = 1
        self._packets: dict[int, OutgoingPacket] = {}

    @property
    def next_id(self) -> int:
        """The id that the next transaction gets, if it is free."""
        return self._next

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[OutgoingPacket]:
        return iter(self._packets.values())

    def add(self, packet: OutgoingPacket) -> int:
        """Give ``packet`` an id that nothing outstanding has."""
        while self._next in self._packets:
            self._advance()
        transaction_id = self._next
        self._packets[transaction_id] = packet
        self._advance()
        return transaction_id

    def _advance(self) -> None:
        self._next = self._next % _LAST_TRANSACTION_ID + 1

    def reserve(self, next_id: int) -> None:
        """Go on counting where the saved channel was."""
        self._next = next_id

    def claim(self, transaction_id: int, packet: OutgoingPacket) -> bool:
        """Give ``packet`` the id it had when it was saved; False if that id is 0 or taken."""
        if not transaction_id or transaction_id in self._packets:
            return False
        self._packets[transaction_id] = packet
        return True

    def find(self, transaction_id: int) -> OutgoingPacket | None:
        """Return the packet with this id."""
        return self._packets.get(transaction_id)

    def remove(self, transaction_id: int) -> None:
        """Forget a transaction that has ended."""
        del self._packets[transaction_id]
