# SPDX-License-Identifier: MIT
"""Triggers in the guest's monitor page: who gets one, and how long it is theirs."""

from __future__ import annotations

import msgspec
import pytest

from emulator.bus import BusConfig, BusHost, BusState, Offer, RestoreMismatch
from emulator.bus.pages import MONITOR_IDS, MonitorPage, SignalPages
from emulator.memory import page_view
from emulator.model import guest as model
from emulator.wire.version import Version
from tests.unit.bus.rig import Rig, key, offer
from tests.unit.bus.test_save import transfer


def monitor_ids(rig: Rig) -> dict[int, int]:
    """The triggers that the guest was offered, by channel."""
    return {
        channel_id: channel.offer["monitor_id"]
        for channel_id, channel in rig.guest.channels.items()
        if channel.offer["monitor_allocated"]
    }


@pytest.mark.parametrize("version", Version)
def test_a_channel_has_a_trigger_if_it_is_to(rig: Rig, version: Version) -> None:
    for number in (1, 2, 3):
        rig.offer(offer(number))
    rig.guest.connect(version)
    # The model guest minds that each is for one channel, and 0xff where there is none.
    assert monitor_ids(rig) == {1: 0, 3: 1}
    rig.opened(3)
    rig.opened(2)
    for number, monitor_id in ((3, 1), (2, None)):
        rings = rig.owners[key(number)].rings
        assert rings is not None
        assert rings.monitor_id == monitor_id
    assert rig.bus.pages.monitor == model.MONITOR_PAGES[1]


def test_without_a_page_there_are_no_triggers(rig: Rig) -> None:
    rig.offer(offer(1))
    rig.guest.contact(monitors=(0, 0))
    rig.guest.request_offers()
    assert monitor_ids(rig) == {}
    assert rig.bus.pages == SignalPages()


def test_triggers_run_out_and_come_back(rig: Rig) -> None:
    for number in range(1, MONITOR_IDS + 3):
        rig.offer(Offer(key(number), monitored=True))
    rig.connected()
    assert monitor_ids(rig) == {number + 1: number for number in range(MONITOR_IDS)}
    # Whoever comes late is signalled by its own event connection, as everybody else.
    rig.opened(MONITOR_IDS + 1)
    rings = rig.owners[key(MONITOR_IDS + 1)].rings
    assert rings is not None
    assert rings.monitor_id is None
    rig.rescind(key(7))
    rig.offer(Offer(key(500), monitored=True))
    assert 500 not in monitor_ids(rig).values()
    assert len(monitor_ids(rig)) == MONITOR_IDS
    rig.guest.release(7)
    rig.offer(Offer(key(501), monitored=True))
    assert monitor_ids(rig)[rig.id_of(key(501))] == 6


def test_triggers_stay_over_a_restore(rig: Rig) -> None:
    rig.connected(1, 2, 3)
    rig.opened(3)
    rings = rig.owners[key(3)].rings
    data = msgspec.msgpack.encode(rig.bus.save())
    restored = BusHost(rig.config).restore(msgspec.msgpack.decode(data, type=BusState))
    assert [channel.open for channel in restored] == [None, None, rings]
    # Whatever the owners want now, the guest knows what it knows.
    transfer(rig, [Offer(key(n), bytes([n]) * 8, 1, monitored=n == 2) for n in (1, 2, 3)])
    rig.guest.close_channel(3)
    rig.opened(3)
    again = rig.owners[key(3)].rings
    assert again is not None
    assert again.monitor_id == 1
    assert rig.bus.pages.monitor == model.MONITOR_PAGES[1]
    # The next guest is told what they want.
    rig.guest.connect()
    assert monitor_ids(rig) == {2: 0}


@pytest.mark.parametrize("monitor_id", [1, 128, -1])
def test_a_state_with_a_trigger_for_two_or_none(rig: Rig, monitor_id: int) -> None:
    rig.connected(1, 3)
    state = msgspec.to_builtins(rig.bus.save(), builtin_types=(bytes,))
    state["channels"][0]["monitor_id"] = monitor_id
    with pytest.raises((RestoreMismatch, msgspec.ValidationError), match=r"monitor[ _]id"):
        BusHost(BusConfig()).restore(msgspec.convert(state, BusState))


def test_the_layout_of_the_page() -> None:
    memory = bytearray(4096)
    page = MonitorPage(page_view([memoryview(memory)]))
    memory[8:16] = (0x8000_0001).to_bytes(4, "little") + b"\xff" * 4  # pending and armed of group 0
    memory[32:40] = (0x10).to_bytes(4, "little") + b"\xff" * 4
    assert [*page.take(0)] == [0, 31]
    assert [*page.take(1)] == []
    assert [*page.take(3)] == [100]
    assert [*page.take(3)] == []
    assert memory[8:16] == memory[32:40] == bytes(4) + b"\xff" * 4
    page.set_latency(100, 1000)
    page.set_latency(127, 1 << 20)
    assert memory[576 + 200 : 576 + 202] == (1000).to_bytes(2, "little")
    assert memory[830:832] == b"\xff\xff"
    assert not any(memory[832:])
