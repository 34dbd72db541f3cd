# SPDX-License-Identifier: MIT
"""A whole host with a guest that attacks one channel of it, and everybody else who must not notice.

The host has two devices. The guest writes what it likes into the rings of the first one's data
channel, tears down what is in use there, rings when it likes, and is saved and restored meanwhile.
What has to hold: nothing is raised where only the event loop would see it; a stop is answered; a
save is taken by the next host; the second device's channel works to the end, and so does another
machine in the same process; memory that the guest has given nobody is as it was; no descriptor is
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from emulator.devices.probe import ProbeDevice
from emulator.link import Post, Region, Session, Status
from emulator.machine.config import DeviceConfig, HostConfig, Quotas
from emulator.machine.doorbells import DoorbellLoop
from emulator.machine.host import VmbusHost
from emulator.model import guest as g
from emulator.model.guest import PAGE, ModelGuest
from emulator.model.ring import (
    WORD_IN,
    WORD_OUT,
    GuestReader,
    GuestRing,
    GuestWriter,
    build_packet,
    gpa_direct_header,
    transfer_header,
)
from emulator.wire import messages as m
from tests.corefuzz.source import Source

RING_PAGES: Final = 3
RAM_PAGES: Final = 96
GUARDS: Final = 8
_TICKS: Final = 64
"""Turns of the loop after which whatever can happen without the guest has happened."""

_QUOTAS: Final = Quotas(gpadls_per_channel=8, gpadl_pages=64, packets_in_flight=16)
_ATTACKED: Final = HostConfig(
    "attacked", (DeviceConfig("first", "probe"), DeviceConfig("second", "probe")), quotas=_QUOTAS
)
_BYSTANDER: Final = HostConfig("bystander", (DeviceConfig("only", "probe"),))

_WORDS: Final = (0, 1, 2, 3, 16)
_VALUES: Final = (0, 8, 16, 24, 32, 40, 2048, 4088, 8184, 4, 8192, 0xFFFF_FFF8)
_GPADLS: Final = (0xBAD0, 0xBAD1, 0xBAD2)
_OUTSIDE: Final = (RAM_PAGES, RAM_PAGES + 1, 0xF_FFFF, (1 << 52) - 1, (1 << 64) - 1)
_MAGIC: Final = 0x31425250


class _FakeSession:
    """What the host uses of a session; the frontend behind it does at once what it is asked."""

    vcpus = 2
    posts: tuple[Post, ...] = ()

    def __init__(self) -> None:
        self.deliver: Callable[[Post], None] = lambda _: None
        self.doorbells: dict[int, int] = {}
        self.interrupts: dict[int, int] = {}

    def post(self, post: Post) -> None:
        self.deliver(post)

    def credit(self, count: int = 1) -> None:
        pass

    def add_doorbell(
        self, connection_id: int, eventfd: int, done: Callable[[Status], None]
    ) -> None:
        assert connection_id not in self.doorbells
        self.doorbells[connection_id] = eventfd
        done(Status.DONE)

    def del_doorbell(self, connection_id: int) -> None:
        del self.doorbells[connection_id]

    def add_interrupt(self, ident: int, vp_index: int, sint: int, flag: int, eventfd: int) -> None:
        self.interrupts[ident] = eventfd

    def del_interrupt(self, ident: int) -> None:
        self.interrupts.pop(ident, None)

    def refresh_memory(self) -> bool:
        return False


class _Channel:
    """The guest's ends of an open channel."""

    def __init__(self, machine: _Machine, channel_id: int, gpadl: g.GuestGpadl) -> None:
        self.channel_id = channel_id
        self.gpadl = gpadl
        self.connection_id = machine.guest.channels[channel_id].offer["connection_id"]
        half = RING_PAGES
        self.up, self.down = (
            GuestRing([machine.page(pfn) for pfn in gpadl.pfns[at : at + half]]) for at in (0, half)
        )
        self.up.initialise()
        self.down.initialise()


