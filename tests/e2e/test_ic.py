# SPDX-License-Identifier: MIT
"""The integration services with the stock kernel's hv_utils and Debian's daemons.

One guest goes through all of it: used, frozen and copied into, saved meanwhile, killed, restored
in a new process, used on, shut down.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from emulator.lab.images import GuestImage
from emulator.machine.config import DeviceConfig
from emulator.machine.control import ControlError
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 180
SIZE = 300_000
"""Bytes of the file that is copied: 49 messages."""
KINDS = ("heartbeat", "shutdown", "timesync", "kvp", "vss", "fcopy")
POOL = "/var/lib/hyperv/.kvp_pool_"
LOAD = (
    "cd /lib/modules/$(uname -r) && insmod hv_vmbus.ko && modprobe sd_mod && "
    "modprobe hv_storvsc && modprobe hv_utils && "
    "for module in $(cat /lib/ext4.modules); do insmod $module; done"
)
DAEMONS = "; ".join(
    f"until [ -e /dev/vmbus/hv_{name} ]; do sleep 0.1; done; /usr/sbin/hv_{name}_daemon"
    for name in ("kvp", "vss", "fcopy")
)
# What a user of the guest writes: records of 512 bytes of key and 2048 of value.
WRITE_PAIR = (
    "{ printf shape | dd bs=512 conv=sync; printf round | dd bs=2048 conv=sync; } "
    f"> {POOL}1 2> /dev/null"
)
STILL_BLOCKED = "until grep -q '^State:.D' /proc/$writer/status; do sleep 0.1; done"


@pytest.fixture(scope="module")
def initramfs(image: GuestImage) -> Path:
    """The guest with Debian's hyperv-daemons in it."""
    script = Path(__file__).parents[2] / "guest-images" / "linux" / "daemons"
    done = subprocess.run(
        [script, image.kernel.parent], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


async def vmbus_guest(*arguments: str) -> list[str]:
    """Run ``vmbus guest``; returns the lines of its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emulator.cli", "guest", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return out.decode().splitlines()


async def guest_year(vm: VirtualMachine) -> int:
    return int((await run(vm, "date +%Y"))[-1])


async def test_every_service_over_a_restore(
    make_config: ConfigMaker,
    make_vm: MadeVm,
    initramfs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The registry of running machines that `vmbus guest` looks into is this test's own.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    disk, source = tmp_path / "disk.img", tmp_path / "source"
    disk.write_bytes(bytes(16 << 20))
    source.write_bytes(random.Random(1).randbytes(SIZE))
    devices = (
        *(DeviceConfig(kind, kind) for kind in KINDS),
        DeviceConfig("disk", "scsi", options={"luns": [{"lun": 0, "path": str(disk)}]}),
    )
    config = make_config(append="quiet vmbus.init=shell", initramfs=initramfs, devices=devices)
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        await run(vm, LOAD)
        await run(vm, DAEMONS)
        versions = {
            name: (await vm.control(f"{name}.negotiated"))["version"]
            for name in ("shutdown", "kvp", "vss", "fcopy")
        }
        assert versions == {"shutdown": "3.2", "kvp": "4.0", "vss": "5.0", "fcopy": "1.1"}
        said = "\n".join(await run(vm, "dmesg | grep 'IC version'"))
        for words in (
            "Heartbeat IC version 3.0",
            "Shutdown IC version 3.2",
            "TimeSync IC version 3.0",
            "KVP IC version 4.0",
            "VSS IC version 5.0",
            "FCopy IC version 1.1",
        ):
            assert words in said

        # Heartbeat and time.
        assert (await vm.control("heartbeat.wait"))["health"] == "ok"
        await run(vm, "date -s 2001-01-01 > /dev/null")
        await vm.control("timesync.sync")
        await run(vm, "until [ $(date +%Y) -gt 2001 ]; do sleep 0.1; done")

        # Pairs, both ways.
        assert await vmbus_guest("heartbeat") == ["ok"]
        await vmbus_guest("kvp", "set", "colour", "green")
        assert "green" in (await run(vm, f"tr '\\0' '\\n' < {POOL}0 | grep -v '^$'; echo"))
        await run(vm, WRITE_PAIR)
        assert await vmbus_guest("kvp", "list") == ["shape=round"]
        assert await vm.control("kvp.get", key="shape") == "round"
        with pytest.raises(ControlError, match="there is no size"):
            await vm.control("kvp.get", key="size")
        about = await vm.control("kvp.list", pool="auto")
        assert (await run(vm, "uname -m"))[-1] == about["ProcessorArchitecture"]
        assert set(await vm.control("kvp.ip")) == {"ipv4", "ipv6"}

        # Frozen: a writer blocks. A file is being copied, and the clock is wrong.
        await run(vm, "mke2fs /dev/sda > /dev/null && mount -t ext4 /dev/sda /mnt")
        await vm.control("vss.freeze", lease=300)
        await run(vm, "touch /mnt/written & writer=$!")
        await run(vm, STILL_BLOCKED)
        await run(vm, "date -s 2001-01-01 > /dev/null")
        await vm.control("fcopy.copy", source=str(source), dest="/tmp/in/copy", create_path=True)
        while (await vm.control("fcopy.status"))["copy"]["offset"] == 0:
            pass
        snapshot = tmp_path / "snapshot"
        await vm.save(snapshot)
        await vm.kill()

        vm = await make_vm(config)
        await vm.restore(snapshot)
        # Negotiated still, not anew; and no channel was taken away.
        for kind in KINDS:
            assert (await vm.control(f"{kind}.status"))["state"] == "ready"
        copied = (await vm.control("fcopy.status"))["copy"]
        assert 0 < copied["offset"] < copied["size"], "the copy was not under way at the save"
        await run(vm, "until [ $(date +%Y) -gt 2001 ]; do sleep 0.1; done")
        assert await guest_year(vm) == time.gmtime().tm_year
        await run(vm, "while [ -e /proc/$writer ]; do sleep 0.1; done; ls /mnt/written > /dev/null")
        assert not (await vm.control("vss.status"))["frozen"]
        await vmbus_guest("freeze")
        await vmbus_guest("thaw")
        assert await vm.control("fcopy.wait") == {"size": SIZE}
        expected = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
        assert (await run(vm, "md5sum /tmp/in/copy"))[-1].split()[0] == expected
        await vm.control("fcopy.copy", source=str(source), dest="/tmp/in/copy")
        with pytest.raises(ControlError, match="ALREADY_EXISTS"):
            await vm.control("fcopy.wait")
        assert (await vm.control("heartbeat.wait"))["health"] == "ok"
        assert await vm.control("kvp.get", key="shape") == "round"
        await vm.control("kvp.delete", key="colour")
        assert await vm.control("kvp.list", pool="external") == {}
        said = "\n".join(await run(vm, "dmesg | grep -E 'IC version|rescind'"))
        assert said.count("IC version") == len(KINDS)
        assert "rescind" not in said

        await run(vm, "umount /mnt")
        with vm.events("SHUTDOWN") as events:
            await vmbus_guest("shutdown", "--vm", "test")
            data: Any = (await events.get())["data"]
        assert data["reason"] == "guest-shutdown"
