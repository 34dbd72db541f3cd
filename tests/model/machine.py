# SPDX-License-Identifier: MIT
"""A whole model machine: a guest whose messages, doorbells and memory go over vmbus-user.

It joins the model guest and the model frontend, and is driven by hand: :meth:`ModelMachine.until`
reads what the backend sends, and does what QEMU and the guest would, until something is so.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from emulator.model.guest import PAGE, GuestGpadl, ModelGuest
from emulator.model.ring import GuestReader, GuestRing, GuestWriter, RawPacket
from tests.model import frontend as fe
from tests.model.frontend import ModelFrontend

PAGES = 4096
SHARED_CONNECTION = 2
"""The event connection of all channels, below 2.4."""


@dataclass
class OpenChannel:
    """The guest's ends of an open channel, and its rings' GPADL."""

    channel_id: int
    gpadl: GuestGpadl
    up: GuestRing
    down: GuestRing
    writer: GuestWriter
    reader: GuestReader


class ModelMachine:
    """A guest with ``pages`` of RAM behind a frontend; a real socket, or one half of a pair."""

    def __init__(self, sock: socket.socket | None = None, *, pages: int = PAGES) -> None:
        self.guest = ModelGuest(self._posted, pages=pages)
        self.frontend = ModelFrontend(ram_size=pages * PAGE)
        os.close(self.frontend.ram)
        self.frontend.ram = os.dup(self.guest.ram_fd)
        if sock is not None:
            self.frontend._sock.close()
            self.frontend.backend_socket.close()
            sock.setblocking(False)
            self.frontend._sock = sock
        self.doorbells: dict[int, int] = {}
        self.interrupts: dict[int, int] = {}
        self.targets: dict[int, tuple[int, int, int]] = {}
        """VP, SINT and event flag of each interrupt."""
        self.marked: set[int] = set()
        """Channels that the host has marked in the interrupt page, and that were not looked at."""

    def close(self) -> None:
        self.frontend.close()
        for fd in (*self.doorbells.values(), *self.interrupts.values()):
            os.close(fd)

    def _posted(self, connection_id: int, payload: bytes) -> None:
        self.frontend.guest_message(payload, connection_id)

    async def boot(self, version: int = 0x50003) -> None:
        """Start QEMU and the guest; returns when it knows the offers."""
        await self.frontend.handshake()
        self.frontend.send(fe.RESUME)
        self.guest.contact(version)
        await self.until(lambda: self.guest.connected)
        self.guest.request_offers()
        await self.until(lambda: self.guest.offers_complete)

    async def until(self, so: Callable[[], bool]) -> None:
        """Do what the backend asks for until ``so()``; raises EOFError when it has closed."""
        while not so():
            self._serve(await self.frontend.read())

    def _serve(self, got: fe.Got) -> None:
        match got.type:
            case fe.POST_MESSAGE:
                vp, sint, _, size = got.words[:4]
                self.frontend.status(fe.POST_STATUS, got.cookie)
                self.guest.deliver(vp, sint, got.body[16 : 16 + size])
            case fe.RESET_DONE:
                # docs/vmbus-user.md, "Epochs": the frontend forgets them at a reset.
                for fd in (*self.doorbells.values(), *self.interrupts.values()):
                    os.close(fd)
                self.doorbells.clear()
                self.interrupts.clear()
            case fe.ADD_DOORBELL:
                self.doorbells[got.words[0]] = got.fds[0]
                self.frontend.status(fe.REPLY, got.cookie)
            case fe.ADD_INTERRUPT:
                if (old := self.interrupts.pop(got.words[0], None)) is not None:
                    os.close(old)
                self.interrupts[got.words[0]] = got.fds[0]
                self.targets[got.words[0]] = (got.words[1], got.words[2], got.words[3])
                self.frontend.status(fe.REPLY, got.cookie)
            case fe.DEL_DOORBELL:
                os.close(self.doorbells.pop(got.words[0]))
                self.frontend.status(fe.REPLY, got.cookie)
            case fe.DEL_INTERRUPT:
                os.close(self.interrupts.pop(got.words[0]))
                self.frontend.status(fe.REPLY, got.cookie)
            case _:
                pass

    def channel_with(self, user_defined: bytes) -> int:
        """Return the id of the channel whose offer data begin like this."""
        return next(
            number
            for number, channel in self.guest.channels.items()
            if channel.offer.raw("user_defined").startswith(user_defined)
        )

    async def open(self, channel_id: int, pages: int = 4) -> OpenChannel:
        """Open a channel with two rings of ``pages`` pages each, control page included."""
        gpadl = self.guest.make_gpadl(channel_id, 2 * pages)
        await self.until(lambda: gpadl.state == "created")
        up, down = (GuestRing(self._pages(gpadl.pfns[at : at + pages])) for at in (0, pages))
        up.initialise()
        down.initialise()
        self.guest.open_channel(channel_id, gpadl.gpadl_id, split=pages)
        channel = self.guest.channels[channel_id]
        await self.until(lambda: channel.is_open and self._doorbell(channel_id) in self.doorbells)
        return OpenChannel(channel_id, gpadl, up, down, GuestWriter(up), GuestReader(down))

    def _doorbell(self, channel_id: int) -> int:
        return self.guest.channels[channel_id].offer["connection_id"]

    def ring_doorbell(self, channel_id: int) -> None:
        """Signal the host (HvSignalEvent)."""
        if self.guest.shares_interrupt:
            self.guest.set_bit(channel_id)
            os.eventfd_write(self.doorbells[SHARED_CONNECTION], 1)
        else:
            os.eventfd_write(self.doorbells[self._doorbell(channel_id)], 1)

    async def interrupted(self, channel_id: int) -> None:
        """Wait for the host's signal."""
        interrupt = self.interrupts[channel_id]
        await _readable(interrupt)
        os.eventfd_read(interrupt)
        if self.guest.shares_interrupt:
            # All channels have one event flag; the page says whose it is.
            assert self.targets[channel_id] == (0, 2, 0)
            self.marked.update(self.guest.take_bits())
            self.marked.remove(channel_id)
        else:
            assert self.targets[channel_id][2] == channel_id

    async def ask(self, channel: OpenChannel, *packets: bytes) -> RawPacket:
        """Write requests, ring, and return the first packet that the host sends back."""
        assert channel.writer.put(*packets) is not None
        self.ring_doorbell(channel.channel_id)
        return await self.answer(channel)

    async def answer(self, channel: OpenChannel) -> RawPacket:
        """Return the next packet that the host sends."""
        while (taken := channel.reader.take()) is None:
            channel.reader.ring.run(channel.reader.idle_steps())
            await self.interrupted(channel.channel_id)
        return taken[0]

    def _pages(self, pfns: list[int]) -> list[memoryview]:
        ram = memoryview(self.guest.ram)
        return [ram[pfn * PAGE : (pfn + 1) * PAGE] for pfn in pfns]


def echo_request(transaction_id: int, number: int = 1) -> bytes:
    """Return a probe's G_ECHO (docs/probe.md), which its data channel sends back as it is."""
    payload = struct.pack("<IHHQIIQ", 0x31425250, 6, 0, number, 0, 0, 0)
    return struct.pack("<HHHHQ", 6, 2, 2 + len(payload) // 8, 1, transaction_id) + payload


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    await event.wait()
    loop.remove_reader(fd)