class _Machine:
    """One VM: its host, its guest, and no socket between them."""

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.guest = ModelGuest(self._posted, pages=RAM_PAGES)
        self.ram = memoryview(self.guest.ram)
        self.lenient = False
        self._start()
        self.host.resumed()
        self.guest.connect()
        self.guards = self.guest.allocate(GUARDS)
        for pfn in self.guards:
            self.page(pfn)[:] = b"\xa5" * PAGE

    def _start(self) -> None:
        self.session = _FakeSession()
        self.session.deliver = self._delivered
        self.host = VmbusHost(self.config)
        self.host.attach(cast(Session, self.session))
        region = Region(gpa=0, size=RAM_PAGES * PAGE, fd_offset=0)
        self.host.memory_changed((region,), [self.guest.ram_fd])

    def _posted(self, connection_id: int, payload: bytes) -> None:
        self.host.guest_message(connection_id, 0, payload)

    def _delivered(self, post: Post) -> None:
        # The model guest minds the rules of what it did; of an attack it can only mind the form.
        assert not m.parse_host(post.payload).FROM_GUEST
        if not self.lenient:
            self.guest.deliver(post.vp_index, post.sint, post.payload)

    def page(self, pfn: int) -> memoryview:
        return self.ram[pfn * PAGE : (pfn + 1) * PAGE]

    def data_channel(self, name: str) -> int:
        """Return the id of a device's channel for data."""
        instance = self.device(name).instance_guid("data").bytes_le
        return next(
            number
            for number, channel in self.guest.channels.items()
            if channel.offer.raw("instance_id") == instance
        )

    def device(self, name: str) -> ProbeDevice:
        device = self.host.devices[name]
        assert isinstance(device, ProbeDevice)
        return device

    def open(self, name: str) -> _Channel:
        number = self.data_channel(name)
        gpadl = self.guest.make_gpadl(number, 2 * RING_PAGES)
        channel = _Channel(self, number, gpadl)
        self.guest.open_channel(number, gpadl.gpadl_id, split=RING_PAGES)
        assert self.guest.channels[number].is_open
        return channel

    def ring(self, channel: _Channel) -> None:
        eventfd = self.session.doorbells.get(channel.connection_id)
        if eventfd is not None:
            os.eventfd_write(eventfd, 1)

    async def echo(self, channel: _Channel, number: int) -> None:
        """Have the device answer one request; raises AssertionError if it does not."""
        payload = struct.pack("<IHHQIIQ", _MAGIC, 6, 0, number, 0, 0, 0)
        request = build_packet(6, number, payload, flags=1)
        assert GuestWriter(channel.up).put(request) is not None
        self.ring(channel)
        reader = GuestReader(channel.down)
        for _ in range(_TICKS):
            await asyncio.sleep(0)
            if (taken := reader.take()) is not None:
                break
        else:
            raise AssertionError(f"{self.config.vm}: no answer to request {number}")
        assert (taken[0].type, taken[0].transaction_id) == (11, number)
        assert taken[0].payload == payload

    async def stop(self) -> None:
        stopped: list[bool] = []
        self.host.stopping(lambda: stopped.append(True))
        for _ in range(_TICKS):
            if stopped:
                return
            await asyncio.sleep(0)
        raise AssertionError("the stop is not answered")

    async def renew(self) -> None:
        """Stop, save, and go on with the state in a new host."""
        await self.stop()
        state = self.host.save()
        self.host.connection_lost(None)
        self._start()
        self.host.load(state)
        self.host.loaded()
        self.host.resumed()

    def close(self) -> None:
        for pfn in self.guards:
            assert self.page(pfn) == b"\xa5" * PAGE, "the host wrote to a page that was not its"
        self.host.connection_lost(None)
        os.close(self.guest.ram_fd)


