# SPDX-License-Identifier: MIT
"""A stock Linux guest is forced down to every VMBus version that it still speaks, and works.

The versions are those of ``vmbus_versions[]`` in the guest kernel's drivers/hv/connection.c. It
asks for the newest first and steps down for as long as the host refuses.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from emulator.lab.demo import run_demo
from emulator.machine.process import ProcessDied
from emulator.machine.snapshot import SnapshotError
from emulator.wire.version import Version
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio]

PATIENCE = 120
TALK = {"requests": 200, "completions": 100}
SPOKEN = [version for version in Version if Version.WIN8 <= version <= Version.IRON]


@pytest.mark.parametrize("version", SPOKEN, ids=str)
async def test_a_stock_guest_works_at_each_version_it_speaks(
    make_config: ConfigMaker, make_vm: MadeVm, version: Version
) -> None:
    # Two VPs, so that a channel that is moved (from 4.1) and one that cannot be are both there.
    vm = await make_vm(make_config(max_version=version, smp=2))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        match = await vm.watch(vm.console.wait_for(r"Vmbus version:([0-9.]+)"))
        await vm.watch(vm.control("probe.ready"))
        await vm.watch(vm.control("probe.run"))
        await vm.watch(vm.control("probe.wait", **TALK))
        end = await vm.watch(vm.control("probe.finish"))
    assert match[1] == str(version)
    assert end["problems"] == []
    assert (await vm.control("status"))["guest_errors"] == []


@pytest.mark.parametrize("version", [Version.WIN8_1, Version.WIN10], ids=str)
async def test_a_guest_of_an_old_version_is_saved_and_restored(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path, version: Version
) -> None:
    config = make_config(max_version=version)
    report = await run_demo(config, qemu=qemu, folder=tmp_path, rounds=1, say=lambda text: None)
    assert report.good, [found.problems for found in report.rounds]
    assert f"guest connected, VMBus {version}\n" in (tmp_path / "first/backend.log").read_text()


async def test_a_restore_has_a_maximum_version_of_its_own(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    config = make_config()
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.watch(vm.control("probe.ready"))
        await vm.save(tmp_path / "snapshot")

    # A host that offers new guests 4.0 only keeps this one running at 5.3 ...
    older = await make_vm(msgspec.structs.replace(config, max_version=Version.WIN10))
    async with asyncio.timeout(PATIENCE):
        await older.restore(tmp_path / "snapshot")
        await older.watch(older.control("probe.run"))
        await older.watch(older.control("probe.wait", **TALK))

    # ... unless it is told not to.
    strict = await make_vm(msgspec.structs.replace(config, max_restored_version=Version.WIN10))
    with pytest.raises(
        (SnapshotError, ProcessDied), match=r"speaks VMBus 5\.3, and a restore here allows"
    ):
        async with asyncio.timeout(PATIENCE):
            await strict.restore(tmp_path / "snapshot")
