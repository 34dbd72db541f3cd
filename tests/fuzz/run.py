# SPDX-License-Identifier: MIT
"""A fuzz run of the vmbus-user device: seconds, a seed, a record that replays, a summary.

``scripts/fuzz --help`` tells how it is run by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from emulator.lab.images import ImageError
from emulator.machine.qemu import QemuError, find_qemu
from tests.e2e.guest_program import build
from tests.fuzz.actions import Episode, read_episodes, write_episode
from tests.fuzz.backend import Memory
from tests.fuzz.bare import storm
from tests.fuzz.generate import CARDS, episodes
from tests.fuzz.player import Player
from tests.fuzz.protocol import GOALS
from tests.fuzz.target import Failure, Guest, Target, linux

PATIENCE: Final = 60.0
"""Seconds that anything may take, on a machine that does other things, before it counts as hung."""


class Found(Exception):
    """The run has found something; the text tells what, and how to see it again."""


async def fuzz(
    chosen: Iterable[Episode],
    *,
    qemu: Path,
    guest: Guest,
    folder: Path,
    seconds: float | None,
    say: Callable[[str], None],
    least: int = CARDS,
    patience: float = PATIENCE,
) -> Memory:
    """Play episodes for ``seconds``, and ``least`` of them, or all; returns what was seen.

    Raises :class:`Found`. ``folder`` gets QEMU's log, the guest's console and the record.
    """
    record = folder / "record.jsonl"
    record.unlink(missing_ok=True)
    target = Target(qemu, guest, folder, patience)
    memory = Memory()
    player = Player(target, memory)
    count = 0
    episode: Episode | None = None
    try:
        await target.start()
        await player.begin()
        end = None if seconds is None else time.monotonic() + seconds
        for episode in chosen:
            # A slow machine gets the time it takes to see everything once.
            if end is not None and time.monotonic() > end and count >= least:
                break
            write_episode(record, episode)
            await player.play(episode)
            count += 1
            memory.seen[f"episode: {episode.name}"] += 1
    except Failure as failure:
        where = (
            "at the start" if episode is None else f"in episode {episode.number}, {episode.name}"
        )
        raise Found(
            f"{failure}\n{where}, after {count} good ones\n"
            f"to see it again: scripts/fuzz --replay {record}\n"
            f"QEMU's last words, of {target.child.log if target.child else 'none'}:\n"
            f"{target.child.last_words(12) if target.child else ''}"
        ) from failure
    finally:
        await player.end()
        await target.kill()
    say(f"{count} episodes, {sum(memory.seen.values())} things seen")
    return memory


def missing(memory: Memory) -> list[str]:
    """Return what a run of two minutes has to have seen, and has not."""
    return sorted(goal for goal in GOALS if not memory.seen[goal])


def new_seed() -> int:
    """Return a seed that is short enough to be typed."""
    return int.from_bytes(os.urandom(4))


def main() -> int:
    """Run by hand: see ``--help``."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the vmbus-user device.")
    parser.add_argument("--seconds", type=float, default=120, help="how long (default: 120)")
    parser.add_argument("--seed", type=int, help="what to begin with (default: random)")
    parser.add_argument("--replay", type=Path, metavar="RECORD", help="play the record of a run")
    parser.add_argument("--last", type=int, metavar="N", help="of it, the last N episodes only")
    parser.add_argument("--only", metavar="NAME", help="only episodes whose name has this in it")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where logs and record go")
    parser.add_argument("--linux", action="store_true", help="with the Linux guest, not storm.c")
    parser.add_argument("--patience", type=float, default=PATIENCE, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        qemu = find_qemu()
        guest = linux() if options.linux else storm(build(folder))
        chosen: Iterable[Episode]
        if options.replay:
            chosen = read_episodes(options.replay)[-options.last if options.last else 0 :]
            seconds = None
        else:
            seed = new_seed() if options.seed is None else options.seed
            print(f"seed {seed}; {options.seconds:g} s; logs and record in {folder}", flush=True)
            chosen, seconds = episodes(seed, guest.smp), options.seconds
        if options.only:
            chosen = (episode for episode in chosen if options.only in episode.name)
        memory = asyncio.run(
            fuzz(
                chosen,
                qemu=qemu,
                guest=guest,
                folder=folder,
                seconds=seconds,
                say=print,
                least=0 if options.only else CARDS,
                patience=options.patience,
            )
        )
    except (Found, QemuError, ImageError, OSError, ValueError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for what, times in sorted(memory.seen.items()):
        print(f"{times:8} {what}")
    if seconds is not None and not options.only and (never := missing(memory)):
        print("never seen: " + "; ".join(never))
    return 0


if __name__ == "__main__":
    sys.exit(main())
