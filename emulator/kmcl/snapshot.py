# SPDX-License-Identifier: MIT
"""Saving and restoring a channel: the calls and callbacks around the codec.

What is saved: outgoing packets in use (queued, or in the ring with a completion owed), completions
that wait for room, the transaction counter, faults. What is not: incoming packets (drained by
Pause), what lies in the rings (guest memory), configuration (the VSP sets it again).

Choices where KMCL's documents are silent (all inferred, see docs/kmcl-state.md; those that are as
plausible the other way are settings, see :mod:`emulator.kmcl.inferred`):

* A chunk is built once and kept until it fits, so EvtSavePacket's two-call protocol runs once for
  each packet whatever the buffer sizes.
* A buffer with a bad chunk is refused before any chunk in it is acted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from emulator.kmcl.config import RestoredPacket, SavedPacket, SavePacket
from emulator.kmcl.errors import KmclError
from emulator.kmcl.inferred import (
    FailedQueue,
    GrowingPacket,
    SaveBufferSize,
    SavePacketFrom,
    UnopenedSave,
    UnregisteredSave,
    UnrestoredPacket,
)
from emulator.kmcl.packets import OutgoingPacket, QueuedCompletion
from emulator.kmcl.save import (
    PacketRecord,
    Record,
    SavedChannel,
    SavedCompletion,
    SavedOutgoing,
    SavedPlace,
    StreamEnd,
    StreamError,
    StreamReader,
    StreamWriter,
    decode_packet_record,
    encode_packet_record,
    peek_packet_record,
)
from emulator.kmcl.states import Connection, OutgoingState, Queue, Restore, Run
from emulator.wire.ntstatus import NtStatus

if TYPE_CHECKING:
    from emulator.kmcl.channel import ServerChannel


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What VmbChannelSaveContinue gives: ``len(data)`` is BytesFilled.

    SUCCESS: all is saved. BUFFER_OVERFLOW: more is to come, the next call needs at least
    ``bytes_required``. BUFFER_TOO_SMALL: nothing fitted, the same. Anything else: the save has
    failed; call SaveEnd.
    """

    status: NtStatus
    data: bytes = b""
    bytes_required: int = 0


_ROUND: Final = 64
"""Bytes to which ``SaveBufferSize.ROUNDED_UP`` rounds."""
_MOST_CALLS: Final = 8
"""Calls of EvtSavePacket for one packet with ``GrowingPacket.ASKED_AGAIN``."""


class _SaveFailed(Exception):
    def __init__(self, status: NtStatus) -> None:
        super().__init__(status)
        self.status = status


