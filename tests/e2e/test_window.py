# SPDX-License-Identifier: MIT
"""Back-pressure of the device, both ways, with several virtual processors at once.

The guest is tests/guest/window.c: each processor posts numbered messages, each again until it is
taken, and takes numbered messages of the host.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.guest_program import build
from tests.fuzz.actions import Answer, Connect, Order
from tests.fuzz.backend import Memory
from tests.fuzz.bare import bare
from tests.fuzz.player import Player
from tests.fuzz.protocol import POST_WINDOW
from tests.fuzz.target import Target

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120
SINT = 2

Starter = Callable[[str, int], Awaitable[Player]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("guest"))


@pytest_asyncio.fixture
async def start(qemu: Path, program: Path, tmp_path: Path) -> AsyncIterator[Starter]:
    """Start a guest that is let go when the backend is ready."""
    async with AsyncExitStack() as stack:

        async def starter(words: str, smp: int) -> Player:
            guest = bare(program, f"run=window {words}", smp=smp, tick="window", paused=True)
            target = Target(qemu, guest, tmp_path, PATIENCE)
            player = Player(target, Memory())
            stack.push_async_callback(target.kill)
            stack.push_async_callback(player.end)
            await target.start()
            await player.connect(Connect())
            return player

        yield starter


async def _tallies(player: Player, smp: int) -> list[dict[str, int]]:
    """Return what each processor counted, when all have come to their end."""
    console = player.target.console
    found: list[dict[str, int]] = []
    async with player.target.deadline("the end of the guest's program"):
        for vp_index in range(smp):
            match = await console.wait_for(rf"window vp={vp_index} posted=.*")
            found.append({name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", match[0])})
    assert player.connection.fault is None
    return found


@pytest.mark.parametrize("smp", [1, 4])
async def test_a_guest_that_posts_faster_than_the_backend_takes_loses_nothing(
    start: Starter, smp: int
) -> None:
    count = 400
    player = await start(f"post={count}", smp)
    connection, target = player.connection, player.target
    connection.answer = Answer(credit=False)
    taken: list[list[int]] = [[] for _ in range(smp)]
    news = asyncio.Event()

    def message(vp_index: int, payload: bytes) -> None:
        says, number = struct.unpack("<II", payload)
        assert says == vp_index
        taken[vp_index].append(number)
        news.set()

    connection.on_message = message
    await player.order(Order("cont"))
    async with target.deadline("a full window"):
        # The guest fills the window, and is told; Connection refuses a message beyond it.
        await target.console.wait_for("window full")
        rng = random.Random(2026)
        credited = 0
        while credited < count * smp:
            while (waiting := sum(map(len, taken)) - credited) == 0:
                news.clear()
                await news.wait()
            some = rng.randint(1, waiting)
            credited += some
            await connection.credit(some)
            assert connection.fault is None
    tallies = await _tallies(player, smp)
    assert [tally["posted"] for tally in tallies] == [count] * smp
    assert sum(tally["refused"] for tally in tallies) > 0
    assert sum(tally["other"] for tally in tallies) == 0
    # Each once, none lost, and each processor's in its order.
    assert taken == [list(range(1, count + 1))] * smp


@pytest.mark.parametrize("pauses", [0, 3])
async def test_a_backend_that_posts_faster_than_the_guest_takes_loses_nothing(
    start: Starter, pauses: int
) -> None:
    count, smp = 150, 4
    player = await start(f"take={count} slow=50", smp)
    connection = player.connection
    await player.order(Order("cont"))
    async with player.target.deadline("the guest to be ready"):
        await player.target.console.wait_for("window ready")
    rng = random.Random(2026)
    left = [vp_index for vp_index in range(smp) for _ in range(count)]
    rng.shuffle(left)
    sent = [0] * smp
    done: list[list[int]] = [[] for _ in range(smp)]
    statuses: set[int | None] = set()
    outstanding: set[asyncio.Future[int | None]] = set()

    async def post(vp_index: int) -> None:
        sent[vp_index] += 1
        number = sent[vp_index]
        status = await connection.post(vp_index, SINT, struct.pack("<II", vp_index, number))
        outstanding.add(status)

        def settled(future: asyncio.Future[int | None]) -> None:
            outstanding.discard(future)
            statuses.add(future.result())
            done[vp_index].append(number)

        status.add_done_callback(settled)

    pause_at = {len(left) * (index + 1) // (pauses + 1) for index in range(pauses)}
    for index, vp_index in enumerate(left):
        async with player.target.deadline("room for a post"):
            while len(outstanding) == POST_WINDOW:
                await asyncio.wait(outstanding, return_when=asyncio.FIRST_COMPLETED)
        await post(vp_index)
        if index in pause_at:
            # With a full window of posts on their way.
            await player.order(Order("stop"))
            await player.order(Order("cont"))
    async with player.target.deadline("the statuses of all posts"):
        while outstanding:
            await asyncio.wait(outstanding)
    assert statuses == {0}
    assert done == [list(range(1, count + 1))] * smp
    tallies = await _tallies(player, smp)
    assert [tally["taken"] for tally in tallies] == [count] * smp
    assert sum(tally["disorder"] for tally in tallies) == 0
    assert not connection.closed.is_set()


async def test_both_ways_at_once(start: Starter) -> None:
    count, smp = 150, 4
    player = await start(f"post={count} take={count}", smp)
    connection = player.connection
    taken: list[list[int]] = [[] for _ in range(smp)]
    connection.on_message = lambda vp_index, payload: taken[vp_index].append(
        struct.unpack("<II", payload)[1]
    )
    await player.order(Order("cont"))
    async with player.target.deadline("the guest to be ready"):
        await player.target.console.wait_for("window ready")
    for number in range(1, count + 1):
        posts = [
            await connection.post(vp_index, SINT, struct.pack("<II", vp_index, number))
            for vp_index in range(smp)
        ]
        async with player.target.deadline("statuses"):
            assert [await post for post in posts] == [0] * smp
    tallies = await _tallies(player, smp)
    assert [(tally["posted"], tally["taken"]) for tally in tallies] == [(count, count)] * smp
    assert sum(tally["disorder"] + tally["other"] for tally in tallies) == 0
    # The answer to a request comes after what the guest has posted before it.
    await player.barrier()
    assert taken == [list(range(1, count + 1))] * smp
