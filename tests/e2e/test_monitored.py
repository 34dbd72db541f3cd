# SPDX-License-Identifier: MIT
"""Monitored notifications with a stock Linux guest, which sets triggers where it is offered some.

``vmbus_setevent()`` of the guest kernel (drivers/hv/channel.c) sets a bit in the monitor page
instead of calling HvSignalEvent; QEMU counts the calls that are left.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from emulator.lab.demo import run_demo
from emulator.machine.config import DeviceConfig
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio]

PATIENCE = 120
MONITORED = DeviceConfig("probe", "probe", {"data": 1000})


async def _signals(vm: VirtualMachine) -> int:
    folder = "/machine/peripheral-anon"
    devices = await vm.qmp("qom-list", path=folder)
    (name,) = [device["name"] for device in devices if device["type"] == "child<vmbus-user>"]
    info: dict[str, Any] = await vm.qmp("qom-get", path=f"{folder}/{name}", property="info")
    signals: int = info["signals"]
    return signals


async def test_a_stock_guest_sets_triggers(make_config: ConfigMaker, make_vm: MadeVm) -> None:
    vm = await make_vm(make_config(smp=2, devices=(MONITORED,)))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.control("probe.ready"))
        before = await _signals(vm)
        await vm.watch(vm.control("probe.run"))
        await vm.watch(vm.control("probe.wait", requests=200, completions=100))
        end = await vm.watch(vm.control("probe.finish"))
    assert end["problems"] == []
    report = await vm.control("inspect")
    data, control = report["channels"]
    assert data["open"]["monitor_id"] == 0
    assert control["open"]["monitor_id"] is None
    # Signals of the data channel came, and none of them by an event: those are the control's.
    assert data["counters"]["doorbells"] > 0
    assert await _signals(vm) - before <= control["counters"]["doorbells"]


async def test_a_guest_that_sets_triggers_is_saved_and_restored(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path
) -> None:
    config = make_config(devices=(MONITORED,))
    report = await run_demo(config, qemu=qemu, folder=tmp_path, rounds=1, say=lambda text: None)
    assert report.good, [found.problems for found in report.rounds]
