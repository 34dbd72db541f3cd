# SPDX-License-Identifier: MIT
"""Packets per second on one core: ring, KMCL, the VSP's Python callback, completion, ring.

The guest is a process in C (bench/guest.c) on another CPU, with its memory in a memfd. It sends
requests of 64 bytes that ask for a completion, spins for the completions, and checks them. The host
is a :class:`~emulator.kmcl.ServerChannel` on one CPU:

one      one packet in the ring at a time: a read, a callback, a completion, a look at the ring each
batch    32 packets to a store of `in`, and the next when all are answered
count    no callback per packet (``init_set_drain``): completed unseen and counted, as many in the
         ring as fit, 32 to a store of `in`
doorbell as batch and one, through eventfds and the backend's event loop

In the first three the doorbell is a call: the host looks again and again, as one does that polls.
The guest is part of what is timed. Two controls, in the same run and by turns: the same guest with
a host in C, which is what two processes and this memory can do at all; and the time
that calling a callback of Python takes, which is what remains if all the rest were free.

What counts is the median over the runs, and beside it the CPU time of the host for a packet, which
other work on the machine changes less. Run from the checkout: ``python -m bench.packets``; the exit
status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.modelguest import Guest, SharedRings, built, describe_machine, guest_cpu, host_cpu
from emulator.kmcl import IncomingPacket, OfferParams, ServerChannel
from emulator.machine.doorbells import DoorbellLoop
from emulator.memory import PageView, page_view
from emulator.ring import IncomingRing, OutgoingRing
from emulator.wire.packet import GpaRange

PAGES: Final = 65


@dataclass(frozen=True, slots=True)
class Result:
    """One run: nanoseconds for a packet, of the clock and of the host's CPU."""

    wall: float
    cpu: float


class Port:
    """A provider of rings; the model guest spins and needs no interrupt."""

    def offer(self, channel: ServerChannel, params: OfferParams) -> None:
        """Take the offer."""

    def revoke(self, channel: ServerChannel, done: object) -> None:
        """Take the offer back."""

    def signal(self, channel: ServerChannel) -> None:
        """Interrupt nobody."""

    def poll_again(self, channel: ServerChannel) -> None:
        """Look again on the next turn of the loop that has one; the others look anyway."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(channel.port_interrupt)

    def gpadl_pages(self, channel: ServerChannel, handle: int) -> PageView:
        """There are no GPADLs."""
        raise KeyError(handle)

    def memory_written(self, ranges: tuple[GpaRange, ...]) -> None:
        """Nothing translates code here."""

    def external_data(self, ranges: tuple[GpaRange, ...]) -> list[memoryview]:
        """There is no external data."""
        return []


def complete(_: ServerChannel, packet: IncomingPacket) -> None:
    """Do what the fastest VSP does."""
    packet.complete(b"")


class Host:
    """A channel on rings that it shares with the guest."""

    def __init__(self, configure: Callable[[ServerChannel], None]) -> None:
        """Open the channel."""
        self.rings = SharedRings(PAGES)
        self.channel = ServerChannel(Port())
        self.channel.init_set_target_interface_id(uuid.uuid4(), uuid.uuid4())
        configure(self.channel)
        self.channel.enable()
        self.channel.start()
        self.channel.port_opened(
            IncomingRing(page_view([self.rings.up])), OutgoingRing(page_view([self.rings.down]))
        )

    def run(self, guest: Guest, batch: int, packets: int) -> Result:
        """Answer ``packets`` requests, ``batch`` at a time; the doorbell is a call."""
        process = self._start(guest, batch, packets, -1)
        meter, doorbell = self.channel.traffic.meter, self.channel.port_doorbell
        begin, end = meter.packets_in + 1, meter.packets_in + packets
        while meter.packets_in < begin and process.poll() is None:
            doorbell()
        first = meter.packets_in
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        while meter.packets_in < end:
            doorbell()
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        _finish(process)
        # The last look may have stopped at its limit, with the guest's signals masked and another
        # turn asked for that nobody gave it here.
        doorbell()
        done = end - first
        return Result(wall / done, cpu / done)

    def run_on_doorbells(self, guest: Guest, batch: int, packets: int) -> Result:
        """Answer them when they ring, on the event loop of the backend, which polls."""
        loop = DoorbellLoop()
        loop.poll_for(150)
        doorbell = os.eventfd(0, os.EFD_NONBLOCK)
        began = (0, 0)

        def first() -> None:
            nonlocal began
            loop.remove_doorbell(doorbell)
            loop.add_doorbell(doorbell, self.channel.port_doorbell)
            began = time.perf_counter_ns(), time.process_time_ns()
            self.channel.port_doorbell()

        loop.add_doorbell(doorbell, first)
        process = self._start(guest, batch, packets, doorbell)
        ended = os.pidfd_open(process.pid)
        loop.add_reader(ended, loop.stop)
        loop.run_forever()
        wall, cpu = time.perf_counter_ns() - began[0], time.process_time_ns() - began[1]
        _finish(process)
        loop.remove_doorbell(doorbell)
        loop.close()
        os.close(doorbell)
        os.close(ended)
        return Result(wall / packets, cpu / packets)

    def _start(
        self, guest: Guest, batch: int, packets: int, doorbell: int
    ) -> subprocess.Popen[str]:
        fds = (self.rings.fd,) if doorbell < 0 else (self.rings.fd, doorbell)
        words = ("packets", self.rings.fd, PAGES, batch, packets, doorbell)
        return guest.start(*words, fds=fds, cpu=guest_cpu())


def run_in_c(guest: Guest, batch: int, packets: int) -> Result:
    """Let a host in C answer; what starting two processes takes is small against the packets."""
    rings = SharedRings(PAGES)
    many = packets * 50
    # The guest first: the host takes the CPU that this process is on.
    words = ("packets", rings.fd, PAGES, batch, many, -1)
    other = guest.start(*words, fds=(rings.fd,), cpu=guest_cpu())
    host = guest.start("host", rings.fd, PAGES, many, fds=(rings.fd,), cpu=host_cpu())
    start = time.perf_counter_ns()
    _finish(host)
    wall = time.perf_counter_ns() - start
    _finish(other)
    os.close(rings.fd)
    return Result(wall / many, math.nan)


def callback_ns(packets: int) -> float:
    """Return what calling an empty callback of Python costs, for a packet."""

    def callback(_: object, __: object) -> None:
        pass

    start = time.process_time_ns()
    for number in range(packets):
        callback(None, number)
    return (time.process_time_ns() - start) / packets


def _finish(process: subprocess.Popen[str]) -> None:
    if process.wait() != 0:
        raise SystemExit("bench.packets: the model guest ended with an error")


def _counting(channel: ServerChannel) -> None:
    channel.init_set_drain(lambda channel, packets, payload_bytes: None)


def _with_callback(channel: ServerChannel) -> None:
    channel.init_set_process_packet_callbacks(complete)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to send packets, and how many a second there have to be."""

    name: str
    run: Callable[[int], Result]
    packets: int
    goal: float | None = None


