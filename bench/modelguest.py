# SPDX-License-Identifier: MIT
"""The model guest of the benchmarks (bench/guest.c): built, started on a CPU of its own, and its
memory; and what they all print about the machine.
"""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PAGE: Final = 4096
SOURCE: Final = Path(__file__).with_name("guest.c")
_CPUS: Final = frozenset(os.sched_getaffinity(0))


def describe_machine() -> str:
    """Return one line: processor, CPUs, kernel, Python, and how busy the machine is."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{model}, {len(_CPUS)} CPUs; Linux {platform.release()}; "
        f"Python {platform.python_version()}; load {load}"
    )


def host_cpu() -> int:
    """Return the CPU that hosts run on."""
    return min(_CPUS)


def guest_cpu() -> int:
    """Return the CPU that guests run on: another one, where there is another one."""
    return max(_CPUS)


class Guest:
    """The program; :func:`built` makes one."""

    def __init__(self, program: Path) -> None:
        """Use what was built at ``program``."""
        self._program = program

    def start(
        self,
        *words: str | int,
        fds: tuple[int, ...] = (),
        cpu: int | None = None,
        output: bool = False,
    ) -> subprocess.Popen[str]:
        """Run it with these arguments, these descriptors, and on ``cpu`` alone."""
        before = os.sched_getaffinity(0)
        if cpu is not None:
            # A child inherits it. To have it move itself would take time on the CPU it leaves.
            os.sched_setaffinity(0, {cpu})
        try:
            return subprocess.Popen(
                [str(self._program), *map(str, words)],
                pass_fds=fds,
                stdout=subprocess.PIPE if output else None,
                text=True,
            )
        finally:
            os.sched_setaffinity(0, before)


@contextmanager
def built() -> Iterator[Guest]:
    """Build the program for as long as the context lasts; needs a C compiler ($CC, or cc)."""
    with tempfile.TemporaryDirectory(prefix="vmbus-bench-") as folder:
        program = Path(folder) / "guest"
        subprocess.run(
            [os.environ.get("CC", "cc"), "-std=gnu11", "-O2", "-Wall", "-o", program, SOURCE],
            check=True,
        )
        yield Guest(program)


class SharedRings:
    """Two rings of ``pages`` pages each, control page included, in a memfd: guest to host first."""

    def __init__(self, pages: int) -> None:
        """Make them as a guest does that is about to open a channel."""
        self.pages = pages
        self.fd = os.memfd_create("bench-rings")
        os.ftruncate(self.fd, 2 * pages * PAGE)
        memory = memoryview(mmap.mmap(self.fd, 2 * pages * PAGE))
        self.up, self.down = memory[: pages * PAGE], memory[pages * PAGE :]
