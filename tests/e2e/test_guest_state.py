# SPDX-License-Identifier: MIT
"""The Hyper-V state of a machine, saved and loaded at each point of ``tests/guest/saved.c``."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e.guest_program import Programs, Run, Setup
from tests.e2e.test_guest_checks import ALL_FLAGS, ICOUNT, PLAIN

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

SAVED = Setup("saved", flags=ALL_FLAGS, words=("checkpoints",))
CHECKPOINTS = 11
"""Fewest checkpoints of a run, so that none is missed without notice."""

MATRIX = {
    "1-mttcg": dataclasses.replace(SAVED, cpus=1),
    "4-mttcg-x2apic": dataclasses.replace(SAVED, cpus=4, x2apic=True),
    "8-mttcg-plain": dataclasses.replace(SAVED, cpus=8, flags=PLAIN),
    "2-single": dataclasses.replace(SAVED, accel="tcg,thread=single"),
    "2-icount": dataclasses.replace(SAVED, qemu_args=ICOUNT),
}


async def pass_time(checkpoint: str) -> None:
    """Let real time pass while the machine is stopped; the guest checks that it does not see it."""
    if checkpoint.endswith(" clock"):
        await asyncio.sleep(2.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
async def test_state_survives_in_a_new_process(
    programs: Programs, tmp_path: Path, name: str
) -> None:
    setup = MATRIX[name]
    lines: list[str] = []
    seen = []
    async with AsyncExitStack() as old:
        run = await old.enter_async_context(programs.start(setup))
        while (checkpoint := await run.stopped()) is not None:
            seen.append(checkpoint)
            path = tmp_path / "state"
            await run.save(path)
            await pass_time(checkpoint)
            lines += run.lines
            await old.aclose()
            run = await old.enter_async_context(programs.start(setup, incoming=True))
            await run.load(path)
            path.unlink()
            await run.resume()
        run.lines[:0] = lines
        await run.ended()
    assert len(seen) >= CHECKPOINTS, seen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-mttcg", "2-icount"])
async def test_state_survives_in_a_snapshot(programs: Programs, tmp_path: Path, name: str) -> None:
    """What is run after a snapshot is taken back by loading it, and is run again."""
    disk = tmp_path / "disk.qcow2"
    make = [
        str(programs.qemu.with_name("qemu-img")),
        "create",
        "-q",
        "-f",
        "qcow2",
        str(disk),
        "1G",
    ]
    await asyncio.to_thread(subprocess.check_call, make)
    node = f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk}"
    more = ICOUNT if name == "2-icount" else ()
    setup = dataclasses.replace(SAVED, qemu_args=("-blockdev", node, *more))
    seen = []
    async with programs.start(setup) as run:
        checkpoint = await run.stopped()
        while checkpoint is not None:
            seen.append(checkpoint)
            await snapshot(run, "snapshot-save", checkpoint)
            await pass_time(checkpoint)
            mark = len(run.lines)
            await run.resume()
            if checkpoint.startswith(f"{CHECKPOINTS} "):
                break  # the rest is short, and QEMU ends with it
            following = await run.stopped()
            assert following is not None
            if run.failed:
                raise run.failure("before the snapshot was loaded")
            await snapshot(run, "snapshot-load", checkpoint)
            del run.lines[mark:]
            await run.resume()
            checkpoint = await run.stopped()
        while checkpoint is not None and (checkpoint := await run.stopped()) is not None:
            await run.resume()
        await run.ended()
    assert len(seen) >= CHECKPOINTS, seen


async def snapshot(run: Run, command: str, checkpoint: str) -> None:
    tag = "at-" + checkpoint.split()[0]
    await run.job(command, tag=tag, vmstate="disk", devices=["disk"])
