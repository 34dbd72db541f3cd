# SPDX-License-Identifier: MIT
"""What all integration services share: one channel, the negotiation, one request at a time.

The host asks, the guest answers. There is no transaction of the ring's in a pipe; an answer is
told by its header, and Linux takes one request at a time, so one is in flight and the others
wait here, not in the ring. What is in flight is part of the saved state: after a restore it is not
sent again, and its answer is taken.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from abc import abstractmethod
from collections import deque
from typing import Any, ClassVar, Final

import msgspec

from emulator.devices.base import Device, DeviceStateError
from emulator.devices.ic.clock import Clock, SystemClock, Timer
from emulator.devices.ic.layout import (
    FRAMEWORKS,
    HEADER_SIZE,
    MAX_MESSAGE,
    Header,
    IcFlags,
    IcType,
    IcVersion,
    MalformedIc,
    Negotiation,
    chosen,
    message,
)
from emulator.kmcl import (
    ChannelPort,
    IncomingPacket,
    InitFlags,
    OutgoingPacket,
    RestoredPacket,
    SavedPacket,
    ServerChannel,
    ServerInitFlags,
    StateChangeCallbacks,
)
from emulator.wire.ntstatus import NtStatus

log = logging.getLogger(__name__)

_QUEUE_LIMIT: Final = 64
"""Requests that may wait: each has an asker in this process."""


class IcError(DeviceStateError):
    """The guest could not be asked, or has refused; the text is for the person who asked."""


class Request(msgspec.Struct, array_like=True, eq=False):
    """A request to the guest; ``what`` names it in errors, ``size`` is the least of its answer."""

    what: str
    body: bytes
    size: int = 0


class Answer(msgspec.Struct, frozen=True):
    """The guest's answer: an HRESULT and a body."""

    status: int
    body: bytes


