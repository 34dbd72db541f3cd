# SPDX-License-Identifier: MIT
"""Code that comes from a disk into memory that held other code is what the guest runs.

TCG has translated what was there before, and does not see that the backend writes. With the map of
translated code (docs/vmbus-user.md, "Code") the guest runs what was read; without it, it does not:
so the failure is one that this test sees.
"""

from __future__ import annotations

import asyncio
import re
import struct
import subprocess
from pathlib import Path

import pytest

from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell
from tests.e2e.test_storage import LOAD, controller, disk_at

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PAGE = 4096
PROGRAMS = 64
RETURN = b"\xc3"
PATIENCE = 180


def code(value: int) -> bytes:
    """Return ``mov $value, %eax; ret``."""
    return b"\xb8" + struct.pack("<I", value) + RETURN


def programs() -> bytes:
    """Return the disk that ``programs/reload.c`` reads."""
    pages = bytearray(b"\xcc" * (PROGRAMS * 2 * PAGE))
    for number in range(PROGRAMS):
        start = number * 2 * PAGE
        across = code(number << 16 | number)
        pages[start : start + 6] = code(number)
        pages[start + PAGE - 3 : start + PAGE - 3 + len(across)] = across
    return bytes(pages)


def build(program: Path) -> None:
    """Build the guest's program, in whole pages: it gets into the guest as a disk."""
    source = Path(__file__).parent / "programs" / "reload.c"
    subprocess.run(["gcc", "-O1", "-static", "-pthread", "-o", program, source], check=True)
    with program.open("r+b") as file:
        file.truncate(-(-program.stat().st_size // PAGE) * PAGE)


async def reloading(
    make_config: ConfigMaker, make_vm: MadeVm, folder: Path, smp: int, *qemu_args: str
) -> VirtualMachine:
    """Return a machine whose guest has the program and its disk as $disk."""
    program = folder / "reload"
    build(program)
    disk = folder / "disk.img"
    disk.write_bytes(programs())
    device = controller({"lun": 0, "path": str(disk)}, {"lun": 1, "path": str(program)})
    vm = await make_vm(
        make_config(
            append="quiet vmbus.init=shell", smp=smp, devices=(device,), qemu_args=qemu_args
        )
    )
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        await run(vm, LOAD)
        await run(vm, f"cp {await disk_at(vm, 1)} /reload && chmod +x /reload")
        await run(vm, f"disk={await disk_at(vm, 0)}")
    return vm


async def stale(vm: VirtualMachine, threads: int, rounds: int) -> tuple[int, int]:
    """Run the program; returns how many rounds there were, and how often old code ran."""
    async with asyncio.timeout(PATIENCE):
        (line,) = await run(vm, f"/reload $disk {threads} {rounds} || true")
    match = re.fullmatch(r"reload: (\d+) rounds, (\d+) stale", line)
    assert match, line
    return int(match[1]), int(match[2])


@pytest.mark.parametrize("smp", [1, 4])
async def test_the_guest_runs_what_was_read(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path, smp: int
) -> None:
    vm = await reloading(make_config, make_vm, tmp_path, smp)
    assert await stale(vm, smp, 400 // smp) == (400, 0)
    (device,) = await vm.qmp("qom-list-types", implements="vmbus-user")
    info = await vm.qmp("qom-get", path="/machine/peripheral-anon/device[0]", property="info")
    assert device["name"] == "vmbus-user"
    assert "code-map" in info["features"]
    assert info["code-invalidations"] >= 400
    # It goes on after a stop, in which the backend cannot ask.
    await vm.qmp("stop")
    await vm.qmp("cont")
    assert await stale(vm, smp, 100) == (smp * 100, 0)


async def test_without_the_map_old_code_runs(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    vm = await reloading(make_config, make_vm, tmp_path, 1, "-global", "vmbus-user.code-map=off")
    _, old = await stale(vm, 1, 100)
    assert old > 0
