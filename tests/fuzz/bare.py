# SPDX-License-Identifier: MIT
"""The bare-metal guests of tests/guest, as guests of the device under test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tests.fuzz.target import Guest

SOURCES: Final = Path(__file__).resolve().parent.parent / "guest"
_FLAGS: Final = (
    *("-m64", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-no-pie"),
    *("-mgeneral-regs-only", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-mcmodel=kernel", "-nostdlib", "-static", "-z", "noexecstack"),
    *("-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments"),
)


def build(folder: Path) -> Path:
    """Compile all programs into one ELF file in ``folder``; raises CalledProcessError."""
    program = folder / "guest.elf"
    files = [*SOURCES.glob("*.c"), *SOURCES.glob("lib/*.c"), *SOURCES.glob("lib/*.S")]
    script = SOURCES / "lib" / "link.ld"
    subprocess.run(["gcc", *_FLAGS, "-T", script, *sorted(files), "-o", program], check=True)
    return program


def bare(program: Path, words: str, *, smp: int, tick: str, paused: bool = False) -> Guest:
    """Return a guest that runs ``words`` on all of ``smp`` processors; paused: when it is let go.

    It has no device to end QEMU with, so that the machine is still there when the program is over.
    """
    return Guest(
        (
            *("-kernel", str(program), "-append", f"cpus={smp} {words}"),
            *("-device", "isa-debugcon,iobase=0xe9,chardev=console"),
            *(("-S",) if paused else ()),
        ),
        tick,
        smp=smp,
        memory_mib=128,
    )


def storm(program: Path) -> Guest:
    """Return the guest that posts and signals on three processors, and ticks on the first."""
    return bare(program, "run=storm", smp=4, tick="^storm tick")
