# SPDX-License-Identifier: MIT
"""Random conversations between a guest that keeps the rules, owners that take their time, and a
bus that is saved and restored on the way, compared with a twin that is not.

What is shown: a guest that keeps the rules is never blamed; the bus breaks none (the model guest
minds them); no page goes back to the guest while an owner uses it; when everybody has answered,
nobody waits; and after a restore the bus does what the twin does, effect by effect.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emulator.bus import (
    BusHost,
    BusState,
    ChannelClosing,
    Effect,
    GpadlCreated,
    GpadlTearingDown,
    SendMessage,
)
from emulator.model import guest as model
from tests.unit.bus.rig import Owner, Rig, key, offer

NUMBERS = (1, 2, 3)


class TwinRig(Rig):
    """A rig with a second bus that gets the same inputs, and a queue of messages to the guest."""

    def __init__(self) -> None:
        super().__init__(automatic=False, pages=8192)
        self.twin = BusHost(self.config)
        self.queue: list[SendMessage] = []
        self.deliver = self._enqueue

    def _enqueue(self, effect: SendMessage) -> None:
        self.check_memory(effect)
        self.queue.append(effect)

    def apply(self, call: Callable[[BusHost], object]) -> None:
        call(self.bus)
        call(self.twin)
        effects = self.bus.take_effects()
        assert effects == self.twin.take_effects()
        for effect in effects:
            self.carry_out(effect)

    def read_one(self) -> None:
        effect = self.queue.pop(0)
        self.guest.deliver(effect.vp, effect.sint, effect.payload)

    def reset(self) -> None:
        self.queue.clear()
        super().reset()

    def restore(self, seed: int, dropped: set[int], new: set[int]) -> None:
        """Carry `bus` over to a fresh one, in which some channels are gone and some are new."""
        data = msgspec.msgpack.encode(self.bus.save())
        gone = sorted(key(n) for n in dropped if key(n) in self.owners)
        # What the fresh bus asks its owners again.
        again: Counter[Effect] = Counter()
        kept = {which: owner for which, owner in self.owners.items() if which not in gone}
        for which, owner in kept.items():
            for gpadl_id, ranges in owner.gpadls.items():
                again[
                    GpadlTearingDown(which, gpadl_id)
                    if gpadl_id in owner.releasing
                    else GpadlCreated(which, gpadl_id, ranges)
                ] += 1
            again[ChannelClosing(which)] += owner.closing

        self.bus = BusHost(self.config)
        restored = self.bus.restore(msgspec.msgpack.decode(data, type=BusState))
        for channel in restored:
            if channel.key in self.owners:
                owner = self.owners[channel.key]
                assert channel.open == (owner.opening or owner.rings)
            else:
                assert channel.open is None
        offered = list(kept)
        random.Random(seed).shuffle(offered)
        for which in offered:
            self.bus.offer(kept[which].offer)
        # Ids are given in the order of offers, so that of new ones must be that of the twin.
        fresh = [offer(n) for n in sorted(new) if key(n) not in self.owners]
        claims = {channel.key for channel in restored}
        for what in fresh:
            self.bus.offer(what)
        self.bus.finish_restore()

        for which in gone:
            self.twin.rescind(which)
            del self.owners[which]
        for what in fresh:
            if what.key in claims:
                self.twin.offer(what)
            self.owners[what.key] = Owner(what)
        for which in sorted(kept, key=lambda which: self.twin.table.ids[which]):
            owner = kept[which]
            if owner.opening is not None:
                # Who was being opened is restored open.
                owner.rings, owner.opening = owner.opening, None
                self.twin.open_result(which, True)
        for what in fresh:
            if what.key not in claims:
                self.twin.offer(what)
        expected = self.twin.take_effects()
        effects = self.bus.take_effects()
        assert _messages(effects) == _messages(expected)
        assert Counter(effects) == Counter(expected) + again
        for effect in expected:
            self.carry_out(effect)


def _messages(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, SendMessage)]


class BusMachine(RuleBasedStateMachine):
    """The guest waits for answers only where it has to, as a kernel with many threads does."""

    every_step = False

    def __init__(self) -> None:
        super().__init__()
        self.rig = TwinRig()
        self.guest = self.rig.guest
        for number in NUMBERS[:2]:
            self.rig.offer(offer(number))

    # The guest.

    def known(self) -> list[model.GuestChannel]:
        if not self.guest.connected or self.guest.unloading:
            return []
        return list(self.guest.channels.values())

    def gpadls(self, *states: str) -> list[model.GuestGpadl]:
        return [g for c in self.known() for g in c.gpadls.values() if g.state in states]

    def asked(self) -> set[int]:
        """The channels that owners have been asked to open."""
        return {self.rig.id_of(k) for k, o in self.rig.owners.items() if o.opening is not None}

    def may_open(self, channel: model.GuestChannel) -> bool:
        # Who closed early waits until that is over: a refusal would be no fault of the bus.
        busy = channel.is_open or channel.opening or channel.channel_id in self.asked()
        return not busy and not channel.rescinded

    def read_all(self) -> None:
        while self.rig.queue:
            self.rig.read_one()

    @initialize()
    def boot(self) -> None:
        self.guest.contact()
        self.read_all()
        self.guest.request_offers()
        self.read_all()

    # Rare, because everything starts from nothing after it.
    @rule(
        dice=st.integers(0, 7),
        version=st.sampled_from([0x50003, 0x60000, 0x60001, 0x40000, 0x20004, 0x10001, 0x0D]),
        boots=st.booleans(),
    )
    def contact(self, dice: int, version: int, boots: bool) -> None:
        if dice != 7:
            return
        # Another kernel has started; what the old one had not read is lost with its SIM page.
        self.rig.queue.clear()
        self.guest.contact(version, vp=version & 1, features=0x27)
        self.read_all()
        if boots and self.guest.connected:
            self.guest.request_offers()
            self.read_all()

    @precondition(lambda self: self.guest.connected and not self.guest.offers_asked)
    @rule()
    def request_offers(self) -> None:
        if not self.guest.unloading:
            self.guest.request_offers()

    @precondition(lambda self: self.guest.connected and not self.guest.unloading)
    @rule(dice=st.integers(0, 7))
    def unload(self, dice: int) -> None:
        if dice == 7:
            self.guest.unload()
            if not self.guest.unloading:
                # At 0.13 there is no answer to wait for; what comes is read by nobody.
                self.rig.queue.clear()

    @precondition(lambda self: self.rig.queue)
    @rule()
    def read(self) -> None:
        self.rig.read_one()

    @precondition(lambda self: self.known())
    @rule(data=st.data(), pages=st.sampled_from([1, 6, 30, 80]))
    def gpadl(self, data: st.DataObject, pages: int) -> None:
        channel = data.draw(st.sampled_from(self.known()))
        self.guest.gpadl_begin(channel.channel_id, pages)

    @precondition(lambda self: self.gpadls("sending"))
    @rule(data=st.data())
    def gpadl_body(self, data: st.DataObject) -> None:
        self.guest.gpadl_go_on(data.draw(st.sampled_from(self.gpadls("sending"))))

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def ring_and_open(self, data: st.DataObject) -> None:
        # What a driver does when it probes.
        channel = data.draw(st.sampled_from(self.known()))
        if not self.may_open(channel):
            return
        ring = self.guest.make_gpadl(channel.channel_id, 8)
        self.read_all()
        if not channel.rescinded:
            assert ring.state == "created"
            self.guest.open_channel(channel.channel_id, ring.gpadl_id)

    @precondition(lambda self: any(channel.is_open for channel in self.known()))
    @rule(data=st.data())
    def close_and_tear_down(self, data: st.DataObject) -> None:
        # What a driver does when it is removed, in one breath.
        channels = [channel for channel in self.known() if channel.is_open]
        channel = data.draw(st.sampled_from(channels))
        self.guest.close_channel(channel.channel_id)
        for gpadl in list(channel.gpadls.values()):
            if gpadl.state == "created":
                self.guest.teardown(gpadl)

    @precondition(lambda self: self.gpadls("created"))
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        gpadl = data.draw(st.sampled_from(self.gpadls("created")))
        channel = self.guest.channels[gpadl.channel_id]
        fits = len(gpadl.pfns) >= 4
        if fits and self.may_open(channel):
            self.guest.open_channel(channel.channel_id, gpadl.gpadl_id)

    @precondition(lambda self: any(channel.is_open for channel in self.known()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        channels = [channel for channel in self.known() if channel.is_open]
        self.guest.close_channel(data.draw(st.sampled_from(channels)).channel_id)

    @precondition(lambda self: any(channel.opening for channel in self.known()))
    @rule(data=st.data())
    def close_early(self, data: st.DataObject) -> None:
        # Fair only while the owner has not answered.
        channels = [c for c in self.known() if c.opening and c.channel_id in self.asked()]
        if channels:
            self.guest.close_channel(data.draw(st.sampled_from(channels)).channel_id)

    @precondition(lambda self: self.gpadls("created"))
    @rule(data=st.data())
    def tear_down(self, data: st.DataObject) -> None:
        # Also of rings of open channels: allowed, and answered with the close.
        self.guest.teardown(data.draw(st.sampled_from(self.gpadls("created"))))

    @precondition(lambda self: any(channel.is_open for channel in self.known()))
    @rule(data=st.data(), vp=st.integers(0, 3))
    def modify(self, data: st.DataObject, vp: int) -> None:
        channels = [channel for channel in self.known() if channel.is_open]
        if self.guest.version >= 0x40001:
            self.guest.modify(data.draw(st.sampled_from(channels)).channel_id, vp)

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(self.known()))
        asked = [gpadl.state for gpadl in channel.gpadls.values()]
        # Linux lets go of a channel when it waits for nothing on it.
        waits = channel.opening or channel.is_open or {"created?", "torndown?"} & set(asked)
        on_the_way = any(
            effect.payload[8:12] == model.u32(channel.channel_id)
            for effect in self.rig.queue
            if effect.payload[0] != model.OFFER_CHANNEL
        )
        if not waits and not on_the_way:
            self.guest.release(channel.channel_id)

    # Owners.

    @precondition(lambda self: any(o.opening for o in self.rig.owners.values()))
    @rule(data=st.data(), ok=st.booleans())
    def open_result(self, data: st.DataObject, ok: bool) -> None:
        asked = [k for k, o in self.rig.owners.items() if o.opening is not None]
        self.rig.open_result(data.draw(st.sampled_from(asked)), ok)

    @precondition(lambda self: any(o.closing for o in self.rig.owners.values()))
    @rule(data=st.data())
    def close_done(self, data: st.DataObject) -> None:
        asked = [k for k, o in self.rig.owners.items() if o.closing]
        self.rig.close_done(data.draw(st.sampled_from(asked)))

    @precondition(lambda self: any(o.releasing for o in self.rig.owners.values()))
    @rule(data=st.data())
    def gpadl_released(self, data: st.DataObject) -> None:
        asked = [(k, g) for k, o in self.rig.owners.items() for g in o.releasing]
        self.rig.release(*data.draw(st.sampled_from(asked)))

    @rule(number=st.sampled_from(NUMBERS))
    def offer_or_rescind(self, number: int) -> None:
        if key(number) in self.rig.owners:
            self.rig.rescind(key(number))
        else:
            self.rig.offer(offer(number))

    @rule(dice=st.integers(0, 7))
    def reset(self, dice: int) -> None:
        if dice == 7:
            self.rig.reset()

    # The machine.

    @rule(
        seed=st.integers(0, 5),
        dropped=st.sets(st.sampled_from(NUMBERS)),
        new=st.sets(st.sampled_from(NUMBERS)),
    )
    def restore(self, seed: int, dropped: set[int], new: set[int]) -> None:
        self.rig.restore(seed, dropped, new)

    @rule()
    def settle(self) -> None:
        """When owners have answered and the guest has read, nobody waits for anything."""
        while self.rig.queue or any(
            owner.opening or owner.closing or owner.releasing for owner in self.rig.owners.values()
        ):
            self.rig.answer_all()
            self.read_all()
        assert not self.guest.contacting
        assert not self.guest.unloading
        assert not self.guest.modifying
        for channel in self.known():
            assert not channel.opening
            in_use = self.rig.bus.table.table
            for gpadl in channel.gpadls.values():
                assert gpadl.state != "created?"
                if gpadl.state == "torndown?":
                    # The one answer that waits for the guest itself: it has to close first.
                    assert channel.is_open
                    assert any(
                        c.channel_id == channel.channel_id and c.uses(gpadl.gpadl_id)
                        for c in in_use.values()
                    )
        assert self.guest.offers_complete == (self.guest.connected and self.guest.offers_asked)

    @invariant()
    def nobody_is_blamed(self) -> None:
        assert self.rig.errors == []

    @invariant()
    def bus_and_twin_are_the_same(self) -> None:
        if self.every_step:
            self.rig.restore(0, set(), set())
        assert self.rig.bus.save() == self.rig.twin.save()

    def teardown(self) -> None:
        self.settle()
        self.guest.contact()
        self.settle()
        assert self.guest.connected
        assert len(self.rig.bus.sharing.table) == 0
        self.rig.close()


class EveryStep(BusMachine):
    """The same with a save and restore between any two steps."""

    every_step = True


TestBus = BusMachine.TestCase
TestBus.settings = settings(max_examples=150, stateful_step_count=60)
TestBusRestoredAtEveryStep = EveryStep.TestCase
TestBusRestoredAtEveryStep.settings = settings(max_examples=60, stateful_step_count=60)
