# SPDX-License-Identifier: MIT
"""Scenarios with GPADLs that the guest makes and takes back."""

from __future__ import annotations

from emulator.conformance.suite import Mismatch, expect, same
from emulator.lab.conformance.bench import Bench, Saved, goes_on, rest, until_heard
from emulator.lab.conformance.cases import case
from emulator.machine.control import ControlError
from emulator.machine.vm import VirtualMachine


async def _gpadl(vm: VirtualMachine, do: str, number: int = 1, **args: int) -> dict[str, bool]:
    done: dict[str, bool] = await vm.control("probe.gpadl", do=do, number=number, **args) or {}
    if "good" in done and not done["good"]:
        raise Mismatch(f"{do}: GPADL {number} does not hold what it should")
    return done


@case("56", uses="GPADL_MAKE GPADL_CHECK GPADL_FREE", quick=True)
async def _mapped(bench: Bench) -> str:
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await _gpadl(vm, "make", pages=5)
        await _gpadl(vm, "map")
        await _gpadl(vm, "write")
        await _gpadl(vm, "check")
        await vm.save(folder)
    async with bench.restored(Saved(folder, {})) as vm:
        await _gpadl(vm, "map")
        try:
            await _gpadl(vm, "map")
        except ControlError as error:
            expect("INVALID_DEVICE_STATE" in str(error), str(error))
        else:
            raise Mismatch("it can be mapped twice")
        await _gpadl(vm, "write")
        await _gpadl(vm, "check")
        await _gpadl(vm, "unmap")
        await _gpadl(vm, "free")
        await goes_on(vm)
    return "5 pages written before and after the restore; mapped once at a time; taken back"


@case("57", uses="GPADL_MAKE GPADL_FREE PING")
async def _in_teardown(bench: Bench) -> str:
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await _gpadl(vm, "make", pages=2)
        await _gpadl(vm, "map")
        await _gpadl(vm, "keep")
        await _gpadl(vm, "free_later")
        await until_heard(vm, "GPADL_TEARDOWN", 1)
        await vm.save(folder)
    async with bench.restored(Saved(folder, {})) as vm:
        heard = await vm.control("probe.wait_late")
        same(heard["late"], ["SUCCESS"], "answers of the guest that waited for its pages")
        sent = (await vm.control("inspect"))["messages_out"]
        same(sent, {"GPADL_TORNDOWN": 1}, "messages to the guest")
        await goes_on(vm)
    return "the teardown that waited at the save is answered once, after the restore"
