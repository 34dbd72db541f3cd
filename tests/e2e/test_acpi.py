# SPDX-License-Identifier: MIT
"""What ACPI says of the VMBus: the node, its MMIO window, and S4; by iasl and by a stock Linux."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from emulator.machine.qemu import command_line
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 180
MIB = 1 << 20
GIB4 = 1 << 32

LAYOUTS = {
    "little memory": {},
    "more than 4 GiB": {"memory_mib": 5120},
    "room for DIMMs": {"dimm_slots": 2, "max_memory_mib": 2048},
}


async def _boot(
    vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch, machine: str, device: str
) -> None:
    """Boot to the shell on another board, or with other properties of the device."""

    def changed(*args: object, **rest: object) -> list[str]:
        line = command_line(*args, **rest)  # type: ignore[arg-type]
        line = [re.sub("^q35,", f"{machine},", word) for word in line]
        line = [re.sub("^vmbus-user,", f"vmbus-user,{device}", word) for word in line]
        # A BAR above 4 GiB, which the firmware has to put beside the window.
        line += ["-object", "memory-backend-ram,id=bar,size=256M,share=on"]
        return [*line, "-device", "ivshmem-plain,memdev=bar"]

    monkeypatch.setattr("emulator.machine.vm.command_line", changed)
    await vm.boot()
    await shell(vm)


async def _iomem(vm: VirtualMachine) -> list[tuple[int, int, str]]:
    """Return /proc/iomem as (first, last, name)."""
    found = []
    for line in await run(vm, "cat /proc/iomem"):
        if match := re.fullmatch(r" *([0-9a-f]+)-([0-9a-f]+) : (.*)", line):
            found.append((int(match[1], 16), int(match[2], 16), match[3]))
    return found


async def _window(vm: VirtualMachine, folder: Path) -> tuple[int, int] | None:
    """Return first and last address of what hv_vmbus hands out to drivers.

    Linux does not show it before a driver has taken some of it, so follow the driver's own pointer,
    `hyperv_mmio` of drivers/hv/vmbus_drv.c, to its struct resource, which begins with both.
    """
    line = await run(vm, "grep -w hyperv_mmio /proc/kallsyms")
    await vm.qmp("stop")

    async def u64(address: int) -> int:
        file = folder / "word"
        await vm.qmp("memsave", val=address, size=8, filename=str(file))
        return int.from_bytes(file.read_bytes(), "little")

    resource = await u64(int(line[0].split()[0], 16))
    window = (await u64(resource), await u64(resource + 8)) if resource else None
    await vm.qmp("cont")
    return window


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_linux_takes_a_window_that_nothing_else_has(
    make_config: ConfigMaker,
    make_vm: MadeVm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    machine: str,
    layout: str,
) -> None:
    vm = await make_vm(make_config(append="quiet vmbus.init=shell", **LAYOUTS[layout]))
    async with asyncio.timeout(PATIENCE):
        await _boot(vm, monkeypatch, machine, "")
        await run(vm, "insmod /lib/modules/$(uname -r)/hv_vmbus.ko")
        if "dimm_slots" in LAYOUTS[layout]:
            await vm.plug_dimm(1024)
            await run(vm, "until grep -q 'System RAM$' /proc/iomem; do :; done")
        iomem = await _iomem(vm)
        window = await _window(vm, tmp_path)
        assert window is not None
        assert window[0] >= GIB4
        assert window[1] - window[0] + 1 == 512 * MIB
        assert [entry for entry in iomem if entry[0] <= window[1] and window[0] <= entry[1]] == []
        bars = [(first, last) for first, last, name in iomem if last - first + 1 == 256 * MIB]
        assert bars, iomem


@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_linux_can_hibernate(
    make_config: ConfigMaker, make_vm: MadeVm, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    vm = await make_vm(make_config(append="quiet vmbus.init=shell"))
    async with asyncio.timeout(PATIENCE):
        await _boot(vm, monkeypatch, machine, "")
        assert "disk" in (await run(vm, "cat /sys/power/state"))[-1].split()
        assert "[platform]" in (await run(vm, "cat /sys/power/disk"))[-1]


async def _dsdt(vm: VirtualMachine, folder: Path) -> str:
    """Return the guest's DSDT as source."""
    text = "".join(await run(vm, "base64 /sys/firmware/acpi/tables/DSDT"))
    table = folder / "dsdt.aml"
    table.write_bytes(base64.b64decode(text))
    iasl = await asyncio.create_subprocess_exec(
        "iasl", "-d", str(table), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert await iasl.wait() == 0
    return table.with_suffix(".dsl").read_text()


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize(("device", "size"), [("", 512 * MIB), ("mmio-size=64M,", 64 * MIB)])
async def test_the_node_is_below_a_module_device_with_a_window(
    make_config: ConfigMaker,
    make_vm: MadeVm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    machine: str,
    device: str,
    size: int,
) -> None:
    vm = await make_vm(make_config(append="quiet vmbus.init=shell"))
    async with asyncio.timeout(PATIENCE):
        await _boot(vm, monkeypatch, machine, device)
        source = await _dsdt(vm, tmp_path)
    module = source[source.index("Device (VMOD)") :]
    assert re.match(r'Device \(VMOD\)\s*{\s*Name \(_HID, "ACPI0004"', module)
    assert module.index("QWordMemory (ResourceProducer") < module.index("Device (VMBS)")
    length = re.search(r"(0x[0-9A-F]{16}), *// Length", module)
    assert length is not None
    assert int(length[1], 16) == size
    assert re.search(r"Name \(_S4, Package", source)


async def test_without_a_window_the_node_stands_alone(
    make_config: ConfigMaker, make_vm: MadeVm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vm = await make_vm(make_config(append="quiet vmbus.init=shell"))
    async with asyncio.timeout(PATIENCE):
        await _boot(vm, monkeypatch, "q35", "mmio-size=0,")
        assert await run(vm, "cat /sys/bus/acpi/devices/VMBUS:00/path") == [r"\_SB_.VMBS"]
        await run(vm, "insmod /lib/modules/$(uname -r)/hv_vmbus.ko")
        assert await _window(vm, tmp_path) is None
