# SPDX-License-Identifier: MIT
"""Runs the bare-metal programs of ``tests/guest``: builds them, boots them, reads what they print.

A program prints its checks as TAP lines on QEMU's debug console and ends QEMU by itself. One that
says nothing for :data:`SILENCE` seconds, or does not end in time, is a failure that shows its last
lines. The machine can be saved and loaded where the program asks for it (``checkpoint()`` in
``tests/guest/lib/guest.h``): it stops by itself with its state unchanged until :meth:`Run.resume`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qemu.qmp import EventListener, QMPClient

from emulator.machine.process import Child
from emulator.machine.qemu import HYPERV_FLAGS

SOURCES: Final = Path(__file__).resolve().parents[1] / "guest"
SILENCE: Final = 60.0
"""How long a program may say nothing, in seconds; each check takes far less."""

_FIRMWARE: Final = ("/usr/share/seabios", "/usr/share/qemu")
_CFLAGS: Final = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-mgeneral-regs-only",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none,-n,-z,noexecstack,--no-warn-rwx-segments",
)
_MODES: Final = {64: ("-m64", "-mno-red-zone"), 32: ("-m32", "-march=i686")}
_PASSED: Final = 33  # lib/print.c: EXIT_PASSED, as isa-debug-exit makes it QEMU's status
_CHECK: Final = re.compile(r"(?P<not>not )?ok (?P<number>\d+) - (?P<text>.*)")


class GuestFailed(AssertionError):
    """A program failed, died, or hangs; the text has its failed checks and its last lines."""


def build(folder: Path, *, bits: int = 64) -> Path:
    """Compile all of ``tests/guest`` into one ELF file in ``folder``, unless it is there already.

    ``bits`` is 64 (long mode) or 32 (for the 32-bit hypercall ABI). Raises
    :class:`subprocess.CalledProcessError` if the compiler, ``$CC`` or gcc, refuses.
    """
    sources = sorted(SOURCES.glob("*.c")) + sorted(SOURCES.glob("lib/*.[cS]"))
    script = SOURCES / "lib" / "link.ld"
    compiler = os.environ.get("CC") or shutil.which("gcc") or "gcc-12"
    command = [compiler, *_MODES[bits], *_CFLAGS, f"-Wl,-T,{script}", f"-I{SOURCES}"]
    key = hashlib.sha256("\0".join(command).encode())
    for path in (*sources, *sorted(SOURCES.glob("lib/*.h")), script):
        key.update(path.read_bytes())
    elf = folder / f"guest{bits}-{key.hexdigest()[:16]}.elf"
    if not elf.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = elf.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", partial, *sources], check=True)
        partial.rename(elf)
    return elf


@dataclass(frozen=True)
class Setup:
    """One machine for a program; the defaults are what a Hyper-V guest gets, with 2 vCPUs."""

    run: str
    """The suites, separated by commas."""
    cpus: int = 2
    bits: int = 64
    cpu: str = "max"
    flags: Sequence[str] = HYPERV_FLAGS
    """The ``hv-*`` properties; the program is told them and expects nothing else to be there."""
    accel: str = "tcg"
    x2apic: bool = False
    vmbus: bool = True
    """QEMU's own VMBus, as a partner for messages."""
    words: Sequence[str] = ()
    """Further words of the program's command line."""
    qemu_args: Sequence[str] = ()

    def command_line(self, qemu: Path, program: Path, output: Path, qmp: Path) -> list[str]:
        """Return QEMU's argument list."""
        args = [str(qemu), "-nodefaults", "-no-user-config", "-display", "none"]
        for folder in _FIRMWARE:
            args += ["-L", folder]
        args += ["-machine", "q35", "-accel", self.accel, "-m", "64M", "-smp", str(self.cpus)]
        args += ["-cpu", ",".join((self.cpu, *self.flags))]
        args += ["-chardev", f"socket,id=out,path={output}"]
        args += ["-device", "isa-debugcon,chardev=out"]
        args += ["-chardev", f"socket,id=qmp,path={qmp}", "-mon", "chardev=qmp,mode=control"]
        args += ["-device", "isa-debug-exit,iobase=0xf4", "-device", "pvpanic,ioport=0x505"]
        args += ["-action", "panic=pause", "-kernel", str(program)]
        vmbus = self.vmbus and "hv-synic" in self.flags
        if vmbus:
            args += ["-device", "vmbus-bridge"]
        features = ",".join(flag.removeprefix("hv-").partition("=")[0] for flag in self.flags)
        words = [f"run={self.run}", f"cpus={self.cpus}", f"hv={features}", *self.words]
        words += [
            flag.removeprefix("hv-") for flag in self.flags if flag.startswith("hv-spinlocks=")
        ]
        if vmbus:
            words.append("vmbus")
        if self.x2apic:
            words.append("x2apic")
        return [*args, "-append", " ".join(words), *self.qemu_args]


