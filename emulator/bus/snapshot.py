# SPDX-License-Identifier: MIT
"""Save and restore of the bus, at any point between two messages.

The rules are those that Hyper-V's hosts follow: a plain restore shows the guest nothing. A channel
that was open is handed to its owner open; what the owner had been asked and had not answered is
asked again; a channel that nobody offers any more is rescinded; a new one is offered only if the
guest has asked for offers; one that is offered with other contents is refused, all at once, or
offered anew (``emulator.bus.restoring``).

A state is checked before it is used, although a checksum vouches for it elsewhere: a snapshot that
contradicts itself is refused before the guest runs, and not when the guest trips over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from emulator.bus.channel import Channel, ChannelState, Ending, OpenRequest
from emulator.bus.contact import NO_BIT_PAGES, Contact, Verdict, is_version, page_problem
from emulator.bus.effects import (
    ChannelClosing,
    GpadlCreated,
    GpadlTearingDown,
    Offer,
    OfferKey,
    OpenParams,
    SubchannelOrphaned,
)
from emulator.bus.gpadl import Gpadl, GpadlError, GpadlPhase
from emulator.bus.ids import MAX_CHANNEL_ID
from emulator.bus.opening import event_connection, signal_problem
from emulator.bus.outbox import Route
from emulator.bus.restoring import RestoreMismatch
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
from emulator.wire.version import GRANTED_FEATURES, FeatureFlags, Version

if TYPE_CHECKING:
    from emulator.bus.host import BusHost


# Save.


def save(bus: BusHost) -> BusState:
    """Return the state of a bus whose effects have been taken."""
    by_id = sorted((number, key) for key, number in bus.table.ids.items())
    return BusState(
        version=BUS_STATE_VERSION,
        contact=_save_contact(bus.contact),
        offers_requested=bus.table.offers_requested,
        ending=bus.ending,
        next_contact=_save_contact(bus.next_contact),
        channels=[_save_channel(channel) for channel in bus.table],
        gpadls=[
            SavedGpadl(
                gpadl.channel_id,
                gpadl.gpadl_id,
                gpadl.phase,
                gpadl.length,
                gpadl.count,
                bytes(gpadl.data),
            )
            for gpadl in bus.sharing.table
        ],
        ids=[_save_key(key) for _, key in by_id],
        held=None if bus.outbox.held is None else list(bus.outbox.held),
    )


def _save_contact(contact: Contact | None) -> SavedContact | None:
    if contact is None:
        return None
    return SavedContact(
        contact.requested,
        contact.vp,
        contact.sint,
        contact.connection_id,
        contact.verdict,
        int(contact.features),
        contact.client_id,
        contact.monitor_pages,
        contact.interrupt_page,
    )


def _save_key(key: OfferKey) -> SavedKey:
    return SavedKey(key.interface, key.instance, key.subchannel_index)


def _save_open(request: OpenRequest | None) -> SavedOpen | None:
    if request is None:
        return None
    params = request.params
    signal = (params.connection_id, params.event_flag)
    usual = (event_connection(params.channel_id, params.target_sint), params.channel_id)
    return SavedOpen(
        gpadl_id=request.gpadl_id,
        open_id=params.open_id,
        target_vp=params.target_vp,
        target_sint=params.target_sint,
        downstream_page_offset=params.downstream_page_offset,
        user_data=params.user_data,
        signal=signal if signal != usual else None,
        reserved=_save_route(request.reserved),
    )


def _save_route(route: Route | None) -> tuple[int, int] | None:
    return None if route is None else (route.vp, route.sint)


def _load_route(saved: tuple[int, int] | None) -> Route | None:
    return None if saved is None else Route(*saved)


def _save_channel(channel: Channel) -> SavedChannel:
    offer = channel.offer
    return SavedChannel(
        key=_save_key(offer.key),
        offer=SavedOffer(
            offer.user_defined, offer.flags, offer.mmio_megabytes, offer.mmio_megabytes_optional
        ),
        state=channel.state,
        open=_save_open(channel.open),
        reopen=_save_open(channel.reopen),
        close_answer=_save_route(channel.close_answer),
        monitor_id=channel.monitor_id
        if channel.state.guest_knows or channel.state.owner_has_rings
        else None,
        orphaned=channel.orphaned,
    )


# Restore.


def restore(bus: BusHost, state: BusState) -> None:
    """Fill a fresh bus; raises :class:`RestoreMismatch`."""
    if state.version != BUS_STATE_VERSION:
        # What else is wrong cannot be told.
        raise RestoreMismatch([f"bus state version {state.version}, not {BUS_STATE_VERSION}"])
    problems = [*_connection_problems(bus, state)]
    keys = [_load_key(key) for key in state.ids]
    if len(set(keys)) != len(keys) or len(keys) > MAX_CHANNEL_ID:
        problems.append("the list of channel ids contradicts itself")
    bus.table.ids = {key: number for number, key in enumerate(keys, 1)}
    for saved_gpadl in state.gpadls:
        try:
            bus.sharing.table.add(_load_gpadl(saved_gpadl))
        except GpadlError as error:
            problems.append(
                f"channel {saved_gpadl.channel_id}, GPADL {saved_gpadl.gpadl_id:#x}: {error}"
            )
    for saved in state.channels:
        key = _load_key(saved.key)
        if key not in bus.table.ids or key in bus.table.table:
            problems.append(f"{key} has no id or is there twice")
            continue
        try:
            bus.table.put(_load_channel(bus, key, saved))
        except GpadlError as error:
            problems.append(f"{key}: {error}")
    problems += _signal_problems(bus, state)
    known = {channel.channel_id for channel in bus.table}
    problems += [
        f"GPADL {gpadl.gpadl_id:#x} is of channel {gpadl.channel_id}, which does not exist"
        for gpadl in bus.sharing.table
        if gpadl.channel_id not in known
    ]
    connected = state.contact is not None and state.ending is None
    if not connected and any(channel.state.guest_knows for channel in bus.table):
        problems.append("the guest knows channels without a connection")
    if problems:
        raise RestoreMismatch(problems)
    bus.contact = _load_contact(state.contact)
    bus.next_contact = _load_contact(state.next_contact)
    bus.table.offers_requested = state.offers_requested
    bus.ending = state.ending
    bus.outbox.route = bus.contact.route if bus.contact and bus.ending is None else None
    bus.outbox.held = None if state.held is None else list(state.held)
    bus.table.follow(bus.contact)


def replay(bus: BusHost) -> None:
    """Ask the owners again what they had been asked at the save; give answers that were owed."""
    for channel in bus.table:
        if channel.state.is_revoked:
            continue
        key = channel.offer.key
        if channel.orphaned:
            bus.outbox.emit(SubchannelOrphaned(key))
        for gpadl in bus.sharing.table.of(channel.channel_id):
            match gpadl.phase:
                case GpadlPhase.ACCEPTED | GpadlPhase.WAITING_FOR_CLOSE:
                    bus.outbox.emit(GpadlCreated(key, gpadl.gpadl_id, gpadl.ranges))
                case GpadlPhase.TEARING_DOWN | GpadlPhase.DROPPED:
                    bus.outbox.emit(GpadlTearingDown(key, gpadl.gpadl_id))
                case GpadlPhase.RECEIVING:
                    pass
        match channel.state:
            case ChannelState.OPENING | ChannelState.OPENING_CLOSE | ChannelState.OPENING_RELEASE:
                # The owner has it open by now: it took it restored open.
                bus.table.open_result(key, True)
            case ChannelState.CLOSING | ChannelState.CLOSING_REOPEN | ChannelState.CLOSING_RELEASE:
                bus.outbox.emit(ChannelClosing(key))
            case _:
                pass


def _connection_problems(bus: BusHost, state: BusState) -> Iterator[str]:
    for contact in (state.contact, state.next_contact):
        if contact is None or contact.verdict is not Verdict.ACCEPTED:
            continue
        if not is_version(contact.version) or not (
            bus.config.min_version <= contact.version <= bus.config.max_restored_version
        ):
            yield (
                f"the guest speaks VMBus {contact.version >> 16}.{contact.version & 0xFFFF}, "
                f"and a restore here allows {bus.config.min_version} to "
                f"{bus.config.max_restored_version}"
            )
        if contact.features & ~GRANTED_FEATURES or (
            contact.features and contact.version < Version.COPPER
        ):
            yield f"features {contact.features:#x} were granted, which this host never grants"
        if contact.monitor_pages is not None:
            for page in contact.monitor_pages:
                if problem := page_problem("monitor page", page, bus.is_ram):
                    yield problem
        if (contact.interrupt_page is not None) != (contact.version < Version.WIN8):
            yield "the version and the interrupt page of the guest contradict each other"
        elif contact.interrupt_page is not None and not bus.config.bit_pages:
            yield NO_BIT_PAGES
        elif contact.interrupt_page is not None and (
            problem := page_problem("interrupt page", contact.interrupt_page, bus.is_ram)
        ):
            yield problem
    if state.contact is not None and state.contact.verdict is not Verdict.ACCEPTED:
        yield "there is a connection that was refused"
    owes_version = state.ending is Ending.VERSION_RESPONSE
    owes_unload = state.ending is Ending.UNLOAD_COMPLETE
    if owes_version != (state.next_contact is not None) or (owes_unload and state.contact is None):
        yield "what is owed to the guest contradicts itself"
    if state.held is not None and (
        state.contact is None
        or state.ending is not None
        or not state.contact.features & FeatureFlags.PAUSE_RESUME
    ):
        yield "messages are held back for a guest that cannot have paused the connection"
    if state.offers_requested and (state.contact is None or state.ending is not None):
        yield "offers were requested without a connection"


def _signal_problems(bus: BusHost, state: BusState) -> Iterator[str]:
    """Signal parameters hold to what an open had to hold to."""
    asked = state.contact is not None and bool(
        state.contact.features & FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    )
    taken: dict[int, int] = {}
    triggers: set[int] = set()
    for channel in bus.table:
        if channel.monitor_id is not None and channel.state.guest_knows:
            if channel.monitor_id in triggers:
                yield f"{channel.offer.key}: another channel has monitor id {channel.monitor_id}"
            triggers.add(channel.monitor_id)
        for request in (channel.open, channel.reopen):
            if request is None:
                continue
            params = request.params
            holder = taken.setdefault(params.connection_id, channel.channel_id)
            if problem := signal_problem(params.connection_id, params.event_flag):
                yield f"{channel.offer.key}: {problem}"
            elif holder != channel.channel_id:
                yield (
                    f"{channel.offer.key}: channel {holder} has connection "
                    f"{params.connection_id:#x}"
                )
            if not asked and params.event_flag != channel.channel_id:
                yield f"{channel.offer.key}: event flag {params.event_flag} was not asked for"


def _load_contact(saved: SavedContact | None) -> Contact | None:
    if saved is None:
        return None
    return Contact(
        saved.version,
        saved.vp,
        saved.sint,
        saved.connection_id,
        saved.verdict,
        FeatureFlags(saved.features),
        saved.client_id,
        saved.monitor_pages,
        saved.interrupt_page,
    )


def _load_key(saved: SavedKey) -> OfferKey:
    return OfferKey(saved.interface, saved.instance, saved.subchannel_index)


def _load_gpadl(saved: SavedGpadl) -> Gpadl:
    gpadl = Gpadl(saved.channel_id, saved.gpadl_id, saved.length, saved.count)
    complete = gpadl.receive(saved.data)
    if complete == (saved.phase is GpadlPhase.RECEIVING) or bytes(gpadl.data) != saved.data:
        raise GpadlError(
            f"it is {saved.phase.value} with {len(saved.data)} of {saved.length} bytes"
        )
    gpadl.phase = saved.phase
    return gpadl


def _load_channel(bus: BusHost, key: OfferKey, saved: SavedChannel) -> Channel:
    """Raises :class:`GpadlError` when the rings do not fit the state."""
    offer = Offer(
        key,
        saved.offer.user_defined,
        saved.offer.flags,
        saved.offer.mmio_megabytes,
        saved.offer.mmio_megabytes_optional,
    )
    channel_id = bus.table.ids[key]
    if (saved.open is not None) != saved.state.owner_has_rings or (
        (saved.reopen is not None) != saved.state.has_reopen
    ):
        raise GpadlError(f"the rings contradict the state {saved.state.value}")
    if saved.close_answer is not None and saved.open is None:
        raise GpadlError("the close of a reserved channel is to be answered, and it is closed")
    return Channel(
        offer,
        channel_id,
        saved.state,
        _load_open(bus, channel_id, saved.open, saved.monitor_id),
        _load_open(bus, channel_id, saved.reopen, saved.monitor_id),
        _load_route(saved.close_answer),
        saved.monitor_id,
        saved.orphaned,
    )


def _load_open(
    bus: BusHost, channel_id: int, saved: SavedOpen | None, monitor_id: int | None
) -> OpenRequest | None:
    if saved is None:
        return None
    gpadl = bus.sharing.table.find(channel_id, saved.gpadl_id)
    if gpadl is None or gpadl.phase not in (GpadlPhase.ACCEPTED, GpadlPhase.WAITING_FOR_CLOSE):
        raise GpadlError(f"the GPADL {saved.gpadl_id:#x} of its rings is not there")
    split = saved.downstream_page_offset
    if not gpadl.is_whole_pages or not 2 <= split <= len(gpadl.pfns) - 2:
        raise GpadlError(f"its rings do not fit GPADL {saved.gpadl_id:#x}")
    connection_id, event_flag = saved.signal or (
        event_connection(channel_id, saved.target_sint),
        channel_id,
    )
    return OpenRequest(
        saved.gpadl_id,
        OpenParams(
            channel_id=channel_id,
            open_id=saved.open_id,
            target_vp=saved.target_vp,
            target_sint=saved.target_sint,
            ring_pfns=gpadl.pfns,
            downstream_page_offset=split,
            user_data=saved.user_data,
            connection_id=connection_id,
            event_flag=event_flag,
            monitor_id=monitor_id,
        ),
        _load_route(saved.reserved),
    )
