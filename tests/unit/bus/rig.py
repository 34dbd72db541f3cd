# SPDX-License-Identifier: MIT
"""A bus between a model guest and model owners.

The owners are asynchronous: they answer when the test says so. Two rules are checked all the time.
The guest gets no page back that an owner still uses; and an owner is asked only what makes sense
for what it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from emulator.bus import (
    BusConfig,
    BusConnected,
    BusDisconnected,
    BusHost,
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
    SubchannelOrphaned,
)
from emulator.model import guest as model
from emulator.model.guest import ModelGuest
from emulator.wire.packet import GpaRange

INTERFACE = UUID("6f1d0f2e-93f5-4f2b-9f0c-8d6d4a1f0b11")


def key(number: int, sub: int = 0) -> OfferKey:
    return OfferKey(INTERFACE, UUID(int=number), sub)


def offer(number: int, sub: int = 0) -> Offer:
    """An offer; those of odd numbers are to have a trigger in the guest's monitor page."""
    monitored = number % 2 == 1
    return Offer(key(number, sub), user_defined=bytes([number]) * 8, flags=1, monitored=monitored)


@dataclass
class Owner:
    """The owner of one channel: what it has, and what it has been asked and not answered."""

    offer: Offer
    opening: OpenParams | None = None
    rings: OpenParams | None = None
    closing: bool = False
    gpadls: dict[int, tuple[GpaRange, ...]] = field(default_factory=dict)
    releasing: list[int] = field(default_factory=list)
    moved: list[int | None] = field(default_factory=list)
    orphaned: bool = False

    @property
    def pages(self) -> set[int]:
        """All guest pages that it may touch."""
        pages = {pfn for ranges in self.gpadls.values() for r in ranges for pfn in r.pfns}
        for request in (self.opening, self.rings):
            pages.update(request.ring_pfns if request is not None else ())
        return pages

    @property
    def holds_nothing(self) -> bool:
        return not self.pages


class Rig:
    """Bus, guest and owners. With `automatic` the owners answer at once."""

    def __init__(
        self, config: BusConfig | None = None, *, automatic: bool = True, pages: int = 16384
    ) -> None:
        self.config = config if config is not None else BusConfig()
        self.bus = BusHost(self.config)
        self.guest = ModelGuest(self._posted, pages=pages)
        self.guest.pages_freed = self._pages_freed
        self.owners: dict[OfferKey, Owner] = {}
        self.automatic = automatic
        self.errors: list[str] = []
        self.others: list[Effect] = []
        self.deliver: Callable[[SendMessage], None] = self._deliver
        self.hold = False
        """Whether effects stay in the bus: what the guest says now crosses what the bus said."""

    # Into the bus.

    def apply(self, call: Callable[[BusHost], object]) -> None:
        """Every input of the bus goes through here."""
        call(self.bus)
        if not self.hold:
            self.pump()

    def _posted(self, connection_id: int, payload: bytes) -> None:
        self.apply(lambda bus: bus.guest_message(connection_id, payload))

    def offer(self, what: Offer) -> None:
        self.owners[what.key] = Owner(what)
        self.apply(lambda bus: bus.offer(what))

    def rescind(self, which: OfferKey) -> None:
        del self.owners[which]
        self.apply(lambda bus: bus.rescind(which))

    def reset(self) -> None:
        """Reset the machine: what the bus said until now never arrives."""
        self.apply(lambda bus: bus.reset())
        self.guest.forget()

    def open_result(self, which: OfferKey, ok: bool = True) -> None:
        owner = self.owners[which]
        if ok:
            owner.rings = owner.opening
        owner.opening = None
        self.apply(lambda bus: bus.open_result(which, ok))

    def close_done(self, which: OfferKey) -> None:
        owner = self.owners[which]
        assert owner.closing
        owner.closing, owner.rings = False, None
        self.apply(lambda bus: bus.close_done(which))

    def release(self, which: OfferKey, gpadl_id: int) -> None:
        owner = self.owners[which]
        owner.releasing.remove(gpadl_id)
        del owner.gpadls[gpadl_id]
        self.apply(lambda bus: bus.gpadl_released(which, gpadl_id))

    # Out of the bus.

    def pump(self) -> None:
        """Let everybody have what the bus has for them."""
        self.hold = False
        while effects := self.bus.take_effects():
            for effect in effects:
                self.carry_out(effect)
            if self.automatic:
                self.answer_all()

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case SendMessage():
                self.deliver(effect)
            case ChannelOpening():
                owner = self.owners[effect.key]
                assert owner.opening is None
                assert owner.rings is None
                owner.opening = effect.params
            case ChannelClosing():
                owner = self.owners[effect.key]
                assert owner.rings is not None
                assert not owner.closing
                owner.closing = True
            case ChannelMoved():
                owner = self.owners[effect.key]
                assert owner.rings is not None
                owner.rings = dataclasses.replace(owner.rings, target_vp=effect.target_vp)
                owner.moved.append(effect.target_vp)
            case GpadlCreated():
                owner = self.owners[effect.key]
                assert effect.gpadl_id not in owner.gpadls
                owner.gpadls[effect.gpadl_id] = effect.ranges
            case GpadlTearingDown():
                owner = self.owners[effect.key]
                assert effect.gpadl_id in owner.gpadls
                assert effect.gpadl_id not in owner.releasing
                owner.releasing.append(effect.gpadl_id)
            case SubchannelOrphaned():
                assert not self.owners[effect.key].orphaned
                self.owners[effect.key].orphaned = True
            case GuestError():
                self.errors.append(effect.text)
            case BusConnected() | BusDisconnected() | ChannelReleased():
                self.others.append(effect)

    def check_memory(self, effect: SendMessage) -> None:
        """No owner uses what the guest gets back with this message."""
        kind = effect.payload[0]
        if kind in (model.VERSION_RESPONSE, model.UNLOAD_COMPLETE):
            # With these the guest takes all of its memory back.
            for owner in self.owners.values():
                assert owner.holds_nothing, f"{owner} still uses pages of the guest"

    def _deliver(self, effect: SendMessage) -> None:
        self.check_memory(effect)
        self.guest.deliver(effect.vp, effect.sint, effect.payload)

    def _pages_freed(self, pfns: list[int]) -> None:
        for owner in self.owners.values():
            assert owner.pages.isdisjoint(pfns), f"{owner} still uses {pfns}"

    def answer_all(self) -> None:
        """Let every owner answer everything that it was asked."""
        for which, owner in list(self.owners.items()):
            if owner.orphaned:
                self.rescind(which)
                continue
            if owner.opening is not None:
                self.open_result(which)
            if owner.closing:
                self.close_done(which)
            for gpadl_id in list(owner.releasing):
                self.release(which, gpadl_id)

    # Short cuts.

    def id_of(self, which: OfferKey) -> int:
        return self.bus.table.ids[which]

    def connected(self, *numbers: int) -> Rig:
        """Offer channels and connect the guest."""
        for number in numbers:
            self.offer(offer(number))
        self.guest.connect()
        assert self.guest.connected
        assert self.guest.offers_complete
        return self

    def opened(self, number: int, pages: int = 8) -> model.GuestGpadl:
        """Make a ring and open a channel on it."""
        channel_id = self.id_of(key(number))
        gpadl = self.guest.make_gpadl(channel_id, pages)
        self.guest.open_channel(channel_id, gpadl.gpadl_id)
        return gpadl

    def close(self) -> None:
        self.guest.close()
