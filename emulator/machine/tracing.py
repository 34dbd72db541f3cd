# SPDX-License-Identifier: MIT
"""The trace of one VM: what the host sees and does, as records for each reader that wants them.

The host tells it of messages, events and new rings. With no reader each of that is one look at an
empty list; packets are not even seen, because no ring has a tap unless somebody wants its packets.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, assert_never
from uuid import UUID

from emulator.bus import (
    BusConnected,
    BusDisconnected,
    ChannelClosing,
    ChannelMoved,
    ChannelOpening,
    ChannelReleased,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    GuestError,
    OfferKey,
    OpenParams,
    SendMessage,
    SubchannelOrphaned,
)
from emulator.ring import IncomingRing, OutgoingRing
from emulator.trace.feed import Feed, Wanted
from emulator.trace.record import (
    NO_OFFSET,
    NO_SINT,
    NO_VP,
    Direction,
    Event,
    Flags,
    Kind,
    event_body,
    pack_header,
    padded_name,
)

if TYPE_CHECKING:
    from emulator.machine.host import VmbusHost

MAX_FEEDS: Final = 8
"""Readers at a time: each may have some megabytes waiting."""
_MAX_TEXT: Final = 512


class TooManyTraces(Exception):
    """No further reader is taken; the text is for the user."""


class Tracing:
    """Makes records of what its host tells, for the readers that there are."""

    def __init__(self, host: VmbusHost) -> None:
        """Make it without a reader."""
        self._host = host
        self._name = padded_name(host.config.vm)
        self._feeds: list[Feed] = []
        self.senders: set[asyncio.Task[Any]] = set()
        """Tasks that send traces over control connections; each ends soon after its trace."""

    # Readers.

    def subscribe(self, wanted: Wanted) -> Feed:
        """Begin a trace; its first records tell how things stand.

        Raises :class:`TooManyTraces`.
        """
        if len(self._feeds) >= MAX_FEEDS:
            raise TooManyTraces(
                f"{self._host.config.vm} is traced {MAX_FEEDS} times already; end another trace"
            )
        feed = Feed(self._host.config.vm, wanted)
        self._feeds.append(feed)
        self._tell_state(feed)
        self._set_taps()
        return feed

    def unsubscribe(self, feed: Feed) -> None:
        """End a trace: what waits can still be taken. Idempotent."""
        feed.close(time.time_ns())
        if feed in self._feeds:
            self._feeds.remove(feed)
            self._set_taps()

    def close(self) -> None:
        """End all traces."""
        for feed in list(self._feeds):
            self.unsubscribe(feed)

    def _tell_state(self, feed: Feed) -> None:
        host = self._host
        version = host.bus.version
        guest = f"VMBus {version}" if version is not None else "not connected"
        text = f"QEMU {'connected' if host.connected else 'not connected'}, guest {guest}"
        self._event([feed], Event.CONNECTION, text)
        for channel in host.bus.table:
            self._event(
                [feed],
                Event.CHANNEL,
                f"{self._owner(channel.offer.key)} {channel.state.value}".strip(),
                key=channel.offer.key,
                channel_id=channel.channel_id,
                connection_id=channel.open.params.connection_id if channel.open else 0,
            )

    def _owner(self, key: OfferKey) -> str:
        """Name the device and the role of a channel."""
        server = self._host.server_channel(key)
        for device in self._host.devices.values():
            for role, channel in device.channels.items():
                if channel is server:
                    return f"{device.name}/{role}"
        return ""

    # What the host tells.

    def guest_message(self, connection_id: int, vp_index: int, payload: bytes) -> None:
        """Record a message of the guest as it arrives, whether or not it is heard at once."""
        if self._feeds:
            self._put(
                self._feeds,
                self._header(
                    Kind.MESSAGE, Direction.FROM_GUEST, vp=vp_index, connection_id=connection_id
                ),
                payload,
                Direction.FROM_GUEST,
            )

    def host_message(self, vp: int, sint: int, payload: bytes, *, resent: bool = False) -> None:
        """Record a message that is given to QEMU for the SIM page of ``vp``."""
        if self._feeds:
            flags = Flags.RESENT if resent else Flags.NONE
            self._put(
                self._feeds,
                self._header(Kind.MESSAGE, Direction.TO_GUEST, flags=flags, vp=vp, sint=sint),
                payload,
                Direction.TO_GUEST,
            )

    def event(self, event: Event, text: str = "") -> None:
        """Record what happened to the machine or to the connection to QEMU."""
        if self._feeds:
            self._event(self._feeds, event, text)

    def effect(self, effect: Effect) -> None:
        """Record what happens on the bus, as far as no message tells it."""
        if not self._feeds:
            return
        match effect:
            case ChannelOpening():
                self._channel_event(Event.CHANNEL_OPENED, effect.key, effect.params)
            case ChannelClosing():
                self._channel_event(Event.CHANNEL_CLOSED, effect.key)
            case BusConnected():
                self._event(self._feeds, Event.BUS_CONNECTED, f"VMBus {effect.version}")
            case BusDisconnected():
                self._event(self._feeds, Event.BUS_DISCONNECTED, effect.reason)
            case GuestError():
                self._event(self._feeds, Event.GUEST_ERROR, effect.text)
            case (
                SendMessage()
                | ChannelMoved()
                | ChannelReleased()
                | GpadlCreated()
                | GpadlTearingDown()
                | SubchannelOrphaned()
            ):
                # A message says it: one that was recorded, or that will be when it is sent.
                pass
            case _:
                assert_never(effect)

    def rings_made(
        self, key: OfferKey, params: OpenParams, incoming: IncomingRing, outgoing: OutgoingRing
    ) -> None:
        """Look at the packets of a channel that opens, if somebody wants them."""
        if any(feed.wanted.wants(params.channel_id) for feed in self._feeds):
            self._tap(key, params, incoming, outgoing)

    # Packets.

    def _set_taps(self) -> None:
        """Have taps on the rings whose packets are wanted, and on no other."""
        for channel in self._host.bus.table:
            server = self._host.server_channel(channel.offer.key)
            if server is None or channel.open is None:
                continue
            incoming, outgoing = server.traffic.incoming_ring, server.traffic.outgoing_ring
            if incoming is None or outgoing is None:
                continue
            if any(feed.wanted.wants(channel.channel_id) for feed in self._feeds):
                self._tap(channel.offer.key, channel.open.params, incoming, outgoing)
            else:
                incoming.tap(None)
                outgoing.tap(None)

    def _tap(
        self, key: OfferKey, params: OpenParams, incoming: IncomingRing, outgoing: OutgoingRing
    ) -> None:
        channel_id = params.channel_id
        feeds = [feed for feed in self._feeds if feed.wanted.wants(channel_id)]

        def seen(direction: Direction, offset: int, packet: bytes, malformed: bool) -> None:
            header = self._header(
                Kind.PACKET,
                direction,
                flags=Flags.MALFORMED if malformed else Flags.NONE,
                channel_id=channel_id,
                subchannel=key.subchannel_index,
                connection_id=params.connection_id,
                ring_offset=offset,
            )
            now = time.time_ns()
            for feed in feeds:
                feed.put(now, direction, header, packet, feed.wanted.limit)

        incoming.tap(lambda *packet: seen(Direction.FROM_GUEST, *packet))
        outgoing.tap(lambda *packet: seen(Direction.TO_GUEST, *packet))

    # Records.

    def _channel_event(self, event: Event, key: OfferKey, params: OpenParams | None = None) -> None:
        channel = self._host.bus.table.table.get(key)
        self._event(
            self._feeds,
            event,
            self._owner(key),
            key=key,
            channel_id=channel.channel_id if channel is not None else 0,
            connection_id=params.connection_id if params is not None else 0,
        )

    def _event(
        self,
        feeds: list[Feed],
        event: Event,
        text: str,
        *,
        key: OfferKey | None = None,
        channel_id: int = 0,
        connection_id: int = 0,
    ) -> None:
        header = self._header(
            Kind.EVENT,
            Direction.NONE,
            event=event,
            channel_id=channel_id,
            subchannel=key.subchannel_index if key is not None else 0,
            connection_id=connection_id,
        )
        interface, instance = (
            (key.interface, key.instance) if key is not None else (UUID(int=0), UUID(int=0))
        )
        body = event_body(text[:_MAX_TEXT], interface, instance)
        self._put(feeds, header, body, Direction.NONE)

    def _header(
        self,
        kind: Kind,
        direction: Direction,
        *,
        event: Event = Event.NONE,
        flags: Flags = Flags.NONE,
        channel_id: int = 0,
        subchannel: int = 0,
        sint: int = NO_SINT,
        vp: int = NO_VP,
        connection_id: int = 0,
        ring_offset: int = NO_OFFSET,
    ) -> bytes:
        bus = self._host.bus
        return pack_header(
            self._name,
            kind,
            direction,
            event,
            flags,
            bus.version or 0,
            bus.features,
            channel_id,
            subchannel,
            sint,
            vp,
            connection_id,
            ring_offset,
        )

    @staticmethod
    def _put(feeds: list[Feed], header: bytes, body: bytes, direction: Direction) -> None:
        now = time.time_ns()
        for feed in feeds:
            feed.put(now, direction, header, body)
