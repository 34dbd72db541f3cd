# SPDX-License-Identifier: MIT
"""Many channels: how long offering and opening them takes, and what they cost when nothing happens.

The backend is a process (bench/backend.py): the VMBus host as it runs behind QEMU. The guest is the
model guest of the tests, in this process, on another CPU. It connects, asks for all offers, and
then opens the channels one after the other, each with a GPADL and rings of 4 KiB of data, as Linux
does: it waits for each answer. The backend registers a doorbell and an interrupt for each.

The model guest is Python too, so that about half of the time is its own; CPU time is that of the
backend alone. Linear is when a channel of many takes as long as a channel of few: the exponent is
that of time over channels between the smallest and the largest number. Run from the checkout:
``python -m bench.channels``; the exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Final

from bench.backend import started
from bench.modelguest import describe_machine, guest_cpu, host_cpu
from tests.model.machine import ModelMachine

COUNTS: Final = (250, 500, 1000, 2000)
GOAL_SECONDS: Final = 2.0
GOAL_EXPONENT: Final = 1.15
IDLE_SECONDS: Final = 5.0
RING_PAGES: Final = 2


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds to offer and to open, in all; CPU seconds of the backend; and what idling took."""

    offered: float
    opened: float
    cpu: float
    idle_cpu_ns: int = 0
    idle_wakeups: int = 0


async def _measure(count: int, idle: float) -> Result:
    with started(count, 0, host_cpu()) as backend:
        machine = ModelMachine(backend.sock.dup(), pages=2 * RING_PAGES * count + 16)
        cpu, start = backend.cpu_ns(), time.perf_counter()
        await machine.boot()
        offered = time.perf_counter()
        assert len(machine.guest.channels) == count
        # The list of free pages is cut at each GPADL, which would make the guest quadratic.
        pages = machine.guest.free_pages
        for number in range(count):
            at = number * 2 * RING_PAGES
            machine.guest.free_pages = pages[at : at + 2 * RING_PAGES]
            await machine.open(number + 1, pages=RING_PAGES)
        opened = time.perf_counter()
        used = backend.cpu_ns() - cpu
        idle_cpu = wakeups = 0
        if idle:
            await machine.until(lambda: len(machine.interrupts) == count)
            await asyncio.sleep(0.5)
            idle_cpu, wakeups = backend.cpu_ns(), backend.wakeups()
            await asyncio.sleep(idle)
            idle_cpu, wakeups = backend.cpu_ns() - idle_cpu, backend.wakeups() - wakeups
        machine.close()
    return Result(offered - start, opened - offered, used / 1e9, idle_cpu, wakeups)


def main() -> int:
    """Print one line for each number; the status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each number, taking turns")
    rounds = parser.parse_args().rounds
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(describe_machine())
    os.sched_setaffinity(0, {guest_cpu()})
    found: dict[int, list[Result]] = {count: [] for count in COUNTS}
    for number in range(rounds):
        for count in COUNTS:
            last = number == rounds - 1 and count == COUNTS[-1]
            found[count].append(asyncio.run(_measure(count, IDLE_SECONDS if last else 0)))
    return report(found)


def report(found: dict[int, list[Result]]) -> int:
    """Print medians; return 1 if a goal is missed."""
    print(
        f"{'channels':>8} {'offered s':>10} {'opened s':>10} {'together':>10} {'CPU us each':>12}"
    )
    cpu: dict[int, float] = {}
    together = 0.0
    for count, results in found.items():
        offered = statistics.median(result.offered for result in results)
        opened = statistics.median(result.opened for result in results)
        together = statistics.median(result.offered + result.opened for result in results)
        cpu[count] = statistics.median(result.cpu for result in results)
        print(
            f"{count:8} {offered:10.3f} {opened:10.3f} {together:10.3f} "
            f"{cpu[count] / count * 1e6:12.0f}"
        )
    few, many = min(found), max(found)
    exponent = math.log(cpu[many] / cpu[few]) / math.log(many / few)
    idle = found[many][-1]
    verdicts = {
        f"{many} channels in {together:.2f} s; goal {GOAL_SECONDS:.0f}": together < GOAL_SECONDS,
        f"CPU time grows with channels ** {exponent:.2f}; linear is at most {GOAL_EXPONENT}": (
            exponent <= GOAL_EXPONENT
        ),
        f"idle for {IDLE_SECONDS:.0f} s with {many} open: {idle.idle_cpu_ns} ns of CPU, "
        f"{idle.idle_wakeups} wake-ups; goal none": idle.idle_wakeups == 0,
    }
    for text, reached in verdicts.items():
        print(f"{text}: {'reached' if reached else 'MISSED'}")
    print(describe_machine())
    return int(not all(verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