class SaveSession:
    """One save, from SaveBegin to SaveEnd."""

    def __init__(
        self,
        channel: ServerChannel,
        head: SavedChannel,
        items: Sequence[OutgoingPacket | QueuedCompletion],
        save_packet: SavePacket | None,
    ) -> None:
        """Save ``items``: packets in the ring first, then the queue in its order."""
        self._channel = channel
        self._save_packet = save_packet
        self._writer = StreamWriter()
        self._records = self._produce(head, items)
        self._ready: bytes | None = None
        self._failure: NtStatus | None = None
        self._complete = False

    def ask_now(self) -> NtStatus:
        """Run EvtSavePacket for all packets; a failure is that of the save."""
        try:
            self._records = iter(list(self._records))
        except _SaveFailed as error:
            return error.status
        return NtStatus.SUCCESS

    def abort(self) -> None:
        """Fail from now on: the state that was being saved is gone."""
        self._failure = NtStatus.DEVICE_REMOVED
        self._ready = None

    def fill(self, size: int) -> SaveResult:
        """Return as many whole chunks as fit into ``size`` bytes."""
        filled = bytearray()
        while (chunk := self._next_chunk()) is not None:
            if len(filled) + len(chunk) > size:
                more = NtStatus.BUFFER_OVERFLOW if filled else NtStatus.BUFFER_TOO_SMALL
                return SaveResult(more, bytes(filled), len(chunk))
            filled += chunk
            self._ready = None
        if self._failure is not None:
            return SaveResult(self._failure)
        return SaveResult(NtStatus.SUCCESS, bytes(filled))

    def _next_chunk(self) -> bytes | None:
        if self._ready is None and self._failure is None and not self._complete:
            try:
                record = next(self._records, None)
            except _SaveFailed as error:
                self._failure = error.status
                return None
            if record is None:
                self._complete = True
            else:
                self._ready = self._writer.encode(record)
        return self._ready

    def _produce(
        self, head: SavedChannel, items: Sequence[OutgoingPacket | QueuedCompletion]
    ) -> Iterator[Record]:
        yield head
        for item in items:
            match item:
                case OutgoingPacket():
                    in_ring = item.state is OutgoingState.IN_RING
                    record = PacketRecord(
                        SavedPlace.IN_RING if in_ring else SavedPlace.QUEUED,
                        item.waits_for_completion,
                        item.transaction_id,
                        item.payload,
                    )
                    yield SavedOutgoing(encode_packet_record(record), self._ask(item))
                case QueuedCompletion():
                    yield SavedCompletion(item.transaction_id, item.payload)
                case _:
                    assert_never(item)
        yield StreamEnd(head.packets, head.completions)

    def _ask(self, packet: OutgoingPacket) -> bytes:
        """Run the two-call protocol of EvtSavePacket; returns SaveBuf."""
        if self._save_packet is None:
            # SaveBegin let it pass: KMCL's own state is all there is.
            return b""
        inferred = self._channel.inferred
        again = inferred.growing is GrowingPacket.ASKED_AGAIN
        size = 0
        answer = self._call(self._save_packet, packet, size)
        for _ in range(_MOST_CALLS - 1 if again else 1):
            if answer.status.is_success or answer.bytes_needed <= size:
                break
            size = answer.bytes_needed
            if inferred.save_size is SaveBufferSize.ROUNDED_UP:
                size += -size % _ROUND
            answer = self._call(self._save_packet, packet, size)
        if not answer.status.is_success:
            raise _SaveFailed(answer.status)
        if inferred.save_size is SaveBufferSize.ROUNDED_UP:
            return bytes(answer.data).ljust(size, b"\0")
        return bytes(answer.data)

    def _call(self, save_packet: SavePacket, packet: OutgoingPacket, size: int) -> SavedPacket:
        with self._channel.in_callback("EvtSavePacket"):
            answer = save_packet(self._channel, packet, size)
        if answer.status.is_success and len(answer.data) > size:
            # It wrote beyond its buffer.
            raise _SaveFailed(NtStatus.INVALID_BUFFER_SIZE)
        return answer


