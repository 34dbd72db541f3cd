# SPDX-License-Identifier: MIT
"""What inspection shows of a host with a model guest: the truth, even when the guest lies."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from emulator.kmcl.meter import BUCKETS, Histogram
from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import MAX_RANGES, MAX_UNREAD, inspect
from emulator.machine.metrics import prometheus
from emulator.machine.report import Channel, Host
from emulator.memory import page_view
from emulator.model.guest import PAGE, u32, u64
from emulator.ring import IncomingRing
from tests.model.machine import ModelMachine, OpenChannel, echo_request

DATA_OFFER = struct.pack("<IHH", 0x42525056, 1, 1)
"""How the offer data of a probe's data channel begin."""


class Rig:
    """A host and a machine before it."""

    def __init__(self) -> None:
        self.host = VmbusHost(HostConfig("vm", (DeviceConfig("probe", "probe"),)))
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    async def open_data(self, pages: int = 4) -> OpenChannel:
        return await self.machine.open(self.machine.channel_with(DATA_OFFER), pages)

    def channel(self, opened: OpenChannel) -> Channel:
        (channel,) = inspect(self.host, opened.channel_id).channels
        return channel

    def close(self) -> None:
        self.session.close()
        self.machine.close()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.machine.boot()
    yield rig
    rig.close()


@pytest.mark.asyncio
async def test_the_connection_and_its_messages(rig: Rig) -> None:
    report = inspect(rig.host)
    assert (report.connected, report.running) == (True, True)
    assert (report.version, report.message_vp, report.message_sint) == ("5.3", 0, 2)
    assert report.memory == [(0, 4096 * PAGE)]
    assert report.messages_in == {"INITIATE_CONTACT": 1, "REQUEST_OFFERS": 1}
    assert report.messages_out == {
        "VERSION_RESPONSE": 1,
        "OFFER_CHANNEL": 2,
        "ALL_OFFERS_DELIVERED": 1,
    }
    assert [(c.device, c.role, c.state) for c in report.channels] == [
        ("probe", "data", "closed"),
        ("probe", "control", "closed"),
    ]
    assert all(c.gpadls is None and c.guest_to_host is None for c in report.channels)


@pytest.mark.asyncio
async def test_a_guests_errors_and_unknown_messages_are_counted(rig: Rig) -> None:
    for number in (77, 78, 2**32 - 1):
        rig.machine.guest.post(number)
    rig.machine.guest.teardown(rig.machine.guest.gpadl_begin(1, 1, gpadl_id=5))
    await rig.machine.until(lambda: inspect(rig.host).messages_in.get("GPADL_TEARDOWN") == 1)
    report = inspect(rig.host)
    # A type that does not exist makes no counter of its own, or a guest could make many.
    assert report.messages_in["UNKNOWN"] == 3
    assert report.guest_errors == len(report.last_guest_errors) == 3


@pytest.mark.asyncio
async def test_packets_bytes_doorbells_and_latencies_of_a_channel(rig: Rig) -> None:
    opened = await rig.open_data()
    for number in range(1, 11):
        answer = await rig.machine.ask(opened, echo_request(number))
        assert answer.transaction_id == number
    counters = rig.channel(opened).counters
    # 16 bytes of descriptor, 32 of payload, 8 of trailer, both ways.
    assert (counters.packets_in, counters.bytes_in) == (10, 10 * 56)
    assert (counters.packets_out, counters.bytes_out) == (10, 10 * 56)
    assert counters.doorbells == 10
    assert counters.interrupts == 10
    channel = rig.channel(opened)
    assert channel.doorbell_to_callback.count == channel.request_to_completion.count == 2
    assert channel.doorbell_to_callback.sum_us > 0


@pytest.mark.asyncio
async def test_of_a_batch_only_the_first_request_is_timed(rig: Rig) -> None:
    opened = await rig.open_data()
    await rig.machine.ask(opened, *(echo_request(number) for number in range(1, 11)))
    channel = rig.channel(opened)
    assert channel.counters.packets_in == 10
    assert channel.doorbell_to_callback.count == channel.request_to_completion.count == 1


