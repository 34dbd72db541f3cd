# SPDX-License-Identifier: MIT
"""Open requests: whether a ring fits, and how guest and host will signal each other on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emulator.bus.channel import Channel, OpenRequest
from emulator.bus.contact import Contact, IsVp, chooses_signals
from emulator.bus.effects import OfferKey, OpenParams
from emulator.bus.gpadl import Gpadl, GpadlPhase
from emulator.bus.ids import MAX_CHANNEL_ID
from emulator.bus.outbox import Route
from emulator.bus.sharing import Sharing
from emulator.wire import messages as m

FIRST_EVENT_CONNECTION: Final = 5
"""Below are the message ports (1, 4) and the event port of old versions (2)."""
MAX_CONNECTION_ID: Final = 0xFF_FFFF
"""Connection ids have 24 bits (TLFS 11, HV_CONNECTION_ID)."""
NO_VP: Final = 0xFFFF_FFFF
"""OpenChannel's target VP of a channel without interrupt."""


class OpenRefused(Exception):
    """The guest's open cannot be carried out; the text says why."""


class Opening:
    """Judges the open requests of one guest."""

    def __init__(self, sharing: Sharing, channels: Mapping[OfferKey, Channel], is_vp: IsVp) -> None:
        """Find rings in ``sharing`` and the signals that are taken in ``channels``."""
        self._is_vp = is_vp
        self._sharing = sharing
        self._channels = channels
        self._guest_chooses_signals = False
        self._only_vp_0 = False

    def follow(self, contact: Contact | None) -> None:
        """Go by what was negotiated in ``contact``."""
        self._guest_chooses_signals = contact is not None and chooses_signals(contact)
        self._only_vp_0 = contact is not None and contact.shares_interrupt

    def judge(
        self,
        channel: Channel,
        message: m.OpenChannel | m.OpenChannel2,
        sint: int,
        reserved: Route | None,
    ) -> OpenRequest:
        """Return what a guest that listens on ``sint`` asks for; raises :class:`OpenRefused`.

        ``reserved`` is where the answer to an OpenReservedChannel goes.
        """
        gpadl = self._ring(channel, message)
        connection_id = event_connection(channel.channel_id, sint)
        event_flag = channel.channel_id
        if self._guest_chooses_signals:  # else ids differ, and so do the connections made of them
            if isinstance(message, m.OpenChannel2):
                connection_id, event_flag = message.connection_id, message.event_flag
            if problem := self._signal_problem(channel, connection_id, event_flag):
                raise OpenRefused(f"channel {channel.channel_id}: {problem}")
        target_vp: int | None = message.target_vp
        if self._only_vp_0:
            # Linux, struct vmbus_channel_open_channel: "prior to win8, incoming channel interrupts
            # would only be delivered on cpu 0"; the field was for something else then.
            target_vp = 0
        elif target_vp == NO_VP:
            target_vp = None
        elif not self._is_vp(message.target_vp):
            raise OpenRefused(f"channel {channel.channel_id}: there is no VP {target_vp}")
        # A redirected interrupt goes to VTL 2 if that has the bus too; here there is VTL 0 only.
        return OpenRequest(
            gpadl.gpadl_id,
            OpenParams(
                channel_id=channel.channel_id,
                open_id=message.open_id,
                target_vp=target_vp,
                target_sint=sint if reserved is None else reserved.sint,
                ring_pfns=gpadl.pfns,
                downstream_page_offset=message.downstream_ring_buffer_page_offset,
                user_data=message.user_data,
                connection_id=connection_id,
                event_flag=event_flag,
                monitor_id=channel.monitor_id,
            ),
            reserved,
        )

    def _ring(self, channel: Channel, message: m.OpenChannel | m.OpenChannel2) -> Gpadl:
        gpadl = self._sharing.table.find(channel.channel_id, message.ring_buffer_gpadl_id)
        what = f"the ring of channel {channel.channel_id}"
        named = f"GPADL {message.ring_buffer_gpadl_id:#x}"
        if gpadl is None or gpadl.phase is not GpadlPhase.ACCEPTED:
            raise OpenRefused(f"{what}: {named} is not there")
        if not gpadl.is_whole_pages:
            raise OpenRefused(f"{what}: {named} is not made of whole pages")
        split, pages = message.downstream_ring_buffer_page_offset, len(gpadl.pfns)
        if not 2 <= split <= pages - 2:
            # A ring is a control page and at least one page of data.
            raise OpenRefused(f"{what}: {pages} pages cannot be split at page {split}")
        return gpadl

    def _signal_problem(self, channel: Channel, connection_id: int, event_flag: int) -> str:
        if problem := signal_problem(connection_id, event_flag):
            return problem
        for other in self._channels.values():
            requests = (request for request in (other.open, other.reopen) if request is not None)
            if other is not channel and any(
                request.params.connection_id == connection_id for request in requests
            ):
                # One of the two would get the signals of both.
                return f"channel {other.channel_id} has connection {connection_id:#x}"
        return ""


def signal_problem(connection_id: int, event_flag: int) -> str:
    """Say what is wrong with signal parameters, or nothing."""
    if not FIRST_EVENT_CONNECTION <= connection_id <= MAX_CONNECTION_ID:
        return f"{connection_id:#x} is not an event connection"
    if not 0 < event_flag <= MAX_CHANNEL_ID:
        return f"event flag {event_flag}; it has to be 1 to {MAX_CHANNEL_ID}"
    return ""


def event_connection(channel_id: int, sint: int) -> int:
    """Return the connection that the guest signals for a channel of VTL 0: 0x2000 + id for SINT
    2.
    """
    return channel_id | sint << 12
