# SPDX-License-Identifier: MIT
"""Saved state that somebody has changed: of the bus, and of a whole host.

A snapshot is a file, and a file can be anything. What has to hold: a state is taken or refused,
with RestoreMismatch or StateRefused, and nothing else is raised; a bus that took one goes on to do
what its guest and its owners want, saves again, and can be restored from that.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec

from emulator.bus import BusConfig, BusHost, BusState, RestoreMismatch, SendMessage
from emulator.link import StateRefused
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.wire import messages as m
from tests.corefuzz.source import Source
from tests.unit.bus.rig import Rig, key, offer

_NUMBERS: Final = (0, 1, 2, 3, 4, 255, 0xFFFF, 2047, 2048, 0xFFFF_FFFF, 1 << 32, -1)
_HOST: Final = HostConfig("vm", (DeviceConfig("probe", "probe"),))


def _states() -> list[Any]:
    """Good states, as what msgpack makes of them: of an idle bus, a busy one, and one that ends."""
    found: list[BusState] = []
    for step in range(4):
        rig = Rig(automatic=False)
        try:
            if step:
                rig.connected(1, 2, 3)
            if step > 1:
                rig.opened(1)
                rig.open_result(key(1))
                rig.opened(2)
                begun = rig.guest.gpadl_begin(rig.id_of(key(3)), 60)
                rig.guest.gpadl_go_on(begun)
            if step > 2:
                rig.guest.close_channel(rig.id_of(key(1)))
                rig.guest.unload()
            found.append(rig.bus.save())
        finally:
            rig.close()
    return [msgspec.to_builtins(state, builtin_types=(bytes,)) for state in found]


_STATES: Final = _states()


def _change(value: Any, source: Source) -> Any:
    """Return ``value`` with one thing in it changed, as deep in it as the source leads."""
    if isinstance(value, dict) and value and source.below(8) < 7:
        name = source.choice(sorted(value))
        if source.below(16) == 15:
            return {other: value[other] for other in value if other != name}
        return {**value, name: _change(value[name], source)}
    if isinstance(value, list) and value and source.below(8) < 7:
        index = source.below(len(value))
        match source.below(8):
            case 0:
                return [*value, value[index]]
            case 1:
                return value[:index] + value[index + 1 :]
            case _:
                return [*value[:index], _change(value[index], source), *value[index + 1 :]]
    match value:
        case bool() | None:
            return source.choice((None, True, False, 0))
        case int():
            return source.choice((*_NUMBERS, value + 1, value - 1))
        case bytes():
            return source.choice((value[:-1], value + b"\0", source.take(len(value)), b""))
        case str():
            return source.choice((value + "x", "", *_words()))
        case _:
            return source.choice((None, 0, "", [], {}))


def _words() -> list[str]:
    return ["open", "closed", "closing", "opening", "revoked", "accepted", "failed", "in progress"]


def bus_state(data: bytes) -> None:
    """Restore a bus from a good state with some things changed, and go on with it."""
    source = Source(data)
    state = source.choice(_STATES)
    for _ in range(1 + source.below(4)):
        state = _change(state, source)
    bus = BusHost(BusConfig())
    try:
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=BusState)
    except (msgspec.DecodeError, OverflowError):
        return
    try:
        bus.restore(saved)
        for number in range(1, 1 + source.below(5)):
            bus.offer(offer(number))
        bus.finish_restore()
    except RestoreMismatch:
        return
    except ValueError as error:
        # The owner's mistake: a channel that the snapshot says is another device's.
        if "offered" not in str(error):
            raise
        return
    _drain(bus)
    for message in (
        m.RequestOffers(),
        m.CloseChannel(1),
        m.GpadlBody(source.below(4), bytes(8)),
        m.GpadlTeardown(1, source.below(4)),
        m.Unload(),
        m.InitiateContact(0x50003, 0, 2, 0, 0),
    ):
        bus.guest_message(4, message.pack())
        _drain(bus)
    again = msgspec.msgpack.encode(bus.save())
    BusHost(BusConfig()).restore(msgspec.msgpack.decode(again, type=BusState))


def _drain(bus: BusHost) -> None:
    for effect in bus.take_effects():
        if isinstance(effect, SendMessage):
            m.parse_host(effect.payload)


_GOOD_HOST: Final = msgspec.msgpack.decode(VmbusHost(_HOST).save())


def host_state(data: bytes) -> None:
    """Load a host from its own state with some things changed, or from any bytes."""
    source = Source(data)
    host = VmbusHost(_HOST)
    if source.below(8) == 7:
        raw = source.take(source.below(256))
    else:
        state = dict(_GOOD_HOST)
        state["bus"] = source.choice(_STATES)
        for _ in range(1 + source.below(4)):
            state = _change(state, source)
        try:
            raw = msgspec.msgpack.encode(state)
        except OverflowError:
            return
    before = [str(offered.key) for offered in host.bus.offers()]
    with contextlib.suppress(StateRefused):
        host.load(raw)
        return
    assert [str(offered.key) for offered in host.bus.offers()] == before, "refused, and changed"
