# SPDX-License-Identifier: MIT
"""Disks and DVDs of the storage VSP, used by the stock kernel's hv_storvsc, sd_mod and sr_mod."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from emulator.machine.config import DeviceConfig
from emulator.machine.snapshot import SnapshotError
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell
from tests.unit.devices.storage.test_nbd import Server

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 60
MIB = 1 << 20
UUID = "8f2f6a3c-5d1e-4c57-9f0e-3a7b6d2c1e90"
SIZES = (("rw", 16), ("ro", 3), ("dvd", 2), ("direct", 1), ("added", 4), ("ide", 5))
LOAD = (
    "cd /lib/modules/$(uname -r) && insmod hv_vmbus.ko && "
    "modprobe sd_mod && modprobe sr_mod && modprobe hv_storvsc"
)


def controller(*luns: dict[str, Any], **options: Any) -> DeviceConfig:
    return DeviceConfig("disk", "scsi", options={"luns": list(luns), **options})


def image(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def grow(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


async def guest_md5(vm: VirtualMachine, device: str) -> str:
    """Read a whole device of the guest, past what it has cached."""
    await run(vm, "echo 3 > /proc/sys/vm/drop_caches")
    return (await run(vm, f"md5sum {device}"))[-1].split()[0]


async def appears(vm: VirtualMachine, path: str) -> None:
    await run(vm, f"until [ -e {path} ]; do sleep 0.1; done")


async def disk_at(vm: VirtualMachine, lun: int) -> str:
    """Return the name of the block device that the guest has for a LUN."""
    where = f"/sys/bus/scsi/devices/0:0:0:{lun}/block"
    await appears(vm, f"{where}/*")
    return f"/dev/{(await run(vm, f'ls {where}'))[-1]}"


async def test_a_guest_uses_disks_and_a_dvd(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    paths = {
        name: image(tmp_path / f"{name}.img", size * MIB, size)
        for name, size in (
            ("rw", 16),
            ("ro", 3),
            ("dvd", 2),
            ("direct", 1),
            ("added", 4),
            ("ide", 5),
        )
    }
    luns = (
        {"lun": 0, "path": str(paths["rw"]), "uuid": UUID, "serial": "RW-1"},
        {"lun": 3, "path": str(paths["ro"]), "read_only": True},
        {"lun": 7, "path": str(paths["dvd"]), "medium": "dvd"},
        {"lun": 63, "path": str(paths["direct"]), "direct": True},
    )
    ide = DeviceConfig(
        "ide", "ide", options={"disk": {"path": str(paths["ide"])}, "channel": 1, "device": 0}
    )
    append = "quiet vmbus.init=shell"
    vm = await make_vm(make_config(append=append, smp=2, devices=(controller(*luns), ide)))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        await run(vm, LOAD)
        assert await vm.control("disk.negotiated") == {
            "phase": "ready",
            "version": "6.2",
            "sub_channels": 1,
        }

        # Each is there, and is who it is.
        rw, ro, last = [await disk_at(vm, lun) for lun in (0, 3, 63)]
        for device, size in ((rw, 16), (ro, 3), (last, 1)):
            assert await run(vm, f"blockdev --getsize64 {device}") == [str(size * MIB)]
        about = "/sys/bus/scsi/devices/0:0:0:0"
        assert await run(vm, f"cat {about}/vendor {about}/model") == [
            "Msft    ",
            "Virtual Disk    ",
        ]
        assert await run(vm, f"cat {about}/wwid") == [f"t10.Msft    {UUID.replace('-', '')}"]
        assert (await run(vm, f"tail -c +5 {about}/vpd_pg80; echo"))[-1] == "RW-1"
        assert await run(vm, f"cat /sys/block/{ro[5:]}/ro") == ["1"]
        for device, name in ((rw, "rw"), (ro, "ro"), (last, "direct"), ("/dev/sr0", "dvd")):
            assert await guest_md5(vm, device) == md5(content(paths[name]))

        await appears(vm, "/sys/bus/scsi/devices/1:0:0:0/block/*")
        accelerated = (await run(vm, "ls /sys/bus/scsi/devices/1:0:0:0/block"))[-1]
        assert await guest_md5(vm, f"/dev/{accelerated}") == md5(content(paths["ide"]))

        # What is written and flushed is in the file.
        await run(vm, f"dd if={ro} of={rw} bs=64k seek=16 conv=fsync 2> /dev/null")
        expected = bytearray(random.Random(16).randbytes(16 * MIB))
        expected[MIB : 4 * MIB] = content(paths["ro"])
        assert content(paths["rw"]) == expected
        await run(vm, f"dd if={ro} of={last} bs=512 count=9 seek=3 oflag=direct 2> /dev/null")
        assert content(paths["direct"])[1536 : 1536 + 9 * 512] == content(paths["ro"])[: 9 * 512]
        await run(vm, f"! dd if=/dev/zero of={ro} bs=4k count=1 conv=fsync 2> /dev/null")

        # Blocks that are given back are gone from the file, and read as zeroes.
        before = allocated(paths["rw"])
        await run(vm, f"blkdiscard -o {8 * MIB} -l {4 * MIB} {rw}")
        expected[8 * MIB : 12 * MIB] = bytes(4 * MIB)
        assert allocated(paths["rw"]) <= before - 4 * MIB
        assert await guest_md5(vm, rw) == md5(content(paths["rw"])) == md5(bytes(expected))

        # Plugged, grown and pulled while the guest runs.
        await vm.control("disk.attach", lun=9, path=str(paths["added"]))
        added = await disk_at(vm, 9)
        assert await guest_md5(vm, added) == md5(content(paths["added"]))
        grow(paths["added"], 6 * MIB)
        await vm.control("disk.resize", lun=9)
        await run(vm, f"until [ $(blockdev --getsize64 {added}) = {6 * MIB} ]; do sleep 0.1; done")
        assert await guest_md5(vm, added) == md5(content(paths["added"]))
        await vm.control("disk.detach", lun=9)
        await run(vm, f"while [ -e {added} ]; do sleep 0.1; done")

        # Another disc.
        assert await vm.control("disk.eject", lun=7) == {"ejected": True}
        await run(vm, "! dd if=/dev/sr0 of=/dev/null bs=2k count=1 2> /dev/null")
        await vm.control("disk.insert", lun=7, path=str(paths["added"]))
        await run(
            vm, "until dd if=/dev/sr0 of=/dev/null bs=2k count=1 2> /dev/null; do sleep 0.1; done"
        )
        assert await guest_md5(vm, "/dev/sr0") == md5(content(paths["added"]))
        complaints = await run(vm, "dmesg -r | grep -E '^<[0-3]>' | grep -v vmbus-guest; true")
        # The two refusals above, and nothing else.
        assert [line for line in complaints if "sr0" not in line and ro[5:] not in line] == []


async def test_a_disk_that_does_not_answer_makes_the_save_fail_and_the_guest_goes_on(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    server = Server(tmp_path / "nbd")
    config = make_config(
        append="quiet vmbus.init=shell",
        devices=(controller({"nbd": server.uri}),),
        qemu_args=("-global", "vmbus-user.stop-timeout-ms=700"),
    )
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        await run(vm, LOAD)
        device = await disk_at(vm, 0)
        assert await guest_md5(vm, device) == md5(bytes(server.content))
        server.go_on.clear()
        await run(vm, f"dd if=/dev/zero of={device} bs=4k seek=8 count=1 oflag=direct & sleep 1")
        with pytest.raises(
            SnapshotError, match=r"not completed: disk: LUN 0: WRITE_10 of 4096 bytes at 32768"
        ):
            await vm.save(tmp_path / "snapshot")
        assert not (tmp_path / "snapshot").exists()
        assert await run(vm, "echo the guest runs") == ["the guest runs"]
        server.go_on.set()
        await run(vm, "wait")
        await vm.save(tmp_path / "snapshot")
        await vm.kill()
        again = await make_vm(config)
        await again.restore(tmp_path / "snapshot")
        assert await guest_md5(again, device) == md5(bytes(server.content))
        assert server.content[32768:36864] == bytes(4096)
        # Executed once, by whichever process.
        assert [kind for kind, _, offset, _ in server.requests if kind == 1] == [1]
    server.close()


async def test_a_disk_under_load_survives_save_kill_and_restore(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    disk = image(tmp_path / "disk.img", 16 * MIB)
    config = make_config(
        append="quiet vmbus.init=shell", smp=2, devices=(controller({"path": str(disk)}),)
    )
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        await run(vm, LOAD)
        device = await disk_at(vm, 0)
        await vm.console.send_line(f"vmbus-diskload {device} 32 2048 > /tmp/load & true")
        await run(vm, "until grep -q running /tmp/load; do sleep 0.1; done")
        for cycle in range(2):
            snapshot = tmp_path / f"snapshot{cycle}"
            await vm.save(snapshot)
            await vm.kill()
            vm = await make_vm(config)
            await vm.restore(snapshot)
            await run(vm, "usleep 500000")
        await run(vm, "touch /tmp/diskload.stop; wait; cat /tmp/load")
        said = await run(vm, "tail -1 /tmp/load")
        assert said[0].startswith("diskload: good"), said
        assert await run(vm, "dmesg -r | grep -E '^<[0-3]>' | grep -v vmbus-guest; true") == []
        # A machine that is reset under load finds the disk again, and its sub-channel.
        await run(vm, "rm /tmp/diskload.stop /tmp/load")
        await vm.console.send_line(f"vmbus-diskload {device} 32 2048 > /tmp/load & true")
        await run(vm, "until grep -q running /tmp/load; do sleep 0.1; done")
        lines = len(vm.console.lines)
        await vm.qmp("system_reset")
        await vm.watch(vm.console.wait_for("vmbus-guest: init", lines))
        await run(vm, LOAD)
        assert await guest_md5(vm, await disk_at(vm, 0)) == md5(content(disk))
        assert (await vm.control("disk.negotiated"))["sub_channels"] == 1
        await vm.kill()
        # Somebody else has written to the disk: what the guest has in memory is not of it.
        with disk.open("r+b") as file:
            file.write(b"x")
        stranger = await make_vm(config)
        with pytest.raises(SnapshotError, match="was written after the snapshot was made"):
            await stranger.restore(tmp_path / "snapshot1")
