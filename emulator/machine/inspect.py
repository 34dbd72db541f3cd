# SPDX-License-Identifier: MIT
"""Looks at a running VMBus host, and changes nothing.

Guest memory is hostile, and so is what is read here: words of a control page are loaded once and
shown as they are, packets that were not read yet are looked at in copies, and only so many of them.
What a guest can make large (GPADLs, faults, texts) is cut to a bound, so that neither the loop nor
the reader of a report waits for it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from emulator.bus import BusHost
from emulator.bus.channel import Channel
from emulator.bus.gpadl import Gpadl, GpadlPhase
from emulator.kmcl import OutgoingPacket, ServerChannel
from emulator.kmcl.meter import Histogram
from emulator.machine import report as r
from emulator.ring import RingCorrupt
from emulator.ring.control import RingEnd
from emulator.wire.message import MessageType
from emulator.wire.packet import PacketType

if TYPE_CHECKING:
    from emulator.machine.host import VmbusHost

MAX_UNREAD: Final = 1024
"""Unread packets that are looked at in one ring: some milliseconds of work."""
MAX_RANGES: Final = 16
MAX_FAULTS: Final = 8
MAX_TEXT: Final = 200
_UNKNOWN: Final = "UNKNOWN"
_STARTED: Final = time.monotonic()


class MessageMeter:
    """Counts channel messages by type, and what the guest did wrong."""

    def __init__(self) -> None:
        """Start at zero."""
        self.received: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.guest_errors = 0

    def guest_message(self, payload: bytes) -> None:
        """Count a message of the guest."""
        self.received[_type_name(payload)] += 1

    def host_message(self, payload: bytes) -> None:
        """Count a message to the guest."""
        self.sent[_type_name(payload)] += 1


def _type_name(payload: bytes) -> str:
    number = int.from_bytes(payload[:4], "little")
    return _TYPE_NAMES.get(number, _UNKNOWN)


_TYPE_NAMES: Final[dict[int, str]] = {kind.value: kind.name for kind in MessageType}


def inspect(host: VmbusHost, channel_id: int | None = None) -> r.Host:
    """Report on ``host``; on one channel only, and its GPADLs, if its id is given.

    Raises KeyError for an id that no channel has.
    """
    bus = host.bus
    owners = {
        channel: (device.name, role)
        for device in host.devices.values()
        for role, channel in device.channels.items()
    }
    channels = []
    for channel in bus.table:
        server = host.server_channel(channel.offer.key)
        if server is not None and channel_id in (None, channel.channel_id):
            channels.append(
                _channel(bus, channel, server, owners.get(server), channel_id is not None)
            )
    if channel_id is not None and not channels:
        raise KeyError(channel_id)
    contact = bus.contact if bus.version is not None else None
    return r.Host(
        vm=host.config.vm,
        pid=os.getpid(),
        uptime_seconds=round(time.monotonic() - _STARTED, 3),
        connected=host.connected,
        running=host.running,
        version=str(contact.version) if contact is not None else "",
        features=[flag.name for flag in contact.features if flag.name] if contact else [],
        message_vp=contact.vp if contact is not None else None,
        message_sint=contact.sint if contact is not None else None,
        memory=host.memory_regions(),
        channels=channels,
        gpadl_pages=bus.sharing.table.pages,
        messages_in=dict(host.messages.received),
        messages_out=dict(host.messages.sent),
        posts_waiting=host.posts_waiting,
        messages_held=host.messages_held,
        guest_errors=host.messages.guest_errors,
        last_guest_errors=[text[:MAX_TEXT] for text in host.guest_errors],
        peak_private_kib=peak_private_kib(),
        quotas=msgspec.structs.asdict(host.config.quotas),
    )


def _channel(
    bus: BusHost,
    channel: Channel,
    server: ServerChannel,
    owner: tuple[str, str] | None,
    with_gpadls: bool,
) -> r.Channel:
    traffic, meter = server.traffic, server.traffic.meter
    gpadls = bus.sharing.table.of(channel.channel_id)
    bytes_in, bytes_out = traffic.bytes_moved
    device, role = owner or ("", server.friendly_name)
    return r.Channel(
        id=channel.channel_id,
        device=device,
        role=role,
        interface=str(channel.offer.key.interface),
        instance=str(channel.offer.key.instance),
        subchannel=channel.offer.key.subchannel_index,
        state=channel.state.value,
        connection=server.connection.value,
        run=server.run.value,
        queue=server.queue.value,
        hold=traffic.hold.value if traffic.hold is not None else "",
        faults=[fault.text[:MAX_TEXT] for fault in server.faults[:MAX_FAULTS]],
        open=_open(channel),
        gpadl_count=len(gpadls),
        gpadl_pages=sum(gpadl.pages for gpadl in gpadls),
        gpadls=[_gpadl(gpadl) for gpadl in gpadls] if with_gpadls else None,
        guest_to_host=_ring(traffic.incoming_ring),
        host_to_guest=_ring(traffic.outgoing_ring),
        flight=_flight(server),
        transaction_quota=traffic.quota,
        counters=r.Counters(
            doorbells=meter.doorbells,
            interrupts=meter.interrupts,
            packets_in=meter.packets_in,
            packets_out=meter.packets_out,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        ),
        doorbell_to_callback=_latency(meter.callback),
        request_to_completion=_latency(meter.completion),
    )


def _open(channel: Channel) -> r.Open | None:
    if channel.open is None:
        return None
    params = channel.open.params
    return r.Open(
        open_id=params.open_id,
        gpadl=channel.open.gpadl_id,
        target_vp=params.target_vp,
        target_sint=params.target_sint,
        event_flag=params.event_flag,
        connection_id=params.connection_id,
        downstream_page_offset=params.downstream_page_offset,
        monitor_id=params.monitor_id,
    )


def _gpadl(gpadl: Gpadl) -> r.Gpadl:
    return r.Gpadl(
        id=gpadl.gpadl_id,
        phase=gpadl.phase.value,
        pages=gpadl.pages
        if gpadl.phase is GpadlPhase.RECEIVING
        else sum(len(gpa_range.pfns) for gpa_range in gpadl.ranges),
        received_bytes=len(gpadl.data),
        announced_bytes=gpadl.length,
        range_count=gpadl.count,
        ranges=[
            r.Range(gpa_range.pfns[0], len(gpa_range.pfns), gpa_range.offset, gpa_range.length)
            for gpa_range in gpadl.ranges[:MAX_RANGES]
        ],
    )


def _ring(ring: RingEnd | None) -> r.Ring | None:
    if ring is None:
        return None
    words = ring.words()
    return r.Ring(
        size=ring.size,
        in_offset=words.in_offset,
        out_offset=words.out_offset,
        used=words.used,
        interrupt_mask=words.interrupt_mask,
        pending_send_size=words.pending_send_size,
        feature_bits=words.feature_bits,
    )


def _flight(server: ServerChannel) -> r.Flight:
    traffic = server.traffic
    completions = requests = 0
    complete = True
    try:
        for is_completion in islice(_unread(server), MAX_UNREAD):
            completions += is_completion
            requests += not is_completion
        complete = completions + requests < MAX_UNREAD
    except RingCorrupt:
        complete = False
    packets = sum(isinstance(item, OutgoingPacket) for item in traffic.queue)
    return r.Flight(
        held=len(traffic.held),
        unread_requests=requests,
        unread_completions=completions,
        unread_is_complete=complete,
        queued_packets=packets,
        queued_completions=len(traffic.queue) - packets,
        awaiting_completion=len(traffic.in_ring()),
    )


def _unread(server: ServerChannel) -> Iterator[bool]:
    ring = server.traffic.incoming_ring
    if ring is not None:
        for summary in ring.scan():
            yield summary.type is PacketType.COMPLETION


def _latency(histogram: Histogram) -> r.Latency:
    return r.Latency(list(histogram.counts), round(histogram.sum_ns / 1000, 3))


def peak_private_kib() -> int:
    """Return the process's peak memory beside guest RAM, in KiB (proc(5): VmHWM less RssShmem)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) - int(fields["RssShmem"].split()[0])
