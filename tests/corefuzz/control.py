# SPDX-License-Identifier: MIT
"""The bus under a guest that says what it likes, with owners that answer when they like.

A run is a conversation: messages of the guest (sensible, almost sensible, or any bytes), calls of
the owners, resets, and the bus carried over to a fresh one by its saved state. What has to hold:

* no input of the guest raises;
* what one input makes the bus say and ask is bounded by what there is, not by what the guest sends;
* every message of the bus is one that its own codec takes for a message of a host;
* the guest is not told that it may have its memory back while an owner has a part of it;
* owners are asked only what makes sense for what they have;
* shared pages stay within the quota; and whatever has happened, the state can be saved, and a bus
  that was restored from it saves the same.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from emulator.bus import BusConfig, BusHost, BusState, GuestError, Offer, SendMessage
from emulator.bus.contact import VMBUS_SINT
from emulator.model.guest import INTERRUPT_PAGE
from emulator.wire import messages as m
from emulator.wire.version import GRANTED_FEATURES, Version
from tests.corefuzz.source import Source
from tests.unit.bus.rig import Owner, Rig, offer

CHANNELS: Final = 4
MAX_PAGES: Final = 24
MAX_GPADLS: Final = 8

_IDS: Final = (0, 1, 2, 3, 4, 5, 2047, 2048, 0xFFFF_FFFF)
_GPADLS: Final = (0, 1, 2, 3, 0xFFFF_FFFF)
_SMALL: Final = (0, 1, 2, 3, 4, 8, 0xFFFF, 0xFFFF_FFFF)
_VERSIONS: Final = tuple(int(version) for version in Version)
_CONNECTIONS: Final = (4, 1, 4, 4, 0, 2)
_MOST_EFFECTS: Final = 2 + 4 * (CHANNELS + MAX_GPADLS * CHANNELS)


class _Conversation(Rig):
    """A rig whose guest is the fuzzer: nobody minds what the guest is told but its memory."""

    def __init__(self) -> None:
        config = BusConfig(max_gpadls_per_channel=MAX_GPADLS, max_pages=MAX_PAGES)
        super().__init__(config, automatic=False)
        self.deliver = self._check

    def say(self, connection_id: int, payload: bytes) -> None:
        """Post a message of the guest."""
        self.apply(lambda bus: bus.guest_message(connection_id, payload))

    def pump(self) -> None:
        effects = self.bus.take_effects()
        assert len(effects) <= _MOST_EFFECTS, f"{len(effects)} effects of one input"
        for effect in effects:
            if isinstance(effect, GuestError):
                assert len(effect.text) < 1000, "a guest must not fill our log"
                continue
            self.carry_out(effect)

    def _check(self, effect: SendMessage) -> None:
        assert len(effect.payload) <= m.MAX_MESSAGE
        assert not m.parse_host(effect.payload).FROM_GUEST
        self.check_memory(effect)

    def carry_over(self) -> None:
        """Restore a fresh bus from what this one saves; the owners offer what they did."""
        data = msgspec.msgpack.encode(self.bus.save())
        self.bus = BusHost(self.config)
        self.bus.restore(msgspec.msgpack.decode(data, type=BusState))
        for owner in self.owners.values():
            # Told again, or asked again if it was not answered; who was being opened is open.
            owner.closing = owner.orphaned = False
            owner.gpadls = {number: owner.gpadls[number] for number in owner.releasing}
            owner.releasing.clear()
            if owner.opening is not None:
                owner.rings, owner.opening = owner.opening, None
        # In the order of ids, which are given in the order of offers.
        ids = self.bus.table.ids
        for which in sorted(self.owners, key=lambda which: ids.get(which, 1 << 16)):
            self.bus.offer(self.owners[which].offer)
        self.bus.finish_restore()
        effects = self.bus.take_effects()
        again = msgspec.msgpack.encode(self.bus.save())
        for effect in effects:
            if not isinstance(effect, GuestError):
                self.carry_out(effect)
        twin = BusHost(self.config)
        twin.restore(msgspec.msgpack.decode(again, type=BusState))


def _pages(source: Source) -> bytes:
    """GPA ranges as a guest puts them into a GPADL: as a rule one, that agrees with itself."""
    data = b""
    for _ in range(1 + (source.below(8) == 7)):
        pages = source.below(20)
        size = source.word((pages * 4096, 4096, 0), 4)
        offset = source.word((0, 0, 0, 8, 4095, 4096), 4)
        data += struct.pack("<II", size & 0xFFFF_FFFF, offset & 0xFFFF_FFFF)
        data += b"".join(struct.pack("<Q", 16 + page) for page in range(pages))
    return data


def _message(source: Source) -> bytes:
    kind = source.below(34)
    body = b""
    match kind:
        case 5:  # OPEN_CHANNEL
            body = struct.pack(
                "<IIIII",
                source.word(_IDS),
                source.word(_SMALL),
                source.word(_GPADLS),
                source.word((0, 1, 0xFFFF_FFFF)),
                source.word((1, 2, 4, 0, 0xFFFF_FFFF)),
            ) + bytes(source.word((120, 120, 128, 119), 1))
        case 8:  # GPADL_HEADER
            ranges = _pages(source)
            length = source.word((len(ranges), len(ranges), 8, 0), 2)
            count = source.word((1, 1, 2, 0), 2)
            part = ranges[: source.word((216, 216, 16, 8, 0), 1)]
            body = struct.pack("<II", source.word(_IDS), source.word(_GPADLS))
            body += struct.pack("<HH", length & 0xFFFF, count & 0xFFFF) + part
        case 9:  # GPADL_BODY
            part = b"".join(struct.pack("<Q", 64 + page) for page in range(source.below(29)))
            body = struct.pack("<II", 0, source.word(_GPADLS)) + part
        case 11:  # GPADL_TEARDOWN
            body = struct.pack("<II", source.word(_IDS), source.word(_GPADLS))
        case 14:  # INITIATE_CONTACT
            body = struct.pack(
                "<IIQQQ",
                source.word(_VERSIONS),
                source.word((0, 1, 0xFFFF_FFFF)),
                source.word((2, 2, 0x102, 0, 16, 0x3000, 0xFF_0000_0002), 8),
                source.word((0, 0, 0x1000), 8),
                source.word((0, 0, 0x2000), 8),
            ) + source.take(source.word((0, 0, 16, 7), 1) % 64)
        case 18 | 19 | 21 | 25:  # reserved channels, sockets, monitor pages
            body = b"".join(struct.pack("<I", source.word(_IDS)) for _ in range(5))
            body += source.take(source.below(48))
        case 7 | 13 | 22:  # CLOSE_CHANNEL, REL_ID_RELEASED, MODIFY_CHANNEL
            body = struct.pack("<II", source.word(_IDS), source.word((0, 1, 0xFFFF_FFFF)))
        case _:
            body = source.take(source.below(16))
    if source.below(16) == 15:
        body = body[: source.below(256)]
    return struct.pack("<II", kind, source.word((0, 0, 0, 1)) & 0xFFFF_FFFF) + body


def _contact(version: Version, source: Source) -> bytes:
    info = VMBUS_SINT if version > Version.WIN10 else INTERRUPT_PAGE
    if version >= Version.COPPER:
        # What it asks for of the features: nothing, what is granted, everything.
        info |= source.choice((0, int(GRANTED_FEATURES), 0xFF)) << 32
    return m.InitiateContact(version, 0, info, 0, 0).pack()


def _numbered(number: int) -> Offer:
    """The last one is a sub-channel of the one before it."""
    return offer(number) if number < CHANNELS else offer(number - 1, 1)


def _owner(rig: _Conversation, source: Source) -> None:
    what = _numbered(1 + source.below(CHANNELS))
    which = what.key
    owner: Owner | None = rig.owners.get(which)
    if owner is None:
        rig.offer(what)
    elif source.below(8) == 7:
        for sub in rig.bus.subchannels(which):
            rig.rescind(sub)
        rig.rescind(which)
    elif owner.opening is not None:
        rig.open_result(which, ok=source.below(4) != 3)
    elif owner.releasing and source.below(2):
        rig.release(which, source.choice(owner.releasing))
    elif owner.closing:
        rig.close_done(which)


def control(data: bytes) -> None:
    """Hold one conversation; raises AssertionError, or what must never be raised."""
    source = Source(data)
    rig = _Conversation()
    try:
        for number in range(1, 1 + source.below(CHANNELS + 1)):
            rig.offer(_numbered(number))
        if source.below(4):
            # As a rule there is a guest that has got as far as its drivers.
            version = source.choice((Version.COPPER, Version.IRON, Version.WIN8, Version.V1))
            rig.say(4 if version > Version.WIN10 else 1, _contact(version, source))
            rig.say(4, m.RequestOffers().pack())
        while source.more:
            action = source.below(16)
            if action < 10:
                rig.say(source.choice(_CONNECTIONS), _message(source))
            elif action == 10:
                rig.say(4, source.take(source.below(260)))
            elif action < 14:
                _owner(rig, source)
            elif action == 14:
                rig.carry_over()
            elif source.below(4) == 3:
                rig.apply(lambda bus: bus.reset())
            assert rig.bus.sharing.table.pages <= MAX_PAGES
        rig.carry_over()
    finally:
        rig.close()