def main() -> int:
    """Print one line for each way; the status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="of each way, taking turns")
    parser.add_argument("--packets", type=int, default=20_000, help="packets in a run")
    args = parser.parse_args()
    print(describe_machine())
    os.sched_setaffinity(0, {host_cpu()})
    gc.collect()
    gc.freeze()
    gc.disable()
    with built() as guest:
        host, counting = Host(_with_callback), Host(_counting)
        rows = [
            Row("one", lambda n: host.run(guest, 1, n), args.packets, 250e3),
            Row("batch", lambda n: host.run(guest, 32, n), args.packets, 500e3),
            Row("count", lambda n: counting.run(guest, 0, n), args.packets * 50, 5e6),
            Row("one, doorbell", lambda n: host.run_on_doorbells(guest, 1, n), args.packets),
            Row("batch, doorbell", lambda n: host.run_on_doorbells(guest, 32, n), args.packets),
            Row("one, C host", lambda n: run_in_c(guest, 1, n), args.packets),
            Row("batch, C host", lambda n: run_in_c(guest, 32, n), args.packets),
            Row("free, C host", lambda n: run_in_c(guest, 0, n), args.packets),
            Row("empty callback", lambda n: Result(*[callback_ns(n)] * 2), args.packets),
        ]
        found: dict[str, list[Result]] = {row.name: [] for row in rows}
        for number in range(args.runs + 1):
            for row in rows:
                result = row.run(row.packets)
                if number:  # the first is to warm up
                    found[row.name].append(result)
    return report(rows, found)


def report(rows: list[Row], found: dict[str, list[Result]]) -> int:
    """Print medians; return 1 if a goal is missed."""
    missed = 0
    print(f"{'':16} {'packets/s':>11} {'best':>11} {'CPU ns/packet':>14} {'goal':>10}")
    for row in rows:
        wall = statistics.median(result.wall for result in found[row.name])
        best = min(result.wall for result in found[row.name])
        cpu = statistics.median(result.cpu for result in found[row.name])
        goal = ""
        if row.goal is not None:
            reached = 1e9 / wall >= row.goal
            missed |= not reached
            goal = f"{row.goal:10.0f} {'reached' if reached else 'MISSED'}"
        spent = "" if math.isnan(cpu) else f"{cpu:.0f}"
        print(f"{row.name:16} {1e9 / wall:11.0f} {1e9 / best:11.0f} {spent:>14} {goal}")
    print(describe_machine())
    return missed


if __name__ == "__main__":
    sys.exit(main())
