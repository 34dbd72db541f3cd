# SPDX-License-Identifier: MIT
"""Scenarios in which a restore is refused, before the guest runs; the snapshot is unharmed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from emulator.conformance.suite import expect
from emulator.lab.conformance.bench import Bench, Saved, frozen, goes_on, probe, replayed
from emulator.lab.conformance.cases import case
from emulator.lab.conformance.rewriting import rewritten
from emulator.lab.conformance.saving import data_pieces, pieces, refused
from emulator.machine.hoststate import HostState
from emulator.wire.version import Version

_TALK = "RUN STALL RESUME FINISH"


async def _refused(bench: Bench, saved: Saved, what: str, **changes: Any) -> str:
    """Restore what must be refused; returns the reason."""
    words: list[str] = []
    with refused(words, what):
        async with bench.restored(saved, **changes):
            pass
    return words[0]


def _words(reason: str, word: str) -> str:
    """Return the backend's part of what QEMU and the backend said."""
    part = next(part for part in reason.replace("\n", "; ").split("; ") if word in part)
    return part.rpartition("the backend refuses: ")[2]


async def _reason(bench: Bench, word: str, **changes: Any) -> str:
    """Have a restore refused, for a reason with ``word`` in it, that is good with no changes."""
    await bench.once(replayed)
    reason = await _refused(bench, await bench.once(frozen), "the restore", **changes)
    expect(word in reason, reason)
    return _words(reason, word)


async def _damaged(
    bench: Bench, saved: Saved, what: str, change: Callable[[list[bytes]], list[bytes]]
) -> str:
    def change_state(state: HostState) -> None:
        (device,) = state.devices
        device.channels["data"][:] = change(list(device.channels["data"]))

    folder = rewritten(saved.folder, bench.snapshot_folder(), change_state)
    try:
        reason = await _refused(bench, Saved(folder, {}), what)
    finally:
        shutil.rmtree(folder)
    expect("probe/data" in reason, f"{what}: {reason}")
    return reason


@case("25", uses=_TALK)
async def _cut(bench: Bench) -> str:
    await bench.once(replayed)
    saved = await bench.once(frozen)
    await _damaged(bench, saved, "a stream without its last byte", lambda p: [*p[:-1], p[-1][:-1]])
    await _damaged(bench, saved, "a stream of half a chunk", lambda p: [p[0][: len(p[0]) // 2]])
    return "refused before the guest runs; the whole stream is restored well"


@case("26", uses=_TALK)
async def _rearranged(bench: Bench) -> str:
    saved = (await bench.once(pieces))[0]
    expect(len(data_pieces(saved)) > 4, "too few pieces to rearrange")
    ways: dict[str, Callable[[list[bytes]], list[bytes]]] = {
        "reordered": lambda p: [p[0], p[2], p[1], *p[3:]],
        "doubled": lambda p: [*p[:2], p[1], *p[2:]],
        "missing": lambda p: [*p[:1], *p[2:]],
        "first missing": lambda p: p[1:],
        "garbage behind": lambda p: [*p[:-1], p[-1] + b"\xa5" * 24],
        "more behind the end": lambda p: [*p, p[-1]],
        "bad magic": lambda p: [bytes([p[0][0] ^ 0xFF]) + p[0][1:], *p[1:]],
        "a bit": lambda p: [*p[:-1], p[-1][:9] + bytes([p[-1][9] ^ 1]) + p[-1][10:]],
    }
    for what, change in ways.items():
        await _damaged(bench, saved, what, change)
    async with bench.restored(saved):
        pass
    return f"{', '.join(ways)}: refused before the guest runs; unharmed, the stream is restored"


@case("29", uses=_TALK)
async def _no_packet(bench: Bench) -> str:
    return await _reason(bench, "INSUFFICIENT_RESOURCES", devices=probe(restore_trial="allocate"))


@case("30", uses=_TALK)
async def _lib_buffer(bench: Bench) -> str:
    return await _reason(bench, "INVALID_PARAMETER", devices=probe(restore_trial="lib-buffer"))


@case("31", uses=_TALK)
async def _not_restored(bench: Bench) -> str:
    return await _reason(bench, "UNSUCCESSFUL", devices=probe(restore_trial="not-restored"))


@case("32", uses=_TALK)
async def _third(bench: Bench) -> str:
    return await _reason(bench, "UNSUCCESSFUL", devices=probe(restore_trial="third"))


@case("33", uses=_TALK)
async def _smaller(bench: Bench) -> str:
    size = await _reason(bench, "probe/data", devices=probe(maximum_packet_size=256))
    count = await _reason(bench, "probe/data", devices=probe(maximum_packet_count=5))
    return f"packet size 256: {size}; 5 packets: {count}"


@case("64", uses=_TALK, quick=True)
async def _version(bench: Bench) -> str:
    return await _reason(bench, "speaks VMBus", max_restored_version=Version.WIN10)


@case("R7", uses=_TALK)
async def _limit(bench: Bench) -> str:
    reason = await _reason(bench, "speaks VMBus", max_restored_version=Version.WIN10)
    async with bench.restored(await bench.once(frozen), max_version=Version.WIN10) as vm:
        await vm.control("probe.thaw")
        await vm.control("probe.wait", requests=20, completions=10)
    return f"{reason}; with the limit for new guests only, it goes on"


@case("71", uses=_TALK)
async def _cold_start(bench: Bench) -> str:
    saved = await bench.once(frozen)
    await _refused(bench, saved, "the restore", devices=probe(restore_trial="third"))
    async with bench.machine() as vm:
        await vm.boot()
        await goes_on(vm)
    return "booted after the failure: a whole conversation"
