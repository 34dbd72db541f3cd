# SPDX-License-Identifier: MIT
"""How long a guest's driver waits for its VMBus host, against QEMU's own in-process VMBus.

Two machines run on one QEMU binary: one with vmbus-user and our backend, one with QEMU's
vmbus-bridge and hv-balloon. The guest's probe driver times, with the guest's clock, in the kernel:

busy      a packet written to the ring, doorbell, host, answer, interrupt, channel callback; the
          callback sends the next one
idle      the same after a sleep, in which the virtual CPU is halted
create    GPADL_HEADER until GPADL_CREATED: a control message and its answer
teardown  GPADL_TEARDOWN until GPADL_TORNDOWN

Ours echoes a message of 32 bytes of the probe (docs/probe.md). hv-balloon is asked for a version
that it does not have (16 bytes) and refuses with a packet of as many, as often as it is asked; that
is one packet each way as well, and all of it happens in QEMU's main loop.

The machines take turns, so that both see the same machine under them. What counts is the median
over the rounds of each round's median, and of the ratio within a round. Run from the checkout::

    python -m bench.latency [--rounds N] [--smp N]

The backend is a process of its own, so each exchange has one wake-up more than QEMU's own device
has. Where waking another CPU is dear, as in a virtual machine, that is what is measured;
``taskset -c 0`` takes it out, for both; ``--awake`` takes out what waking a sleeping CPU costs: a
process of the policy SCHED_IDLE spins on each, and gives way at once to any other.

The exit status is 1 if a limit of LIMITS is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from emulator.lab.demo import PROBE
from emulator.lab.images import ImageError, find_image
from emulator.machine.config import Accel, MachineConfig
from emulator.machine.console import ConsoleClosed
from emulator.machine.process import ProcessDied
from emulator.machine.qemu import QemuError, find_qemu
from emulator.machine.vm import VirtualMachine

BALLOON_CLASS: Final = "525074dc-8985-46e2-8057-a307dc18a502"
"""Interface GUID of dynamic memory (Linux include/linux/hyperv.h, HV_DM_GUID)."""

PATIENCE: Final = 60.0
"""Seconds for a boot or a round, after which it is taken to hang."""


class GuestError(Exception):
    """The guest does not answer, or cannot measure."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What must be reached: microseconds of our median, and of it over the in-process one."""

    microseconds: float
    ratio: float | None = None


