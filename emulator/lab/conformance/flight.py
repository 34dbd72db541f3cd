# SPDX-License-Identifier: MIT
"""Scenarios that look at one snapshot with packets of every kind in flight, and at its replay."""

from __future__ import annotations

from typing import Any

from emulator.conformance.suite import expect, same
from emulator.lab.conformance.bench import Bench, frozen, goes_on, replayed, until_heard
from emulator.lab.conformance.cases import case

_TALK = "RUN STALL RESUME FINISH LEDGER"

UNREAD = "guest request, unread in ring"
HELD = "guest request, held by device"
QUEUED = "host request, queued"
QUEUED_NOTIFY = "host notify, queued"
IN_RING = "host request, unanswered"
COMPLETION = "guest completion, unread in ring"


async def _once(bench: Bench, *kinds: str) -> str:
    """Check that each packet of these kinds had its end once; returns how many there were."""
    seen = await bench.once(replayed)
    rows: dict[str, dict[str, Any]] = {row["kind"]: row for row in seen["end"]["rows"]}
    parts = []
    for kind in kinds:
        row = rows[kind]
        expect(row["at_save"] > 0, f"no {kind} was in flight")
        same(
            (row["once"], row["lost"], row["duplicated"], row["disorder"]),
            (row["at_save"], 0, 0, 0),
            f"{kind}: once, lost, twice, out of order",
        )
        parts.append(f"{row['at_save']} x {kind}")
    return "; ".join(parts) + "; each once and in order"


@case("1", uses=_TALK, quick=True)
async def _callbacks(bench: Bench) -> str:
    saved, seen = await bench.once(frozen), await bench.once(replayed)
    same(seen["first"]["in_flight"], saved.facts["at_save"], "found again after the restore")
    return f"{sum(saved.facts['at_save'].values())} packets in flight, all found again"


@case("12", uses=_TALK, quick=True)
async def _checkpoint(bench: Bench) -> str:
    end = (await bench.once(frozen)).facts["checkpoint"]
    same(end["problems"], [], "differences of the ledgers")
    return "the machine that was saved goes on: nothing lost, nothing twice"


@case("13", uses=_TALK)
async def _state(bench: Bench) -> str:
    seen = await bench.once(replayed)
    same(seen["end"]["host"]["bad_completions"], 0, "answers that do not fit the packet's state")
    return await _once(bench, IN_RING, COMPLETION) + "; answered as the saved state says"


@case("15", uses=_TALK)
async def _notify_in_ring(bench: Bench) -> str:
    saved, seen = await bench.once(frozen), await bench.once(replayed)
    before, guest = saved.facts["before"], saved.facts["guest"]
    queued = before["stats"]["queued_no_wait"]
    in_ring = before["host"]["sent_notifies"] - queued - guest["host_notifies"]
    expect(in_ring > 0, "no packet without completion was in the ring")
    end = seen["end"]
    same((end["guest"]["lost"], end["guest"]["twice"]), (0, 0), "packets lost, twice")
    return f"{in_ring} in the ring, not asked about; the guest reads each once"


@case("16", uses=_TALK)
async def _notify_queued(bench: Bench) -> str:
    return await _once(bench, QUEUED_NOTIFY)


@case("17", uses=_TALK, quick=True)
async def _in_ring(bench: Bench) -> str:
    return await _once(bench, IN_RING)


@case("19", uses=_TALK)
async def _all(bench: Bench) -> str:
    return await _once(bench, QUEUED, QUEUED_NOTIFY, IN_RING)


@case("28", uses=_TALK)
async def _restored(bench: Bench) -> str:
    seen = await bench.once(replayed)
    same(seen["end"]["host"]["completions_unknown"], 0, "completions nobody waits for")
    return await _once(bench, QUEUED, IN_RING, COMPLETION)


@case("35", uses=_TALK)
async def _held(bench: Bench) -> str:
    return await _once(bench, HELD) + ": completed by the pause, read after the restore"


@case("40", uses=_TALK)
async def _opened(bench: Bench) -> str:
    saved, seen = await bench.once(frozen), await bench.once(replayed)
    before, after = saved.facts["before"]["host"], seen["first"]["host"]
    anew = after["last_seq"] < before["last_seq"]
    expect(not anew or after["last_seq"] == 0, f"a ledger that is neither: {after}")
    return "it runs: the ledger begins anew" if anew else "it does not run: the ledger goes on"


@case("44", uses=_TALK, quick=True)
async def _unread(bench: Bench) -> str:
    return await _once(bench, UNREAD)


