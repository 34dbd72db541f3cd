# SPDX-License-Identifier: MIT
"""The main job in other modes: icount, eight vCPUs, internal snapshots, migration to a fd."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from emulator.lab.demo import run_demo
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 180


@pytest.mark.parametrize(
    ("smp", "qemu_args"),
    [
        pytest.param(8, (), id="8-vcpus"),
        pytest.param(1, ("-icount", "shift=auto"), id="icount-auto"),
        pytest.param(2, ("-icount", "shift=2"), id="icount-2"),
    ],
)
async def test_the_main_job_loses_nothing(
    make_config: ConfigMaker, qemu: Path, tmp_path: Path, smp: int, qemu_args: tuple[str, ...]
) -> None:
    config = make_config(smp=smp, qemu_args=qemu_args)
    report = await run_demo(config, qemu=qemu, folder=tmp_path, rounds=1, say=lambda text: None)
    assert [found.problems for found in report.rounds] == [[]]
    assert all(report.at_save.values()), report.at_save


async def _step(vm: VirtualMachine, command: str, **arguments: Any) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await vm.control(command, **arguments)


async def _job(vm: VirtualMachine, command: str, **arguments: Any) -> str:
    """Run a QMP job to its end; returns its error, or the empty string."""
    with vm.events("JOB_STATUS_CHANGE") as events:
        await vm.qmp(command, job_id="job", **arguments)
        async with asyncio.timeout(PATIENCE):
            data: Any = None
            while data is None or data["status"] != "concluded":
                data = (await vm.watch(events.get()))["data"]
    (job,) = await vm.qmp("query-jobs")
    await vm.qmp("job-dismiss", id="job")
    return str(job.get("error", ""))


@pytest.mark.parametrize("smp", [1, 4])
async def test_an_internal_snapshot_is_loaded_again_and_again(
    make_config: ConfigMaker, make_vm: MadeVm, qemu: Path, tmp_path: Path, smp: int
) -> None:
    disk = tmp_path / "vmstate.qcow2"
    create = ("create", "-q", "-f", "qcow2", str(disk), "1M")
    maker = await asyncio.create_subprocess_exec(qemu.with_name("qemu-img"), *create)
    assert await maker.wait() == 0
    blockdev = f"qcow2,node-name=disk,file.driver=file,file.filename={disk}"
    vm = await make_vm(make_config(smp=smp, qemu_args=("-blockdev", blockdev)))
    await vm.boot()
    await _step(vm, "probe.ready")
    await _step(vm, "probe.run")
    await _step(vm, "probe.wait", requests=100, completions=50)
    await _step(vm, "probe.freeze")
    where = {"tag": "here", "devices": ["disk"]}
    assert await _job(vm, "snapshot-save", vmstate="disk", **where) == ""
    saved = (await _step(vm, "probe.counts"))["in_flight"]
    assert all(saved.values()), saved
    for _ in range(3):
        await _step(vm, "probe.thaw")
        await _step(vm, "probe.wait", requests=100, completions=50)
        assert await _job(vm, "snapshot-load", vmstate="disk", **where) == ""
        assert (await _step(vm, "probe.counts"))["in_flight"] == saved
    await _step(vm, "probe.thaw")
    await _step(vm, "probe.wait", requests=100, completions=50)
    assert (await _step(vm, "probe.finish"))["problems"] == []


async def test_the_stream_can_go_to_a_descriptor(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    config = make_config(smp=2)
    vm = await make_vm(config)
    await vm.boot()
    await _step(vm, "probe.ready")
    await _step(vm, "probe.run")
    await _step(vm, "probe.wait", requests=100, completions=50)
    await _step(vm, "probe.freeze")
    await vm.qmp("stop")
    file = tmp_path / "stream"
    with file.open("wb") as stream:
        await vm.give_fd("stream", stream.fileno())
        assert await vm.write_state("fd:stream") == ""
    await vm.kill()
    assert os.stat(file).st_size > 1 << 20

    vm = await make_vm(config)
    assert await vm.load_state(file) == ""
    await vm.qmp("cont")
    await _step(vm, "probe.thaw")
    await _step(vm, "probe.wait", requests=100, completions=50)
    assert (await _step(vm, "probe.finish"))["problems"] == []
