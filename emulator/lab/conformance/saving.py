# SPDX-License-Identifier: MIT
"""Scenarios that are about the save: its buffers, its failures, what it finds outstanding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from emulator.conformance.suite import Mismatch, expect, same
from emulator.kmcl import DecodedStream
from emulator.lab.conformance.bench import (
    Bench,
    Saved,
    frozen,
    goes_on,
    probe,
    rest,
    rings,
    start_talk,
    thawed,
)
from emulator.lab.conformance.cases import case
from emulator.machine.savedstate import decode_channels, decode_state, read_state
from emulator.machine.snapshot import STATE, SnapshotError

_TALK = "RUN STALL RESUME FINISH"


@contextmanager
def refused(words: list[str], what: str) -> Iterator[None]:
    """Expect a SnapshotError, and add its text to ``words``."""
    try:
        yield
    except SnapshotError as error:
        words.append(str(error))
    else:
        raise Mismatch(f"{what} was not refused")


def data_stream(saved: Saved) -> DecodedStream:
    """Return what a snapshot has of the data channel."""
    stream = decode_channels(decode_state(read_state(saved.folder)))["probe"]["data"]
    if not isinstance(stream, DecodedStream):
        raise Mismatch(f"the stream of the data channel cannot be read: {stream}")
    return stream


def data_pieces(saved: Saved) -> list[bytes]:
    """Return what SaveContinue gave of the data channel, call by call."""
    (device,) = decode_state(read_state(saved.folder)).devices
    return device.channels["data"]


async def pieces(bench: Bench) -> dict[int, Saved]:
    """The snapshot with packets in flight, saved anew with several sizes of the buffer.

    Nothing has run meanwhile. The one by the number -1 was saved after half a save was given up.
    """
    source = await bench.once(frozen)
    made: dict[int, Saved] = {}
    for size in (0, 200, 65_536, -1):
        folder = bench.snapshot_folder()
        async with bench.machine() as vm:
            same(await vm.load_state(source.folder / STATE), "", "why the load failed")
            half = {}
            if size < 0:
                half = await vm.control("probe.half_save", size=300)
            else:
                await vm.control("probe.save_buffer", size=size)
            await vm.save(folder)
        made[size] = Saved(folder, half)
    return made


async def _ends_well(bench: Bench, saved: Saved) -> None:
    async with bench.restored(saved) as vm:
        await thawed(vm)


@case("4", uses=_TALK)
async def _no_callbacks(bench: Bench) -> str:
    words: list[str] = []
    saved = await bench.once(rest)
    async with bench.restored(saved, devices=probe(packet_callbacks=False)) as vm:
        await start_talk(vm)
        await vm.control("probe.freeze")
        with refused(words, "the save"):
            await vm.save(bench.snapshot_folder())
        await thawed(vm)
    expect("NOT_SUPPORTED" in words[0], words[0])
    return "the save is refused with NOT_SUPPORTED; the conversation goes on and ends well"


@case("5", uses="RUN FINISH", quick=True)
async def _at_rest(bench: Bench) -> str:
    saved = await bench.once(rest)
    stream = data_stream(saved)
    same((stream.in_ring, stream.queue), ((), ()), "packets in the stream")
    async with bench.restored(saved) as vm:
        await goes_on(vm)
    size = sum(map(len, data_pieces(saved)))
    return f"{size} bytes; a whole conversation after the restore"


@case("7", uses=_TALK)
async def _medium(bench: Bench) -> str:
    made = await bench.once(pieces)
    count = len(data_pieces(made[200]))
    expect(count > 1, "one call was enough")
    await _ends_well(bench, made[200])
    return f"{count} pieces of about 200 bytes; restored, nothing lost and nothing twice"


@case("8", uses=_TALK)
async def _sizes(bench: Bench) -> str:
    made = await bench.once(pieces)
    counts = {size: len(data_pieces(made[size])) for size in (0, 200, 65_536)}
    expect(len(set(counts.values())) == 3, f"pieces by size of the buffer: {counts}")
    streams = [msgspec.to_builtins(data_stream(made[size])) for size in counts]
    expect(streams[0] == streams[1] == streams[2], "the streams say different things")
    await _ends_well(bench, made[0])
    return (
        f"{', '.join(map(str, counts.values()))} pieces that say the same; restored from the most"
    )


@case("10", uses=_TALK)
async def _given_up(bench: Bench) -> str:
    saved = (await bench.once(pieces))[-1]
    same(saved.facts["statuses"], ["SUCCESS", "BUFFER_OVERFLOW"], "SaveBegin, SaveContinue")
    await _ends_well(bench, saved)
    return "SaveEnd after the first piece; the save after it is whole: nothing lost, nothing twice"


@case("23", uses=_TALK)
async def _one_buffer(bench: Bench) -> str:
    saved = (await bench.once(pieces))[65_536]
    same(len(data_pieces(saved)), 1, "pieces")
    await _ends_well(bench, saved)
    return "one piece; nothing lost and nothing twice"


@case("24", uses=_TALK)
async def _chunks(bench: Bench) -> str:
    saved = (await bench.once(pieces))[0]
    await _ends_well(bench, saved)
    return f"{len(data_pieces(saved))} calls; nothing lost and nothing twice"


async def trials(bench: Bench) -> dict[str, Any]:
    """A machine whose EvtSavePacket fails, then asks for ever more, then saves much."""
    words: list[str] = []
    facts: dict[str, Any] = {"words": words}
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await start_talk(vm)
        await vm.control("probe.freeze")
        for kind in ("fail", "grow"):
            await vm.control("probe.trial", kind=kind)
            with refused(words, f"the save ({kind})"):
                await vm.save(bench.snapshot_folder())
            facts[kind] = (await vm.control("probe.counts"))["save_calls"]
        await vm.control("probe.trial", kind="large")
        await vm.save(folder)
        facts["large"] = Saved(folder, {})
        await vm.qmp("cont")
        facts["end"] = await thawed(vm)
    return facts


@case("20", uses=_TALK)
async def _fails(bench: Bench) -> str:
    facts = await bench.once(trials)
    expect("UNSUCCESSFUL" in facts["words"][0], facts["words"][0])
    same(facts["end"]["problems"], [], "differences of the ledgers")
    return "the machine's save is refused with UNSUCCESSFUL; the conversation goes on and ends well"


@case("21", uses=_TALK)
async def _grows(bench: Bench) -> str:
    facts = await bench.once(trials)
    same(facts["end"]["problems"], [], "differences of the ledgers")
    expect("BUFFER_TOO_SMALL" in facts["words"][1], facts["words"][1])
    return (
        f"{facts['grow']} calls, then the save is refused with BUFFER_TOO_SMALL; "
        "the conversation goes on and ends well"
    )


@case("22", uses=_TALK)
async def _large(bench: Bench) -> str:
    saved: Saved = (await bench.once(trials))["large"]
    sizes = [len(piece) for piece in data_pieces(saved)]
    expect(max(sizes) > 100_000, f"the largest piece has {max(sizes)} bytes")
    await _ends_well(bench, saved)
    return f"{sum(sizes)} bytes in pieces of up to {max(sizes)}; nothing lost and nothing twice"


@case("43", uses="RUN FINISH")
async def _question(bench: Bench) -> str:
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await vm.control("probe.late")
        # An answer to this shows that the guest has the one before.
        await vm.control("probe.ping")
        await vm.save(folder)
    async with bench.restored(Saved(folder, {})) as vm:
        same((await vm.control("probe.counts"))["late"], [], "answers before there can be one")
        heard = await vm.control("probe.wait_late", send=True)
        same(heard["late"], ["SUCCESS"], "answers")
        await goes_on(vm)
    return "a question of the control channel is saved, restored, and answered once"


async def blocked(bench: Bench) -> Saved:
    """The guest's ring to the host is full, and the guest waits for room."""
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await start_talk(vm)
        await vm.control("probe.freeze", requests=4000, any=True)
        await vm.control("probe.resume_guest")
        while not (channel := await rings(vm))["guest_to_host"]["pending_send_size"]:
            pass
        await vm.save(folder)
    return Saved(folder, {"channel": channel})


@case("49", uses=_TALK)
async def _flags(bench: Bench) -> str:
    host = (await bench.once(frozen)).facts["channel"]["host_to_guest"]["pending_send_size"]
    expect(host > 0, "the host does not wait for room")
    saved = await bench.once(blocked)
    guest = saved.facts["channel"]["guest_to_host"]["pending_send_size"]
    await _ends_well(bench, saved)
    return (
        f"host blocked (PendingSendSize {host}) and guest blocked ({guest}): both go on, "
        "nothing lost and nothing twice"
    )


@case("52", uses="RUN MALFORM REOPEN FINISH")
async def _stopped(bench: Bench) -> str:
    folder = bench.snapshot_folder()
    async with bench.restored(await bench.once(rest)) as vm:
        await vm.control("probe.malform", kind=1)
        await vm.control("probe.wait_fault")
        await vm.save(folder)
    async with bench.restored(Saved(folder, {})) as vm:
        faults = (await vm.control("probe.counts"))["faults"]
        await vm.control("probe.reopen")
        await goes_on(vm)
    return f"{'stays stopped' if faults else 'runs'}; works when the guest opens it anew"
