# SPDX-License-Identifier: MIT
"""How long a request takes: model guest, eventfd, backend, eventfd, model guest.

The backend is a process (bench/backend.py): the VMBus host as it runs behind QEMU. The guest is
another, in C (bench/guest.c), on another CPU. It writes a request of 64 bytes to its ring, rings by
eventfd, and sleeps in poll(2) on the interrupt's eventfd until the completion is there.

The control, in the same run and by turns, is bare: two processes in C on the same two CPUs that
wake each other by two eventfds and do nothing else. It is what the operating system takes, which is
nearly all where waking a sleeping CPU is dear, as in a virtual machine.

polls   the backend looks for the next doorbell for up to 150 us before it sleeps, which it does by
        itself where there are more CPUs than virtual ones
sleeps  it does not

What counts is the median over the rounds, of each round's median, and of the ratio in a round. Run
from the checkout: ``python -m bench.roundtrip``; the exit status is 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack
from typing import Final

from bench.backend import BackendProcess, started
from bench.modelguest import PAGE, Guest, built, describe_machine, guest_cpu, host_cpu
from tests.model.machine import ModelMachine

GOAL: Final = 1.5
"""How much longer than the bare exchange it may take."""
RING_PAGES: Final = 5
POLL_US: Final = {"polls": 150, "sleeps": 0}


class Path:
    """An open channel through one backend, for the guest in C to use."""

    def __init__(self, machine: ModelMachine, channel_id: int, first_page: int) -> None:
        """Made by :func:`_open`."""
        self._machine = machine
        self._offset = first_page * PAGE
        self._doorbell = next(iter(machine.doorbells.values()))
        self._interrupt = machine.interrupts[channel_id]

    def times(self, guest: Guest, count: int) -> list[int]:
        """Return ``count`` round trips, in nanoseconds."""
        fds = (self._machine.guest.ram_fd, self._doorbell, self._interrupt)
        words = (fds[0], RING_PAGES, count, fds[1], fds[2], self._offset)
        return _numbers(guest, "roundtrip", *words, fds=fds)


def _numbers(guest: Guest, *words: str | int, fds: tuple[int, ...] = ()) -> list[int]:
    cpu = None if words[0] == "pingpong" else guest_cpu()
    process = guest.start(*words, fds=fds, cpu=cpu, output=True)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit("bench.roundtrip: the model guest ended with an error")
    return [int(line) for line in output.split()]


async def _open(backend: BackendProcess) -> Path:
    machine = ModelMachine(backend.sock.dup(), pages=64)
    # The guest in C maps its rings in one piece.
    machine.guest.free_pages.sort()
    first_page = machine.guest.free_pages[0]
    await machine.boot()
    (channel_id,) = machine.guest.channels
    await machine.open(channel_id, pages=RING_PAGES)
    await machine.until(lambda: channel_id in machine.interrupts)
    return Path(machine, channel_id, first_page)


async def _measure(rounds: int, count: int) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {"bare": [], **{name: [] for name in POLL_US}}
    with ExitStack() as stack:
        guest = stack.enter_context(built())
        paths = {
            name: await _open(stack.enter_context(started(1, poll_us, host_cpu())))
            for name, poll_us in POLL_US.items()
        }
        for number in range(rounds + 1):
            times = {"bare": _numbers(guest, "pingpong", count)}
            times |= {name: path.times(guest, count) for name, path in paths.items()}
            if number:  # the first is to warm up
                for name, values in times.items():
                    found[name].append(sorted(values))
    return found


def main() -> int:
    """Print the times and ratios; the status is 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="of each kind, taking turns")
    parser.add_argument("--count", type=int, default=2000, help="round trips in a round")
    args = parser.parse_args()
    print(describe_machine())
    found = asyncio.run(_measure(args.rounds, args.count))
    print(f"{'us':8} {'median':>8} {'p90':>8} {'p99':>8} {'times bare':>11}")
    worst = 0.0
    for name, rounds in found.items():
        middle = [
            statistics.median(times[len(times) * percent // 100] for times in rounds) / 1000
            for percent in (50, 90, 99)
        ]
        ratio = statistics.median(
            statistics.median(times) / statistics.median(bare)
            for times, bare in zip(rounds, found["bare"], strict=True)
        )
        print(f"{name:8} {middle[0]:8.1f} {middle[1]:8.1f} {middle[2]:8.1f} {ratio:11.2f}")
        if name != "bare":
            worst = max(worst, ratio)
    missed = worst > GOAL
    print(f"goal: {GOAL} times bare: {'MISSED' if missed else 'reached'}")
    print(describe_machine())
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
