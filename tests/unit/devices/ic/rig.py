# SPDX-License-Identifier: MIT
"""One integration service on rings in anonymous memory, a guest, and a clock that is told to go.

The guest is written from the tables of the protocol, not from ``emulator.devices.ic``: pipe header
(u32 type, u32 size), IC header of 20 bytes, body.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulator.conformance.rig import PAGE
from emulator.devices.ic.base import IcDevice
from emulator.kmcl import OfferParams, ServerChannel
from emulator.memory import PageView, page_view
from emulator.model.driver import GuestEnds
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

RING_PAGES = 5
RESPONSE = 5
"""ICMSGHDRFLAG_TRANSACTION | ICMSGHDRFLAG_RESPONSE, as Linux answers."""


class FakeTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Time goes on by :meth:`advance` alone."""

    def __init__(self, *, reference: bool = True) -> None:
        self.now = 0.0
        self.has_reference = reference
        self.calls: list[tuple[float, FakeTimer, Callable[[], None]]] = []

    def wall(self) -> int:
        return 130_000_000_000_000_000 + round(self.now * 10_000_000)

    def reference(self) -> int | None:
        return round(self.now * 10_000_000) if self.has_reference else None

    def call_later(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer()
        self.calls.append((self.now + seconds, timer, call))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.calls = [each for each in self.calls if not each[1].cancelled]
            due = [each for each in self.calls if each[0] <= end]
            if not due:
                break
            first = min(due, key=lambda each: each[0])
            self.calls.remove(first)
            self.now = first[0]
            first[2]()
        self.now = end


class Port:
    def __init__(self) -> None:
        self.offers: list[OfferParams] = []
        self.revoked = 0
        self.at_offer: Callable[[ServerChannel], None] = lambda channel: None

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        self.offers.append(params)
        self.at_offer(channel)

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        self.revoked += 1
        done()

    def signal(self, channel: ServerChannel) -> None:
        pass

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        raise AssertionError

    def poll_again(self, channel: ServerChannel) -> None:
        asyncio.get_running_loop().call_soon(channel.port_interrupt)

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        raise KeyError(handle)

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        raise AssertionError(ranges)


@dataclass(frozen=True)
class Asked:
    """A message of the host's."""

    framework: tuple[int, int]
    type: int
    version: tuple[int, int]
    status: int
    flags: int
    body: bytes
    raw: bytes

    def answer(self, *, status: int = 0, body: bytes | None = None, flags: int = RESPONSE) -> bytes:
        """Return what Linux sends back: the same bytes, with status, flags and perhaps a body."""
        raw = bytearray(self.raw)
        struct.pack_into("<I", raw, 8 + 12, status)
        raw[8 + 17] = flags
        if body is not None:
            raw[28:] = body
            struct.pack_into("<I", raw, 4, 20 + len(body))
            struct.pack_into("<H", raw, 8 + 10, len(body))
        return bytes(raw)


class IcRig:
    """A machine with one service."""

    def __init__(
        self, kind: type[IcDevice], clock: FakeClock | None = None, memory: Any = None
    ) -> None:
        self.kind, self.clock, self.port = kind, clock or FakeClock(), Port()
        self.device = kind("ic", "vm", self.port, self.clock)
        self.up, self.down = memory or tuple(
            memoryview(mmap.mmap(-1, RING_PAGES * PAGE)) for _ in range(2)
        )
        if memory is None:
            self.guest = GuestEnds(self.up, self.down, self._doorbell)

    @property
    def channel(self) -> ServerChannel:
        return self.device.channels["ic"]

    def _doorbell(self) -> None:
        self.channel.port_interrupt()

    def _rings(self) -> tuple[IncomingRing, OutgoingRing]:
        return IncomingRing(page_view([self.up])), OutgoingRing(page_view([self.down]))

    def start(self) -> IcRig:
        self.device.power_on()
        self.device.resume()
        self.open()
        return self

    def open(self) -> None:
        assert self.channel.port_opened(*self._rings()) is NtStatus.SUCCESS

    def asked(self) -> list[Asked]:
        """Read what the host has sent."""
        found = []
        for packet in self.guest.take_all():
            assert packet.type == 6
            kind, size = struct.unpack_from("<II", packet.payload)
            assert kind == 1
            raw = packet.payload[: 8 + size]
            head = struct.unpack_from("<HHHHHHIBB2x", raw, 8)
            assert head[5] == size - 20
            found.append(Asked(head[0:2], head[2], head[3:5], head[6], head[8], raw[28:], raw))
        return found

    def one(self) -> Asked:
        (asked,) = self.asked()
        return asked

    def send(self, raw: bytes) -> None:
        assert self.guest.request(0, raw, completion=False)
        self.channel.port_interrupt()

    def negotiate(
        self, version: tuple[int, int] | None, framework: tuple[int, int] = (3, 0)
    ) -> Asked:
        """Answer the negotiation; None: none of the versions."""
        asked = self.one()
        assert (asked.type, asked.flags) == (0, 3)
        body = bytearray(asked.body)
        if version is None:
            struct.pack_into("<HH", body, 0, 0, 0)
        else:
            struct.pack_into("<HH", body, 0, 1, 1)
            struct.pack_into("<HHHH", body, 8, *framework, *version)
        # Linux says 16 bytes of body and sends as many as it got.
        raw = bytearray(asked.answer())
        raw[28:] = body
        struct.pack_into("<H", raw, 8 + 10, 16 if version else 8)
        self.send(bytes(raw))
        return asked

    def restored(self) -> IcRig:
        """Pause, save, and restore in a new process; it runs."""
        paused: list[bool] = []
        self.device.pause(lambda: paused.append(True))
        assert paused
        state = self.device.save()
        self.device.close()
        other = IcRig(self.kind, self.clock, (self.up, self.down))
        other.guest = self.guest
        other.guest._doorbell = other._doorbell
        other.port.at_offer = lambda channel: channel.port_restored(*other._rings())
        other.device.restore(state)
        other.device.resume()
        return other


async def turns(count: int = 5) -> None:
    """Let the tasks have their turns."""
    for _ in range(count):
        await asyncio.sleep(0)
