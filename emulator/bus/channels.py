# SPDX-License-Identifier: MIT
"""All channels of a bus: what the guest's messages and the owners' calls do to their states.

Each method is one event. It finds the channel, matches its state without a wildcard where the
states differ, and leaves effects in the outbox. The states are told in ``emulator.bus.channel``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final, assert_never

from emulator.bus.channel import Channel, ChannelState, ChannelTable, OpenRequest
from emulator.bus.contact import SINT_COUNT, Contact, IsVp
from emulator.bus.effects import (
    ChannelClosing,
    ChannelMoved,
    ChannelOpening,
    ChannelReleased,
    Offer,
    OfferKey,
    SubchannelOrphaned,
)
from emulator.bus.families import Families
from emulator.bus.gpadl import GpadlPhase
from emulator.bus.ids import MAX_CHANNEL_ID, MAX_SHARED_CHANNEL_ID, channel_id_of, free_monitor_id
from emulator.bus.opening import NO_VP, Opening, OpenRefused, event_connection
from emulator.bus.outbox import Outbox, Route
from emulator.bus.sharing import Sharing
from emulator.wire import messages as m
from emulator.wire.message import MessageStatus
from emulator.wire.version import Version

NO_MONITOR: Final = 0xFF


class Channels:
    """The channels of one bus, and the ids of all that ever were."""

    def __init__(self, sharing: Sharing, outbox: Outbox, is_vp: IsVp) -> None:
        """Start without any; ``is_vp`` tells what a channel may interrupt."""
        self.offers_requested = False
        self.table = ChannelTable()
        self.ids: dict[OfferKey, int] = {}
        self.families = Families()
        self.opening = Opening(sharing, self.table, is_vp)
        self._is_vp = is_vp
        self._last_offered = MAX_CHANNEL_ID
        self._may_monitor = False
        self._sharing = sharing
        self._outbox = outbox

    def __iter__(self) -> Iterator[Channel]:
        """Iterate over a copy in the order of ids, which a restore does not change."""
        return iter(sorted(self.table.values(), key=lambda channel: channel.channel_id))

    def find(self, channel_id: int) -> Channel | None:
        """Return the channel with this id, if the guest knows it."""
        channel = self.table.with_id(channel_id)
        return channel if channel is not None and channel.state.guest_knows else None

    def follow(self, contact: Contact | None) -> None:
        """Go by what was negotiated in ``contact``."""
        self.opening.follow(contact)
        shares = contact is not None and contact.shares_interrupt
        self._last_offered = MAX_SHARED_CHANNEL_ID if shares else MAX_CHANNEL_ID
        self._may_monitor = contact is not None and contact.monitor_pages is not None

    # The owners' calls.

    def offer(self, offer: Offer) -> None:
        """Offer a channel; raises ValueError if it is offered already or the ids are used up."""
        channel = self.table.get(offer.key)
        if channel is None:
            channel = self.add(offer)
            self.tell(channel)
        elif channel.state is ChannelState.REVOKED:
            channel.offer, channel.orphaned = offer, False
            channel.state = ChannelState.REOFFERED
        else:
            raise ValueError(f"{offer.key} is offered already")

    def add(self, offer: Offer) -> Channel:
        """Add a channel that the guest does not know; raises ValueError without a free id."""
        channel = Channel(offer, channel_id_of(offer.key, self.ids, self.table))
        self.put(channel)
        return channel

    def put(self, channel: Channel) -> None:
        """Take a channel that has its id into the table."""
        self.table[channel.offer.key] = channel
        self.families.add(channel.offer.key)

    def tell(self, channel: Channel) -> None:
        """Send the offer, if the guest has asked for offers, does not know it and can use it."""
        if not self.offers_requested or channel.state is not ChannelState.RELEASED:
            return
        if channel.channel_id > self._last_offered:
            self._blame_for_unheard(1)
            return
        assert self._outbox.route is not None
        channel.state = ChannelState.CLOSED
        offer = channel.offer
        # One the guest let go of and is told of again gets a trigger anew.
        channel.monitor_id = None
        if offer.monitored and self._may_monitor:
            channel.monitor_id = free_monitor_id(self.table.values())
        monitored = channel.monitor_id is not None
        self._outbox.send(
            m.OfferChannel(
                interface_id=offer.key.interface,
                instance_id=offer.key.instance,
                flags=offer.flags,
                mmio_megabytes=offer.mmio_megabytes,
                user_defined=offer.user_defined,
                subchannel_index=offer.key.subchannel_index,
                mmio_megabytes_optional=offer.mmio_megabytes_optional,
                channel_id=channel.channel_id,
                monitor_id=NO_MONITOR if channel.monitor_id is None else channel.monitor_id,
                monitor_allocated=int(monitored),
                is_dedicated=1,
                connection_id=event_connection(channel.channel_id, self._outbox.route.sint),
            )
        )

    def rescind(self, key: OfferKey) -> None:
        """Take an offer back; the owner has let go of rings and GPADLs. ValueError if there is
        none, or if it is that of a primary channel whose sub-channels are still offered.
        """
        channel = self.table.get(key)
        if channel is None or channel.state is ChannelState.REVOKED:
            raise ValueError(f"{key} is not offered")
        for sub in self.families.of(key):
            if self.table[sub].state is not ChannelState.REVOKED:
                raise ValueError(f"{key} has a sub-channel, {sub}; rescind that first")
        if channel.state is ChannelState.REOFFERED:
            channel.state = ChannelState.REVOKED
            return
        state, opened, reopen = channel.state, channel.open, channel.reopen
        channel.open = channel.reopen = None
        self._answer_close(channel)
        if not state.guest_knows:
            self._remove(channel)
            return
        # Answers first: once it is rescinded Hyper-V answers nothing on a channel, and a guest
        # that does not know that would wait.
        if state is ChannelState.OPENING and opened is not None:
            self._refuse_open(channel, opened.params.open_id, opened.reserved)
        if reopen is not None:
            self._refuse_open(channel, reopen.params.open_id, reopen.reserved)
        self._sharing.revoked(channel)
        channel.state = ChannelState.REVOKED
        self._outbox.send(m.RescindChannelOffer(channel.channel_id))

    def open_result(self, key: OfferKey, ok: bool) -> None:
        """Answer ChannelOpening; ValueError if nobody asked.

        An answer that comes after the owner rescinded the channel is ignored.
        """
        channel = self._asked(key)
        if channel is None:
            return
        assert channel.open is not None or not channel.state.owner_has_rings
        match channel.state:
            case ChannelState.OPENING if ok:
                channel.state = ChannelState.OPEN
                self._send_open_result(channel, MessageStatus.SUCCESS)
            case ChannelState.OPENING:
                self._send_open_result(channel, MessageStatus.UNSUCCESSFUL)
                self._closed(channel, ChannelState.CLOSED)
            case ChannelState.OPENING_CLOSE if ok:
                self._close(channel, ChannelState.CLOSING)
            case ChannelState.OPENING_CLOSE:
                self._closed(channel, ChannelState.CLOSED)
            case ChannelState.OPENING_RELEASE if ok:
                self._close(channel, ChannelState.CLOSING_RELEASE)
            case ChannelState.OPENING_RELEASE:
                self._closed(channel, ChannelState.RELEASED)
            case _:
                raise ValueError(f"{key} is {channel.state.value}; nobody asked to open it")

    def close_done(self, key: OfferKey) -> None:
        """Answer ChannelClosing; ValueError if nobody asked.

        An answer that comes after the owner rescinded the channel is ignored.
        """
        channel = self._asked(key)
        if channel is None:
            return
        match channel.state:
            case ChannelState.CLOSING:
                self._closed(channel, ChannelState.CLOSED)
            case ChannelState.CLOSING_RELEASE:
                self._closed(channel, ChannelState.RELEASED)
            case ChannelState.CLOSING_REOPEN:
                reopen = channel.reopen
                assert reopen is not None
                self._closed(channel, ChannelState.CLOSED)
                gpadl = self._sharing.table.find(channel.channel_id, reopen.gpadl_id)
                if gpadl is not None and gpadl.phase is GpadlPhase.ACCEPTED:
                    self._ask_to_open(channel, reopen)
                else:
                    # The guest tore the new ring down before it could be opened.
                    self._refuse_open(channel, reopen.params.open_id, reopen.reserved)
            case _:
                raise ValueError(f"{key} is {channel.state.value}; nobody asked to close it")

    # The guest's messages.

    def request_offers(self) -> None:
        """Send all offers."""
        if self.offers_requested:
            self._outbox.blame("offers were requested already")
            return
        self.offers_requested = True
        unheard = 0
        for channel in self:
            if channel.channel_id > self._last_offered:
                unheard += 1
            else:
                self.tell(channel)
        self._blame_for_unheard(unheard)
        self._outbox.send(m.AllOffersDelivered())

    def open_reserved(self, message: m.OpenReservedChannel) -> None:
        """Open a channel for a crash dump: the answer goes to the VP and SINT named here."""
        if not 0 < message.target_sint < SINT_COUNT:
            self._outbox.blame(f"SINT {message.target_sint} for a reserved channel")
            return
        self.open(
            m.OpenChannel(
                message.channel_id,
                0,
                message.ring_buffer_gpadl,
                message.target_vp,
                message.downstream_page_offset,
                b"",
            ),
            Route(message.target_vp, message.target_sint),
        )

    def close_reserved(self, message: m.CloseReservedChannel) -> None:
        """Close such a channel; the answer comes when its owner has let go of the rings.

        Also without a connection: the end of that has closed the channel, or is about to.
        """
        if not 0 < message.target_sint < SINT_COUNT:
            self._outbox.blame(f"SINT {message.target_sint} for a reserved channel")
            return
        answer = Route(message.target_vp, message.target_sint)
        channel = self.table.with_id(message.channel_id)
        if channel is None or channel.open is None:
            # Nobody has its rings, which is all that the guest waits to hear.
            self._outbox.send_to(answer, m.CloseReservedChannelResponse(message.channel_id))
        elif (channel.reopen or channel.open).reserved is None:
            self._outbox.blame(f"channel {channel.channel_id} was not opened as a reserved one")
        else:
            channel.close_answer = answer
            if channel.state is ChannelState.OPEN:
                self._close(channel, ChannelState.CLOSING)
            elif channel.state is ChannelState.OPENING:
                channel.state = ChannelState.OPENING_CLOSE
            elif channel.state is ChannelState.CLOSING_REOPEN:
                channel.state, channel.reopen = ChannelState.CLOSING, None

    def open(self, message: m.OpenChannel | m.OpenChannel2, reserved: Route | None = None) -> None:
        """Ask the owner to open a channel, now or when it has closed it."""
        channel = self._known(message.channel_id, message)
        if channel is None or channel.state.is_revoked:
            # Hyper-V does not answer on a rescinded channel; Linux gives up when it is rescinded.
            return
        match channel.state:
            case ChannelState.CLOSED:
                if (request := self._judge(channel, message, reserved)) is not None:
                    self._ask_to_open(channel, request)
            case ChannelState.CLOSING:
                # A close has no answer, so a guest may open again while the owner still closes.
                if (request := self._judge(channel, message, reserved)) is not None:
                    channel.state, channel.reopen = ChannelState.CLOSING_REOPEN, request
            case _:
                self._outbox.blame(
                    f"channel {channel.channel_id} is to be opened and is {channel.state.value}"
                )
                self._refuse_open(channel, message.open_id, reserved)

    def close(self, message: m.CloseChannel) -> None:
        """Ask the owner to let go of the rings. There is no answer."""
        channel = self._known(message.channel_id, message)
        if channel is None:
            return
        current = channel.reopen or channel.open
        if current is not None and current.reserved is not None:
            self._outbox.blame(f"channel {channel.channel_id} was opened as a reserved one")
            return
        match channel.state:
            case ChannelState.OPEN:
                self._close(channel, ChannelState.CLOSING)
            case ChannelState.OPENING:
                channel.state = ChannelState.OPENING_CLOSE
            case ChannelState.CLOSING_REOPEN:
                channel.state, channel.reopen = ChannelState.CLOSING, None
            case ChannelState.REVOKED | ChannelState.REOFFERED:
                pass  # Linux closes a channel that it has seen rescinded.
            case ChannelState.CLOSED | ChannelState.OPENING_CLOSE | ChannelState.CLOSING:
                self._outbox.blame(
                    f"channel {channel.channel_id} is to be closed and is {channel.state.value}"
                )
            case (
                ChannelState.RELEASED | ChannelState.OPENING_RELEASE | ChannelState.CLOSING_RELEASE
            ):
                raise AssertionError("the guest does not know it")
            case _:
                assert_never(channel.state)

    def modify(self, message: m.ModifyChannel, version: Version) -> None:
        """Move a channel's interrupt to another VP."""
        channel = self._known(message.channel_id, message)
        status = MessageStatus.UNSUCCESSFUL
        if channel is None or channel.state.is_revoked:
            pass
        elif channel.state is not ChannelState.OPEN or channel.open is None:
            self._outbox.blame(
                f"channel {channel.channel_id} is to be moved and is {channel.state.value}"
            )
        elif message.target_vp == NO_VP:
            self._outbox.blame(f"channel {channel.channel_id} is to be moved to no VP")
        elif not self._is_vp(message.target_vp):
            self._outbox.blame(
                f"channel {channel.channel_id} is to be moved to VP {message.target_vp}, which is "
                "not there"
            )
        else:
            status = MessageStatus.SUCCESS
            params = dataclasses.replace(channel.open.params, target_vp=message.target_vp)
            channel.open = dataclasses.replace(channel.open, params=params)
            self._outbox.emit(ChannelMoved(channel.offer.key, message.target_vp))
        if version >= Version.IRON:
            self._outbox.send(m.ModifyChannelResponse(message.channel_id, status))

    def release(self, message: m.RelIdReleased) -> None:
        """End the guest's hold on a channel."""
        channel = self._known(message.channel_id, message)
        if channel is None:
            return
        match channel.state:
            case ChannelState.REVOKED:
                self._remove(channel)
            case ChannelState.REOFFERED:
                self._sharing.forget(channel)
                channel.state = ChannelState.RELEASED
                self._outbox.emit(ChannelReleased(channel.offer.key))
                self.tell(channel)
                return
            case ChannelState.CLOSED:
                # Linux lets go of a Hyper-V socket's channel without a rescind.
                channel.state = ChannelState.RELEASED
                self._sharing.let_go(channel)
            case ChannelState.CLOSING:
                channel.state = ChannelState.CLOSING_RELEASE
            case ChannelState.OPENING_CLOSE:
                channel.state = ChannelState.OPENING_RELEASE
            case ChannelState.OPENING | ChannelState.OPEN | ChannelState.CLOSING_REOPEN:
                self._outbox.blame(
                    f"channel {channel.channel_id} is to be released and is {channel.state.value}"
                )
                return
            case (
                ChannelState.RELEASED | ChannelState.OPENING_RELEASE | ChannelState.CLOSING_RELEASE
            ):
                raise AssertionError("the guest does not know it")
            case _:
                assert_never(channel.state)
        self._outbox.emit(ChannelReleased(channel.offer.key))

    def disconnect(self, *, answer: bool) -> None:
        """End the guest's hold on every channel; ``answer`` a guest that still waits."""
        self.offers_requested = False
        for channel in self:
            self._orphan(channel)
            channel.reopen = None
            if not answer:
                channel.close_answer = None
            match channel.state:
                case ChannelState.CLOSED:
                    channel.state = ChannelState.RELEASED
                    self._sharing.let_go(channel)
                case ChannelState.OPENING | ChannelState.OPENING_CLOSE:
                    channel.state = ChannelState.OPENING_RELEASE
                case ChannelState.OPEN:
                    self._close(channel, ChannelState.CLOSING_RELEASE)
                case ChannelState.CLOSING | ChannelState.CLOSING_REOPEN:
                    channel.state = ChannelState.CLOSING_RELEASE
                case ChannelState.REVOKED:
                    self._remove(channel)
                case ChannelState.REOFFERED:
                    self._sharing.forget(channel)
                    channel.state = ChannelState.RELEASED
                case (
                    ChannelState.RELEASED
                    | ChannelState.OPENING_RELEASE
                    | ChannelState.CLOSING_RELEASE
                ):
                    pass
                case _:
                    assert_never(channel.state)

    # Steps.

    def _blame_for_unheard(self, channels: int) -> None:
        if channels:
            self._outbox.blame(
                f"{channels} channel{'s are' if channels > 1 else ' is'} not offered: a guest of "
                f"this VMBus version hears of channels up to {self._last_offered}"
            )

    def _judge(
        self, channel: Channel, message: m.OpenChannel | m.OpenChannel2, reserved: Route | None
    ) -> OpenRequest | None:
        """Check an open; None when it was refused."""
        assert self._outbox.route is not None
        try:
            return self.opening.judge(channel, message, self._outbox.route.sint, reserved)
        except OpenRefused as error:
            self._outbox.blame(str(error))
            self._refuse_open(channel, message.open_id, reserved)
            return None

    def _known(self, channel_id: int, message: m.Message) -> Channel | None:
        channel = self.find(channel_id)
        if channel is None:
            self._outbox.blame(f"{message.TYPE.name} for channel {channel_id}, which is not there")
        return channel

    def _asked(self, key: OfferKey) -> Channel | None:
        channel = self.table.get(key)
        return None if channel is None or channel.state.is_revoked else channel

    def _ask_to_open(self, channel: Channel, request: OpenRequest) -> None:
        channel.state, channel.open = ChannelState.OPENING, request
        self._outbox.emit(ChannelOpening(channel.offer.key, request.params))

    def _close(self, channel: Channel, state: ChannelState) -> None:
        channel.state = state
        self._orphan(channel)
        self._outbox.emit(ChannelClosing(channel.offer.key))

    def _orphan(self, primary: Channel) -> None:
        """The guest has closed ``primary``: its sub-channels go with it."""
        for key in self.families.of(primary.offer.key):
            sub = self.table[key]
            if not sub.orphaned and sub.state is not ChannelState.REVOKED:
                sub.orphaned = True
                self._outbox.emit(SubchannelOrphaned(key))

    def _closed(self, channel: Channel, state: ChannelState) -> None:
        """The owner has no rings any more."""
        channel.open = channel.reopen = None
        channel.state = state
        self._answer_close(channel)
        if state is ChannelState.RELEASED:
            self._sharing.let_go(channel)
        else:
            self._sharing.closed(channel)

    def _remove(self, channel: Channel) -> None:
        self._sharing.forget(channel)
        self.families.remove(channel.offer.key)
        del self.table[channel.offer.key]

    def _send_open_result(self, channel: Channel, status: MessageStatus) -> None:
        assert channel.open is not None
        open_id = channel.open.params.open_id
        result = m.OpenResult(channel.channel_id, open_id, status)
        self._answer(channel.open.reserved, result)

    def _refuse_open(self, channel: Channel, open_id: int, reserved: Route | None) -> None:
        result = m.OpenResult(channel.channel_id, open_id, MessageStatus.UNSUCCESSFUL)
        self._answer(reserved, result)

    def _answer(self, reserved: Route | None, result: m.OpenResult) -> None:
        if self._outbox.route is not None and reserved is not None:
            self._outbox.send_to(reserved, result)
        else:
            self._outbox.send(result)

    def _answer_close(self, channel: Channel) -> None:
        """The owner has let go of the rings of what may have been a reserved channel."""
        answer, channel.close_answer = channel.close_answer, None
        if answer is not None:
            self._outbox.send_to(answer, m.CloseReservedChannelResponse(channel.channel_id))
