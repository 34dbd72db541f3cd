# SPDX-License-Identifier: MIT
"""Storage requests per second on one core: ring, KMCL, the storage VSP, what is behind it, ring.

The guest is a process in C (bench/guest.c) on another CPU, with rings and buffers in a memfd. It
initialises the controller, keeps so many requests of 4 KiB under way, spins for the completions and
checks them. The host is a whole storage device on the backend's event loop, woken by an eventfd, on
one CPU with its threads. The guest is part of what is timed.

null     nothing behind the disk: what the host itself costs
cached   a raw file in the page cache; writes are not flushed
direct   the same file past the page cache

Two controls, in the same run and by turns: the bare system calls on the same file in a loop of
Python, one after the other.

What counts is the median over the runs. Run from the checkout: ``python -m bench.storage``; the
exit status is 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.modelguest import Guest, built, describe_machine, guest_cpu, host_cpu
from emulator.devices import make_device
from emulator.kmcl import OfferParams, ServerChannel
from emulator.machine.doorbells import DoorbellLoop
from emulator.memory import GuestMemory, PageView, RamRegion, page_view
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import GpaRange

PAGE: Final = 4096
PAGES: Final = 65
"""Pages of each ring, control page included."""
BUFFERS: Final = 256
READ, WRITE = 0x28, 0x2A
FILE_SIZE: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """One run: nanoseconds for a request, of the clock and of the host's CPU."""

    wall: float
    cpu: float


class Port:
    """A provider with the memory of the guest; it spins and needs no interrupt."""

    def __init__(self, loop: DoorbellLoop) -> None:
        """Make rings and buffers as a guest does that is about to open a channel."""
        self._loop = loop
        size = (2 * PAGES + BUFFERS) * PAGE
        self.fd = os.memfd_create("bench-storage")
        os.ftruncate(self.fd, size)
        memory = memoryview(mmap.mmap(self.fd, size))
        self.up, self.down = memory[: PAGES * PAGE], memory[PAGES * PAGE : 2 * PAGES * PAGE]
        for ring in (self.up, self.down):
            ring.cast("I")[16] = 1
        self.memory = GuestMemory.map([(RamRegion(0, size, 0), self.fd)])

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Take the offer."""

    def revoke(self, channel: ServerChannel, done: Callable[[], None]) -> None:
        """Take the offer back."""
        done()

    def signal(self, channel: ServerChannel) -> None:
        """Interrupt nobody."""

    def poll_again(self, channel: ServerChannel) -> None:
        """Look again on the next turn of the loop."""
        self._loop.call_soon(channel.port_interrupt)

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """There are no GPADLs."""
        raise KeyError(handle)

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Nothing translates code here."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """Return the guest's buffers, as the backend does (``emulator.machine.host``)."""
        return [piece for gpa_range in ranges for piece in self.memory.range(gpa_range)]


