# SPDX-License-Identifier: MIT
"""What goes wrong is told, the guest runs on where it can, and no snapshot is damaged."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from emulator.devices.probe.protocol import Deed
from emulator.machine.config import DeviceConfig
from emulator.machine.process import ProcessDied
from emulator.machine.qemu import QemuError
from emulator.machine.snapshot import MANIFEST, STATE, SnapshotError
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120


async def _talk(vm: VirtualMachine, **run: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        await vm.control("probe.run", **run)
        await vm.control("probe.wait", requests=20, completions=10)


@pytest.mark.parametrize("deed", list(Deed))
async def test_a_malformed_packet_ends_its_own_channel_only(
    make_config: ConfigMaker, make_vm: MadeVm, deed: Deed
) -> None:
    devices = (DeviceConfig("probe", "probe"),)
    vm = await make_vm(make_config(devices=devices))
    await vm.boot()
    await _talk(vm)
    await vm.control("probe.malform", kind=deed.value)
    async with asyncio.timeout(PATIENCE):
        faults = (await vm.control("probe.wait_fault"))["faults"]
        assert len(faults) == 1
        assert faults[0].startswith("data: ")
        # The control channel, the guest and the backend go on.
        first = (await vm.control("probe.ping"))["guest_ns"]
        assert (await vm.control("probe.ping"))["guest_ns"] > first


@pytest_asyncio.fixture
async def snapshot(make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path) -> Path:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    folder = tmp_path / "snapshot"
    await vm.save(folder)
    await vm.kill()
    return folder


def _fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _flip(path: Path, where: int) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 0x40]))


async def test_a_damaged_snapshot_is_refused_and_left_alone(
    snapshot: Path, make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    size = (snapshot / STATE).stat().st_size
    manifest_size = (snapshot / MANIFEST).stat().st_size
    for name, where in (
        (STATE, 0),
        (STATE, size // 2),
        (STATE, size - 1),
        (STATE, size - 3000),
        (MANIFEST, manifest_size // 2),
    ):
        damaged = tmp_path / "damaged"
        shutil.copytree(snapshot, damaged)
        _flip(damaged / name, where)
        before = _fingerprint(damaged)
        vm = await make_vm(make_config())
        with pytest.raises(SnapshotError, match="damaged"):
            await vm.restore(damaged)
        assert _fingerprint(damaged) == before
        await vm.kill()
        shutil.rmtree(damaged)
    for name in (STATE, MANIFEST):
        partial = tmp_path / "partial"
        shutil.copytree(snapshot, partial)
        (partial / name).unlink()
        vm = await make_vm(make_config())
        with pytest.raises(SnapshotError, match=name):
            await vm.restore(partial)
        shutil.rmtree(partial)
    # The good one still restores after all that, and its conversation ends well.
    vm = await make_vm(make_config())
    await vm.restore(snapshot)
    async with asyncio.timeout(PATIENCE):
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_snapshot_of_another_machine_is_refused_with_all_differences(
    snapshot: Path, make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    before = _fingerprint(snapshot)
    vm = await make_vm(
        make_config(smp=2, memory_mib=320, devices=(DeviceConfig("other", "probe"),))
    )
    with pytest.raises(SnapshotError, match="another machine") as caught:
        await vm.restore(snapshot)
    text = str(caught.value)
    assert all(word in text for word in ("smp", "memory_mib", "devices"))
    assert _fingerprint(snapshot) == before


async def test_a_killed_backend_is_told_and_the_guest_runs_on(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(append="loglevel=7 vmbus.tick"))
    await vm.boot()
    await _talk(vm)
    assert vm.backend_child is not None
    assert vm.qemu_child is not None
    os.kill(vm.backend_child.pid, signal.SIGKILL)
    with pytest.raises(ProcessDied, match="backend was killed by signal 9"):
        await vm.control("probe.ping")
    lines = len(vm.console.lines)
    async with asyncio.timeout(PATIENCE):
        await vm.console.wait_for("vmbus-guest: tick", lines)
    assert not vm.qemu_child.ended.done()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with too little room for a snapshot."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_no_room_for_the_snapshot_leaves_nothing_and_the_guest_running(
    make_config: ConfigMaker, make_vm: MadeVm, full_disk: Path, tmp_path: Path
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    with pytest.raises(SnapshotError, match="could not be saved"):
        await vm.save(full_disk / "snapshot")
    assert os.listdir(full_disk) == []
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.wait", requests=20, completions=10)
    await vm.save(tmp_path / "snapshot", resume=True)
    async with asyncio.timeout(PATIENCE):
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_save_while_the_guest_runs_is_refused_by_qemu(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    vm = await make_vm(make_config())
    await vm.boot()
    await _talk(vm)
    assert "stop" in await vm.write_state(tmp_path / "state")
    async with asyncio.timeout(PATIENCE):
        assert (await vm.control("probe.finish"))["problems"] == []


async def test_a_qemu_without_the_patch_is_named(make_config: ConfigMaker, tmp_path: Path) -> None:
    stranger = tmp_path / "qemu-system-x86_64"
    stranger.write_text("#!/bin/sh\ncase $1 in --version) echo QEMU emulator version 9;; esac\n")
    stranger.chmod(0o755)
    async with VirtualMachine(make_config(), qemu=stranger, logs=tmp_path / "logs") as vm:
        with pytest.raises(QemuError, match="no vmbus-user device"):
            await vm.boot()
