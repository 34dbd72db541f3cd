# SPDX-License-Identifier: MIT
"""The VMBus host state machine: guest messages in, effects out. No I/O, no clock, no threads.

Theory. There is at most one connection. A contact makes it; an unload, a reset or another contact
ends it, and it is ended only when the owner of every open channel has let go: until then the bus is
*disconnecting*, and an answer that the guest waits for (UnloadComplete, the next VersionResponse)
is owed. Offers outlive connections. A channel keeps its id for as long as the host lives, over
reboot and restore.

Blame. What a guest does wrong is a ``GuestError`` effect, never an exception: it harms that message
only. What the owner does wrong raises ``ValueError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from emulator.bus import snapshot
from emulator.bus.channel import Channel, ChannelState, Ending, OpenRequest
from emulator.bus.effects import (
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
    Offer,
    OfferKey,
    OpenParams,
    SendMessage,
)
from emulator.bus.gpadl import PAGE, Gpadl, GpadlError, GpadlPhase, GpadlTable
from emulator.bus.snapshot import RestoredChannel, RestoreMismatch
from emulator.bus.state import BusState
from emulator.wire import messages as m
from emulator.wire.version import Version

MESSAGE_CONNECTION: Final = 1
MULTICLIENT_CONNECTION: Final = 4
"""The port of guests that name SINT and VTL in their contact (from 5.0)."""
VMBUS_SINT: Final = 2
CHANNEL_EVENT_CONNECTION: Final = 0x2000
MAX_CHANNEL_ID: Final = 2047
NO_MONITOR: Final = 0xFF
NO_VP: Final = 0xFFFF_FFFF
STATUS_UNSUCCESSFUL: Final = 0x8000_FFFF


@dataclass(frozen=True, slots=True)
class BusConfig:
    """Limits of one bus.

    ``max_pages`` is what Hyper-V allows a guest to share: 1,280 MiB (Linux, Documentation
    virt/hyperv/vmbus.rst).
    """

    min_version: Version = Version.WIN8
    max_version: Version = Version.IRON
    max_gpadls: int = 8192
    max_pages: int = 1280 * 256


@dataclass(frozen=True, slots=True)
class Contact:
    """A negotiated connection: where messages go, and on which port the guest posts its own."""

    version: Version
    vp: int
    sint: int
    connection_id: int


class BusHost:
    """The bus of one guest."""

    def __init__(self, config: BusConfig) -> None:
        """Make a bus without offers and without a guest."""
        self.config = config
        self.contact: Contact | None = None
        self.ending: Ending | None = None
        self.next_contact: Contact | None = None
        self.offers_requested = False
        self.table: dict[OfferKey, Channel] = {}
        self.ids: dict[OfferKey, int] = {}
        self.gpadls = GpadlTable(config.max_gpadls, config.max_pages)
        self._effects: list[Effect] = []
        self._unclaimed: dict[OfferKey, Channel] | None = None
        self._mismatches: list[str] = []

    def take_effects(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        effects, self._effects = self._effects, []
        return effects

    def channels(self) -> list[str]:
        """Describe the channels, for people."""
        return [str(channel) for channel in self.table.values()]

    # The owner's calls.

    def offer(self, offer: Offer) -> None:
        """Offer a channel; raises ValueError if it is offered already or the ids are used up."""
        if len(offer.user_defined) > m.USER_DEFINED_SIZE:
            raise ValueError(f"{len(offer.user_defined)} bytes of offer data; at most 120")
        channel = self.table.get(offer.key)
        if channel is None and self._unclaimed is not None:
            self._claim(offer, self._unclaimed)
        elif channel is None:
            channel = Channel(offer, self._id_of(offer.key))
            self.table[offer.key] = channel
            self._tell(channel)
        elif channel.state is ChannelState.REVOKED:
            channel.offer = offer
            channel.state = ChannelState.REOFFERED
        else:
            raise ValueError(f"{offer.key} is offered already")

    def rescind(self, key: OfferKey) -> None:
        """Take an offer back. The owner has let go of the rings already."""
        channel = self._owned(key)
        if channel.state is ChannelState.REOFFERED:
            channel.state = ChannelState.REVOKED
            return
        was_leaving = channel.state.owner_is_using
        channel.open = channel.reopen = None
        if channel.told and self.ending is None:
            channel.state = ChannelState.REVOKED
            self._send(m.RescindChannelOffer(channel.channel_id))
            self._release_waiting_gpadls(channel)
        else:
            del self.table[key]
            self._forget_gpadls(channel)
        if was_leaving:
            self._maybe_disconnected()

    def open_result(self, key: OfferKey, ok: bool) -> None:
        """Answer ChannelOpening."""
        channel = self.table.get(key)
        if channel is None or channel.open is None:
            return
        request = channel.open
        match channel.state:
            case ChannelState.OPENING:
                channel.state = ChannelState.OPEN if ok else ChannelState.CLOSED
                if not ok:
                    channel.open = None
                status = 0 if ok else STATUS_UNSUCCESSFUL
                self._send(m.OpenResult(channel.channel_id, request.params.open_id, status))
                if not ok:
                    self._release_waiting_gpadls(channel)
            case ChannelState.OPENING_CLOSING:
                if ok:
                    channel.state = ChannelState.CLOSING
                    self._effects.append(ChannelClosing(key))
                else:
                    self._closed(channel)
            case _:
                raise ValueError(f"{key} is {channel.state.value}; nobody asked to open it")

    def close_done(self, key: OfferKey) -> None:
        """Answer ChannelClosing."""
        channel = self.table.get(key)
        if channel is None or channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            return
        if channel.state not in (ChannelState.CLOSING, ChannelState.CLOSING_REOPEN):
            raise ValueError(f"{key} is {channel.state.value}; nobody asked to close it")
        self._closed(channel)

    def gpadl_released(self, key: OfferKey, gpadl_id: int) -> None:
        """Answer GpadlTearingDown."""
        channel_id = self.ids.get(key, 0)
        gpadl = self.gpadls.find(channel_id, gpadl_id)
        if gpadl is not None and gpadl.phase is GpadlPhase.TEARING_DOWN:
            self.gpadls.remove(gpadl)
            self._send(m.GpadlTorndown(gpadl_id))

    def reset(self) -> None:
        """Forget the guest: the machine was reset. Offers stay."""
        self.next_contact = None
        self._disconnect(Ending.NOTHING, "the machine was reset")

    # Save and restore.

    def save(self) -> BusState:
        """Return the state; raises ValueError while effects are waiting to be taken."""
        if self._effects:
            raise ValueError("take the effects before saving")
        return snapshot.save(self)

    def restore(self, state: BusState) -> list[RestoredChannel]:
        """Fill a fresh bus; then offer what there is, and end with :meth:`finish_restore`.

        Raises :class:`RestoreMismatch`.
        """
        if self.table or self.contact or self._unclaimed is not None:
            raise ValueError("only a fresh bus can be restored")
        self._unclaimed = snapshot.restore(self, state)
        return [
            RestoredChannel(key, channel.open.params if channel.open else None)
            for key, channel in self._unclaimed.items()
        ]

    def _claim(self, offer: Offer, unclaimed: dict[OfferKey, Channel]) -> None:
        channel = unclaimed.pop(offer.key, None)
        if channel is None:
            # New to the guest; told of it by finish_restore if it has asked for offers.
            self.table[offer.key] = Channel(offer, self._id_of(offer.key))
            return
        if problem := snapshot.changed(channel.offer, offer):
            self._mismatches.append(problem)
        if channel.state is ChannelState.REVOKED:
            channel.state = ChannelState.REOFFERED
        self.table[offer.key] = channel

    def finish_restore(self) -> None:
        """End a restore: rescind what nobody claimed, offer what is new, ask again what was asked.

        Raises :class:`RestoreMismatch` if an offer has changed.
        """
        if self._unclaimed is None:
            raise ValueError("there is no restore to finish")
        if self._mismatches:
            raise RestoreMismatch(self._mismatches)
        missing, self._unclaimed = self._unclaimed, None
        for key, channel in missing.items():
            self.table[key] = channel
            if channel.state not in (ChannelState.REVOKED, ChannelState.REOFFERED):
                self.rescind(key)
            else:
                channel.state = ChannelState.REVOKED
        snapshot.replay(self)
        for channel in list(self.table.values()):
            if channel.state is ChannelState.CLOSED:
                self._tell(channel)
        self._maybe_disconnected()

    # The guest's messages.

    def guest_message(self, connection_id: int, payload: bytes) -> None:
        """Take what the guest gave to HvPostMessage on ``connection_id``."""
        try:
            message = m.parse_guest(payload)
        except m.MalformedMessage as error:
            self._blame(str(error))
            return
        if isinstance(message, m.InitiateContact | m.InitiateContact2):
            self._initiate_contact(connection_id, message)
            return
        if self.contact is None or self.ending is not None:
            self._blame(f"{message.TYPE.name} without a connection")
            return
        self._connected_message(message)

    def _connected_message(self, message: m.GuestMessage) -> None:
        match message:
            case m.InitiateContact() | m.InitiateContact2():
                raise AssertionError("handled before")
            case m.RequestOffers():
                self._request_offers()
            case m.OpenChannel() | m.OpenChannel2():
                self._open_channel(message)
            case m.CloseChannel():
                self._close_channel(message)
            case m.GpadlHeader():
                self._gpadl_header(message)
            case m.GpadlBody():
                self._gpadl_body(message)
            case m.GpadlTeardown():
                self._gpadl_teardown(message)
            case m.RelIdReleased():
                self._rel_id_released(message)
            case m.Unload():
                self._disconnect(Ending.UNLOAD_COMPLETE, "the guest unloaded its bus driver")
            case m.ModifyChannel():
                self._modify_channel(message)
            case (
                m.OpenReservedChannel()
                | m.CloseReservedChannel()
                | m.TlConnectRequest()
                | m.TlConnectRequest2()
                | m.ModifyConnection()
                | m.Pause()
                | m.Resume()
            ):
                self._blame(f"{message.TYPE.name} is not offered by this host")
            case _:
                assert_never(message)

    def _initiate_contact(
        self, connection_id: int, message: m.InitiateContact | m.InitiateContact2
    ) -> None:
        requested, sint = message.version_requested, VMBUS_SINT
        if requested >= Version.WIN10_RS3_1:
            # Only the multiclient port may name a SINT; on the other one the field is a page.
            named = message.interrupt_page_or_target_info & 0xFF
            sint = named if named < 16 and connection_id == MULTICLIENT_CONNECTION else VMBUS_SINT
        vp = message.target_message_vp if requested >= Version.WIN8_1 else 0
        supported = (
            requested in Version.__members__.values()
            and self.config.min_version <= requested <= self.config.max_version
        )
        if not supported:
            response = m.VersionResponse(0, 0, 0)
            self._effects.append(SendMessage(vp, sint, response.pack()))
            return
        self.next_contact = Contact(Version(requested), vp, sint, connection_id)
        self._disconnect(Ending.VERSION_RESPONSE, "the guest contacted the bus anew")

    def _connect(self, contact: Contact) -> None:
        self.contact = contact
        self.offers_requested = False
        word = int(contact.version)
        if contact.version >= Version.WIN10_RS3_1:
            word = contact.connection_id
        self._send(m.VersionResponse(1, 0, word))
        self._effects.append(BusConnected(contact.version))

    def _request_offers(self) -> None:
        if self.offers_requested:
            self._blame("offers were requested already")
            return
        self.offers_requested = True
        for channel in list(self.table.values()):
            self._tell(channel)
        self._send(m.AllOffersDelivered())

    def _open_channel(self, message: m.OpenChannel | m.OpenChannel2) -> None:
        channel = self._told(message.channel_id, message)
        if channel is None:
            return
        if channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            # Sent before the guest saw the rescind: it waits for an answer all the same.
            self._refuse_open(message)
            return
        request = self._open_request(channel, message)
        if request is None:
            self._refuse_open(message)
        elif channel.state is ChannelState.CLOSED:
            self._ask_to_open(channel, request)
        elif channel.state is ChannelState.CLOSING:
            channel.state, channel.reopen = ChannelState.CLOSING_REOPEN, request
        else:
            self._blame(f"channel {channel.channel_id} is {channel.state.value}")
            self._refuse_open(message)

    def _ask_to_open(self, channel: Channel, request: OpenRequest) -> None:
        channel.state, channel.open = ChannelState.OPENING, request
        self._effects.append(ChannelOpening(channel.offer.key, request.params))

    def _refuse_open(self, message: m.OpenChannel | m.OpenChannel2) -> None:
        self._send(m.OpenResult(message.channel_id, message.open_id, STATUS_UNSUCCESSFUL))

    def _open_request(
        self, channel: Channel, message: m.OpenChannel | m.OpenChannel2
    ) -> OpenRequest | None:
        assert self.contact is not None
        gpadl = self.gpadls.find(channel.channel_id, message.ring_buffer_gpadl_id)
        if gpadl is None or gpadl.phase is not GpadlPhase.ACCEPTED:
            self._blame(
                f"channel {channel.channel_id} was opened on GPADL "
                f"{message.ring_buffer_gpadl_id:#x}, which it does not have"
            )
            return None
        pfns = gpadl.pfns
        whole = all(
            gpa_range.offset == 0 and gpa_range.length % PAGE == 0 for gpa_range in gpadl.ranges
        )
        split = message.downstream_ring_buffer_page_offset
        # A ring is a control page and at least one page of data.
        if not whole or not 2 <= split <= len(pfns) - 2:
            self._blame(f"a ring of {len(pfns)} pages cannot be split at page {split}")
            return None
        return OpenRequest(
            gpadl.gpadl_id,
            OpenParams(
                channel_id=channel.channel_id,
                open_id=message.open_id,
                target_vp=None if message.target_vp == NO_VP else message.target_vp,
                target_sint=self.contact.sint,
                ring_pfns=pfns,
                downstream_page_offset=split,
                user_data=message.user_data,
                connection_id=CHANNEL_EVENT_CONNECTION + channel.channel_id,
                event_flag=channel.channel_id,
            ),
        )

    def _close_channel(self, message: m.CloseChannel) -> None:
        channel = self._told(message.channel_id, message)
        if channel is None:
            return
        match channel.state:
            case ChannelState.OPEN:
                channel.state = ChannelState.CLOSING
                self._effects.append(ChannelClosing(channel.offer.key))
            case ChannelState.OPENING:
                channel.state = ChannelState.OPENING_CLOSING
            case ChannelState.CLOSING_REOPEN:
                channel.state, channel.reopen = ChannelState.CLOSING, None
            case ChannelState.REVOKED | ChannelState.REOFFERED:
                # Linux closes a channel that it has seen rescinded.
                pass
            case ChannelState.CLOSED | ChannelState.CLOSING | ChannelState.OPENING_CLOSING:
                self._blame(f"channel {channel.channel_id} is not open")
            case _:
                assert_never(channel.state)

    def _modify_channel(self, message: m.ModifyChannel) -> None:
        assert self.contact is not None
        channel = self._told(message.channel_id, message)
        if channel is None:
            return
        ok = channel.state is ChannelState.OPEN and message.target_vp != NO_VP
        if ok:
            self._effects.append(ChannelMoved(channel.offer.key, message.target_vp))
            assert channel.open is not None
            channel.open = OpenRequest(
                channel.open.gpadl_id, _moved(channel.open.params, message.target_vp)
            )
        if self.contact.version >= Version.IRON:
            status = 0 if ok else STATUS_UNSUCCESSFUL
            self._send(m.ModifyChannelResponse(message.channel_id, status))

    def _rel_id_released(self, message: m.RelIdReleased) -> None:
        channel = self._told(message.channel_id, message)
        if channel is None:
            return
        if channel.state not in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self._blame(f"channel {channel.channel_id} was released without a rescind")
            return
        self._forget_gpadls(channel)
        self._effects.append(ChannelReleased(channel.offer.key))
        if channel.state is ChannelState.REVOKED:
            del self.table[channel.offer.key]
        else:
            channel.state, channel.told = ChannelState.CLOSED, False
            self._tell(channel)

    # GPADLs.

    def _gpadl_header(self, message: m.GpadlHeader) -> None:
        channel = self._told(message.channel_id, message)
        gpadl = Gpadl(message.channel_id, message.gpadl_id, message.length, message.count)
        try:
            if channel is None:
                raise GpadlError(f"channel {message.channel_id} does not exist")
            self.gpadls.add(gpadl)
            complete = self.gpadls.receive(gpadl, message.tail)
        except GpadlError as error:
            self._refuse_gpadl(gpadl, error)
            return
        if complete:
            self._accept_gpadl(channel, gpadl)

    def _gpadl_body(self, message: m.GpadlBody) -> None:
        gpadl = self.gpadls.being_received(message.gpadl_id)
        if gpadl is None:
            # Surplus of a GPADL that is complete, or was refused with its header.
            self._blame(f"a body for GPADL {message.gpadl_id:#x}, which is not being received")
            return
        channel = self.channel_of(gpadl.channel_id)
        try:
            complete = self.gpadls.receive(gpadl, message.tail)
        except GpadlError as error:
            self._refuse_gpadl(gpadl, error)
            return
        if complete and channel is not None:
            self._accept_gpadl(channel, gpadl)

    def _accept_gpadl(self, channel: Channel, gpadl: Gpadl) -> None:
        # A GPADL for a channel just revoked succeeds: the guest sent it before it saw the rescind,
        # and Linux does not cope with a failure.
        if channel.state not in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self._effects.append(GpadlCreated(channel.offer.key, gpadl.gpadl_id, gpadl.ranges))
        self._send(m.GpadlCreated(channel.channel_id, gpadl.gpadl_id, 0))

    def _refuse_gpadl(self, gpadl: Gpadl, error: GpadlError) -> None:
        self._blame(f"channel {gpadl.channel_id}, GPADL {gpadl.gpadl_id:#x}: {error}")
        self._send(m.GpadlCreated(gpadl.channel_id, gpadl.gpadl_id, STATUS_UNSUCCESSFUL))

    def _gpadl_teardown(self, message: m.GpadlTeardown) -> None:
        gpadl = self.gpadls.find(message.channel_id, message.gpadl_id)
        channel = self.channel_of(message.channel_id)
        if gpadl is None or channel is None:
            self._blame(f"teardown of GPADL {message.gpadl_id:#x}, which does not exist")
            return
        if gpadl.phase is not GpadlPhase.ACCEPTED:
            self._blame(f"teardown of GPADL {message.gpadl_id:#x}, which is {gpadl.phase.value}")
        elif channel.uses(gpadl.gpadl_id):
            # Linux closes and tears down in one breath: the answer waits for the close. A guest
            # that tears down the ring of a channel it has not closed waits until it does.
            gpadl.phase = GpadlPhase.WAITING_FOR_CLOSE
        else:
            self._tear_down(channel, gpadl)

    def _tear_down(self, channel: Channel, gpadl: Gpadl) -> None:
        if channel.state in (ChannelState.REVOKED, ChannelState.REOFFERED):
            self.gpadls.remove(gpadl)
            self._send(m.GpadlTorndown(gpadl.gpadl_id))
        else:
            gpadl.phase = GpadlPhase.TEARING_DOWN
            self._effects.append(GpadlTearingDown(channel.offer.key, gpadl.gpadl_id))

    def _release_waiting_gpadls(self, channel: Channel) -> None:
        for gpadl in self.gpadls:
            mine = gpadl.channel_id == channel.channel_id
            if (mine and gpadl.phase is GpadlPhase.WAITING_FOR_CLOSE) or (
                mine
                and channel.state is ChannelState.REVOKED
                and gpadl.phase is GpadlPhase.TEARING_DOWN
            ):
                self._tear_down(channel, gpadl)

    def _forget_gpadls(self, channel: Channel) -> None:
        for gpadl in self.gpadls:
            if gpadl.channel_id == channel.channel_id:
                self.gpadls.remove(gpadl)

    # Channels.

    def channel_of(self, channel_id: int) -> Channel | None:
        """Return the channel with this id, if the guest was told of it."""
        for channel in self.table.values():
            if channel.channel_id == channel_id and channel.told:
                return channel
        return None

    def _told(self, channel_id: int, message: m.Message) -> Channel | None:
        channel = self.channel_of(channel_id)
        if channel is None:
            self._blame(f"{message.TYPE.name} for channel {channel_id}, which was not offered")
        return channel

    def _owned(self, key: OfferKey) -> Channel:
        channel = self.table.get(key)
        if channel is None or channel.state is ChannelState.REVOKED:
            raise ValueError(f"{key} is not offered")
        return channel

    def _id_of(self, key: OfferKey) -> int:
        if key not in self.ids:
            used = set(self.ids.values())
            free = (number for number in range(1, MAX_CHANNEL_ID + 1) if number not in used)
            number = next(free, None)
            if number is None:
                raise ValueError(f"all {MAX_CHANNEL_ID} channel ids are in use")
            self.ids[key] = number
        return self.ids[key]

    def _tell(self, channel: Channel) -> None:
        if self.contact is None or self.ending or not self.offers_requested or channel.told:
            return
        channel.told = True
        offer = channel.offer
        self._send(
            m.OfferChannel(
                interface_id=offer.key.interface,
                instance_id=offer.key.instance,
                flags=offer.flags,
                mmio_megabytes=offer.mmio_megabytes,
                user_defined=offer.user_defined,
                subchannel_index=offer.key.subchannel_index,
                mmio_megabytes_optional=offer.mmio_megabytes_optional,
                channel_id=channel.channel_id,
                monitor_id=NO_MONITOR,
                monitor_allocated=0,
                is_dedicated=1,
                connection_id=CHANNEL_EVENT_CONNECTION + channel.channel_id,
            )
        )

    def _closed(self, channel: Channel) -> None:
        """The owner has let go of the rings."""
        reopen, channel.reopen, channel.open = channel.reopen, None, None
        channel.state = ChannelState.CLOSED
        if self.ending is not None:
            self._maybe_disconnected()
            return
        self._release_waiting_gpadls(channel)
        if reopen is None:
            return
        gpadl = self.gpadls.find(channel.channel_id, reopen.gpadl_id)
        if gpadl is not None and gpadl.phase is GpadlPhase.ACCEPTED:
            self._ask_to_open(channel, reopen)
        else:
            self._send(m.OpenResult(channel.channel_id, reopen.params.open_id, STATUS_UNSUCCESSFUL))

    # The end of a connection.

    def _disconnect(self, ending: Ending, reason: str) -> None:
        if self.contact is not None and self.ending is None:
            self._effects.append(BusDisconnected(reason))
        self.ending = ending
        for channel in list(self.table.values()):
            channel.reopen = None
            match channel.state:
                case ChannelState.OPEN:
                    channel.state = ChannelState.CLOSING
                    self._effects.append(ChannelClosing(channel.offer.key))
                case ChannelState.OPENING:
                    channel.state = ChannelState.OPENING_CLOSING
                case ChannelState.CLOSING_REOPEN:
                    channel.state = ChannelState.CLOSING
                case ChannelState.REVOKED:
                    del self.table[channel.offer.key]
                case ChannelState.REOFFERED:
                    channel.state = ChannelState.CLOSED
                case ChannelState.CLOSED | ChannelState.CLOSING | ChannelState.OPENING_CLOSING:
                    pass
                case _:
                    assert_never(channel.state)
        self._maybe_disconnected()

    def _maybe_disconnected(self) -> None:
        if self.ending is None:
            return
        if any(channel.state.owner_is_using for channel in self.table.values()):
            return
        for gpadl in self.gpadls:
            self._drop_gpadl(gpadl)
        for channel in self.table.values():
            channel.told = False
        ending, self.ending = self.ending, None
        match ending:
            case Ending.UNLOAD_COMPLETE:
                self._send(m.UnloadComplete())
            case Ending.NOTHING | Ending.VERSION_RESPONSE:
                pass
            case _:
                assert_never(ending)
        self.contact, self.offers_requested = None, False
        if self.next_contact is not None:
            contact, self.next_contact = self.next_contact, None
            self._connect(contact)

    def _drop_gpadl(self, gpadl: Gpadl) -> None:
        channel = self.channel_of(gpadl.channel_id)
        self.gpadls.remove(gpadl)
        if channel is not None and gpadl.phase is not GpadlPhase.RECEIVING:
            self._effects.append(GpadlTearingDown(channel.offer.key, gpadl.gpadl_id))

    # Output.

    def _send(self, message: m.Message) -> None:
        if self.contact is not None:
            self._effects.append(SendMessage(self.contact.vp, self.contact.sint, message.pack()))

    def emit(self, effect: Effect) -> None:
        """Add an effect (for the restore)."""
        self._effects.append(effect)

    def _blame(self, text: str) -> None:
        self._effects.append(GuestError(text))


def _moved(params: OpenParams, target_vp: int) -> OpenParams:
    return OpenParams(
        channel_id=params.channel_id,
        open_id=params.open_id,
        target_vp=target_vp,
        target_sint=params.target_sint,
        ring_pfns=params.ring_pfns,
        downstream_page_offset=params.downstream_page_offset,
        user_data=params.user_data,
        connection_id=params.connection_id,
        event_flag=params.event_flag,
    )
