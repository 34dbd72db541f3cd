# SPDX-License-Identifier: MIT
"""Scenarios that need a guest with a shell, or a machine made in another way."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from emulator.conformance.suite import Mismatch, expect, same
from emulator.lab.conformance.bench import Bench, Saved, goes_on, messages, start_talk, until_heard
from emulator.lab.conformance.cases import case
from emulator.machine.vm import VirtualMachine

_LOAD_BUS = "insmod /lib/modules/$(uname -r)/hv_vmbus.ko"
_LOAD_PROBE = "insmod /lib/modules/$(uname -r)/vmbus_probe.ko"
_SHELL = "quiet vmbus.init=shell"
_DISK = 1 << 30


async def run(vm: VirtualMachine, line: str) -> None:
    """Run a line in the guest's shell; raises Mismatch if its status is not 0."""
    start = len(vm.console.lines)
    # The shell echoes what is typed: the mark is not in it as it is printed.
    await vm.console.send_line(f"{line}; echo en''d $?")
    end = await vm.watch(vm.console.wait_for(r"^end \d+$", start))
    same(end[0], "end 0", f"status of {line!r}")


@asynccontextmanager
async def shell(bench: Bench, **changes: Any) -> AsyncIterator[VirtualMachine]:
    """Boot a guest that does nothing by itself."""
    async with bench.machine(append=_SHELL, **changes) as vm:
        await vm.boot()
        await vm.watch(vm.console.wait_for("vmbus-guest: init"))
        await run(vm, "true")
        yield vm


@case("42", uses="RUN FINISH", linux=True)
async def _phases(bench: Bench) -> str:
    offered, closed = bench.snapshot_folder(), bench.snapshot_folder()
    async with shell(bench) as vm:
        await run(vm, _LOAD_BUS)
        await vm.save(offered)
    async with bench.restored(Saved(offered, {}), append=_SHELL) as vm:
        await run(vm, f"{_LOAD_PROBE} && {{ vmbus-probe & }}")
        await goes_on(vm)
        await run(vm, "kill %1; wait")
        states = {channel["state"] for channel in (await vm.control("inspect"))["channels"]}
        expect("open" not in states, f"the channels are {states}")
        await vm.save(closed)
    async with bench.restored(Saved(closed, {}), append=_SHELL) as vm:
        await run(vm, "{ vmbus-probe & }")
        await goes_on(vm)
        same(await messages(vm), {"OPEN_RESULT": 2, "GPADL_CREATED": 2}, "messages")
    return (
        "offered: opened after the restore; open: see 44 to 47; closed: opened again. Opening "
        "and closing last for no longer than their message does here"
    )


@case("R4", uses="RUN FINISH", linux=True)
async def _hibernated(bench: Bench) -> str:
    disk = bench.folder / "swap.img"
    with disk.open("wb") as file:
        file.truncate(_DISK)
    # The stock cloud kernel has NVMe built in.
    drive = ("-drive", f"if=none,id=swap,format=raw,file={disk}")
    args = (*drive, "-device", "nvme,serial=swap,drive=swap", "-action", "shutdown=pause")
    try:
        async with shell(bench, qemu_args=args) as vm:
            await run(vm, "mkswap /dev/nvme0n1 && swapon /dev/nvme0n1")
            await run(vm, f"{_LOAD_BUS} && {_LOAD_PROBE} && {{ vmbus-probe & }}")
            await goes_on(vm)
            # Only in memory: a guest that boots anew does not have it.
            await run(vm, "marker=hiber")
            with vm.events("SUSPEND_DISK") as events:
                await vm.console.send_line(
                    "echo disk > /sys/power/state; echo re''sumed $marker'nated'"
                )
                await vm.watch(events.get())
        append = f"{_SHELL} resume=/dev/nvme0n1 resumewait"
        async with bench.machine(qemu_args=args, append=append) as vm:
            await vm.boot()
            await vm.watch(vm.console.wait_for("^resumed hibernated"))
            await goes_on(vm)
            sent = await messages(vm)
    finally:
        disk.unlink()
    # The kernel that finds the image has no bus driver: the resumed one makes the only contact.
    same(sent.get("RESCIND_CHANNEL_OFFER", 0), 0, "channels taken back")
    offers = sent["OFFER_CHANNEL"]
    return f"resumed in new processes: {offers} offers of the same instances; a whole conversation"


@case("R6", uses="RUN FINISH")
async def _backend(bench: Bench) -> str:
    args = ("-set", "chardev.vmbus.reconnect-ms=50")
    async with bench.machine(qemu_args=args) as vm:
        await vm.boot()
        await start_talk(vm)
        child = vm.backend_child
        if child is None:
            raise Mismatch("the machine has no backend")
        os.kill(child.pid, signal.SIGKILL)
        await child.ended
        # From here on the death of the backend is what is wanted.
        vm.backend_child = None
        await vm.replace_backend()
        while not (await vm.control("status"))["connected"]:
            pass
        await vm.qmp("system_reset")
        await until_heard(vm, "INITIATE_CONTACT", 1)
        await goes_on(vm)
    return "killed under a running guest, which stays up; after its reset it finds the new back-end"
