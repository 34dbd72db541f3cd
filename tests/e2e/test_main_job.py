# SPDX-License-Identifier: MIT
"""The main job with a real kernel: save in mid-conversation, kill, restore, compare ledgers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from emulator.lab.demo import run_demo
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


@pytest.mark.parametrize("smp", [1, 4])
async def test_nothing_is_lost_or_doubled_over_two_restores(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path, smp: int
) -> None:
    said: list[str] = []
    report = await run_demo(
        make_config(smp=smp), qemu=qemu, folder=tmp_path, rounds=2, say=said.append
    )
    assert [found.problems for found in report.rounds] == [[], []]
    assert report.good
    assert all(report.at_save.values()), report.at_save
    for found in report.rounds:
        assert found.restored == report.at_save
        for row in found.rows:
            assert row["once"] == row["at_save"] > 0, row
            assert row["lost"] == row["duplicated"] == row["disorder"] == 0, row


async def _talk(vm: VirtualMachine) -> None:
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)


async def _finish(vm: VirtualMachine) -> None:
    async with asyncio.timeout(PATIENCE):
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_guest_gets_its_clock_and_its_bus_from_us(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(smp=2))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.console.wait_for("Hypervisor detected: Microsoft Hyper-V"))
        await vm.watch(vm.console.wait_for("Switched to clocksource hyperv_clocksource_tsc_page"))
        await vm.watch(vm.console.wait_for("Vmbus version:5.3"))
    await _talk(vm)
    await _finish(vm)


@pytest.mark.parametrize(
    ("number", "version"),
    [
        (0x00050002, "5.2"),
        (0x00040001, "4.1"),
        (0x00040000, "4.0"),
        (0x00030000, "3.0"),
        (0x00020004, "2.4"),
    ],
)
async def test_an_older_guest_gets_the_version_it_asks_for(
    make_config: ConfigMaker, make_vm: MadeVm, number: int, version: str
) -> None:
    config = make_config(smp=2, append=f"loglevel=7 vmbus.max_version={number:#x}")
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        match = await vm.watch(vm.console.wait_for(r"Vmbus version:([0-9.]+)"))
        assert match[1] == version
    await _talk(vm)
    await _finish(vm)


async def test_the_pure_python_reference_carries_the_main_job(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMBUS_PURE_PYTHON", "1")
    report = await run_demo(
        make_config(), qemu=qemu, folder=tmp_path, rounds=1, say=lambda text: None
    )
    assert report.good


async def test_the_bus_connects_again_after_a_reboot(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    lines = len(vm.console.lines)
    await vm.qmp("system_reset")
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.console.wait_for("vmbus-guest: probe ready", lines))
    await _talk(vm)
    await _finish(vm)


async def test_the_bus_connects_again_after_an_unload(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    await _finish(vm)
    lines = len(vm.console.lines)
    await vm.control("probe.exit", action=1)
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.console.wait_for("vmbus-guest: probe ready", lines))
    await _talk(vm)
    await _finish(vm)


async def test_a_plain_pause_changes_nothing(make_config: ConfigMaker, make_vm: MadeVm) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    for _ in range(5):
        await vm.qmp("stop")
        await vm.qmp("cont")
        async with asyncio.timeout(PATIENCE):
            await vm.control("probe.wait", requests=5, completions=3)
    await _finish(vm)


async def test_a_saved_machine_may_go_on(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    for number in range(3):
        await vm.save(tmp_path / f"snapshot-{number}", resume=True)
        async with asyncio.timeout(PATIENCE):
            await vm.control("probe.wait", requests=5, completions=3)
    await _finish(vm)


async def test_a_restored_machine_may_be_saved_again(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    for number in range(4):
        await vm.save(tmp_path / f"snapshot-{number}")
        await vm.kill()
        vm = await make_vm(make_config())
        await vm.restore(tmp_path / f"snapshot-{number}")
        async with asyncio.timeout(PATIENCE):
            await vm.control("probe.wait", requests=20, completions=10)
    await _finish(vm)
