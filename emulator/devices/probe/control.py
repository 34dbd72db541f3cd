# SPDX-License-Identifier: MIT
"""The probe's control channel: commands to the guest, one at a time, answered by completions."""

from __future__ import annotations

import asyncio
import logging
import zlib
from typing import Final

from emulator.devices.probe.protocol import (
    ANSWER_BIT,
    HEADER_SIZE,
    VERSION,
    Header,
    MalformedProbe,
    ProbeType,
    message,
    parse_ready,
)
from emulator.kmcl import IncomingPacket, OutgoingPacket, ServerChannel
from emulator.wire.ntstatus import NtStatus

log = logging.getLogger(__name__)

_BODY_LIMIT: Final = 4096


class GuestGone(Exception):
    """The guest closed the control channel, or never opened it, while it was asked something."""


class ControlChannel:
    """Asks the guest, and hears that it is ready. ``seq`` is the device's to save."""

    def __init__(self, channel: ServerChannel) -> None:
        """Use ``channel``, whose callbacks the device forwards here."""
        self._channel = channel
        self.seq = 0
        self.guest = ""
        self.version = 1
        self._ready = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def opened(self) -> None:
        """Start anew: another guest, or the same after a reboot."""
        self.seq = 0
        self.guest = ""
        self._ready.clear()

    def closed(self) -> None:
        """Fail what waits, and forget the guest."""
        self._ready.clear()
        self.guest = ""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(GuestGone("the guest closed the probe's control channel"))

    def restored(self, guest: str, seq: int, version: int) -> None:
        """Take over from a snapshot."""
        self.guest, self.seq, self.version = guest, seq, version
        if guest:
            self._ready.set()

    async def ready(self) -> str:
        """Wait for the guest's READY; returns its name for its system."""
        await self._ready.wait()
        return self.guest

    async def ask(self, kind: ProbeType, body: bytes = b"") -> bytes:
        """Send a request and return the body of its answer.

        Raises :class:`GuestGone` if the channel closes or the guest's probe is too old, and
        MalformedProbe if the answer is not one.
        """
        if kind >= ProbeType.GPADL_MAKE and kind < ProbeType.READY and self.version < VERSION:
            raise GuestGone(
                f"the guest's probe speaks version {self.version} of the protocol, and {kind.name} "
                f"is of version {VERSION}; build its driver anew"
            )
        if not self._ready.is_set():
            raise GuestGone("the guest's probe program is not there; wait for `ready` first")
        self.seq += 1
        seq = self.seq
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[seq] = future
        packet = self._channel.packet_allocate()
        packet.context = seq
        packet.set_completion_routine(self._answered)
        packet.send(message(kind, seq, body), wait_for_completion=True)
        try:
            answer = await future
        finally:
            del self._waiting[seq]
        header = Header.parse(answer)
        if header.type != kind | ANSWER_BIT or header.seq != seq:
            raise MalformedProbe(
                f"the answer to {kind.name} {seq} is {header.type:#x} {header.seq}"
            )
        if header.arg:
            raise MalformedProbe(f"the guest does not know {kind.name}")
        reply = answer[HEADER_SIZE : HEADER_SIZE + header.body_size]
        if zlib.crc32(reply) != header.body_crc:
            raise MalformedProbe(f"the answer to {kind.name} has a wrong CRC")
        return reply

    def _answered(self, packet: OutgoingPacket, status: NtStatus, data: bytes | None) -> None:
        future = self._waiting.get(packet.context)
        packet.free()
        if future is None or future.done():
            return
        if status.is_success and data is not None:
            future.set_result(data)
        else:
            future.set_exception(GuestGone(f"the request was not answered: {status.name}"))

    def process(self, packet: IncomingPacket) -> None:
        """Take a request of the guest: READY is the only one. Raises MalformedProbe."""
        header = Header.parse(packet.payload)
        body = packet.payload[HEADER_SIZE : HEADER_SIZE + min(header.body_size, _BODY_LIMIT)]
        if header.type != ProbeType.READY:
            raise MalformedProbe(f"type {header.type} is not for the host's control channel")
        self.version, self.guest = parse_ready(body)
        packet.complete(Header(ProbeType.READY | ANSWER_BIT, header.seq).pack())
        log.info("the guest's probe is ready: %s", self.guest)
        self._ready.set()