@dataclass
class Run:
    """A QEMU with a program in it. Made by :func:`start`."""

    child: Child
    qmp: QMPClient
    output: asyncio.StreamReader
    events: EventListener
    silence: float = SILENCE
    lines: list[str] = field(default_factory=list)
    """All that the program has printed, without the line ends."""

    @property
    def failed(self) -> list[str]:
        """The checks that failed."""
        return [line for line in self.lines if line.startswith("not ok ")]

    @property
    def passed(self) -> int:
        """How many checks passed."""
        return sum(line.startswith("ok ") for line in self.lines)

    def failure(self, what: str) -> GuestFailed:
        """Return an error with the output that a person needs."""
        text = [what, *self.failed, "last lines:", *self.lines[-12:]]
        if words := self.child.last_words():
            text += ["QEMU:", words]
        return GuestFailed("\n".join(text))

    async def line(self) -> str | None:
        """Return the program's next line, None when QEMU has ended; a hang is a failure."""
        try:
            data = await asyncio.wait_for(self.output.readline(), self.silence)
        except TimeoutError:
            where = await self._where()
            what = f"the program hangs: nothing for {self.silence:.0f} s"
            raise self.failure(f"{what}\n{where}") from None
        if not data:
            return None
        self.lines.append(data.decode("utf-8", "replace").rstrip("\n"))
        return self.lines[-1]

    async def _where(self) -> str:
        """Return what QEMU's state is, and where the vCPUs are."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10):
                status = await self.execute("query-status")
                registers = await self.execute(
                    "human-monitor-command", command_line="info registers -a"
                )
            wanted = re.compile(r"^(CPU#|.IP=|.*HLT=)")
            where = [line for line in registers.splitlines() if wanted.match(line)]
            return "\n".join([f"QEMU: {status['status']}", *where])
        return "no answer by QMP"

    async def until(self, prefix: str) -> str:
        """Read up to a line that begins like this, and return it."""
        while (line := await self.line()) is not None:
            if line.startswith(prefix):
                return line
        raise self.failure(f"the program ended before it printed {prefix!r}")

    async def stopped(self) -> str | None:
        """Read up to the next checkpoint, where the machine has stopped; None at the end."""
        while (line := await self.line()) is not None:
            if line.startswith("checkpoint "):
                while True:
                    event = await asyncio.wait_for(self.events.get(), SILENCE)
                    if event["event"] == "STOP":
                        return line.removeprefix("checkpoint ")
        return None

    async def resume(self) -> None:
        """Let the machine go on."""
        await self.qmp.execute("cont")

    async def ended(self) -> int:
        """Read to the end and return how many checks there were; all have to pass."""
        while await self.line() is not None:
            pass
        status = await asyncio.wait_for(asyncio.shield(self.child.ended), SILENCE)
        if status != _PASSED or self.failed or not self.passed:
            raise self.failure(f"QEMU ended with status {status}")
        numbers = [int(m["number"]) for m in map(_CHECK.fullmatch, self.lines) if m]
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise self.failure("a check is missing")
        return self.passed

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command; a name's underscores stand for dashes."""
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        return await self.qmp.execute(command, names or None)

    async def save(self, path: Path) -> None:
        """Write the stopped machine into a file."""
        await self.execute("migrate", uri=f"file:{path}")
        await self._migrated()

    async def load(self, path: Path) -> None:
        """Load what :meth:`save` wrote into a machine started with ``incoming=True``."""
        await self.execute("migrate-incoming", uri=f"file:{path}")
        await self._migrated()

    async def _migrated(self) -> None:
        async with asyncio.timeout(SILENCE):
            while True:
                info = await self.execute("query-migrate")
                if info.get("status") == "completed":
                    return
                if info.get("status") in ("failed", "cancelled"):
                    raise self.failure(f"migration: {info.get('error-desc', info)}")
                await asyncio.sleep(0.01)

    async def job(self, command: str, **arguments: Any) -> None:
        """Run a QMP command that is a job (``snapshot-save``) to its end."""
        await self.execute(command, job_id="job", **arguments)
        async with asyncio.timeout(SILENCE):
            while True:
                (info,) = await self.execute("query-jobs")
                if info["status"] == "concluded":
                    break
                await asyncio.sleep(0.01)
        await self.execute("job-dismiss", id="job")
        if "error" in info:
            raise self.failure(f"{command}: {info['error']}")


