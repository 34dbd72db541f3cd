# SPDX-License-Identifier: MIT
"""A storage device on rings in anonymous memory, and a guest's driver that speaks VSTOR to it.

The driver is written from the tables of the protocol, not from ``emulator.devices.storage``.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulator.devices import Device, make_device
from emulator.kmcl import OfferParams, ServerChannel
from emulator.memory import GuestMemory, PageView, RamRegion, page_view
from emulator.model.driver import COMPLETION, GPA_DIRECT, IN_BAND, GuestEnds
from emulator.model.ring import RawPacket, build_packet, gpa_direct_header
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.ntstatus import NtStatus
from emulator.wire.packet import GpaRange

PAGE = 4096
RAM_PAGES = 512
RING_PAGES = 5

COMPLETE_IO, EXECUTE_SRB, RESET_LUN, RESET_BUS = 1, 3, 4, 6
BEGIN, END, QUERY_VERSION, QUERY_PROPERTIES, ENUMERATE_BUS, CREATE_SUBS = 7, 8, 9, 10, 11, 13
WRITE, READ, NONE = 0, 1, 2
INVALID_DEVICE_STATE = 0xC0000184


@dataclass(frozen=True)
class Result:
    """What the guest is told of a command."""

    status: int
    srb_status: int
    scsi_status: int
    transferred: int
    sense: bytes
    data: bytes

    @property
    def good(self) -> bool:
        return (self.status, self.srb_status, self.scsi_status) == (0, 1, 0)

    @property
    def sense_codes(self) -> tuple[int, int, int]:
        """Key, code and qualifier, if the sense data are said to be valid."""
        assert self.srb_status & 0x80, hex(self.srb_status)
        return self.sense[2], self.sense[12], self.sense[13]


class Port:
    """A provider with guest RAM whose pages are handed out in no order."""

    def __init__(self) -> None:
        fd = os.memfd_create("storage-guest")
        os.ftruncate(fd, RAM_PAGES * PAGE)
        self.memory = GuestMemory.map([(RamRegion(0, RAM_PAGES * PAGE, 0), fd)])
        os.close(fd)
        self.offers: list[OfferParams] = []
        self.channels: dict[int, ServerChannel] = {}
        self.interrupt = asyncio.Event()
        self.at_offer: Callable[[ServerChannel], None] = lambda channel: None

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        self.offers.append(params)
        self.channels[params.subchannel_index] = channel
        self.at_offer(channel)

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        done()

    def signal(self, channel: ServerChannel) -> None:
        self.interrupt.set()

    def poll_again(self, channel: ServerChannel) -> None:
        asyncio.get_running_loop().call_soon(channel.port_interrupt)

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        raise KeyError(handle)

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Nothing translates code here."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        return [piece for each in ranges for piece in self.memory.range(each)]


class Lane:
    """The guest's ends of one channel."""

    def __init__(self, rig: Rig, index: int) -> None:
        self._rig = rig
        self._index = index
        self.up = memoryview(mmap.mmap(-1, RING_PAGES * PAGE))
        self.down = memoryview(mmap.mmap(-1, RING_PAGES * PAGE))
        self.ends = GuestEnds(self.up, self.down, self._doorbell)

    def _doorbell(self) -> None:
        self._rig.port.channels[self._index].port_interrupt()

    def host_rings(self) -> tuple[IncomingRing, OutgoingRing]:
        return IncomingRing(page_view([self.up])), OutgoingRing(page_view([self.down]))

    def open(self) -> None:
        """Have the guest open the channel."""
        opened = self._rig.port.channels[self._index].port_opened(*self.host_rings())
        assert opened is NtStatus.SUCCESS


