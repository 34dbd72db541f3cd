# SPDX-License-Identifier: MIT
"""Guests with other memory than one piece below 4 GiB: plugged while they run, high, in nodes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from emulator.machine.qemu import command_line
from emulator.machine.vm import VirtualMachine
from tests.e2e.conftest import ConfigMaker, MadeVm
from tests.e2e.shell import run, shell

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 180
MIB = 1 << 20
GIB4 = 1 << 32
SLOTS: dict[str, Any] = {"dimm_slots": 4, "max_memory_mib": 4096}


async def _probe(vm: VirtualMachine) -> None:
    """Load the bus and the probe in the guest's shell, and have a conversation begun."""
    await run(
        vm,
        "cd /lib/modules/$(uname -r) && insmod hv_vmbus.ko && insmod vmbus_probe.ko && "
        "{ vmbus-probe & }",
    )
    await vm.control("probe.ready")
    await vm.control("probe.run")
    await vm.control("probe.wait", requests=50, completions=30)


async def _finish(vm: VirtualMachine) -> None:
    assert (await vm.control("probe.finish"))["problems"] == []


async def _memory(vm: VirtualMachine) -> list[list[int]]:
    memory: list[list[int]] = (await vm.control("status"))["memory"]
    return memory


async def test_rings_in_a_dimm_that_was_plugged_survive_a_restore(
    make_config: ConfigMaker, make_vm: MadeVm, tmp_path: Path
) -> None:
    config = make_config(append="quiet vmbus.init=shell", **SLOTS)
    vm = await make_vm(config)
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        before = await _memory(vm)
        await vm.plug_dimm(1024)
        after = await _memory(vm)
        (dimm,) = [region for region in after if region not in before]
        assert dimm[0] >= GIB4
        assert dimm[1] == 1024 * MIB
        block = int((await run(vm, "cat /sys/devices/system/memory/block_size_bytes"))[-1], 16)
        states = await run(
            vm,
            f"for n in $(seq {dimm[0] // block} {sum(dimm) // block - 1}); do "
            "f=/sys/devices/system/memory/memory$n/state; until [ -e $f ]; do :; done; "
            "grep -q offline $f && echo online_kernel > $f; cat $f; done",
        )
        assert states == ["online"] * (dimm[1] // block)
        # All else is below 4 GiB, where Linux takes no page while a zone above has some.
        await _probe(vm)
        rings = (await vm.control("status"))["rings"]
        assert rings
        assert all(dimm[0] <= ring < sum(dimm) for ring in rings.values()), rings
        await vm.save(tmp_path / "snapshot")
        await vm.kill()
        restored = await make_vm(make_config(append=config.append, dimms=(1024,), **SLOTS))
        await restored.restore(tmp_path / "snapshot")
        assert await _memory(restored) == after
        assert (await restored.control("status"))["rings"] == rings
        await restored.control("probe.wait", requests=50, completions=30)
        await _finish(restored)


async def test_an_unplugged_dimm_leaves_the_table(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(append="quiet vmbus.init=shell", **SLOTS))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await shell(vm)
        before = await _memory(vm)
        await vm.plug_dimm(256)
        assert await _memory(vm) != before
        with vm._qmp.listener("DEVICE_DELETED") as deleted:
            # The guest ejects memory that it has not put online.
            await run(
                vm,
                "until ls -d /sys/bus/acpi/devices/PNP0C80:* 2> /dev/null; do :; done; "
                "until [ -e /sys/bus/acpi/devices/PNP0C80:00/physical_node ]; do :; done",
            )
            await vm.qmp("device_del", id="slot0")
            await vm.watch(deleted.get())
        assert await _memory(vm) == before
        await _probe(vm)
        await _finish(vm)


async def test_a_dimm_that_cannot_be_shared_is_refused(
    make_config: ConfigMaker, make_vm: MadeVm
) -> None:
    vm = await make_vm(make_config(**SLOTS))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        for kind, rest in (
            ("memory-backend-ram", {}),
            ("memory-backend-memfd", {"share": False}),
        ):
            await vm.qmp("object-add", qom_type=kind, id="dimm", size=128 * MIB, **rest)
            with pytest.raises(ExecuteError, match="cannot be shared"):
                await vm.qmp("device_add", driver="pc-dimm", id="slot", memdev="dimm")
            await vm.qmp("object-del", id="dimm")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        await _finish(vm)


async def test_rings_above_4_gib(make_config: ConfigMaker, make_vm: MadeVm) -> None:
    vm = await make_vm(make_config(memory_mib=5120))
    await vm.boot()
    async with asyncio.timeout(PATIENCE):
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        assert [region[0] for region in await _memory(vm)] == [0, GIB4]
        rings = (await vm.control("status"))["rings"]
        assert all(ring >= GIB4 for ring in rings.values()), rings
        await _finish(vm)


def _huge_pages_free() -> int:
    text = Path("/proc/meminfo").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if "HugePages_Free" in line)


async def _converse(vm: VirtualMachine, regions: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await vm.boot()
        await vm.control("probe.ready")
        await vm.control("probe.run")
        await vm.control("probe.wait", requests=50, completions=30)
        memory = await _memory(vm)
        assert len(memory) == regions
        assert sum(size for _, size in memory) == 256 * MIB
        await _finish(vm)


async def test_nodes_with_a_memory_each(
    make_config: ConfigMaker, make_vm: MadeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nodes(*args: object, **rest: object) -> list[str]:
        line = command_line(*args, **rest)  # type: ignore[arg-type]
        at = line.index("memory-backend-memfd,id=ram,size=256M,share=on")
        line[at - 1 : at + 1] = [
            word
            for node, size in enumerate(("64M", "128M", "64M"))
            for word in (
                "-object",
                f"memory-backend-memfd,id=ram{node},size={size},share=on",
                "-numa",
                f"node,memdev=ram{node}",
            )
        ]
        return [word.removesuffix(",memory-backend=ram") for word in line]

    monkeypatch.setattr("emulator.machine.vm.command_line", nodes)
    await _converse(await make_vm(make_config()), regions=3)


@pytest.mark.skipif(
    _huge_pages_free() < 128, reason="there are not 128 huge pages (vm.nr_hugepages)"
)
async def test_memory_of_huge_pages_cut_by_the_hole(
    make_config: ConfigMaker, make_vm: MadeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(*args: object, **rest: object) -> list[str]:
        line = command_line(*args, **rest)  # type: ignore[arg-type]
        line = [re.sub("^(memory-backend-memfd,.*)$", r"\1,hugetlb=on", word) for word in line]
        # The hole begins within a huge page.
        return [re.sub("^q35,", "q35,max-ram-below-4g=201M,", word) for word in line]

    monkeypatch.setattr("emulator.machine.vm.command_line", huge)
    await _converse(await make_vm(make_config()), regions=2)
