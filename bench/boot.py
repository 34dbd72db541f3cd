# SPDX-License-Identifier: MIT
"""What the Hyper-V enlightenments, and the patches that bring them, cost a guest's boot under TCG.

Three machines boot the same stock kernel to ``/init``, in turn, round after round: the patched QEMU
with all ``hv-*`` flags, the patched QEMU without any, and the same version of QEMU without our
patches (``scripts/build-qemu --unpatched``). Run it with the environment of scripts/setup:

    python -m bench.boot [--rounds N] [--smp N] [--kernel 6.1|6.12|newest]

Two ratios count: the enlightened machine to the plain one (not above 1.05), and the plain one to
the unpatched QEMU (not above 1.00 but for noise: 1.01). A ratio is the median of the rounds'
ratios, since what else runs on the machine slows all three of a round. Its spread is the 95 %
confidence interval of that median (order statistics; nothing is assumed of the distribution). A
limit is kept if the median is not above it, and missed if the whole interval is; in between the
rounds were too few, or the machine too busy, to tell.

Wall time is from the start of QEMU to the first line of ``/init``, with nothing else to wait for:
no VMBus device, no backend. CPU time is what QEMU has used by then, user and system; on a busy
machine it says more. The status is 0 if all limits are kept, 1 if one is missed, else 2.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from emulator.lab.images import KERNELS, GuestImage, ImageError, build_image
from emulator.machine.built import NotBuilt
from emulator.machine.qemu import FIRMWARE_FOLDERS, HYPERV_FLAGS, QemuError, find_qemu

LIMIT: Final = 1.05
NOISE: Final = 0.01
MARK: Final = b"vmbus-guest: init"
PATIENCE_SECONDS: Final = 120


@dataclass
class Machine:
    """One of the machines compared, and its times in seconds, one a round."""

    name: str
    qemu: Path
    cpu: str
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """A ratio of two machines: the median over the rounds and its 95 % confidence interval."""

    median: float
    low: float
    high: float


def boot(machine: Machine, image: GuestImage, smp: int) -> tuple[float, float]:
    """Boot to ``/init`` and kill; return wall and CPU seconds. Raises SystemExit if it hangs."""
    command = [str(machine.qemu), "-nodefaults", "-no-user-config", "-display", "none"]
    for folder in FIRMWARE_FOLDERS:
        command += ["-L", folder]
    command += ["-machine", "q35,accel=tcg", "-cpu", machine.cpu, "-smp", str(smp), "-m", "256M"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    command += ["-append", "console=ttyS0 panic=-1 quiet vmbus.init=shell", "-serial", "stdio"]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        signal.alarm(PATIENCE_SECONDS)
        try:
            seen = b""
            while MARK not in seen:
                data = os.read(process.stdout.fileno(), 65_536)
                if not data:
                    said = seen.decode(errors="replace")
                    raise SystemExit(f"error: {machine.name} ended: {said}")
                seen += data
            wall = time.monotonic() - start
            # Its times while it lives: after wait() they are those of all children together.
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        finally:
            signal.alarm(0)
            process.kill()
    # Fields 14 and 15 of proc(5), utime and stime in clock ticks; the list starts with the third.
    return wall, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def _hangs(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(f"error: a machine has not come to /init in {PATIENCE_SECONDS} s")


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Return the ratio of two series of the same rounds."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    low, high = median_interval(len(ratios))
    return Ratio(statistics.median(ratios), ratios[low], ratios[high])


def median_interval(count: int) -> tuple[int, int]:
    """Return which of ``count`` sorted values bound the median with a confidence of 95 %.

    The number of values below the median is binomial with p = 1/2. With less than six values there
    is no such pair, and the ends are returned.
    """
    below = 0.0
    for rank in range(count // 2):
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            return max(0, rank - 1), min(count - 1, count - rank)
    return 0, count - 1


def measure(machines: Sequence[Machine], image: GuestImage, smp: int, rounds: int) -> None:
    """Boot all machines in each round, in an order drawn anew; the first round does not count."""
    order = random.Random(0)
    for number in range(rounds + 1):
        turn = list(machines)
        order.shuffle(turn)
        for machine in turn:
            wall, processor = boot(machine, image, smp)
            if number:
                machine.wall.append(wall)
                machine.processor.append(processor)
        if sys.stderr.isatty():
            print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def verdict(found: Ratio, limit: float) -> str:
    """Return "kept", "missed" or "not decided"."""
    if found.median <= limit:
        return "kept"
    return "missed" if found.low > limit else "not decided"


def report(hyperv: Machine, plain: Machine, unpatched: Machine) -> int:
    """Print times and ratios; return the exit status."""
    for machine in (hyperv, plain, unpatched):
        print(
            f"{machine.name:20} wall {statistics.median(machine.wall):6.3f} s "
            f"({min(machine.wall):.3f} to {max(machine.wall):.3f})   "
            f"CPU {statistics.median(machine.processor):6.3f} s "
            f"({min(machine.processor):.3f} to {max(machine.processor):.3f})"
        )
    verdicts = set()
    for what, over, under, limit in (
        ("hv flags / none", hyperv, plain, LIMIT),
        ("patched / unpatched", plain, unpatched, 1.0 + NOISE),
    ):
        for kind, found in (
            ("wall", ratio(over.wall, under.wall)),
            ("CPU", ratio(over.processor, under.processor)),
        ):
            told = verdict(found, limit)
            verdicts.add(told)
            print(
                f"{what:20} {kind:4} {found.median:.3f}   "
                f"95 %: {found.low:.3f} to {found.high:.3f}   limit {limit:.2f} {told}"
            )
    if "missed" in verdicts:
        return 1
    return 2 if "not decided" in verdicts else 0


def _unpatched() -> Path:
    script = Path(__file__).parents[1] / "scripts" / "build-qemu"
    done = subprocess.run(
        [script, "--unpatched", "--print-path"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotBuilt("QEMU without patches has not been built; scripts/build-qemu --unpatched")
    return Path(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure; the module says what the status means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--smp", type=int, default=1)
    parser.add_argument("--kernel", choices=KERNELS, default=KERNELS[0])
    args = parser.parse_args()
    if args.rounds < 6:
        parser.error("less than 6 rounds tell nothing")
    try:
        patched, unpatched = find_qemu(), _unpatched()
        image = build_image(args.kernel)
    except (QemuError, ImageError, NotBuilt) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machines = (
        Machine("patched, hv flags", patched, ",".join(("max", *HYPERV_FLAGS))),
        Machine("patched, no flags", patched, "max"),
        Machine("unpatched", unpatched, "max"),
    )
    print(f"kernel {image.release}, {args.smp} virtual CPUs, {args.rounds} rounds")
    signal.signal(signal.SIGALRM, _hangs)
    measure(machines, image, args.smp, args.rounds)
    return report(*machines)


if __name__ == "__main__":
    sys.exit(main())
