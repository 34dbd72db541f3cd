# SPDX-License-Identifier: MIT
"""Save and restore of the bus, at any point between two messages.

The rules are those that Hyper-V's hosts follow: a plain restore shows the guest nothing. A channel
that was open is handed to its owner open; what the owner had been asked and had not answered is
asked again; a channel that nobody offers any more is rescinded; a new one is offered only if the
guest has asked for offers; one that is offered with other contents is refused, all at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.bus.channel import Channel, ChannelState, OpenRequest
from emulator.bus.effects import (
    ChannelClosing,
    GpadlCreated,
    GpadlTearingDown,
    Offer,
    OfferKey,
    OpenParams,
)
from emulator.bus.gpadl import Gpadl, GpadlError, GpadlPhase
from emulator.bus.state import (
    BUS_STATE_VERSION,
    BusState,
    SavedChannel,
    SavedContact,
    SavedGpadl,
    SavedKey,
    SavedOffer,
    SavedOpen,
)
from emulator.wire.version import Version

if TYPE_CHECKING:
    from emulator.bus.host import BusHost, Contact


class RestoreMismatch(Exception):
    """The snapshot does not fit this host; ``problems`` names every way in which it does not."""

    def __init__(self, problems: list[str]) -> None:
        """Join the problems into one text."""
        super().__init__("the VMBus state does not fit: " + "; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class RestoredChannel:
    """A channel in the snapshot, for its owner to claim with ``offer``; ``open`` if it was open."""

    key: OfferKey
    open: OpenParams | None


def save(bus: BusHost) -> BusState:
    """Return the state of a bus whose effects have been taken."""
    return BusState(
        version=BUS_STATE_VERSION,
        contact=_save_contact(bus.contact),
        offers_requested=bus.offers_requested,
        ending=bus.ending,
        next_contact=_save_contact(bus.next_contact),
        channels=[_save_channel(channel) for channel in bus.table.values()],
        gpadls=[
            SavedGpadl(
                gpadl.channel_id,
                gpadl.gpadl_id,
                gpadl.phase,
                gpadl.length,
                gpadl.count,
                bytes(gpadl.data),
            )
            for gpadl in bus.gpadls
        ],
        ids=[(_save_key(key), number) for key, number in bus.ids.items()],
    )


def restore(bus: BusHost, state: BusState) -> dict[OfferKey, Channel]:
    """Fill a fresh bus; returns the channels that are to be claimed.

    Raises :class:`RestoreMismatch`, with the bus of no further use.
    """
    problems: list[str] = []
    if state.version != BUS_STATE_VERSION:
        problems.append(f"bus state version {state.version}, not {BUS_STATE_VERSION}")
    for contact in (state.contact, state.next_contact):
        if contact is not None and not _allowed(bus, contact.version):
            problems.append(f"VMBus version {contact.version:#x} is not allowed here")
    if problems:
        raise RestoreMismatch(problems)
    bus.contact = _load_contact(state.contact)
    bus.next_contact = _load_contact(state.next_contact)
    bus.offers_requested = state.offers_requested
    bus.ending = state.ending
    bus.ids = {_load_key(key): number for key, number in state.ids}
    channels: dict[OfferKey, Channel] = {}
    for saved in state.channels:
        channel = _load_channel(saved)
        if bus.ids.get(channel.offer.key) != channel.channel_id:
            problems.append(f"{channel.offer.key} has the wrong id {channel.channel_id}")
        channels[channel.offer.key] = channel
    for saved_gpadl in state.gpadls:
        try:
            bus.gpadls.add(_load_gpadl(saved_gpadl))
        except GpadlError as error:
            problems.append(f"GPADL {saved_gpadl.gpadl_id:#x}: {error}")
    if problems:
        raise RestoreMismatch(problems)
    return channels


def changed(saved: Offer, offered: Offer) -> str:
    """Say how an offer differs from the one the guest knows, or return the empty string."""
    if saved == offered:
        return ""
    return f"{offered.key} is offered with other contents than the guest knows"


def replay(bus: BusHost) -> None:
    """Ask the owners again what they had been asked at the save; give answers that were owed."""
    for channel in list(bus.table.values()):
        key = channel.offer.key
        for gpadl in bus.gpadls:
            if gpadl.channel_id != channel.channel_id:
                continue
            match gpadl.phase:
                case GpadlPhase.ACCEPTED | GpadlPhase.WAITING_FOR_CLOSE:
                    bus.emit(GpadlCreated(key, gpadl.gpadl_id, gpadl.ranges))
                case GpadlPhase.TEARING_DOWN:
                    bus.emit(GpadlTearingDown(key, gpadl.gpadl_id))
                case GpadlPhase.RECEIVING:
                    pass
        match channel.state:
            case ChannelState.OPENING | ChannelState.OPENING_CLOSING:
                # The owner has it open by now: it took it restored open.
                bus.open_result(key, True)
            case ChannelState.CLOSING | ChannelState.CLOSING_REOPEN:
                bus.emit(ChannelClosing(key))
            case _:
                pass


def _allowed(bus: BusHost, version: int) -> bool:
    return (
        version in Version.__members__.values()
        and bus.config.min_version <= version <= bus.config.max_version
    )


def _save_contact(contact: Contact | None) -> SavedContact | None:
    if contact is None:
        return None
    return SavedContact(int(contact.version), contact.vp, contact.sint, contact.connection_id)


def _load_contact(saved: SavedContact | None) -> Contact | None:
    from emulator.bus.host import Contact

    if saved is None:
        return None
    return Contact(Version(saved.version), saved.vp, saved.sint, saved.connection_id)


def _save_key(key: OfferKey) -> SavedKey:
    return SavedKey(key.interface, key.instance, key.subchannel_index)


def _load_key(saved: SavedKey) -> OfferKey:
    return OfferKey(saved.interface, saved.instance, saved.subchannel_index)


def _save_open(request: OpenRequest | None) -> SavedOpen | None:
    if request is None:
        return None
    params = request.params
    return SavedOpen(
        gpadl_id=request.gpadl_id,
        open_id=params.open_id,
        target_vp=params.target_vp,
        target_sint=params.target_sint,
        ring_pfns=params.ring_pfns,
        downstream_page_offset=params.downstream_page_offset,
        user_data=params.user_data,
        connection_id=params.connection_id,
        event_flag=params.event_flag,
    )


def _load_open(channel_id: int, saved: SavedOpen | None) -> OpenRequest | None:
    if saved is None:
        return None
    return OpenRequest(
        saved.gpadl_id,
        OpenParams(
            channel_id=channel_id,
            open_id=saved.open_id,
            target_vp=saved.target_vp,
            target_sint=saved.target_sint,
            ring_pfns=saved.ring_pfns,
            downstream_page_offset=saved.downstream_page_offset,
            user_data=saved.user_data,
            connection_id=saved.connection_id,
            event_flag=saved.event_flag,
        ),
    )


def _save_channel(channel: Channel) -> SavedChannel:
    offer = channel.offer
    return SavedChannel(
        key=_save_key(offer.key),
        offer=SavedOffer(
            offer.user_defined, offer.flags, offer.mmio_megabytes, offer.mmio_megabytes_optional
        ),
        channel_id=channel.channel_id,
        state=channel.state,
        told=channel.told,
        open=_save_open(channel.open),
        reopen=_save_open(channel.reopen),
    )


def _load_channel(saved: SavedChannel) -> Channel:
    offer = Offer(
        _load_key(saved.key),
        saved.offer.user_defined,
        saved.offer.flags,
        saved.offer.mmio_megabytes,
        saved.offer.mmio_megabytes_optional,
    )
    return Channel(
        offer,
        saved.channel_id,
        saved.state,
        saved.told,
        _load_open(saved.channel_id, saved.open),
        _load_open(saved.channel_id, saved.reopen),
    )


def _load_gpadl(saved: SavedGpadl) -> Gpadl:
    gpadl = Gpadl(saved.channel_id, saved.gpadl_id, saved.length, saved.count)
    gpadl.receive(saved.data)
    gpadl.phase = saved.phase
    return gpadl