LIMITS: Final = {
    "busy": Limit(20.0, 1.6),
    "idle": Limit(30.0, 1.6),
    "create": Limit(80.0),
    "teardown": Limit(80.0),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of many exchanges, in microseconds."""

    minimum: float
    median: float
    p90: float
    p99: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Load:
    """How much a round measures; ``gap`` in microseconds."""

    packets: int
    gap_packets: int
    gap: int
    gpadls: int


class Guest:
    """A booted machine whose probe program waits for rounds."""

    def __init__(self, vm: VirtualMachine, device: str, load: Load) -> None:
        """Measure on the character device ``device`` of ``vm``."""
        self._vm = vm
        self._device = device
        self._load = load

    async def prepare(self) -> None:
        """Boot, load the drivers, and start the program."""
        load = self._load
        await self._vm.boot()
        await self._wait("vmbus-guest: (init|error: .*)", 0)
        for line in (
            "cd /lib/modules/$(uname -r) && insmod hv_vmbus.ko && insmod vmbus_probe.ko",
            f"echo {BALLOON_CLASS} > /sys/bus/vmbus/drivers/vmbus_probe/new_id",
            f"while [ ! -e /dev/{self._device} ]; do sleep 0.1; done",
            f"vmbus-probe latency /dev/{self._device} "
            f"{load.packets} {load.gap_packets} {load.gap} {load.gpadls}",
        ):
            await self._vm.console.send_line(line)
        await self._wait("vmbus-guest: latency (ready|error: .*)", 0)

    async def _wait(self, pattern: str, start: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                match = await self._vm.watch(self._vm.console.wait_for(pattern, start))
        except TimeoutError as error:
            raise GuestError(
                f"the guest did not answer; its last words:\n{self._vm.console.tail()}"
            ) from error
        if match[1].startswith("error"):
            raise GuestError(f"the guest says: {match[1]}")

    async def round(self) -> dict[str, Sample]:
        """Measure once."""
        start = len(self._vm.console.lines)
        await self._vm.console.send_line("")
        await self._wait("vmbus-guest: latency (done|error: .*)", start)
        return _samples(self._vm.console.lines[start:])


def _samples(lines: list[str]) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for line in lines:
        what, _, numbers = line.partition("vmbus-guest: latency ")[2].partition(" ")
        if what in LIMITS:
            value = dict(pair.split("=") for pair in numbers.split())
            keys = ("min", "median", "p90", "p99", "max")
            found[what] = Sample(*(int(value[key]) / 1000 for key in keys))
    return found


async def _measure(rounds: int, smp: int, load: Load) -> int:
    qemu, image = find_qemu(), find_image()
    ours = MachineConfig(
        name="bench",
        kernel=image.kernel,
        initramfs=image.initramfs,
        smp=smp,
        accel=Accel.TCG,
        append="quiet vmbus.init=shell",
        devices=(PROBE,),
    )
    theirs = msgspec.structs.replace(
        ours,
        devices=(),
        vmbus=False,
        qemu_args=("-device", "vmbus-bridge", "-device", "hv-balloon"),
    )
    found: list[tuple[dict[str, Sample], dict[str, Sample]]] = []
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmbus-bench-")))
        guests = []
        for name, config, device in (
            ("ours", ours, "vmbus-probe-data-1"),
            ("theirs", theirs, "vmbus-probe-foreign"),
        ):
            vm = VirtualMachine(config, qemu=qemu, logs=logs / name)
            guest = Guest(await stack.enter_async_context(vm), device, load)
            await guest.prepare()
            guests.append(guest)
        mine, other = guests
        for number in range(rounds + 1):
            pair = (await mine.round(), await other.round())
            # The first round has QEMU translate the guest's code and does not count.
            if number:
                found.append(pair)
                _show_round(number, rounds, *pair)
    return _report(found)


def _show_round(
    number: int, rounds: int, ours: dict[str, Sample], theirs: dict[str, Sample]
) -> None:
    """Show progress; the result is on stdout, this is not."""
    medians = ", ".join(
        f"{what} {ours[what].median:.1f}/{theirs[what].median:.1f}" for what in LIMITS
    )
    print(f"round {number} of {rounds}, medians in us, ours/in-process: {medians}", file=sys.stderr)


def _report(found: list[tuple[dict[str, Sample], dict[str, Sample]]]) -> int:
    print(f"{'us':9} {'host':11} {'min':>7} {'median':>7} {'p90':>7} {'p99':>7} {'max':>8}")
    missed: list[str] = []
    for what, limit in LIMITS.items():
        for host, side in (("vmbus-user", 0), ("in-process", 1)):
            values = [pair[side][what] for pair in found]
            middle = {
                name: statistics.median(getattr(value, name) for value in values)
                for name in ("minimum", "median", "p90", "p99", "maximum")
            }
            print(
                f"{what:9} {host:11} {middle['minimum']:7.1f} {middle['median']:7.1f} "
                f"{middle['p90']:7.1f} {middle['p99']:7.1f} {middle['maximum']:8.1f}"
            )
        ours = statistics.median(pair[0][what].median for pair in found)
        ratio = statistics.median(pair[0][what].median / pair[1][what].median for pair in found)
        missed += _judge(what, limit, ours, ratio)
    for line in missed:
        print(f"MISSED: {line}")
    return int(bool(missed))


def _judge(what: str, limit: Limit, ours: float, ratio: float) -> list[str]:
    of_ratio = f", at most {limit.ratio}" if limit.ratio else ""
    print(
        f"{what:9} {ours:.1f} us, at most {limit.microseconds:.0f}; "
        f"{ratio:.2f} times in-process{of_ratio}"
    )
    missed: list[str] = []
    if ours > limit.microseconds:
        missed.append(f"{what}: {ours:.1f} us, more than {limit.microseconds:.0f}")
    if limit.ratio is not None and ratio > limit.ratio:
        missed.append(f"{what}: {ratio:.2f} times in-process, more than {limit.ratio}")
    return missed


@contextmanager
def _awake() -> Iterator[None]:
    """Keep each CPU that this process may use from sleeping."""

    def spin(cpu: int) -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(0, {cpu})
        while True:
            pass

    context = multiprocessing.get_context("fork")
    spinners = [
        context.Process(target=spin, args=(cpu,), daemon=True) for cpu in os.sched_getaffinity(0)
    ]
    for spinner in spinners:
        spinner.start()
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()


def main() -> int:
    """Measure; the status is 1 if a limit is missed, 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--smp", type=_positive, default=1, help="virtual CPUs")
    parser.add_argument("--packets", type=_positive, default=5000, help="back to back, in a round")
    parser.add_argument("--gap-packets", type=_positive, default=300, help="from idle, in a round")
    parser.add_argument("--gap", type=_positive, default=2000, help="us of sleep before those")
    parser.add_argument("--awake", action="store_true", help="let no CPU of this machine sleep")
    parser.add_argument("--gpadls", type=_positive, default=300, help="made in a round")
    args = parser.parse_args()
    load = Load(args.packets, args.gap_packets, args.gap, args.gpadls)
    try:
        with _awake() if args.awake else nullcontext():
            return asyncio.run(_measure(args.rounds, args.smp, load))
    except (ProcessDied, QemuError, ImageError, ConsoleClosed, GuestError) as error:
        print(f"bench.latency: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
