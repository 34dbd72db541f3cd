# SPDX-License-Identifier: MIT
"""Each quota of a VM: what happens at the limit, and what the guest and the log are told."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from emulator.bus import BusConfig
from emulator.bus.ids import MAX_CHANNEL_ID
from emulator.kmcl import KmclError
from emulator.kmcl.config import DEFAULT_TRANSACTION_QUOTA
from emulator.link import Session
from emulator.machine.__main__ import main
from emulator.machine.config import DeviceConfig, HostConfig, Quotas
from emulator.machine.host import VmbusHost
from emulator.machine.inspect import inspect
from emulator.model.guest import INITIATE_CONTACT, ModelGuest, u32, u64
from emulator.wire.ntstatus import NtStatus
from tests.model import frontend as fe
from tests.model.machine import ModelMachine
from tests.unit.machine.test_backend import Start, config, start

__all__ = ["start"]

PROBE = (DeviceConfig("probe", "probe"),)


class Rig:
    """A host with quotas, and a machine before it."""

    def __init__(self, quotas: Quotas) -> None:
        self.host = VmbusHost(HostConfig("vm", PROBE, quotas=quotas))
        self.machine = ModelMachine()
        self.session = Session(self.machine.frontend.backend_socket, self.host)
        self.host.attach(self.session)

    def close(self) -> None:
        self.session.close()
        self.machine.close()


@pytest_asyncio.fixture
async def rig_with() -> AsyncIterator[Callable[[Quotas], Rig]]:
    rigs: list[Rig] = []

    def make(quotas: Quotas) -> Rig:
        rigs.append(Rig(quotas))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def statuses(guest: ModelGuest) -> list[int]:
    """Return the statuses of the GpadlCreated that a guest has heard."""
    return [heard["status"] for heard in guest.heard if heard.type == 10]


@pytest.mark.asyncio
async def test_a_gpadl_beyond_the_number_of_a_channel_is_refused(
    rig_with: Callable[[Quotas], Rig],
) -> None:
    rig = rig_with(Quotas(gpadls_per_channel=2))
    await rig.machine.boot()
    guest = rig.machine.guest
    for channel_id in (1, 1, 1, 2):
        guest.make_gpadl(channel_id, 1)
    await rig.machine.until(lambda: len(statuses(guest)) == 4)
    assert [status == 0 for status in statuses(guest)] == [True, True, False, True]
    assert "has 2 GPADLs already" in rig.host.guest_errors[-1]


@pytest.mark.asyncio
async def test_gpadls_beyond_the_pages_of_a_guest_are_refused(
    rig_with: Callable[[Quotas], Rig],
) -> None:
    rig = rig_with(Quotas(gpadl_pages=20))
    await rig.machine.boot()
    guest = rig.machine.guest
    # Each is counted with the head of its range.
    first = guest.make_gpadl(1, 9)
    guest.make_gpadl(2, 10)
    await rig.machine.until(lambda: len(statuses(guest)) == 2)
    assert [status == 0 for status in statuses(guest)] == [True, False]
    assert "more than 20 pages" in rig.host.guest_errors[-1]
    # What is given back can be had again.
    guest.teardown(first)
    guest.make_gpadl(2, 10)
    await rig.machine.until(lambda: len(statuses(guest)) == 3)
    assert statuses(guest)[-1] == 0


@pytest.mark.asyncio
async def test_a_guest_that_does_not_read_is_not_heard_beyond_the_queued_messages(
    rig_with: Callable[[Quotas], Rig],
) -> None:
    rig = rig_with(Quotas(queued_messages=5))
    frontend = rig.machine.frontend
    await frontend.handshake()
    frontend.send(fe.RESUME)
    body = u32(INITIATE_CONTACT, 0) + u32(0x50003, 0) + bytes([2, 0, 0, 0]) + u32(0) + u64(0, 0)
    for _ in range(30):
        frontend.guest_message(body)
    # The answer to a reset comes behind all that was made of what came before it.
    frontend.reset()
    done = 0
    while (got := await frontend.read()).type != fe.RESET_DONE:
        done += got.words[0] if got.type == fe.GUEST_MESSAGE_DONE else 0
    # QEMU refuses the others as HV_STATUS_INSUFFICIENT_BUFFERS when its window is used up.
    assert done == 5


@pytest.mark.asyncio
@pytest.mark.parametrize("after", [0, 1])
async def test_an_open_for_which_there_is_no_descriptor_fails_and_can_be_tried_again(
    rig_with: Callable[[Quotas], Rig], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    rig = rig_with(Quotas())
    machine = rig.machine
    await machine.boot()
    gpadl = machine.guest.make_gpadl(1, 8)
    await machine.until(lambda: gpadl.state == "created")
    left = [after]

    def eventfd(initval: int, flags: int = 0) -> int:
        if not left[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        left[0] -= 1
        return real(initval, flags)

    real = os.eventfd
    monkeypatch.setattr("os.eventfd", eventfd)
    machine.guest.open_channel(1, gpadl.gpadl_id, split=4)
    await machine.until(lambda: not machine.guest.channels[1].opening)
    assert not machine.guest.channels[1].is_open
    monkeypatch.setattr("os.eventfd", real)
    machine.guest.open_channel(1, gpadl.gpadl_id, split=4)
    await machine.until(lambda: machine.guest.channels[1].is_open)


def test_no_device_holds_more_packets_than_the_quota() -> None:
    host = VmbusHost(HostConfig("vm", PROBE, quotas=Quotas(packets_in_flight=4)))
    channel = host.devices["probe"].channels["data"]
    assert channel.traffic.quota == 4
    channel.set_transaction_quota(1000)
    assert channel.traffic.quota == 4
    channel.set_transaction_quota(3)
    assert channel.traffic.quota == 3


def test_a_device_that_wants_less_than_the_quota_gets_what_it_wants() -> None:
    host = VmbusHost(HostConfig("vm", PROBE))
    channel = host.devices["probe"].channels["data"]
    assert channel.traffic.quota == 64


def test_channels_beyond_the_quota_are_not_offered() -> None:
    with pytest.raises(KmclError, match=r"quotas\.channels is 1 and used up") as failed:
        VmbusHost(HostConfig("vm", PROBE, quotas=Quotas(channels=1)))
    assert failed.value.status is NtStatus.INSUFFICIENT_RESOURCES


@pytest.mark.asyncio
async def test_a_flooding_guest_fills_no_log(tmp_path: Path, start: Start) -> None:
    path = config(tmp_path, "vm", quotas={"log_lines_per_second": 7})
    backend = await start("--config", path)
    machine = backend.connect("vm")
    await machine.boot()
    count = 500
    for _ in range(count):
        machine.guest.post(99)
        await machine.frontend.expect(fe.GUEST_MESSAGE_DONE)
    assert (await backend.report("vm")).guest_errors == count
    _, err = await backend.terminate()
    lines = [line for line in err.splitlines() if " vm: " in line]
    shown = sum(" vm: guest: " in line for line in lines)
    suppressed = sum(map(int, re.findall(r"vm: (\d+) more lines were suppressed", err)))
    assert shown < count / 2
    # Among the suppressed are the lines that tell of the end of the connection.
    assert count <= shown + suppressed <= count + 3
    seconds = [line.split(",")[0] for line in lines]
    assert all(seconds.count(second) <= 2 * 7 for second in seconds)


@pytest.mark.asyncio
async def test_the_report_names_the_quotas(rig_with: Callable[[Quotas], Rig]) -> None:
    report = inspect(rig_with(Quotas(gpadl_pages=9)).host)
    assert report.quotas["gpadl_pages"] == 9
    assert report.quotas.keys() == set(Quotas.__struct_fields__)


def test_the_defaults_are_those_of_the_floors_below() -> None:
    bus = BusConfig()
    quotas = Quotas()
    assert quotas.channels == MAX_CHANNEL_ID
    assert quotas.gpadls_per_channel == bus.max_gpadls_per_channel
    assert quotas.gpadl_pages == bus.max_pages
    assert quotas.packets_in_flight == DEFAULT_TRANSACTION_QUOTA


@pytest.mark.parametrize("text", ['{"channels": 0}', '{"channels": 2048}', '{"gpadl_pages": -1}'])
def test_a_quota_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Quotas)


def test_a_machine_with_more_channels_than_it_may_have_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = config(tmp_path, "vm", quotas={"channels": 1})
    assert main(["--config", path]) == 1
    assert "quotas.channels is 1" in capsys.readouterr().err
