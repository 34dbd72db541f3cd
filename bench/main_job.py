# SPDX-License-Identifier: MIT
"""What our device costs a guest's boot, save and restore, against the same QEMU without it.

Both sides are measured in turn in one run, and the ratio of the medians is what counts: the
machine's speed is not ours. Run it with the environment of scripts/setup:

    python bench/main_job.py [--rounds N] [--smp N]

Boot: guest uptime at which ``insmod hv_vmbus`` has returned; with the device it returns when the
guest is connected to VMBus, without it at once. Save and restore: ``VirtualMachine.save`` and
``restore`` with manifest, checksums and backend, against QEMU's migration to a file and load.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from emulator.lab.demo import PROBE
from emulator.lab.images import find_image
from emulator.machine.config import Accel, MachineConfig
from emulator.machine.qemu import find_qemu
from emulator.machine.vm import VirtualMachine

LIMIT: Final = 1.3
MEMORY_LIMIT_KIB: Final = 100 * 1024


@dataclass
class Times:
    """Seconds, one entry a round."""

    boot: list[float] = field(default_factory=list)
    save: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    peak_kib: int = 0

    @property
    def save_and_restore(self) -> float:
        """Median of the sums."""
        return statistics.median(map(sum, zip(self.save, self.restore, strict=True)))


async def _round(config: MachineConfig, qemu: Path, folder: Path, times: Times) -> None:
    async with VirtualMachine(config, qemu=qemu, logs=folder / "first") as vm:
        await vm.boot()
        match = await vm.watch(vm.console.wait_for(r"hv_vmbus rc=\S+ uptime=([0-9.]+)"))
        times.boot.append(float(match[1]))
        await vm.watch(vm.console.wait_for("vmbus-guest: (probe ready|idle)"))
        if config.vmbus:
            await vm.control("probe.ready")
        start = time.monotonic()
        if config.vmbus:
            await vm.save(folder / "snapshot")
            times.peak_kib = max(times.peak_kib, (await vm.control("status"))["peak_private_kib"])
        else:
            await vm.qmp("stop")
            if failure := await vm.write_state(folder / "state"):
                raise SystemExit(failure)
        times.save.append(time.monotonic() - start)
    async with VirtualMachine(config, qemu=qemu, logs=folder / "second") as vm:
        start = time.monotonic()
        if config.vmbus:
            await vm.restore(folder / "snapshot")
        else:
            if failure := await vm.load_state(folder / "state"):
                raise SystemExit(failure)
            await vm.qmp("cont")
        times.restore.append(time.monotonic() - start)
        if config.vmbus:
            times.peak_kib = max(times.peak_kib, (await vm.control("status"))["peak_private_kib"])


async def _measure(rounds: int, smp: int) -> int:
    qemu, image = find_qemu(), find_image()

    def config(vmbus: bool) -> MachineConfig:
        return MachineConfig(
            name="bench",
            kernel=image.kernel,
            initramfs=image.initramfs,
            smp=smp,
            accel=Accel.TCG,
            append="quiet",
            devices=(PROBE,) if vmbus else (),
            vmbus=vmbus,
        )

    ours, plain = Times(), Times()
    with tempfile.TemporaryDirectory(prefix="vmbus-bench-") as folder:
        for number in range(rounds + 1):
            for name, vmbus, times in (("ours", True, ours), ("plain", False, plain)):
                # The first round warms the page cache and does not count.
                target = times if number else Times()
                await _round(config(vmbus), qemu, Path(folder) / f"{name}-{number}", target)
    return _report(ours, plain)


def _report(ours: Times, plain: Times) -> int:
    boot = statistics.median(ours.boot) / statistics.median(plain.boot)
    both = ours.save_and_restore / plain.save_and_restore
    for what, mine, theirs in (
        ("boot to VMBus", ours.boot, plain.boot),
        ("save", ours.save, plain.save),
        ("restore", ours.restore, plain.restore),
    ):
        print(
            f"{what:14} with {statistics.median(mine):6.3f} s   without "
            f"{statistics.median(theirs):6.3f} s   "
            f"(with: {min(mine):.3f} to {max(mine):.3f}; without: "
            f"{min(theirs):.3f} to {max(theirs):.3f})"
        )
    print(f"boot ratio {boot:.2f}, save + restore ratio {both:.2f} (goal: {LIMIT})")
    print(f"backend's peak memory beside guest RAM: {ours.peak_kib / 1024:.0f} MiB (goal: 100)")
    return int(boot > LIMIT or both > LIMIT or ours.peak_kib > MEMORY_LIMIT_KIB)


def main() -> int:
    """Measure; the status is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smp", type=int, default=1)
    args = parser.parse_args()
    return asyncio.run(_measure(args.rounds, args.smp))


if __name__ == "__main__":
    sys.exit(main())