class _Attack:
    """What a hostile guest does to one channel of its own."""

    def __init__(self, machine: _Machine, source: Source) -> None:
        self.machine = machine
        self.source = source
        self.target = machine.open("first")
        self.buffers = machine.guest.allocate(4)
        self.spare = machine.guest.allocate(2 * RING_PAGES)
        self.seq = 0

    async def step(self) -> None:
        source = self.source
        match source.below(16):
            case 0 | 1 | 2:
                ring = source.choice((self.target.up, self.target.down))
                ring.control[source.choice(_WORDS)] = source.word(_VALUES) & 0xFFFF_FFFF
            case 3:
                ring = source.choice((self.target.up, self.target.down))
                ring.put(source.number(2) % ring.size, source.take(source.below(64)))
            case 4 | 5 | 6:
                self._send(self._packet())
            case 7:
                self._read()
            case 8 | 9:
                self.machine.ring(self.target)
            case 10 | 11:
                self._say()
            case 12:
                self._reopen()
            case 13:
                self._talk()
            case 14:
                for _ in range(1 + source.below(8)):
                    await asyncio.sleep(0)
            case _:
                await self.machine.renew()

    def _packet(self) -> bytes:
        source = self.source
        kind = source.word((6, 9, 11, 9, 7, 10), 2) & 0xFFFF
        self.seq += 1
        number = source.word((self.seq, self.seq, 1, 2, 0), 8)
        size = source.below(200)
        probe = source.word((1, 6, 1, 2), 2) & 0xFFFF
        payload = struct.pack(
            "<IHHQIIQ", _MAGIC, probe, source.below(4), self.seq, size, source.number(4), 0
        )
        header = b""
        if kind == 9:
            header = gpa_direct_header(
                *(self._range(size) for _ in range(source.word((1, 1, 2, 0), 1) % 4)),
                count=source.word((1, 1, 2, 0xFFFF_FFFF)) & 0xFFFF_FFFF,
            )
        elif kind == 7:
            header = transfer_header(source.number(2), (size, source.number(4)))
        return build_packet(
            kind,
            number & ((1 << 64) - 1),
            payload + bytes(size),
            header=header,
            flags=source.word((1, 1, 0, 3), 2) & 0xFFFF,
            length8=source.choice((None, None, None, 2, 0xFFFF)),
        )

    def _range(self, size: int) -> tuple[int, int, list[int]]:
        source = self.source
        pfns = [
            source.choice(_OUTSIDE) if source.below(4) == 3 else source.choice(self.buffers)
            for _ in range(1 + source.below(3))
        ]
        length = source.word((size, size, PAGE, 0)) & 0xFFFF_FFFF
        return length, source.word((0, 0, 4095, 8, PAGE)) & 0xFFFF_FFFF, pfns

    def _send(self, packet: bytes) -> None:
        writer = GuestWriter(self.target.up)
        writer.position %= writer.ring.size
        if writer.put(packet) and self.source.below(4):
            self.machine.ring(self.target)

    def _read(self) -> None:
        """Take a packet, if there is one, and complete it: as asked, or another one, or twice."""
        down = self.target.down
        if down.control[WORD_IN] >= down.size or down.control[WORD_OUT] >= down.size:
            return
        reader = GuestReader(down)
        length8 = struct.unpack("<HHH", down.get(reader.position, 6))[2]
        if not 2 <= length8 <= 600 or (taken := reader.take()) is None:
            return
        number = self.source.word((taken[0].transaction_id, taken[0].transaction_id, 1), 8)
        answer = build_packet(11, number & ((1 << 64) - 1), taken[0].payload[:64])
        for _ in range(1 + (self.source.below(4) == 3)):
            self._send(answer)

    def _say(self) -> None:
        """A message of the guest about the channel that it attacks, or about none."""
        source = self.source
        number = self.target.channel_id
        gpadl = source.choice((*_GPADLS, self.target.gpadl.gpadl_id))
        match source.below(8):
            case 0:
                kind, body = g.CLOSE_CHANNEL, g.u32(number)
            case 1:
                kind, body = g.GPADL_TEARDOWN, g.u32(number, gpadl)
            case 2:
                split = source.word((RING_PAGES, 1, 0, 2 * RING_PAGES))
                words = g.u32(number, source.number(2), gpadl, source.below(3), split & 0xFFFF_FFFF)
                kind, body = g.OPEN_CHANNEL, words + bytes(120)
            case 3 | 4:
                pfns = self.spare if source.below(4) else [source.choice(_OUTSIDE)] * 6
                data = g.u32(len(pfns) * PAGE, source.word((0, 0, 8)) & 0xFFFF_FFFF) + g.u64(*pfns)
                size = source.word((len(data), len(data), 8), 2) & 0xFFFF
                kind = g.GPADL_HEADER
                body = g.u32(number, source.choice(_GPADLS)) + g.u16(size, 1) + data
            case 5:
                kind = g.GPADL_BODY
                body = g.u32(0, source.choice(_GPADLS)) + g.u64(*self.spare[: source.below(6)])
            case 6:
                kind, body = g.MODIFY_CHANNEL, g.u32(number, source.word((0, 1, 7)) & 0xFFFF_FFFF)
            case _:
                # Numbers that nobody has given a meaning.
                kind, body = 40 + source.below(256), source.take(source.below(200))
        self.machine.lenient = True
        self.machine.guest.post(kind, body)

    def _reopen(self) -> None:
        """Close, and open again with rings as they should be, so that the attack can go on."""
        self.machine.lenient = True
        guest = self.machine.guest
        guest.close_channel(self.target.channel_id)
        self.target.up.initialise()
        self.target.down.initialise()
        guest.open_channel(self.target.channel_id, self.target.gpadl.gpadl_id, split=RING_PAGES)

    def _talk(self) -> None:
        """Have the device send packets of its own, as after the command to run."""
        device: Any = self.machine.device("first")
        device._talking = True
        device._talk()