class RestoreSession:
    """One restore, from the first buffer to the END chunk."""

    def __init__(self, channel: ServerChannel) -> None:
        """Restore into ``channel``."""
        self._channel = channel
        self._reader = StreamReader()
        self._expected: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether the last chunk was taken."""
        return self._reader.ended

    def feed(self, buffer: bytes) -> None:
        """Take one buffer; raises :class:`StreamError`."""
        for record in self._reader.feed(buffer):
            match record:
                case SavedChannel():
                    _take_head(self._channel, record)
                case SavedOutgoing():
                    self._restore_packet(record)
                case SavedCompletion():
                    self._restore_completion(record)
                case StreamEnd():
                    pass
                case _:
                    assert_never(record)

    def _restore_completion(self, record: SavedCompletion) -> None:
        channel = self._channel
        if channel.is_pipe:
            raise StreamError(NtStatus.INVALID_PARAMETER, "a pipe has no completions")
        try:
            channel.check_fits(record.payload)
        except KmclError as error:
            raise StreamError(NtStatus.INVALID_PARAMETER, error.text) from None
        channel.traffic.queue_completion(QueuedCompletion(record.transaction_id, record.payload))

    def _restore_packet(self, record: SavedOutgoing) -> None:
        _, waits, _ = peek_packet_record(record.lib_buffer)
        if waits and self._channel.is_pipe:
            raise StreamError(
                NtStatus.INVALID_PARAMETER, "a packet waits for a completion; a pipe has none"
            )
        callback = self._channel.restore_packet_callback
        self._expected = record.lib_buffer
        if callback is None:
            # The head counts the packets: it was checked that this is allowed.
            self._restore_unregistered(record)
            return
        with self._channel.in_callback("EvtRestorePacket"):
            status = callback(self._channel, RestoredPacket(record.lib_buffer, record.save_buffer))
        taken, self._expected = self._expected is None, None
        if not status.is_success:
            raise StreamError(status, "EvtRestorePacket failed")
        if not taken and self._channel.inferred.unrestored is UnrestoredPacket.REFUSED:
            raise StreamError(
                NtStatus.UNSUCCESSFUL,
                "EvtRestorePacket succeeded without restoring the packet; "
                "the guest's completion would have no owner",
            )

    def _restore_unregistered(self, record: SavedOutgoing) -> None:
        packet = self._channel.packet_allocate()
        status = self.accept(packet, record.lib_buffer)
        if not status.is_success:
            packet.free()
            raise StreamError(status, "a packet record is damaged, or of an id that is taken")

    def accept(self, packet: OutgoingPacket, lib_buffer: bytes) -> NtStatus:
        """VmbPacketRestore, called from within the callback."""
        try:
            record = decode_packet_record(lib_buffer)
        except StreamError as error:
            return error.status
        traffic = self._channel.traffic
        if lib_buffer != self._expected or packet.state is not OutgoingState.ALLOCATED:
            return NtStatus.INVALID_PARAMETER
        if record.waits and not traffic.table.claim(record.transaction_id, packet):
            return NtStatus.INVALID_PARAMETER
        packet.begin(record.payload, record.waits, record.transaction_id)
        if record.place is SavedPlace.IN_RING:
            packet.inserted()
        else:
            traffic.queue.append(packet)
        self._expected = None
        return NtStatus.SUCCESS


def _may_do(channel: ServerChannel, callback: object) -> bool:
    """Whether packets in use can be saved, or restored: with a callback, or without."""
    own_state = channel.inferred.unregistered is UnregisteredSave.OWN_STATE
    return own_state or callback is not None


def _head(channel: ServerChannel, packets: Sequence[OutgoingPacket], items: int) -> SavedChannel:
    params = channel.offer_params()
    return SavedChannel(
        interface=params.interface,
        instance=params.instance,
        subchannel_index=params.subchannel_index,
        is_open=channel.connection is Connection.OPEN,
        packets=len(packets),
        completions=items - len(packets),
        largest_payload=max((len(packet.payload) for packet in packets), default=0),
        next_transaction_id=channel.traffic.table.next_id,
        faults=channel.faults,
    )


def _take_head(channel: ServerChannel, head: SavedChannel) -> None:
    """Check that the stream fits; raises :class:`StreamError` naming all that does not."""
    params = channel.offer_params()
    problems: list[str] = []
    if (head.interface, head.instance) != (params.interface, params.instance):
        problems.append(
            f"it is of {head.interface}/{head.instance}, "
            f"this is {params.interface}/{params.instance}"
        )
    if head.subchannel_index != params.subchannel_index:
        problems.append(
            f"it is of sub-channel {head.subchannel_index}, this is {params.subchannel_index}"
        )
    is_open = channel.connection is Connection.OPEN
    if head.is_open is not is_open:
        was, now = ("open", "not") if head.is_open else ("not open", "it is")
        problems.append(f"the guest had it {was}, here {now}")
    problems += channel.too_small_for(head.largest_payload, head.packets)
    if head.packets and not _may_do(channel, channel.restore_packet_callback):
        problems.append(f"{head.packets} packets are in use, and no restore callback is set")
    if problems:
        raise StreamError(
            NtStatus.INVALID_PARAMETER,
            f"the saved channel does not fit {channel.friendly_name}: " + "; ".join(problems),
        )
    channel.traffic.table.reserve(head.next_transaction_id)
    if channel.inferred.failed_queue is FailedQueue.STAYS_STOPPED:
        channel.traffic.faults += head.faults


class Snapshots:
    """The save or restore that a channel is in, if any."""

    def __init__(self, channel: ServerChannel) -> None:
        """Neither save nor restore."""
        self._channel = channel
        self._saving: SaveSession | None = None
        self._restoring: RestoreSession | None = None
        self._accepting: RestoreSession | None = None
        self.restore = Restore.NONE
        self.failure: str | None = None

    @property
    def saving(self) -> bool:
        """Whether SaveBegin was called and SaveEnd was not."""
        return self._saving is not None

    @property
    def restore_unfinished(self) -> bool:
        """Whether a restore was begun and did not succeed, or not yet."""
        return self.restore in (Restore.PARTIAL, Restore.FAILED)

    def forget(self) -> None:
        """The peer has gone: what was being saved or restored is gone with it."""
        if self._saving is not None:
            self._saving.abort()
        self._restoring = None
        self.restore = Restore.NONE

    def begin(self) -> NtStatus:
        """VmbChannelSaveBegin."""
        channel = self._channel
        if channel.connection not in (Connection.ENABLED, Connection.OPEN):
            return NtStatus.INVALID_DEVICE_STATE
        if channel.queue is not Queue.OFF or channel.in_a_callback:
            return NtStatus.INVALID_DEVICE_STATE
        if self.saving or self.restore_unfinished:
            return NtStatus.INVALID_DEVICE_STATE
        unopened = channel.connection is Connection.ENABLED
        if unopened and channel.inferred.unopened is UnopenedSave.REFUSED:
            return NtStatus.INVALID_DEVICE_STATE
        items = [*channel.traffic.in_ring(), *channel.traffic.queue]
        packets = [item for item in items if isinstance(item, OutgoingPacket)]
        if packets and not _may_do(channel, channel.save_packet_callback):
            return NtStatus.NOT_SUPPORTED
        head = _head(channel, packets, len(items))
        self._saving = SaveSession(channel, head, items, channel.save_packet_callback)
        if channel.inferred.save_packet is SavePacketFrom.SAVE_BEGIN:
            status = self._saving.ask_now()
            if not status.is_success:
                self._saving = None
            return status
        return NtStatus.SUCCESS

    def go_on(self, buffer_size: int) -> SaveResult:
        """VmbChannelSaveContinue."""
        if self._saving is None:
            return SaveResult(NtStatus.INVALID_DEVICE_STATE)
        return self._saving.fill(buffer_size)

    def end(self) -> None:
        """VmbChannelSaveEnd."""
        self._saving = None

    def restore_from_buffer(self, buffer: bytes) -> NtStatus:
        """VmbChannelRestoreFromBuffer."""
        if self._restoring is None:
            if not self._may_restore():
                channel = self._channel
                self.failure = (
                    f"{channel.friendly_name} is {channel.connection.value} and "
                    f"{channel.run.value}, its restore {self.restore.value}; "
                    "restore a channel that was just enabled"
                )
                return NtStatus.INVALID_DEVICE_STATE
            self._restoring = RestoreSession(self._channel)
        session = self._restoring
        # Failed, until it has not: the VSP's callback may raise, and no stream can follow then.
        self.restore = Restore.FAILED
        self._restoring = None
        self._accepting = session
        try:
            session.feed(bytes(buffer))
        except StreamError as error:
            self.failure = str(error)
            return error.status
        finally:
            self._accepting = None
        if session.ended:
            self.restore = Restore.COMPLETE
            return NtStatus.SUCCESS
        self.restore = Restore.PARTIAL
        self._restoring = session
        return NtStatus.MORE_PROCESSING_REQUIRED

    def _may_restore(self) -> bool:
        channel = self._channel
        return (
            channel.connection in (Connection.ENABLED, Connection.OPEN)
            and channel.run is not Run.STARTED
            and channel.queue is Queue.OFF
            and self.restore is Restore.NONE
            and not channel.in_a_callback
            and not self.saving
            and not channel.traffic.queue
            and not channel.traffic.table
        )

    def restore_packet(self, packet: OutgoingPacket, lib_buffer: bytes) -> NtStatus:
        """VmbPacketRestore."""
        if self._accepting is None:
            return NtStatus.INVALID_DEVICE_STATE
        return self._accepting.accept(packet, lib_buffer)