@pytest.mark.asyncio
async def test_counters_outlive_the_rings(rig: Rig) -> None:
    opened = await rig.open_data()
    await rig.machine.ask(opened, echo_request(1))
    rig.machine.guest.close_channel(opened.channel_id)
    await rig.machine.until(lambda: not rig.machine.doorbells)
    channel = rig.channel(opened)
    assert channel.guest_to_host is None
    assert channel.counters.bytes_in == 56
    again = await rig.open_data()
    await rig.machine.ask(again, echo_request(2))
    assert rig.channel(again).counters.bytes_in == 2 * 56


@pytest.mark.asyncio
async def test_rings_and_gpadls(rig: Rig) -> None:
    opened = await rig.open_data()
    await rig.machine.ask(opened, echo_request(1))
    channel = rig.channel(opened)
    assert channel.open is not None
    assert channel.open.gpadl == opened.gpadl.gpadl_id
    for ring in (channel.guest_to_host, channel.host_to_guest):
        assert ring is not None
        assert (ring.size, ring.in_offset, ring.out_offset, ring.used) == (3 * PAGE, 56, 56, 0)
    assert channel.gpadls is not None
    (gpadl,) = channel.gpadls
    assert (gpadl.phase, gpadl.pages, gpadl.range_count) == ("accepted", 8, 1)
    assert gpadl.ranges[0].first_pfn == opened.gpadl.pfns[0]


@pytest.mark.asyncio
async def test_a_half_received_gpadl_and_one_of_many_ranges(rig: Rig) -> None:
    guest = rig.machine.guest
    half = guest.gpadl_begin(1, 40)
    many = guest.gpadl_begin(
        2, 20, ranges=[u32(PAGE, 0) + u64(pfn) for pfn in guest.free_pages[:20]]
    )
    while many.unsent:
        guest.gpadl_go_on(many)
    await rig.machine.until(lambda: many.state == "created")
    (channel,) = inspect(rig.host, 1).channels
    assert channel.gpadls is not None
    assert (channel.gpadls[0].id, channel.gpadls[0].phase) == (half.gpadl_id, "receiving")
    assert channel.gpadls[0].received_bytes < channel.gpadls[0].announced_bytes == 41 * 8
    (other,) = inspect(rig.host, 2).channels
    assert other.gpadls is not None
    assert (other.gpadls[0].range_count, len(other.gpadls[0].ranges)) == (20, MAX_RANGES)
    assert other.gpadls[0].pages == 20


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "words", [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (3, 8), (3 * PAGE, 0), (8, 3 * PAGE - 8)]
)
async def test_garbage_in_a_control_page_is_shown_and_stays(
    rig: Rig, words: tuple[int, int]
) -> None:
    opened = await rig.open_data()
    for ring in (opened.up, opened.down):
        ring.control[0], ring.control[1] = words
        ring.control[2], ring.control[3] = 0xDEADBEEF, 0xFFFFFFF0
    before = bytes(rig.machine.guest.ram)
    channel = rig.channel(opened)
    assert bytes(rig.machine.guest.ram) == before
    assert channel.guest_to_host is not None
    assert (channel.guest_to_host.in_offset, channel.guest_to_host.out_offset) == words
    assert channel.guest_to_host.interrupt_mask == 0xDEADBEEF
    valid = all(word < 3 * PAGE and not word % 8 for word in words)
    assert channel.guest_to_host.used == ((words[0] - words[1]) % (3 * PAGE) if valid else None)
    # It was looked at, not judged: the channel has its faults from reading, not from this.
    assert channel.faults == []
    prometheus(inspect(rig.host))