async def _run(source: Source, bystander: tuple[_Machine, _Channel]) -> None:
    machine = _Machine(_ATTACKED)
    second = machine.open("second")
    attack = _Attack(machine, source)
    number = 0
    try:
        while source.more:
            await attack.step()
            if source.below(8) == 7:
                number += 1
                await machine.echo(second, number)
        await machine.echo(second, number + 1)
        await bystander[0].echo(bystander[1], number + 1)
        await machine.renew()
        await machine.echo(second, number + 2)
        await machine.stop()
    finally:
        machine.close()
        for _ in range(2):
            await asyncio.sleep(0)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """A host logs what it is told of; here that is most of what happens."""
    logger = logging.getLogger("emulator")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Place:
    """What all runs share: an event loop, and a machine that nobody attacks."""

    def __init__(self) -> None:
        self.loop = DoorbellLoop()
        self.raised: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.raised.append(context))
        with _silence():
            self.bystander = self.loop.run_until_complete(self._boot())

    async def _boot(self) -> tuple[_Machine, _Channel]:
        machine = _Machine(_BYSTANDER)
        return machine, machine.open("only")

    def run(self, source: Source) -> None:
        before = _eventfds()
        with _silence():
            self.loop.run_until_complete(_run(source, self.bystander))
        raised, self.raised = self.raised, []
        for context in raised:
            error = context.get("exception")
            raise AssertionError(context["message"]) from error
        assert _eventfds() == before, "eventfds are left"


def _eventfds() -> int:
    """Count them: the kernel has a list."""
    count = 0
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            # The descriptor of the scan itself is gone again.
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(entry.path) == "anon_inode:[eventfd]"
    return count


_PLACES: dict[int, _Place] = {}


def whole(data: bytes) -> None:
    """Attack one channel of a host; raises AssertionError, or what must never be raised."""
    place = _PLACES.get(os.getpid())
    if place is None:
        place = _PLACES[os.getpid()] = _Place()
    place.run(Source(data))