def run(guest: Guest, lun: dict[str, Any], depth: int, opcode: int, requests: int) -> Result:
    """Answer ``requests`` on a device made anew."""
    loop = DoorbellLoop()
    loop.poll_for(150)
    port = Port(loop)
    device = make_device("scsi", "disk", "bench", port, {"luns": [lun]})
    device.power_on()
    device.resume()
    channel = device.channels["primary"]
    channel.port_opened(IncomingRing(page_view([port.up])), OutgoingRing(page_view([port.down])))
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    loop.add_doorbell(doorbell, channel.port_doorbell)
    words = ("storage", port.fd, PAGES, depth, requests, doorbell, FILE_SIZE // PAGE, opcode)
    process = guest.start(*words, fds=(port.fd, doorbell), cpu=guest_cpu(), output=True)
    ended = os.pidfd_open(process.pid)
    loop.add_reader(ended, loop.stop)
    cpu = time.process_time_ns()
    loop.run_forever()
    cpu = time.process_time_ns() - cpu
    wall = int(_finish(process))
    loop.remove_doorbell(doorbell)
    loop.remove_reader(ended)
    device.close()
    loop.close()
    for fd in (doorbell, ended, port.fd):
        os.close(fd)
    return Result(wall / requests, cpu / requests)


def _finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit("bench.storage: the model guest ended with an error")
    return out


def bare_calls(path: Path, opcode: int, requests: int) -> Result:
    """Return what the system calls take alone, one after the other."""
    fd = os.open(path, os.O_RDWR)
    buffer = [memoryview(mmap.mmap(-1, PAGE))]
    where = [random.randrange(FILE_SIZE // PAGE) * PAGE for _ in range(requests)]
    call = os.preadv if opcode == READ else os.pwritev
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for offset in where:
        call(fd, buffer, offset)
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    os.close(fd)
    return Result(wall / requests, cpu / requests)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to ask, and how many requests a second there have to be."""

    name: str
    run: Callable[[int], Result]
    goal: float | None = None


def main() -> int:
    """Print one line for each way; the status is 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="of each way, taking turns")
    parser.add_argument("--requests", type=int, default=20_000, help="requests in a run")
    parser.add_argument("--folder", type=Path, help="where the file lies; default: a temporary one")
    args = parser.parse_args()
    print(describe_machine())
    os.sched_setaffinity(0, {host_cpu()})
    gc.freeze()
    with built() as guest, contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "bench-storage.img"
        file.write_bytes(random.Random(1).randbytes(FILE_SIZE))
        stack.callback(file.unlink)
        null = {"null_size": FILE_SIZE}
        cached = {"path": str(file)}

        def row(name: str, lun: dict[str, Any], depth: int, opcode: int, goal: float = 0) -> Row:
            return Row(name, lambda n: run(guest, lun, depth, opcode, n), goal or None)

        rows = [
            row("null, read, depth 32", null, 32, READ, 150e3),
            row("null, write, depth 32", null, 32, WRITE, 150e3),
            row("null, read, depth 1", null, 1, READ),
            row("cached, read, depth 32", cached, 32, READ),
            row("cached, read, depth 1", cached, 1, READ),
            row("cached, write, depth 32", cached, 32, WRITE),
            row("cached, write, depth 1", cached, 1, WRITE),
        ]
        with contextlib.suppress(OSError):
            os.close(os.open(file, os.O_RDWR | os.O_DIRECT))
            direct = {"path": str(file), "direct": True}
            rows.append(row("direct, read, depth 32", direct, 32, READ))
            rows.append(row("direct, write, depth 32", direct, 32, WRITE))
        rows.append(Row("preadv alone", lambda n: bare_calls(file, READ, n)))
        rows.append(Row("pwritev alone", lambda n: bare_calls(file, WRITE, n)))
        found: dict[str, list[Result]] = {row.name: [] for row in rows}
        for number in range(args.runs + 1):
            for each in rows:
                result = each.run(args.requests)
                if number:  # the first is to warm up
                    found[each.name].append(result)
    return report(rows, found)


def report(rows: list[Row], found: dict[str, list[Result]]) -> int:
    """Print medians; return 1 if a goal is missed."""
    missed = 0
    print(f"{'':24} {'requests/s':>11} {'best':>9} {'CPU ns/request':>15} {'goal':>9}")
    for row in rows:
        wall = statistics.median(result.wall for result in found[row.name])
        best = min(result.wall for result in found[row.name])
        cpu = statistics.median(result.cpu for result in found[row.name])
        goal = ""
        if row.goal is not None:
            reached = 1e9 / wall >= row.goal
            missed |= not reached
            goal = f"{row.goal:9.0f} {'reached' if reached else 'MISSED'}"
        print(f"{row.name:24} {1e9 / wall:11.0f} {1e9 / best:9.0f} {cpu:15.0f} {goal}")
    print(describe_machine())
    return missed


if __name__ == "__main__":
    sys.exit(main())