class Programs:
    """The compiled programs and the QEMU that runs them; one for a test session."""

    def __init__(self, qemu: Path, folder: Path) -> None:
        """Keep the ELF files and sockets in ``folder``."""
        self.qemu = qemu
        self.folder = folder
        self._built: dict[int, Path] = {}
        self._count = 0

    def program(self, bits: int) -> Path:
        """Return the ELF file; compiles it once."""
        if bits not in self._built:
            self._built[bits] = build(self.folder, bits=bits)
        return self._built[bits]

    @contextlib.asynccontextmanager
    async def start(self, setup: Setup, *, incoming: bool = False) -> AsyncIterator[Run]:
        """Start a machine, which is killed at the end of the block."""
        self._count += 1
        folder = self.folder / f"run-{self._count}"
        folder.mkdir()
        # Names of sockets are short; those of test folders are not.
        near = Path(os.path.relpath(folder))  # noqa: ASYNC240 - reads no disk
        console: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            console.set_result(reader)

        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_unix_server(connected, near / "out")
        qmp = QMPClient("guest")
        await qmp.start_server(str(near / "qmp"))
        args = setup.command_line(self.qemu, self.program(setup.bits), near / "out", near / "qmp")
        # -S until the events are listened to; then no STOP or RESET is missed.
        args += ["-incoming", "defer"] if incoming else ["-S"]
        child = await Child.start("QEMU", args, folder / "qemu.log")
        try:
            accept = asyncio.create_task(qmp.accept())
            done, _ = await asyncio.wait(
                {accept, child.ended}, timeout=SILENCE, return_when="FIRST_COMPLETED"
            )
            if accept not in done:
                accept.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await accept
                raise GuestFailed(f"QEMU does not start: {child.last_words()}")
            events = EventListener()
            with qmp.listen(events):
                run = Run(child, qmp, await asyncio.wait_for(console, SILENCE), events)
                if not incoming:
                    await run.resume()
                yield run
        finally:
            await child.kill()
            with contextlib.suppress(Exception):
                await qmp.disconnect()
            for writer in writers:
                writer.close()
            server.close()
            await server.wait_closed()

    async def passes(self, setup: Setup) -> list[str]:
        """Run a program to its end and return its lines; all its checks have to pass."""
        async with self.start(setup) as run:
            await run.ended()
            return run.lines


def without(flags: Iterable[str], *names: str) -> tuple[str, ...]:
    """Return the flags without these, each given with its ``hv-``."""
    return tuple(flag for flag in flags if flag.partition("=")[0] not in names)
