# SPDX-License-Identifier: MIT
"""Scenarios of the control plane: offers, rescinds, and what a guest makes of them."""

from __future__ import annotations

import msgspec

from emulator.conformance.suite import expect, same
from emulator.lab.conformance.bench import (
    Bench,
    Saved,
    frozen,
    goes_on,
    messages,
    probe,
    rest,
    start_talk,
    thawed,
    until_heard,
)
from emulator.lab.conformance.cases import case
from emulator.lab.conformance.rewriting import rewritten
from emulator.lab.demo import PROBE
from emulator.machine.hoststate import HostState
from emulator.machine.snapshot import STATE
from emulator.machine.vm import VirtualMachine

_TALK = "RUN STALL RESUME FINISH"
_SECOND = msgspec.structs.replace(PROBE, name="second", options={"pair": 2})
_ANEW = {"RESCIND_CHANNEL_OFFER": 2, "OFFER_CHANNEL": 2}


def _offers(sent: dict[str, int]) -> dict[str, int]:
    """Return how many offers and rescinds were sent."""
    return {name: sent[name] for name in _ANEW if name in sent}


async def _new_conversation(vm: VirtualMachine) -> None:
    """Wait until the guest has let go of both channels once, and have it talk on the new ones."""
    await until_heard(vm, "REL_ID_RELEASED", 2)
    await goes_on(vm)
    heard = (await vm.control("inspect"))["messages_in"]
    same(heard["REL_ID_RELEASED"], 2, "channels that the guest has let go of")


@case("60", uses=_TALK)
async def _force_new(bench: Bench) -> str:
    saved = await bench.once(frozen)
    async with bench.restored(saved, devices=probe(force_new=True)) as vm:
        await _new_conversation(vm)
        same(_offers(await messages(vm)), _ANEW, "offers and rescinds")
    return "Rescind, Offer, for both channels; the guest opens the new ones; a whole conversation"


async def added(bench: Bench) -> Saved:
    """A machine with a second probe that the snapshot did not have."""
    folder = bench.snapshot_folder()
    changes = {"devices": (PROBE, _SECOND), "devices_may_differ": True}
    async with bench.restored(await bench.once(frozen), **changes) as vm:
        sent = _offers(await messages(vm))
        await thawed(vm)
        # At rest, so that the next restore has only the second probe to take back.
        await vm.save(folder)
    return Saved(folder, {"sent": sent})


@case("62", uses=_TALK)
async def _added(bench: Bench) -> str:
    saved = await bench.once(added)
    same(saved.facts["sent"], {"OFFER_CHANNEL": 2}, "offers and rescinds")
    return "a second probe is offered at once; the conversation of the first goes on"


@case("61", uses=_TALK)
async def _absent(bench: Bench) -> str:
    saved = await bench.once(added)
    async with bench.restored(saved, devices_may_differ=True) as vm:
        await until_heard(vm, "REL_ID_RELEASED", 2)
        same(_offers(await messages(vm)), {"RESCIND_CHANNEL_OFFER": 2}, "offers and rescinds")
        await goes_on(vm)
    return "Rescind of both its channels; the guest releases both relids; the other probe works"


async def retaken(bench: Bench) -> dict[str, int]:
    """Take the channels from a frozen conversation, live, and offer them again."""
    async with bench.restored(await bench.once(frozen)) as vm:
        before = await vm.control("probe.counts")
        after = await vm.control("probe.rescind")
        await until_heard(vm, "REL_ID_RELEASED", 2)
        await vm.control("probe.reoffer")
        await _new_conversation(vm)
        return {
            "outstanding": len(before["transactions"]) + before["stats"]["queued_wait"],
            "removed": after["removed"],
            **_offers(await messages(vm)),
        }


@case("63", uses=_TALK)
async def _outstanding(bench: Bench) -> str:
    seen = await bench.once(retaken)
    expect(seen["outstanding"] > 0, "nothing was outstanding")
    expect(
        seen["removed"] >= seen["outstanding"],
        f"{seen['removed']} of {seen['outstanding']} packets ended with DEVICE_REMOVED",
    )
    return f"{seen['removed']} packets end with DEVICE_REMOVED, and the guest's device goes"


@case("R3", uses=_TALK)
async def _retaken(bench: Bench) -> str:
    seen = await bench.once(retaken)
    same(_offers(seen), _ANEW, "offers and rescinds")
    return "Rescind, Offer, for both channels; the guest opens the new ones; a whole conversation"


@case("65", uses="RUN FINISH")
async def _pending(bench: Bench) -> str:
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await vm.qmp("stop")
        # The virtual CPUs stand: the guest cannot have it before the save.
        await vm.control("probe.rescind")
        await vm.control("probe.reoffer")
        await vm.save(folder)
    async with bench.restored(Saved(folder, {})) as vm:
        await _new_conversation(vm)
    return "Rescind sent to a guest that stood, then saved: heard once after the restore"


@case("66", uses="RUN FINISH", quick=True)
async def _boot(bench: Bench) -> str:
    sent = (await bench.once(rest)).facts["sent"]
    same(_offers(sent), {"OFFER_CHANNEL": 2}, "offers and rescinds of a boot")
    return "two offers, and nothing taken back"


@case("67", uses=_TALK)
async def _twice(bench: Bench) -> str:
    first = await bench.once(frozen)
    second = bench.snapshot_folder()
    async with bench.machine(devices=probe(force_new=True)) as vm:
        same(await vm.load_state(first.folder / STATE), "", "why the load failed")
        await vm.save(second)
    async with bench.restored(Saved(second, {})) as vm:
        await _new_conversation(vm)
    return "restored with FORCE_NEW_CHANNEL and saved before the guest ran: one Rescind, one Offer"


@case("69", uses=_TALK)
async def _crashed(bench: Bench) -> str:
    async with bench.restored(await bench.once(frozen)) as vm:
        before = await vm.control("probe.counts")
        outstanding = len(before["transactions"]) + before["stats"]["queued_wait"]
        expect(outstanding > 0, "nothing was outstanding")
        with vm.events("GUEST_PANICKED") as events:
            await vm.qmp("inject-nmi")
            await vm.watch(events.get())
        after = await vm.control("probe.rescind")
        expect(
            after["removed"] >= outstanding,
            f"{after['removed']} of {outstanding} packets ended with DEVICE_REMOVED",
        )
    return f"{after['removed']} packets end with DEVICE_REMOVED; Disable does not wait"


@case("R2", uses=_TALK)
async def _no_state(bench: Bench) -> str:
    saved = await bench.once(frozen)

    def forget(state: HostState) -> None:
        state.devices.clear()

    folder = rewritten(saved.folder, bench.snapshot_folder(), forget)
    async with bench.restored(Saved(folder, {}), devices_may_differ=True) as vm:
        await _new_conversation(vm)
        same(_offers(await messages(vm)), _ANEW, "offers and rescinds")
    return "Rescind, Offer, for both channels; the guest opens the new ones; a whole conversation"


@case("R0", uses="RUN FINISH", quick=True)
async def _paused(bench: Bench) -> str:
    async with bench.restored(await bench.once(rest)) as vm:
        await start_talk(vm)
        for _ in range(3):
            await vm.qmp("stop")
            await vm.qmp("cont")
            await vm.control("probe.wait", requests=10, completions=5)
        end = await vm.control("probe.finish")
        same(end["problems"], [], "differences of the ledgers")
        same(await messages(vm), {}, "messages to the guest")
    return "three times in a conversation: no message, nothing lost, nothing twice"