class Rig:
    """A machine with one storage device."""

    def __init__(self, options: dict[str, Any], kind: str = "scsi") -> None:
        self.options, self.kind = options, kind
        self.port = Port()
        self.device: Device = make_device(kind, "disk", "vm", self.port, options)
        self.lanes = [Lane(self, 0)]
        self._ids = iter(range(1, 1 << 32))
        self._free = [pfn for odd in (1, 0) for pfn in range(RAM_PAGES) if pfn % 2 == odd]
        self.answers: dict[int, RawPacket] = {}
        self.notices: list[int] = []

    def start(self) -> Rig:
        """Power on, open the primary channel."""
        self.device.power_on()
        self.device.resume()
        self.lanes[0].open()
        return self

    # Packets.

    def _look(self) -> None:
        for lane in self.lanes:
            for packet in lane.ends.take_all():
                if packet.type == COMPLETION:
                    assert packet.transaction_id not in self.answers, "answered twice"
                    self.answers[packet.transaction_id] = packet
                else:
                    assert (packet.type, packet.flags) == (IN_BAND, 0)
                    self.notices.append(struct.unpack_from("<I", packet.payload)[0])

    async def answer(self, transaction_id: int) -> bytes:
        """Wait for the completion of a request."""
        async with asyncio.timeout(30):
            while True:
                self.port.interrupt.clear()
                self._look()
                if transaction_id in self.answers:
                    return self.answers.pop(transaction_id).payload
                await self.port.interrupt.wait()

    def answered(self, transaction_id: int) -> bool:
        """Whether a completion has come by now."""
        self._look()
        return transaction_id in self.answers

    async def say(
        self, operation: int, body: bytes = b"", *, size: int = 64, lane: int = 0
    ) -> tuple[int, bytes]:
        """Send a packet without data; returns status and body of the completion."""
        number = next(self._ids)
        packet = struct.pack("<III", operation, 1, 0) + body
        assert self.lanes[lane].ends.request(number, packet.ljust(size, b"\0"))
        answer = await self.answer(number)
        kind, _, status = struct.unpack_from("<III", answer)
        assert kind == COMPLETE_IO
        assert len(answer) == size
        return status, answer[12:]

    async def initialise(self, version: int = 0x0602) -> Rig:
        """Do what Linux does."""
        assert (await self.say(BEGIN))[0] == 0
        assert (await self.say(QUERY_VERSION, struct.pack("<HH", version, 0)))[0] == 0
        assert (await self.say(QUERY_PROPERTIES))[0] == 0
        assert (await self.say(END))[0] == 0
        return self

    # Commands.

    def begin(
        self,
        cdb: bytes,
        *,
        lun: int = 0,
        out: bytes = b"",
        room: int = 0,
        lane: int = 0,
        offset: int = 0,
        path: int = 0,
        target: int = 0,
        transfer: int | None = None,
    ) -> tuple[int, list[memoryview]]:
        """Send a command; returns its transaction and the guest's buffer."""
        length = len(out) or room
        direction = WRITE if out else READ if room else NONE
        number = next(self._ids)
        srb = struct.pack(
            "<HBBBBBBBBBBI16s4sHBBIII",
            *(52, 0, 0, 0, path, target, lun, len(cdb), 20, direction, 0),
            *(length if transfer is None else transfer, cdb, b"", 0, 0, 0x20, 0, 0, 0),
        )
        payload = struct.pack("<III", EXECUTE_SRB, 1, 0) + srb
        if not length:
            assert self.lanes[lane].ends.request(number, payload)
            return number, []
        pages = (offset + length + PAGE - 1) // PAGE
        pfns, self._free = self._free[:pages], self._free[pages:] + self._free[:pages]
        buffer = self.port.memory.range(GpaRange(length, offset, tuple(pfns)))
        position = 0
        for piece in buffer:
            piece[:] = (out or bytes([0xEE]) * length)[position : position + piece.nbytes]
            position += piece.nbytes
        header = gpa_direct_header((length, offset, pfns))
        packet = build_packet(GPA_DIRECT, number, payload, header=header, flags=1)
        assert self.lanes[lane].ends.put(packet)
        return number, buffer

    async def command(self, cdb: bytes, **how: Any) -> Result:
        """Carry a command out; see :meth:`begin`."""
        return self.result(await self.answer((started := self.begin(cdb, **how))[0]), started[1])

    @staticmethod
    def result(answer: bytes, buffer: list[memoryview]) -> Result:
        """Decode a completion."""
        _, _, status = struct.unpack_from("<III", answer)
        (_, srb, scsi, _, _, _, _, _, sense_size, _, _, moved, sense) = struct.unpack_from(
            "<HBBBBBBBBBBI20s", answer, 12
        )
        data = b"".join(buffer)[:moved]
        return Result(status, srb, scsi, moved, sense[:sense_size], data)

    # Save and restore.

    def pause(self) -> asyncio.Event:
        """Pause; the event is set when the device has drained."""
        drained = asyncio.Event()
        self.device.pause(drained.set)
        return drained

    async def restored(self, **changes: Any) -> Rig:
        """Pause, save, and restore in a new process; it runs."""
        async with asyncio.timeout(30):
            await self.pause().wait()
        state = self.device.save()
        self.device.close()
        other = Rig.__new__(Rig)
        other.options = self.options | changes
        other.kind, other._ids, other._free = self.kind, self._ids, self._free
        other.answers, other.notices = self.answers, self.notices
        other.port = Port()
        other.port.memory = self.port.memory
        other.lanes = []
        for index, lane in enumerate(self.lanes):
            moved = Lane.__new__(Lane)
            moved._rig, moved._index = other, index
            moved.up, moved.down = lane.up, lane.down
            moved.ends = GuestEnds.__new__(GuestEnds)
            moved.ends.__dict__.update(lane.ends.__dict__)
            moved.ends._doorbell = moved._doorbell
            other.lanes.append(moved)

        def claim(channel: ServerChannel) -> None:
            index = channel.offer_params().subchannel_index
            if index < len(other.lanes):
                channel.port_restored(*other.lanes[index].host_rings())

        other.port.at_offer = claim
        other.device = make_device(self.kind, "disk", "vm", other.port, other.options)
        other.device.restore(state)
        other.device.resume()
        return other


def cdb10(opcode: int, lba: int = 0, blocks: int = 0, flags: int = 0) -> bytes:
    """Build a 10-byte command."""
    return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)


def cdb16(opcode: int, lba: int = 0, blocks: int = 0, flags: int = 0) -> bytes:
    """Build a 16-byte command."""
    return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)
