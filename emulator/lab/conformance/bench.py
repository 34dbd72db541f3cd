# SPDX-License-Identifier: MIT
"""Machines for the scenarios: a boot or a save that one has paid for serves the next.

All begin with a snapshot of a guest that has booted, talked and come to rest. What several
scenarios look at (a snapshot with packets of every kind in flight, one replay of it) is made when
the first of them asks.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from emulator.conformance.suite import Mismatch, same
from emulator.lab.demo import PROBE
from emulator.lab.images import GuestImage
from emulator.machine.config import Accel, DeviceConfig, MachineConfig
from emulator.machine.vm import VirtualMachine

T = TypeVar("T")

PATIENCE: Final = 120.0
"""Seconds after which a scenario is taken to hang."""
BEFORE: Final = {"requests": 100, "completions": 50}
_RELEASED_LATE: Final = "REL_ID_RELEASED without a connection"
AFTER: Final = {"requests": 60, "completions": 30}


def linux_guest(image: GuestImage) -> MachineConfig:
    """Return the machine of the suite: the Linux test guest with one probe, under TCG."""
    return MachineConfig(
        name="conformance",
        kernel=image.kernel,
        initramfs=image.initramfs,
        accel=Accel.TCG,
        memory_mib=192,
        # So that an NMI crashes it (scenario 69).
        append="loglevel=4 unknown_nmi_panic=1",
        devices=(PROBE,),
    )


@dataclass(frozen=True)
class Saved:
    """A snapshot, and what was known of the machine when it was made."""

    folder: Path
    facts: dict[str, Any]


class Bench:
    """Makes machines of one kind, each in processes of its own."""

    def __init__(self, *, qemu: Path, machine: MachineConfig, folder: Path) -> None:
        """Use ``machine``, which has the device probe; snapshots and logs go to ``folder``."""
        self._qemu = qemu
        self._machine = machine
        self.folder = folder
        self._numbers = itertools.count(1)
        self._made: dict[Callable[[Bench], Awaitable[Any]], asyncio.Future[Any]] = {}

    def config(self, **changes: Any) -> MachineConfig:
        """Return the machine, with changes; further QEMU arguments are added to those it has."""
        args = self._machine.qemu_args + changes.pop("qemu_args", ())
        return msgspec.structs.replace(self._machine, qemu_args=args, **changes)

    def snapshot_folder(self) -> Path:
        """Return a folder that is not there yet."""
        return self.folder / f"snapshot-{next(self._numbers)}"

    @asynccontextmanager
    async def machine(self, **changes: Any) -> AsyncIterator[VirtualMachine]:
        """Give a machine that is not started, and kill what it runs in the end."""
        logs = self.folder / f"run-{next(self._numbers)}"
        async with VirtualMachine(self.config(**changes), qemu=self._qemu, logs=logs) as vm:
            yield vm

    @asynccontextmanager
    async def restored(self, saved: Saved, **changes: Any) -> AsyncIterator[VirtualMachine]:
        """Restore in new processes; raises what the restore raises."""
        async with self.machine(**changes) as vm:
            await vm.restore(saved.folder)
            yield vm

    async def once(self, make: Callable[[Bench], Awaitable[T]]) -> T:
        """Return what ``make`` returned, or raise what it raised, when it was first asked for."""
        if make not in self._made:
            made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._made[make] = made
            try:
                made.set_result(await make(self))
            except Exception as error:
                made.set_exception(error)
            except asyncio.CancelledError:
                made.set_exception(Mismatch(f"{make.__name__}: not made in time"))
                # Nobody else may ask.
                made.exception()
                raise
        result: T = await self._made[make]
        return result


def probe(**options: Any) -> tuple[DeviceConfig, ...]:
    """Return the devices: one probe with these options."""
    return (msgspec.structs.replace(PROBE, options=options),)


async def start_talk(vm: VirtualMachine) -> None:
    """Have guest and host talk for a while."""
    await vm.control("probe.ready")
    await vm.control("probe.run")
    await vm.control("probe.wait", **BEFORE)


async def end_talk(vm: VirtualMachine) -> dict[str, Any]:
    """Have the conversation go on and end; raises Mismatch unless the ledgers agree."""
    await vm.control("probe.wait", **AFTER)
    end: dict[str, Any] = await vm.control("probe.finish")
    same(end["problems"], [], "differences of the ledgers")
    errors = (await vm.control("status"))["guest_errors"]
    # Linux lets go of its channels after it has unloaded the bus: harmless, and noted by the host.
    same([e for e in errors if e != _RELEASED_LATE], [], "errors of the guest")
    return end


async def goes_on(vm: VirtualMachine) -> dict[str, Any]:
    """Have a guest that is at rest, or new, hold a whole conversation."""
    await start_talk(vm)
    return await end_talk(vm)


async def thawed(vm: VirtualMachine) -> dict[str, Any]:
    """Let go of a frozen conversation, and have it go on and end."""
    await vm.control("probe.thaw")
    return await end_talk(vm)


async def messages(vm: VirtualMachine) -> dict[str, int]:
    """Count the messages that the host has sent to the guest in this process, by type."""
    sent: dict[str, int] = (await vm.control("inspect"))["messages_out"]
    return sent


async def rings(vm: VirtualMachine) -> dict[str, Any]:
    """Return what is known of the data channel."""
    channels = (await vm.control("inspect"))["channels"]
    found: dict[str, Any] = next(channel for channel in channels if channel["role"] == "data")
    return found


async def until_heard(vm: VirtualMachine, name: str, count: int) -> None:
    """Wait until the guest has sent so many messages of a type in this process."""
    while (await vm.control("inspect"))["messages_in"].get(name, 0) < count:
        pass


# What several scenarios use.


async def rest(bench: Bench) -> Saved:
    """A guest that has booted, talked, and come to rest: nothing is in flight."""
    folder = bench.snapshot_folder()
    async with bench.machine() as vm:
        await vm.boot()
        guest = (await vm.control("probe.ready"))["guest"]
        sent = await messages(vm)
        await goes_on(vm)
        await vm.save(folder)
        return Saved(folder, {"guest": guest, "sent": sent})


async def frozen(bench: Bench) -> Saved:
    """Packets of every kind are in flight. The machine that was saved goes on and ends well."""
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await start_talk(vm)
        await vm.control("probe.freeze")
        before = await vm.control("probe.counts")
        facts = {
            "before": before,
            "guest": await vm.control("probe.ledger"),
            "channel": await rings(vm),
        }
        await vm.save(folder)
        facts["at_save"] = (await vm.control("probe.counts"))["in_flight"]
        await vm.qmp("cont")
        facts["checkpoint"] = await thawed(vm)
        return Saved(folder, facts)


async def replayed(bench: Bench) -> dict[str, Any]:
    """Restore :func:`frozen` in new processes; have it go on and end; tell what was seen."""
    saved = await bench.once(frozen)
    async with bench.restored(saved) as vm:
        first = await vm.control("probe.counts")
        more = await vm.control("probe.more", packets=12)
        end = await thawed(vm)
        status = await vm.control("inspect")
        return {
            "first": first,
            "more": more,
            "end": end,
            "sent": status["messages_out"],
            "heard": status["messages_in"],
        }
