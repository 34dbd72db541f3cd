# SPDX-License-Identifier: MIT
"""A backend that stalls, floods or does not stop: bounded, reported, and the guest runs on.

The guest is tests/guest/storm.c: three processors post and signal without a pause, one ticks. Each
test ends with a good conversation, in which everything has to work again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.guest_program import build
from tests.fuzz import actions as a
from tests.fuzz import protocol as p
from tests.fuzz.backend import Memory
from tests.fuzz.bare import storm
from tests.fuzz.player import UNUSED_ID, Player
from tests.fuzz.target import Target

pytestmark = [pytest.mark.asyncio, pytest.mark.e2e]

PATIENCE = 120

REGISTER = (
    a.Ask(p.ADD_INTERRUPT, p.words(1, 1, 2, 1).hex(), ("eventfd",)),
    a.Ask(p.ADD_DOORBELL, p.words(0x2001).hex(), ("eventfd",)),
)


@pytest_asyncio.fixture
async def player(qemu: Path, tmp_path: Path) -> AsyncIterator[Player]:
    target = Target(qemu, storm(build(tmp_path)), tmp_path, PATIENCE)
    player = Player(target, Memory())
    try:
        await target.start()
        await player.begin()
        yield player
    finally:
        await player.end()
        await target.kill()


async def _play(player: Player, *actions: a.Action) -> None:
    await player.play(a.Episode(0, "test", actions))


async def test_a_backend_that_reads_nothing(player: Player) -> None:
    flood = p.frame(p.DEL_INTERRUPT, p.words(UNUSED_ID))
    await _play(
        player,
        a.Connect(),
        *REGISTER,
        a.Read(False),
        a.Flood(flood.hex(), 60_000),
        a.Fire(0, 64),
        a.Tick(),
        # Bounded by stop-timeout-ms, and told; the guest does not notice.
        a.Order("stop"),
        a.Reported("stop timeout"),
        a.Order("migrate", failure="save: not stopped"),
        a.Order("cont"),
        a.Tick(),
        a.Order("system_reset"),
        a.Tick(),
        # It may come to its senses.
        a.Read(True),
        a.Served(),
        a.Order("stop"),
        a.Order("migrate"),
    )
    assert player.memory.seen["flood stopped by QEMU"] == 1


async def test_a_backend_that_never_answers_a_stop(player: Player) -> None:
    migrations = player.memory.seen["QMP: migrate"]
    await _play(
        player,
        a.Connect(),
        *REGISTER,
        a.Answer(stop="never"),
        a.Order("stop"),
        a.Reported("stop timeout"),
        a.Order("migrate", failure="save: not stopped"),
        a.Order("savevm", failure="save: not stopped"),
        a.Order("cont"),
        a.Tick(),
        a.Answer(),
        a.Order("stop"),
        a.Order("migrate"),
    )
    assert player.memory.seen["QMP: migrate"] == migrations + 1


async def test_a_backend_that_gives_no_credit_and_takes_no_reset(player: Player) -> None:
    await _play(
        player,
        a.Connect(),
        a.Answer(reset=False, credit=False),
        a.Tick(),
        a.Order("system_reset"),
        a.Tick(),
        a.Order("stop"),
        a.Order("migrate", failure="save: no backend"),
        a.Order("cont"),
        a.Tick(),
    )


async def test_a_hundred_reconnects(player: Player) -> None:
    handshake = p.hello_reply() + p.frame(p.MEM_TABLE_DONE, p.words(0))
    for data in (b"", handshake[:7], handshake, b"\xff" * 40):
        await _play(player, a.Connect(), *REGISTER, a.Storm(25, data.hex()), a.Tick())


@pytest.mark.parametrize("command", ["stop", "DEL_INTERRUPT", "ADD_INTERRUPT"])
async def test_a_backend_that_makes_an_eventfd_blocking_cannot_hang_qemu(
    player: Player, command: str
) -> None:
    # docs/vmbus-user.md forbids it; O_NONBLOCK belongs to the open file, which both sides share.
    player.target.patience = 20
    await player.connect(a.Connect())
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    body = p.words(1, 1, 2, 1)
    try:
        await player.register(body, eventfd)
        fcntl.fcntl(eventfd, fcntl.F_SETFL, fcntl.fcntl(eventfd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    finally:
        os.close(eventfd)
    match command:
        case "stop":
            await player.order(a.Order("stop"))
        case "DEL_INTERRUPT":
            await _play(player, a.Ask(p.DEL_INTERRUPT, p.words(1).hex()))
        case "ADD_INTERRUPT":
            await _play(player, a.Ask(p.ADD_INTERRUPT, body.hex(), ("eventfd",)))
    await _play(player)
