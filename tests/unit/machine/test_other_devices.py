# SPDX-License-Identifier: MIT
"""A restore that finds devices missing, added or changed, where the configuration allows it."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from emulator.devices.probe.protocol import offer_data
from emulator.link import Session
from emulator.machine.config import DeviceConfig, HostConfig
from emulator.machine.host import VmbusHost
from emulator.model.guest import OFFER_CHANNEL, RESCIND
from tests.model import frontend as fe
from tests.model.machine import ModelMachine, OpenChannel, echo_request

pytestmark = pytest.mark.asyncio


class Rig:
    """A host, and a machine before it, perhaps with the guest of another one."""

    def __init__(self, *names: str, guest_of: ModelMachine | None = None) -> None:
        devices = tuple(DeviceConfig(name, "probe") for name in names)
        self.host = VmbusHost(HostConfig("vm", devices, devices_may_differ=True))
        self.machine = ModelMachine()
        if guest_of is not None:
            os.close(self.machine.frontend.ram)
            self.machine.frontend.ram = os.dup(guest_of.guest.ram_fd)
            self.machine.guest = guest_of.guest
            self.machine.guest._post = self.machine._posted
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    async def load(self, state: bytes) -> None:
        await self.machine.frontend.handshake()
        assert await self.machine.frontend.load(state) == (0, "")
        self.machine.frontend.send(fe.RESUME)

    def heard(self, mark: int) -> list[tuple[int, int]]:
        """Types and channels of the messages that the guest has heard."""
        said = self.machine.guest.heard[mark:]
        return [(m.type, m["channel_id"]) for m in said if m.type in (OFFER_CHANNEL, RESCIND)]

    def close(self) -> None:
        self.session.close()
        self.machine.close()


MakeRig = Callable[..., Rig]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[MakeRig]:
    rigs: list[Rig] = []

    def make(*names: str, guest_of: ModelMachine | None = None) -> Rig:
        rigs.append(Rig(*names, guest_of=guest_of))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


async def saved(rig: Rig) -> tuple[bytes, list[OpenChannel]]:
    """Open both channels of two probes, and save."""
    await rig.machine.boot()
    opened = [await rig.machine.open(channel_id) for channel_id in (1, 2, 3, 4)]
    await rig.machine.ask(opened[0], echo_request(1))
    await rig.machine.ask(opened[2], echo_request(1))
    await rig.machine.frontend.stop()
    status, state, text = await rig.machine.frontend.save()
    assert (status, text) == (0, "")
    return state, opened


def change_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a probe says that it is of another pair."""
    monkeypatch.setattr(
        "emulator.devices.probe.vsp.offer_data", lambda role, pair: offer_data(role, pair + 1)
    )


async def leave(rig: Rig, channel_id: int) -> None:
    """Do what a driver does whose channel was rescinded."""
    guest = rig.machine.guest
    guest.close_channel(channel_id)
    for gpadl in list(guest.channels[channel_id].gpadls.values()):
        guest.teardown(gpadl)
    await rig.machine.until(lambda: not guest.channels[channel_id].gpadls)
    guest.release(channel_id)


async def test_kept_rescinded_and_offered(make: MakeRig) -> None:
    first = make("a", "b")
    state, opened = await saved(first)
    second = make("b", "c", guest_of=first.machine)
    mark = len(second.machine.guest.heard)
    await second.load(state)
    await second.machine.until(lambda: len(second.heard(mark)) == 4)
    assert second.heard(mark) == [
        (RESCIND, 1),
        (RESCIND, 2),
        (OFFER_CHANNEL, 5),
        (OFFER_CHANNEL, 6),
    ]
    # What is still there never noticed.
    assert (await second.machine.ask(opened[2], echo_request(2))).transaction_id == 2
    for channel_id in (1, 2):
        await leave(second, channel_id)
    new = await second.machine.open(5)
    assert (await second.machine.ask(new, echo_request(3))).transaction_id == 3
    assert list(second.host.guest_errors) == []


async def test_what_is_new_is_not_offered_to_a_guest_that_has_not_asked(make: MakeRig) -> None:
    first = make("a")
    await first.machine.frontend.handshake()
    first.machine.frontend.send(fe.RESUME)
    first.machine.guest.contact()
    await first.machine.until(lambda: first.machine.guest.connected)
    await first.machine.frontend.stop()
    _, state, _ = await first.machine.frontend.save()
    second = make("a", "b", guest_of=first.machine)
    mark = len(second.machine.guest.heard)
    await second.load(state)
    second.machine.guest.request_offers()
    await second.machine.until(lambda: second.machine.guest.offers_complete)
    # Each once, and only now; the model guest refuses what it did not ask for.
    assert [kind for kind, _ in second.heard(mark)] == [OFFER_CHANNEL] * 4


async def test_a_device_that_has_changed_begins_anew(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make("a", "b")
    state, _ = await saved(first)
    change_offers(monkeypatch)
    second = make("a", "b", guest_of=first.machine)
    guest = second.machine.guest
    mark = len(guest.heard)
    await second.load(state)
    await second.machine.until(lambda: len(second.heard(mark)) == 4)
    assert sorted(second.heard(mark)) == [(RESCIND, n) for n in (1, 2, 3, 4)]
    for channel_id in (1, 2, 3, 4):
        await leave(second, channel_id)
    await second.machine.until(lambda: len(guest.channels) == 4)
    # The same keys have the same ids.
    assert guest.channels[1].offer.raw("user_defined")[8] == 2
    again = await second.machine.open(1)
    assert (await second.machine.ask(again, echo_request(7))).transaction_id == 7


async def test_without_leave_a_changed_device_is_refused(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make("a", "b")
    state, _ = await saved(first)
    change_offers(monkeypatch)
    second = make("a", "b", guest_of=first.machine)
    second.host._config = HostConfig("vm", second.host.config.devices)
    await second.machine.frontend.handshake()
    counts = []
    for _ in range(3):
        status, text = await second.machine.frontend.load(state)
        assert status == 1
        assert text.count("other data than the guest knows") == 4
        gc.collect()
        counts.append(len(os.listdir("/proc/self/fd")))
    # And nothing is left of the attempts.
    assert counts[1:] == counts[:1] * 2
