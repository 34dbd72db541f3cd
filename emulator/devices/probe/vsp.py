# SPDX-License-Identifier: MIT
"""The probe device (docs/probe.md): numbered transactions of every kind, held back on request.

The device is an ordinary VSP: it completes what it holds when the channel is suspended, saves
what its outgoing packets mean to it in the save-packet callback, and finds it again in the
restore-packet callback. Beside that it can be *frozen*: it then holds every guest request until
the transaction quota stops the queue, tells the guest to stall, and fills the ring and the queue
behind it, so that a save finds packets of every kind in flight.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from emulator.devices.base import Device, DeviceStateError
from emulator.devices.probe.control import ControlChannel
from emulator.devices.probe.flight import Flight, Kind
from emulator.devices.probe.gpadls import ProbeGpadls
from emulator.devices.probe.ledger import HostLedger
from emulator.devices.probe.options import ProbeOptions
from emulator.devices.probe.protocol import (
    GUEST_SALT,
    HEADER_SIZE,
    HOST_SALT,
    PROBE_INTERFACE,
    Header,
    MalformedProbe,
    ProbeFlags,
    ProbeType,
    Role,
    message,
    offer_data,
    pattern,
    write_back,
)
from emulator.devices.probe.state import PacketContext, ProbeState
from emulator.devices.probe.trials import Trials
from emulator.kmcl import (
    ChannelPort,
    IncomingPacket,
    OutgoingPacket,
    OutgoingState,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    ServerInitFlags,
    StateChangeCallbacks,
)
from emulator.memory import GpaError
from emulator.wire.ntstatus import NtStatus

log = logging.getLogger(__name__)

RUN_QUOTA: Final = 64
FREEZE_QUOTA: Final = 6
_PLAIN: Final = ProbeOptions()
_HOLD_MAX: Final = 4
_HOST_WINDOW: Final = 24
_QUEUE_GOAL: Final = 6
_BODY_SIZES: Final = (0, 8, 40, 121, 300, 640)


class ProbeVsp(Device):
    """The VSP; what can be asked of it is in :mod:`emulator.devices.probe.device`."""

    def __init__(
        self, name: str, vm: str, port: ChannelPort, options: ProbeOptions = _PLAIN
    ) -> None:
        """Make the data and the control channel."""
        super().__init__(name, vm, port)
        self._options = options
        self._trials = Trials(options.restore_trial)
        self._data = self._make_channel(Role.DATA)
        self._control = ControlChannel(self._make_channel(Role.CONTROL))
        self._progress = asyncio.Event()
        self._ledger = HostLedger()
        self._flight = Flight()
        self._held: deque[tuple[IncomingPacket, bytes, int]] = deque()
        self._outstanding: dict[int, OutgoingPacket] = {}
        self._talking = False
        self._frozen = False
        self._finishing = False
        self._running = False
        self.runs = False
        """Whether the virtual CPUs run."""
        self._since_hold = 0
        self._removed = 0
        self._late: list[NtStatus] = []
        self._asked: set[asyncio.Task[bytes]] = set()
        self.faults: deque[str] = deque(maxlen=32)
        self._gpadls = ProbeGpadls(self._data)

    def _make_channel(self, role: Role) -> ServerChannel:
        channel = ServerChannel(self._port)
        channel.init_set_friendly_name(f"{self.name}-{role.name.lower()}")
        channel.init_set_target_interface_id(PROBE_INTERFACE, self.instance_guid(role.name.lower()))
        channel.init_set_user_defined(offer_data(role, self._options.pair))
        channel.init_set_maximum_packet_size(self._options.maximum_packet_size)
        if self._options.maximum_packet_count is not None:
            channel.init_set_maximum_packet_count(self._options.maximum_packet_count)
        if self._options.force_new:
            channel.server_init_set_flags(ServerInitFlags.FORCE_NEW_CHANNEL)
        channel.init_set_state_change_callbacks(
            StateChangeCallbacks(
                opened=self._opened,
                closed=self._closed,
                suspend=self._suspend,
                started=lambda _: None,
                post_started=self._post_started,
            )
        )
        channel.init_set_process_packet_callbacks(
            self._process_data if role is Role.DATA else self._process_control
        )
        if self._options.packet_callbacks:
            channel.init_set_save_restore_packet_callbacks(self._save_packet, self._restore_packet)
        channel.set_transaction_quota(RUN_QUOTA)
        channel.fault_callback = self._faulted
        self.channels[role.name.lower()] = channel
        return channel

    def resume(self) -> None:
        """Run the channels: the virtual CPUs run."""
        self.runs = True
        super().resume()

    def pause(self, done: Callable[[], None]) -> None:
        """Pause the channels: the virtual CPUs stand."""
        self.runs = False
        super().pause(done)

    # State callbacks.

    def _opened(self, channel: ServerChannel) -> NtStatus:
        if channel is self._data:
            self._ledger = HostLedger()
            self._flight = Flight()
            self._outstanding.clear()
            self._talking = self._frozen = self._finishing = False
            self.faults.clear()
            channel.set_transaction_quota(RUN_QUOTA)
        else:
            self._control.opened()
        return NtStatus.SUCCESS

    def _closed(self, channel: ServerChannel) -> None:
        if channel is self._data:
            self._gpadls.closed()
        else:
            self._control.closed()
        self._progress.set()

    def _suspend(self, channel: ServerChannel) -> None:
        if channel is not self._data:
            return
        self._running = False
        self._gpadls.suspend()
        self._note_flight()
        while self._held:
            self._answer(*self._held.popleft())

    def _post_started(self, channel: ServerChannel) -> None:
        if channel is self._data:
            self._running = True
            self._talk()

    def _faulted(self, channel: ServerChannel, text: str) -> None:
        role = "data" if channel is self._data else "control"
        log.error("%s/%s: %s", self.name, role, text)
        self.faults.append(f"{role}: {text}")
        self._progress.set()

    # Guest requests.

    def _process_control(self, _: ServerChannel, packet: IncomingPacket) -> None:
        try:
            self._control.process(packet)
        except MalformedProbe as error:
            packet.fail(str(error))
        self._progress.set()

    def _process_data(self, _: ServerChannel, packet: IncomingPacket) -> None:
        self._progress.set()
        try:
            header = Header.parse(packet.payload)
            if header.type == ProbeType.G_ECHO:
                # Of no ledger, and not held when the device is frozen: it is there to be timed.
                packet.complete(packet.payload)
                return
            if header.type != ProbeType.G_REQUEST:
                raise MalformedProbe(f"type {header.type} is not for the host's data channel")
            received, left = self._bodies(packet, header)
        except MalformedProbe as error:
            packet.fail(str(error))
            return
        expected = pattern(header.seq, header.body_size, GUEST_SALT)
        good = received == expected and zlib.crc32(received) == header.body_crc
        self._ledger.bad_bodies += not good
        self._ledger.request_received(header.seq, gpa_direct=bool(packet.external))
        answer = Header(
            ProbeType.G_ANSWER, header.seq, body_crc=zlib.crc32(left), arg=0 if good else 1
        )
        self._hold_or_answer(packet, answer.pack(), header.seq)

    def _bodies(self, packet: IncomingPacket, header: Header) -> tuple[bytes, bytes]:
        """Return the body as the guest sent it and as it is left for the guest to find."""
        if not packet.external:
            body = packet.payload[HEADER_SIZE : HEADER_SIZE + header.body_size]
            if len(body) != header.body_size:
                raise MalformedProbe(f"{len(body)} bytes of body instead of {header.body_size}")
            return body, body
        try:
            pieces = packet.external_data()
        except GpaError as error:
            raise MalformedProbe(f"the external buffer is outside guest RAM: {error}") from error
        body = b"".join(pieces)
        if len(body) != header.body_size:
            raise MalformedProbe(f"{len(body)} external bytes instead of {header.body_size}")
        if not header.flags & ProbeFlags.WRITE_BACK:
            return body, body
        changed = write_back(body)
        offset = 0
        for piece in pieces:
            piece[:] = changed[offset : offset + len(piece)]
            offset += len(piece)
        return body, changed

    def _hold_or_answer(self, packet: IncomingPacket, answer: bytes, seq: int) -> None:
        if self._frozen:
            self._held.append((packet, answer, seq))
            return
        self._since_hold += 1
        if self._since_hold % 5 == 0 and not self._finishing:
            self._held.append((packet, answer, seq))
        else:
            self._answer(packet, answer, seq)
        while len(self._held) > _HOLD_MAX:
            self._answer(*self._held.popleft())

    def _answer(self, packet: IncomingPacket, answer: bytes, seq: int) -> None:
        packet.complete(answer)
        self._ledger.request_answered(seq)
        self._flight.request_answered(seq)

    def _answer_held(self) -> None:
        while self._held:
            self._answer(*self._held.popleft())

    # Host packets.

    def _may_talk(self) -> bool:
        return self._running and self._talking and not self._finishing

    def _talk(self) -> None:
        """Keep the window of host packets full."""
        while self._may_talk() and not self._frozen and len(self._outstanding) < _HOST_WINDOW:
            self._send_next()

    def _fill(self) -> None:
        """Fill the ring, and the queue behind it until it is long enough."""
        while self._may_talk() and not self._queue_is_long():
            self._send_next()

    def _queue_is_long(self) -> bool:
        stats = self._data.stats()
        return stats.queued_wait >= _QUEUE_GOAL and stats.queued_no_wait >= _QUEUE_GOAL

    def _send_next(self) -> None:
        wants_answer = (self._ledger.last_seq + 1) % 3 != 0
        seq = self._ledger.sent(wants_answer=wants_answer)
        body = pattern(seq, _BODY_SIZES[seq % len(_BODY_SIZES)], HOST_SALT)
        packet = self._data.packet_allocate()
        packet.context = PacketContext(Role.DATA, seq, zlib.crc32(body), wants_answer)
        packet.set_completion_routine(self._completed)
        self._outstanding[seq] = packet
        kind = ProbeType.H_REQUEST if wants_answer else ProbeType.H_NOTIFY
        packet.send(message(kind, seq, body), wait_for_completion=wants_answer)

    def _completed(self, packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        self._progress.set()
        context: PacketContext = packet.context
        self._outstanding.pop(context.seq, None)
        packet.free()
        if not status.is_success:
            self._removed += status is NtStatus.DEVICE_REMOVED
            return
        self._flight.packet_completed(context.seq)
        if context.wants_answer:
            self._check_answer(context, data or b"")
        self._talk()

    def _check_answer(self, context: PacketContext, data: bytes) -> None:
        self._ledger.completed(context.seq)
        try:
            header = Header.parse(data)
        except MalformedProbe:
            self._ledger.bad_completions += 1
            return
        if (header.type, header.seq, header.body_crc) != (
            ProbeType.H_ANSWER,
            context.seq,
            context.crc,
        ) or header.arg:
            self._ledger.bad_completions += 1

    # Save and restore.

    def _save_packet(self, _: ServerChannel, packet: OutgoingPacket, size: int) -> SavedPacket:
        context = packet.context
        if not isinstance(context, PacketContext):
            context = PacketContext(Role.CONTROL, context, 0, True)
        return self._trials.save(context, size)

    def _restore_packet(self, channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
        try:
            context = msgspec.msgpack.decode(restored.save_buffer, type=PacketContext)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return NtStatus.INVALID_PARAMETER
        packet = channel.packet_allocate()
        if channel is self._data:
            packet.context = context
            packet.set_completion_routine(self._completed)
        else:
            packet.context = context.seq
            packet.set_completion_routine(self._control_answered)
        status = self._trials.restore(packet, restored)
        if status.is_success and channel is self._data:
            self._outstanding[context.seq] = packet
        return status

    def _control_answered(self, packet: OutgoingPacket, status: NtStatus, _: bytes | None) -> None:
        """Count the answer to a command whose asker was in the process that saved."""
        self._late.append(status)
        packet.free()
        self._progress.set()

    def _note_flight(self) -> None:
        """Take down what is in flight; called when the channel is suspended, before it drains."""
        seqs: dict[Kind, list[int]] = {kind: [] for kind in Kind}
        by_transaction: dict[int, int] = {}
        for seq, packet in self._outstanding.items():
            match packet.state:
                case OutgoingState.QUEUED:
                    wants = packet.context.wants_answer
                    seqs[Kind.QUEUED_WAIT if wants else Kind.QUEUED_NOTIFY].append(seq)
                case OutgoingState.IN_RING:
                    by_transaction[packet.transaction_id] = seq
                case _:
                    pass
        next_request = self._ledger.next_request
        for unread in self._data.unread():
            if unread.is_completion:
                seq_or_none = by_transaction.pop(unread.transaction_id, None)
                if seq_or_none is not None:
                    seqs[Kind.COMPLETION_UNREAD].append(seq_or_none)
            else:
                seqs[Kind.REQUEST_UNREAD].append(next_request)
                next_request += 1
        seqs[Kind.IN_RING] = sorted(by_transaction.values())
        seqs[Kind.REQUEST_HELD] = [seq for _, _, seq in self._held]
        self._flight = Flight(seqs)

    def save_own(self) -> bytes:
        """Encode the ledger and the device's mood."""
        return msgspec.msgpack.encode(
            ProbeState(
                ledger=self._ledger,
                flight=self._flight,
                guest=self._control.guest,
                control_seq=self._control.seq,
                talking=self._talking,
                frozen=self._frozen,
                finishing=self._finishing,
                faults=list(self.faults),
                guest_version=self._control.version,
                gpadls=self._gpadls.notes,
            )
        )

    def restore_own(self, data: bytes) -> None:
        """Take over, but for channels that are offered anew; raises DeviceStateError."""
        if self._options.force_new:
            return
        try:
            state = msgspec.msgpack.decode(data, type=ProbeState)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DeviceStateError(f"device {self.name}: {error}") from error
        self._ledger = state.ledger
        self._flight = state.flight
        self._flight.restored()
        self._control.restored(state.guest, state.control_seq, state.guest_version)
        self._gpadls.notes = state.gpadls
        self._talking, self._frozen = state.talking, state.frozen
        self._finishing = state.finishing
        self.faults.extend(state.faults)
        self._data.set_transaction_quota(FREEZE_QUOTA if state.frozen else RUN_QUOTA)
