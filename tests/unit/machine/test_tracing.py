# SPDX-License-Identifier: MIT
"""The trace of a host with a model guest: what passes is what is recorded, and nothing waits."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.tracing import MAX_FEEDS, TooManyTraces
from emulator.trace.decode import Decoded, decode
from emulator.trace.feed import Feed, Wanted
from emulator.trace.pcapng import Captured, Reader
from emulator.trace.record import Direction, Event, Flags, Kind, Record
from emulator.wire.version import Version
from tests.model import frontend as fe
from tests.model.machine import ModelMachine, OpenChannel, echo_request
from tests.unit.machine.test_inspect import DATA_OFFER

pytestmark = pytest.mark.asyncio


class Rig:
    """A host and a machine before it, and a trace of them from the start."""

    def __init__(self, wanted: Wanted) -> None:
        self.host = VmbusHost(HostConfig("vm", (DeviceConfig("probe", "probe"),)))
        self.feed = self.host.tracing.subscribe(wanted)
        self.reader = Reader()
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    async def open_data(self) -> OpenChannel:
        return await self.machine.open(self.machine.channel_with(DATA_OFFER))

    def records(self, feed: Feed | None = None, reader: Reader | None = None) -> list[Record]:
        feed, reader = feed or self.feed, reader or self.reader
        found: list[Record] = []
        while chunk := feed.take(1 << 16):
            for item in reader.feed(chunk):
                if isinstance(item, Captured):
                    found.append(Record.parse(item.data))
        return found

    def close(self) -> None:
        self.session.close()
        self.machine.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig(Wanted(packets=True))
    yield rig
    rig.close()


def names(records: list[Record], kind: Kind = Kind.MESSAGE) -> list[str]:
    return [decode(record).name for record in records if record.kind is kind]


def packets(records: list[Record]) -> list[tuple[Direction, Decoded]]:
    return [(r.direction, decode(r)) for r in records if r.kind is Kind.PACKET]


async def test_a_boot_from_the_first_message(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    records = rig.records()
    assert names(records) == [
        "INITIATE_CONTACT",
        "VERSION_RESPONSE",
        "REQUEST_OFFERS",
        "OFFER_CHANNEL",
        "OFFER_CHANNEL",
        "ALL_OFFERS_DELIVERED",
        "GPADL_HEADER",
        "GPADL_CREATED",
        "OPEN_CHANNEL",
        "OPEN_RESULT",
    ]
    assert all(not decode(record).problem for record in records)
    contact, answer = [r for r in records if r.kind is Kind.MESSAGE][:2]
    # What the guest asked for is decoded by what was in force when it did: nothing.
    assert (contact.direction, contact.bus_version, contact.vp) == (Direction.FROM_GUEST, 0, 0)
    assert contact.connection_id in (1, 4)
    assert (answer.direction, answer.sint) == (Direction.TO_GUEST, 2)
    assert answer.bus_version == Version.IRON
    assert contact.vm == "vm"
    events = [(r.event, decode(r).fields["text"]) for r in records if r.kind is Kind.EVENT]
    assert (Event.QEMU_CONNECTED, "") in events
    assert (Event.BUS_CONNECTED, "VMBus 5.3") in events
    assert (Event.CHANNEL_OPENED, "probe/data") in events
    order = [r.event if r.kind is Kind.EVENT else decode(r).name for r in records]
    opening = order.index(Event.CHANNEL_OPENED)
    assert order[opening - 1] == "OPEN_CHANNEL"
    assert records[opening].channel_id == opened.channel_id


async def test_packets_both_ways_with_their_bytes(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    rig.records()
    request = echo_request(0x77)
    answer = await rig.machine.ask(opened, request)
    records = rig.records()
    (first, out), (second, back) = packets(records)
    assert (first, second) == (Direction.FROM_GUEST, Direction.TO_GUEST)
    assert records[0].body == request
    assert out.name == "IN_BAND"
    assert out.fields["transaction_id"] == back.fields["transaction_id"] == 0x77
    assert back.name == "COMPLETION"
    assert back.fields["payload"] == answer.body
    for record, offset in zip(records, (0, 0), strict=True):
        assert (record.channel_id, record.ring_offset) == (opened.channel_id, offset)
        assert record.connection_id == 0x2000 + opened.channel_id


async def test_a_trace_in_the_middle_is_told_how_things_stand(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    late = rig.host.tracing.subscribe(Wanted(packets=True, channel=opened.channel_id))
    elsewhere = rig.host.tracing.subscribe(Wanted(packets=True, channel=opened.channel_id + 1))
    messages = rig.host.tracing.subscribe(Wanted())
    await rig.machine.ask(opened, echo_request(1))
    records = rig.records(late, Reader())
    connection, *channels = [r for r in records if r.kind is Kind.EVENT]
    assert connection.event is Event.CONNECTION
    assert decode(connection).fields["text"] == "QEMU connected, guest VMBus 5.3"
    assert {r.event for r in channels} == {Event.CHANNEL}
    assert [decode(r).fields["text"] for r in channels] == [
        "probe/data open",
        "probe/control closed",
    ]
    offers = rig.machine.guest.channels
    assert decode(channels[0]).fields["instance_id"].bytes_le == offers[
        opened.channel_id
    ].offer.raw("instance_id")
    assert len(packets(records)) == 2
    for feed in (elsewhere, messages):
        assert packets(rig.records(feed, Reader())) == []


async def test_rings_have_taps_only_while_somebody_wants_their_packets(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    assert len(packets(rig.records())) == 0
    await rig.machine.ask(opened, echo_request(1))
    assert len(packets(rig.records())) == 2
    (key,) = [c.offer.key for c in rig.host.bus.table if c.channel_id == opened.channel_id]
    server = rig.host.server_channel(key)
    assert server is not None
    rings = server.traffic.incoming_ring, server.traffic.outgoing_ring
    assert all(ring is not None and ring._tap is not None for ring in rings)
    quiet = rig.host.tracing.subscribe(Wanted())
    rig.host.tracing.unsubscribe(rig.feed)
    assert all(ring is not None and ring._tap is None for ring in rings)
    # And C moves the packets again, which it does not under a tap.
    assert all(ring is not None and ring._plain is not None for ring in rings)
    await rig.machine.ask(opened, echo_request(2))
    assert packets(rig.records()) == []
    rig.host.tracing.unsubscribe(quiet)


async def test_a_slow_reader_costs_records_not_memory(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    rig.feed._bound = 4000
    for number in range(1, 60):
        await rig.machine.ask(opened, echo_request(number))
    assert rig.feed.waiting < 5000
    assert rig.feed.dropped > 50
    # The conversation was not disturbed: each request had its answer.
    assert rig.feed.received >= 2 * 59
    rig.feed._bound = 1 << 20
    rig.records()
    await rig.machine.ask(opened, echo_request(60))
    note, *rest = rig.records()
    assert note.kind is Kind.NOTE
    assert f"{rig.feed.dropped} records were dropped".encode() in note.body
    assert len(packets(rest)) == 2


async def test_what_the_host_refuses_is_seen(rig: Rig) -> None:
    await rig.machine.boot()
    opened = await rig.open_data()
    rig.records()
    bad = struct.pack("<HHHHQ", 8, 2, 3, 0, 5) + bytes(8)
    assert opened.writer.put(bad) is not None
    rig.machine.ring_doorbell(opened.channel_id)
    rig.machine.frontend.guest_message(struct.pack("<II", 99, 0))
    records: list[Record] = []
    while not {Event.GUEST_ERROR} <= {r.event for r in records} or not packets(records):
        await asyncio.sleep(0)
        records += rig.records()
    refused = [r for r in records if r.flags & Flags.MALFORMED]
    assert [r.body for r in refused] == [bad[:16]]
    assert "type 99" in decode(next(r for r in records if r.kind is Kind.MESSAGE)).problem
    (error,) = [r for r in records if r.event is Event.GUEST_ERROR]
    assert "99" in decode(error).fields["text"]


async def test_stop_save_restore_and_the_end(rig: Rig) -> None:
    await rig.machine.boot()
    await rig.open_data()
    rig.records()
    await rig.machine.frontend.stop()
    status, state, _ = await rig.machine.frontend.save()
    assert status == 0
    events = [r.event for r in rig.records()]
    assert events == [Event.STOPPED, Event.SAVED]
    other = Rig(Wanted())
    other.records()
    await other.machine.frontend.handshake()
    assert await other.machine.frontend.load(state) == (0, "")
    assert Event.RESTORED in [r.event for r in other.records()]
    rig.machine.frontend.reset()
    rig.session.close()
    rig.host.connection_lost(None)
    events = [r.event for r in rig.records() if r.kind is Kind.EVENT]
    assert Event.QEMU_GONE in events
    assert Event.RESET in events
    assert Event.BUS_DISCONNECTED in events
    assert Event.CHANNEL_CLOSED in events
    other.close()


async def test_posts_that_are_sent_again_after_a_restore_are_marked() -> None:
    first = Rig(Wanted())
    first.machine.frontend.post_window = 1
    await first.machine.frontend.handshake()
    first.machine.frontend.send(fe.RESUME)
    first.machine.guest.contact(0x50003)
    first.machine.guest.request_offers()
    for _ in range(2):
        while (await first.machine.frontend.read()).type != fe.GUEST_MESSAGE_DONE:
            pass
    await first.machine.frontend.stop()
    _, state, _ = await first.machine.frontend.save()
    second = Rig(Wanted())
    await second.machine.frontend.handshake()
    await second.machine.frontend.load(state)
    again = [r for r in second.records() if r.kind is Kind.MESSAGE]
    assert names(again)[0] == "VERSION_RESPONSE"
    assert all(r.flags is Flags.RESENT for r in again)
    first.close()
    second.close()


async def test_only_so_many_traces_at_a_time(rig: Rig) -> None:
    more = [rig.host.tracing.subscribe(Wanted()) for _ in range(MAX_FEEDS - 1)]
    with pytest.raises(TooManyTraces, match="vm is traced 8 times"):
        rig.host.tracing.subscribe(Wanted())
    rig.host.tracing.unsubscribe(more[0])
    rig.host.tracing.subscribe(Wanted())
    rig.host.tracing.close()
    assert all(feed.closed for feed in more)
    assert rig.feed.closed