class IcState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A service in a snapshot."""

    asked: bool
    refused: bool
    framework: tuple[int, int] | None
    version: tuple[int, int] | None
    flight: Request | None
    queue: list[Request]
    fault: str
    own: bytes


class IcDevice(Device):
    """One integration service. A subclass says who it is and what it asks."""

    interface: ClassVar[uuid.UUID]
    instance: ClassVar[uuid.UUID]
    """The same in every VM of Hyper-V's: Windows has drivers keyed by it."""
    ic_type: ClassVar[IcType]
    versions: ClassVar[tuple[IcVersion, ...]]
    """Newest first."""

    def __init__(self, name: str, vm: str, port: ChannelPort, clock: Clock | None = None) -> None:
        """Make the channel; time is ``clock``'s, by default the host's."""
        super().__init__(name, vm, port)
        self._clock: Clock = clock or SystemClock()
        self._timers: dict[str, Timer] = {}
        self._running = False
        self._restored = False
        self._changed = asyncio.Event()
        self._futures: dict[int, asyncio.Future[Answer]] = {}
        self.fault = ""
        self._reset()
        channel = ServerChannel(port)
        channel.init_set_friendly_name(name)
        channel.init_set_target_interface_id(self.interface, self.instance)
        channel.init_set_flags(InitFlags.IS_PIPE)
        channel.server_init_set_flags(ServerInitFlags.OFFER_AS_PIPE)
        channel.init_set_maximum_packet_size(MAX_MESSAGE)
        channel.init_set_state_change_callbacks(
            StateChangeCallbacks(
                opened=self._opened,
                closed=self._closed,
                suspend=self._suspend,
                post_started=self._post_started,
            )
        )
        channel.init_set_process_packet_callbacks(self._process)
        channel.init_set_save_restore_packet_callbacks(_save_packet, _restore_packet)
        channel.fault_callback = self._faulted
        self._channel = channel
        self.channels["ic"] = channel

    def _reset(self) -> None:
        self._asked = self._refused = False
        self.framework: IcVersion | None = None
        self.version: IcVersion | None = None
        self._flight: Request | None = None
        self._queue: deque[Request] = deque()

    # What a service does.

    def ready(self) -> None:
        """Begin: the version was negotiated and the guest runs. Called after each resume too."""

    def suspended(self) -> None:
        """End for now: nothing may be sent until :meth:`ready`."""

    def gone(self) -> None:
        """Forget the guest: it closed the channel, or its channel has failed."""

    def answered(self, request: Request, answer: Answer) -> None:
        """Take an answer, before its asker gets it; there is none after a restore.

        Raises :class:`MalformedIc`.
        """

    @abstractmethod
    def save_service(self) -> bytes:
        """Encode what is the service's own."""

    @abstractmethod
    def restore_service(self, data: bytes) -> None:
        """Decode :meth:`save_service`; raises msgspec.DecodeError or ValidationError."""

    def offered_versions(self) -> tuple[IcVersion, ...]:
        """Return the versions to offer, newest first."""
        return self.versions

    # Asking.

    @property
    def is_ready(self) -> bool:
        """Whether a request would be sent now."""
        return self._running and self.version is not None

    @property
    def busy(self) -> bool:
        """Whether a request is in flight or waits."""
        return self._flight is not None or bool(self._queue)

    def post(self, request: Request, *, first: bool = False) -> None:
        """Ask without waiting: sent when the guest is ready and has answered what is in flight."""
        if first:
            self._queue.appendleft(request)
        else:
            self._queue.append(request)
        self._send_next()

    async def ask(self, request: Request, patience: float) -> Answer:
        """Ask, and wait at most ``patience`` seconds; raises :class:`IcError`.

        A request that was sent and not answered in time stays in flight: the guest may be at it,
        and its answer has to be told from the next one's.
        """
        self.require_ready()
        if len(self._queue) >= _QUEUE_LIMIT:
            raise IcError(f"{len(self._queue)} requests wait for the guest already; try later")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._futures[id(request)] = future
        timer = self._clock.call_later(patience, lambda: self._late(request, patience))
        try:
            self.post(request)
            return await future
        finally:
            timer.cancel()
            self._futures.pop(id(request), None)
            if request is not self._flight and request in self._queue:
                self._queue.remove(request)

    def require_ready(self) -> None:
        """Raise :class:`IcError` with the reason why the guest cannot be asked."""
        if self.fault:
            raise IcError(f"the guest's channel has failed: {self.fault}")
        if self._refused:
            raise IcError("the guest takes none of the versions that were offered")
        if self.version is None:
            raise IcError(
                "the guest has not started this service; it needs its driver (Linux: hv_utils), "
                "and some need a daemon (hyperv-daemons)"
            )

    def _late(self, request: Request, patience: float) -> None:
        future = self._futures.get(id(request))
        if future is not None and not future.done():
            sent = "answer" if request is self._flight else "come to it"
            future.set_exception(
                IcError(f"{request.what}: the guest did not {sent} within {patience:g} s")
            )

    def _send_next(self) -> None:
        if not self.is_ready or self._flight is not None or not self._queue:
            return
        assert self.framework is not None
        assert self.version is not None
        request = self._flight = self._queue.popleft()
        header = Header(self.framework, self.ic_type, self.version, 0)
        self._send(message(header, request.body))

    def _send(self, data: bytes) -> None:
        self._channel.packet_allocate().send(data)

    def _negotiate(self) -> None:
        self._asked = True
        zero = IcVersion(0, 0)
        body = Negotiation(FRAMEWORKS, self.offered_versions()).pack()
        self._send(message(Header(zero, IcType.NEGOTIATE, zero, 0), body))

    # The channel's callbacks.

    def _opened(self, _: ServerChannel) -> NtStatus:
        self._reset()
        self.fault = ""
        return NtStatus.SUCCESS

    def _closed(self, _: ServerChannel) -> None:
        self._lost("the guest closed the channel")

    def _suspend(self, _: ServerChannel) -> None:
        self._running = False
        self.suspended()

    def _post_started(self, _: ServerChannel) -> None:
        self._running = not self.fault
        if self.fault:
            # Nothing is read any more; the guest has to open the channel again.
            return
        if not self._asked:
            self._negotiate()
        elif self.version is not None:
            self.ready()
            self._send_next()

    def _faulted(self, _: ServerChannel, text: str) -> None:
        log.error("%s: %s", self.name, text)
        self.fault = text
        self._lost(text)

    def _lost(self, why: str) -> None:
        self._running = False
        for name in list(self._timers):
            self.stop_timer(name)
        self._reset()
        self.gone()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(IcError(why))
        self._news()

    def _process(self, _: ServerChannel, packet: IncomingPacket) -> None:
        try:
            header, body = Header.parse(packet.payload)
            if header.type == IcType.NEGOTIATE:
                self._negotiated(header, body)
            else:
                self._take(header, body)
        except MalformedIc as error:
            packet.fail(str(error))
            return
        packet.complete()
        self._news()

    def _negotiated(self, header: Header, body: bytes) -> None:
        if not self._asked or self.version is not None or self._refused:
            raise MalformedIc("an answer to a negotiation that is over")
        if not header.flags & IcFlags.RESPONSE:
            raise MalformedIc("a negotiation of the guest's own")
        choice = chosen(Negotiation.parse(body), FRAMEWORKS, self.offered_versions())
        if choice is None:
            self._refused = True
            log.warning("%s: the guest takes none of the versions offered", self.name)
            return
        self.framework, self.version = choice
        if self._running:
            self.ready()
            self._send_next()

    def _take(self, header: Header, body: bytes) -> None:
        request = self._flight
        if request is None:
            raise MalformedIc(f"a message of type {header.type} that nothing was asked by")
        if header.type != self.ic_type or not header.flags & IcFlags.RESPONSE:
            raise MalformedIc(f"type {header.type}, flags {int(header.flags):#x}: not an answer")
        if (header.framework, header.version) != (self.framework, self.version):
            raise MalformedIc(
                f"an answer of version {header.version}; {self.version} was negotiated"
            )
        if len(body) < request.size:
            raise MalformedIc(f"{request.what}: an answer of {len(body)} bytes, not {request.size}")
        answer = Answer(header.status, body)
        self._flight = None
        self.answered(request, answer)
        future = self._futures.get(id(request))
        if future is not None and not future.done():
            future.set_result(answer)
        self._send_next()

    # Time and news.

    def start_timer(self, name: str, seconds: float) -> None:
        """Have :meth:`elapsed` called once with ``name``; a timer of that name is set anew."""
        self.stop_timer(name)
        self._timers[name] = self._clock.call_later(seconds, lambda: self._elapsed(name))

    def stop_timer(self, name: str) -> None:
        """Cancel a timer, if it is set."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _elapsed(self, name: str) -> None:
        self._timers.pop(name, None)
        self.elapsed(name)

    def elapsed(self, name: str) -> None:
        """Do what a timer was set for."""

    def _news(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def news(self) -> None:
        """Wait for the next message of the guest, or its end."""
        await self._changed.wait()

    async def negotiated(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """Wait until the guest has answered the negotiation; raises :class:`IcError`."""
        while self.version is None and not self._refused and not self.fault:
            await self.news()
        self.require_ready()
        return self.about()

    def about(self) -> dict[str, Any]:
        """Describe the service, for a person."""
        if self.fault:
            state = "failed"
        elif self._refused:
            state = "no common version"
        elif self.version is not None:
            state = "ready"
        else:
            state = "negotiating" if self._asked else "not started by the guest"
        return {
            "state": state,
            "framework": str(self.framework or ""),
            "version": str(self.version or ""),
            "in_flight": self._flight.what if self._flight else "",
            "waiting": len(self._queue),
            "fault": self.fault,
        }

    # Save and restore.

    def close(self) -> None:
        """Stop the timers."""
        for name in list(self._timers):
            self.stop_timer(name)

    def save_own(self) -> bytes:
        """Encode the negotiation, what is in flight, and what is the service's own."""
        return msgspec.msgpack.encode(
            IcState(
                asked=self._asked,
                refused=self._refused,
                framework=self.framework,
                version=self.version,
                flight=self._flight,
                queue=list(self._queue),
                fault=self.fault,
                own=self.save_service(),
            )
        )

    def restore_own(self, data: bytes) -> None:
        """Take over; raises DeviceStateError."""
        try:
            state = msgspec.msgpack.decode(data, type=IcState)
            self._check(state)
            self.restore_service(state.own)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise DeviceStateError(f"device {self.name}: {error}") from error
        self._asked, self._refused = state.asked, state.refused
        self.framework = IcVersion(*state.framework) if state.framework else None
        self.version = IcVersion(*state.version) if state.version else None
        self._flight = state.flight
        self._queue = deque(state.queue)
        self.fault = state.fault
        self._restored = True

    def _check(self, state: IcState) -> None:
        if (state.framework is None) != (state.version is None):
            raise ValueError("half a negotiation")
        requests = [*state.queue, *([state.flight] if state.flight else [])]
        if any(len(each.body) > MAX_MESSAGE - HEADER_SIZE for each in requests):
            raise ValueError("a request that is larger than a message")

    def take_restored(self) -> bool:
        """Whether a restore has happened since this was asked last."""
        restored, self._restored = self._restored, False
        return restored


def _save_packet(_: ServerChannel, __: OutgoingPacket, ___: int) -> SavedPacket:
    """Save nothing with a packet: that it is in flight is known to the service."""
    return SavedPacket(NtStatus.SUCCESS)


def _restore_packet(channel: ServerChannel, restored: RestoredPacket) -> NtStatus:
    packet = channel.packet_allocate()
    status = packet.restore(restored.lib_buffer)
    if not status.is_success:
        packet.free()
    return status