@pytest.mark.asyncio
async def test_a_look_does_not_disturb_packets_that_were_not_read(rig: Rig) -> None:
    opened = await rig.open_data()
    assert opened.writer.put(*(echo_request(number) for number in range(1, 6))) is not None
    before = bytes(rig.machine.guest.ram)
    for _ in range(3):
        flight = rig.channel(opened).flight
        assert (flight.unread_requests, flight.unread_is_complete) == (5, True)
    assert bytes(rig.machine.guest.ram) == before
    rig.machine.ring_doorbell(opened.channel_id)
    await rig.machine.ask(opened, echo_request(6))
    assert rig.channel(opened).counters.packets_in == 6


@pytest.mark.asyncio
async def test_no_more_packets_are_looked_at_than_are_worth_it(rig: Rig) -> None:
    opened = await rig.open_data(pages=20)
    packets = [echo_request(number) for number in range(1, MAX_UNREAD + 100)]
    assert opened.writer.put(*packets) is not None
    flight = rig.channel(opened).flight
    assert (flight.unread_requests, flight.unread_is_complete) == (MAX_UNREAD, False)


@pytest.mark.asyncio
async def test_a_channel_that_does_not_exist(rig: Rig) -> None:
    with pytest.raises(KeyError):
        inspect(rig.host, 9)


@pytest.mark.asyncio
async def test_a_report_survives_its_way_as_json(rig: Rig) -> None:
    await rig.open_data()
    report = inspect(rig.host, 1)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Host) == report


@pytest.mark.asyncio
async def test_metrics_are_what_prometheus_reads(rig: Rig) -> None:
    opened = await rig.open_data()
    await rig.machine.ask(opened, echo_request(1))
    text = prometheus(inspect(rig.host))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # HELP and TYPE stand before each family, and every name is ours.
    for name, family in families.items():
        assert name.startswith("vmbus_")
        assert family.documentation
        assert f"# TYPE {name}" in text
        assert family.type in ("counter", "gauge", "histogram")
    received = families["vmbus_channel_received_packets"]
    assert received.type == "counter"
    values = {sample.labels["channel"]: sample.value for sample in received.samples}
    assert values == {"data": 1, "control": 0}
    assert received.samples[0].name == "vmbus_channel_received_packets_total"
    latency = families["vmbus_channel_doorbell_to_callback_seconds"]
    assert latency.type == "histogram"
    data = [sample for sample in latency.samples if sample.labels["channel"] == "data"]
    buckets = [sample for sample in data if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    assert bounds == [2**power / 1e6 for power in range(BUCKETS - 1)] + [float("inf")]
    assert sorted(sample.value for sample in buckets) == [sample.value for sample in buckets]
    assert buckets[-1].value == 1
    (count,) = [sample.value for sample in data if sample.name.endswith("_count")]
    assert count == 1


def test_a_label_is_escaped() -> None:
    name = 'a"b\\c\nd'
    text = prometheus(inspect(VmbusHost(HostConfig(name))))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["vmbus_running"].samples[0].labels == {"vm": name}


@given(st.integers(0, 2**50))
def test_a_duration_is_in_the_bucket_of_its_bound(duration_ns: int) -> None:
    histogram = Histogram()
    histogram.add(duration_ns)
    (bucket,) = [power for power, count in enumerate(histogram.counts) if count]
    if bucket < BUCKETS - 1:
        assert duration_ns <= 1000 * 2**bucket
    if bucket:
        assert duration_ns > 1000 * 2 ** (bucket - 1)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=5, max_size=5))
def test_any_words_in_a_control_page_can_be_looked_at(words: list[int]) -> None:
    memory = bytearray(2 * PAGE)
    ring = IncomingRing(page_view([memoryview(memory)]))
    struct.pack_into("<4I", memory, 0, *words[:4])
    struct.pack_into("<I", memory, 64, words[4])
    before = bytes(memory)
    found = ring.words()
    assert list(found[:5]) == words
    assert found.used is None or found.used < PAGE
    assert bytes(memory) == before
