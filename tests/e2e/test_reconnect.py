# SPDX-License-Identifier: MIT
"""The backend is killed and replaced under a running guest: QEMU and the guest go on."""

from __future__ import annotations

import asyncio

import pytest

from emulator.machine.snapshot import SnapshotError
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.reconnect import RECONNECT_ARGS, Shell, connected, kill_backend, new_backend

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120

LOAD = (
    "insmod /lib/modules/$(uname -r)/hv_vmbus.ko && insmod /lib/modules/$(uname -r)/vmbus_probe.ko"
)
# guest-images/linux/init: Linux 6.1 leaves a CPU without a timer when hv_vmbus goes.
RELEASE_TIMERS = (
    "for i in $(seq $(nproc)); do for cpu in /sys/devices/system/clockevents/clockevent*; do "
    "grep -q ^Hyper-V $cpu/current_device && echo Hyper-V clockevent > $cpu/unbind_device; "
    "done; done 2> /dev/null"
)


async def _converse(vm: VirtualMachine) -> None:
    await vm.control("probe.ready")
    await vm.control("probe.run")
    await vm.control("probe.wait", requests=50, completions=30)


async def _tick(vm: VirtualMachine) -> None:
    await vm.console.wait_for("vmbus-guest: tick", len(vm.console.lines))


async def test_a_reset_guest_finds_the_backend_that_replaced_a_killed_one(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    append = "loglevel=7 vmbus.tick"
    vm = await make_vm(make_config(smp=2, append=append, qemu_args=RECONNECT_ARGS))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await _converse(vm)
        for _ in range(2):
            await kill_backend(vm)
            await _tick(vm)
            await new_backend(vm)
            await _tick(vm)
            lines = len(vm.console.lines)
            await vm.qmp("system_reset")
            await vm.watch(vm.console.wait_for("vmbus-guest: probe ready", lines))
            await _converse(vm)
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_guest_leaves_the_backend_that_is_gone_and_connects_to_the_new_one(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    append = "loglevel=7 vmbus.init=shell vmbus.tick"
    vm = await make_vm(make_config(smp=2, append=append, qemu_args=RECONNECT_ARGS))
    await vm.boot()
    shell = Shell(vm)
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.console.wait_for("vmbus-guest: tick 1"))
        assert await shell.run(LOAD) == 0
        assert await shell.run("vmbus-probe & sleep 0") == 0
        await _converse(vm)
        await kill_backend(vm)
        await _tick(vm)
        await new_backend(vm)
        # With its channels still open: the new backend knows none of them.
        assert await shell.run("kill %1; wait; rmmod vmbus_probe") == 0
        await shell.run(RELEASE_TIMERS)
        assert await shell.run("rmmod hv_vmbus") == 0
        assert await shell.run(LOAD) == 0
        assert await shell.run("vmbus-probe & sleep 0") == 0
        await _converse(vm)
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_machine_without_its_backend_stops_and_goes_on_but_is_not_saved(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    append = "loglevel=7 vmbus.tick"
    vm = await make_vm(make_config(append=append, qemu_args=RECONNECT_ARGS))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await _converse(vm)
        await kill_backend(vm)
        await vm.qmp("stop")
        await vm.qmp("cont")
        await _tick(vm)
        with pytest.raises(SnapshotError, match="no backend is connected"):
            await vm.save(folder / "snapshot")
        # It was resumed by the save that failed.
        await _tick(vm)
        # One that comes while the machine is stopped is told to run when the machine does.
        await vm.qmp("stop")
        await new_backend(vm)
        await vm.qmp("cont")
        assert await connected(vm)
        lines = len(vm.console.lines)
        await vm.qmp("system_reset")
        await vm.watch(vm.console.wait_for("vmbus-guest: probe ready", lines))
        await _converse(vm)
        await vm.save(folder / "snapshot", resume=True)
        assert (await vm.control("probe.finish"))["problems"] == []