@case("45", uses=_TALK, quick=True)
async def _queued(bench: Bench) -> str:
    seen = await bench.once(replayed)
    same(seen["end"]["guest"]["twice"], 0, "packets below the expected sequence number")
    return await _once(bench, QUEUED, QUEUED_NOTIFY)


@case("46", uses=_TALK)
async def _completions(bench: Bench) -> str:
    return await _once(bench, COMPLETION, IN_RING)


@case("47", uses=_TALK, quick=True)
async def _race(bench: Bench) -> str:
    return await _once(bench, COMPLETION)


@case("48", uses=_TALK)
async def _ids(bench: Bench) -> str:
    seen = await bench.once(replayed)
    restored = seen["first"]["transactions"]
    expect(bool(restored), "no transaction was outstanding after the restore")
    same(len(set(restored)), len(restored), "different transaction ids of what was restored")
    grown = seen["more"]["host"]["last_seq"] - seen["first"]["host"]["last_seq"]
    expect(grown >= 12, f"{grown} packets were sent with the saved ones outstanding")
    same(seen["end"]["host"]["bad_completions"], 0, "answers that belong to another packet")
    return f"{len(restored)} outstanding, {grown} more sent: each answer is that of its packet"


@case("50", uses=_TALK)
async def _wrapped(bench: Bench) -> str:
    ring = (await bench.once(frozen)).facts["channel"]["host_to_guest"]
    expect(ring["in_offset"] < ring["out_offset"], f"the ring has not wrapped: {ring}")
    free = ring["size"] - ring["used"]
    await _once(bench, IN_RING, QUEUED)
    return (
        f"host to guest: {ring['out_offset']} over the end to {ring['in_offset']}, "
        f"{free} of {ring['size']} bytes free"
    )


@case("51", uses=_TALK)
async def _quota(bench: Bench) -> str:
    saved = await bench.once(frozen)
    channel = saved.facts["channel"]
    same(channel["hold"], "quota", "why nothing is read")
    held = channel["flight"]["held"]
    same(held, channel["transaction_quota"], "requests held")
    return f"quota {held}: " + await _once(bench, HELD, UNREAD)


@case("53", uses=_TALK)
async def _gpa_direct(bench: Bench) -> str:
    saved, seen = await bench.once(frozen), await bench.once(replayed)
    held = saved.facts["before"]["held_gpa_direct"]
    expect(held > 0, "no GPA-direct request was held")
    same(seen["end"]["guest"]["bad_external"], 0, "external buffers with wrong contents")
    return f"{held} held, completed by the pause; the guest's buffers are right"


@case("55", uses=_TALK)
async def _gpa_unread(bench: Bench) -> str:
    seen = await bench.once(replayed)
    rows = {row["kind"]: row["at_save"] for row in seen["end"]["rows"]}
    # RUN has each third request GPA-direct.
    expect(rows[UNREAD] >= 3, f"only {rows[UNREAD]} requests were unread: maybe none GPA-direct")
    same(seen["end"]["guest"]["bad_external"], 0, "external buffers with wrong contents")
    first, end = seen["first"]["host"], seen["end"]["host"]
    read = end["requests_gpa_direct"] - first["requests_gpa_direct"]
    expect(read > 0, "no GPA-direct request was read")
    return f"{rows[UNREAD]} requests unread, every third GPA-direct: read and written as it should"


@case("59", uses=_TALK, quick=True)
async def _plain(bench: Bench) -> str:
    seen = await bench.once(replayed)
    same(seen["sent"], {}, "messages to the guest")
    same(seen["heard"], {}, "messages of the guest")
    return "no message at all; the channel goes on"


@case("R1", uses=_TALK, quick=True)
async def _open(bench: Bench) -> str:
    seen = await bench.once(replayed)
    same(seen["end"]["problems"], [], "differences of the ledgers")
    same(seen["sent"], {}, "messages to the guest")
    rows = seen["end"]["rows"]
    return "each once: " + ", ".join(f"{row['at_save']} {row['kind']}" for row in rows)


@case("68", uses=_TALK + " EXIT")
async def _reset(bench: Bench) -> str:
    saved = await bench.once(frozen)
    async with bench.restored(saved) as vm:
        await vm.control("probe.exit", action=1)
        await until_heard(vm, "UNLOAD", 1)
        await goes_on(vm)
    async with bench.restored(saved) as vm:
        await vm.qmp("system_reset")
        await until_heard(vm, "INITIATE_CONTACT", 1)
        await goes_on(vm)
    return "unloaded, and reset, right after a restore: opened again, and a whole conversation"
