# SPDX-License-Identifier: MIT
"""What QMP tells of the device: `info`, and the events when a backend comes and goes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


async def _path(vm: VirtualMachine) -> str:
    folder = "/machine/peripheral-anon"
    devices = await vm.qmp("qom-list", path=folder)
    (name,) = [device["name"] for device in devices if device["type"] == "child<vmbus-user>"]
    return f"{folder}/{name}"


async def _info(vm: VirtualMachine) -> dict[str, Any]:
    info: dict[str, Any] = await vm.qmp("qom-get", path=await _path(vm), property="info")
    return info


async def test_counters_follow_the_guest_and_a_backend_that_dies_is_told(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(smp=2))
    with vm._qmp.listener(("VMBUS_USER_CONNECTED", "VMBUS_USER_DISCONNECTED")) as events:
        await vm.boot()
        async with asyncio.timeout(PATIENCE):
            await vm.control("probe.ready")
            await vm.control("probe.run")
            await vm.control("probe.wait", requests=50, completions=30)
            path = await _path(vm)
            event: Any = await vm.watch(events.get())
            assert event["event"] == "VMBUS_USER_CONNECTED"
            assert event["data"] == {"qom-path": path}
            await vm.control("probe.finish")
            first = await _info(vm)
            assert first["connected"] is True
            assert sorted(first["features"]) == ["code-map", "state"]
            assert first["memory-regions"] == 1
            assert (first["connections"], first["disconnects"]) == (1, 0)
            assert "disconnect-reason" not in first
            # The probe's channels, which are still open.
            channels = len((await vm.control("status"))["rings"])
            assert (first["doorbells"], first["interrupts"]) == (channels, channels)
            assert channels
            assert first["signals"] > 0
            assert first["interrupts-raised"] > 0
            # CONNECT, REQUEST_OFFERS, a GPADL, OPEN, and an answer to each.
            assert first["guest-messages-sent"] >= 4
            assert first["posts-accepted"] >= 4
            assert first["posts-delivered"] == first["posts-accepted"]
            assert (first["guest-messages-outstanding"], first["posts-outstanding"]) == (0, 0)
            assert vm.backend_child is not None
            await vm.backend_child.kill()
            vm.backend_child = None
            event = await vm.watch(events.get())
            assert event["event"] == "VMBUS_USER_DISCONNECTED"
            assert event["data"]["qom-path"] == path
            assert event["data"]["reason"]
            gone = await _info(vm)
            assert (gone["connected"], gone["disconnects"]) == (False, 1)
            assert gone["disconnect-reason"] == event["data"]["reason"]
            assert (gone["doorbells"], gone["interrupts"]) == (0, 0)
            assert gone["signals"] >= first["signals"]
            lines = len(vm.console.lines)
            # A guest without a bus: what it posts is refused, and counted.
            await vm.qmp("system_reset")
            await vm.watch(vm.console.wait_for("Hypervisor detected", lines))
            while not (await _info(vm))["guest-messages-refused"]:
                pass
            assert (await _info(vm))["epoch"] > gone["epoch"]
