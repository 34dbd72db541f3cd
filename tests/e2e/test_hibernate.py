# SPDX-License-Identifier: MIT
"""A stock Linux hibernates (S4) with its VMBus devices, and resumes in other processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emulator.machine.qemu import command_line
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 240


@pytest.mark.parametrize("smp", [1, 2])
async def test_the_bus_and_the_probe_come_back_after_hibernation(
    make_config: ConfigMaker,
    make_vm: MadeVm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    smp: int,
) -> None:
    disk = tmp_path / "swap.img"
    with disk.open("wb") as file:
        file.truncate(1 << 30)

    def with_disk(*args: object, **rest: object) -> list[str]:
        line = command_line(*args, **rest)  # type: ignore[arg-type]
        # The stock cloud kernel has NVMe built in.
        line += ["-drive", f"if=none,id=swap,format=raw,file={disk}"]
        line += ["-device", "nvme,serial=swap,drive=swap"]
        # So that the event of the end can be read.
        return [*line, "-action", "shutdown=pause"]

    monkeypatch.setattr("emulator.machine.vm.command_line", with_disk)
    async with asyncio.timeout(PATIENCE):
        vm = await make_vm(make_config(smp=smp, append="quiet vmbus.init=shell"))
        await vm.boot()
        await shell(vm)
        await run(vm, "mkswap /dev/nvme0n1 && swapon /dev/nvme0n1")
        await run(vm, "cd /lib/modules/$(uname -r) && insmod hv_vmbus.ko && insmod vmbus_probe.ko")
        await run(vm, "{ vmbus-probe & }")
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        await vm.control("probe.finish")
        # Only in memory: a guest that boots anew does not have it.
        await run(vm, "marker=hiber")
        with vm.events("SUSPEND_DISK") as events:
            await vm.console.send_line(
                "echo disk > /sys/power/state; echo resu''med $marker'nated'"
            )
            await vm.watch(events.get())
        await vm.kill()

        config = make_config(
            smp=smp, append="quiet vmbus.init=shell resume=/dev/nvme0n1 resumewait"
        )
        again = await make_vm(config)
        await again.boot()
        await again.watch(again.console.wait_for("^resumed hibernated"))
        assert not any("vmbus-guest: init" in line for line in again.console.lines)
        # The probe's program begins a new conversation on the old channel.
        await again.control("probe.ready")
        await again.control("probe.run")
        await again.control("probe.wait", requests=50, completions=30)
        assert (await again.control("probe.finish"))["problems"] == []
