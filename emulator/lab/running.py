# SPDX-License-Identifier: MIT
"""A machine that runs until it is told to end: what is behind ``vmbus run``.

The process that started the machine owns it: QEMU and the backend die with it. It takes commands at
a socket in the machine's folder, by which ``vmbus snapshot`` and ``vmbus stop`` reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from qemu.qmp import QMPError

from emulator.machine.config import MachineConfig
from emulator.machine.control import ControlClient, ControlError, ControlServer
from emulator.machine.process import ProcessDied
from emulator.machine.snapshot import SnapshotError
from emulator.machine.sockets import listen
from emulator.machine.store import MachineStore, StoreError
from emulator.machine.vm import VirtualMachine

GRACE: Final = 20.0
"""Seconds that a guest has to shut down by itself before QEMU is ended."""

_LAST_EVENT: Final = 1.0
"""Seconds for what QEMU has said before it ended to be read."""


class Cause(StrEnum):
    """Why a run ended."""

    GUEST = "the guest powered off"
    RESET = "the guest ended in a reset"
    ASKED = "stopped as asked"
    FORCED = "stopped; the guest did not shut down by itself"
    PANIC = "the guest crashed"


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended; ``detail`` is what a crashed guest said of it."""

    cause: Cause
    detail: str = ""


class RunningMachine:
    """One run in the foreground. Use :meth:`run`."""

    def __init__(
        self,
        config: MachineConfig,
        store: MachineStore,
        qemu: Path,
        *,
        tap: Callable[[bytes], None] | None = None,
        grace: float = GRACE,
    ) -> None:
        """Prepare; ``tap`` gets what the guest's console prints, ``grace`` is in seconds."""
        self._store = store
        self._grace = grace
        self.vm = VirtualMachine(config, qemu=qemu, logs=store.logs)
        self.vm.console.tap = tap
        self._stops = 0
        self._news = asyncio.Event()
        self._saving = asyncio.Lock()

    async def run(self, snapshot: Path | None, started: Callable[[], None]) -> End:
        """Boot or restore, call ``started``, and return when the machine has ended.

        The caller holds the store's lock. Raises what booting and restoring raise, and
        :class:`ProcessDied` if QEMU or the backend ends for no reason of the guest's or ours.
        """
        async with self.vm, contextlib.AsyncExitStack() as stack:
            if snapshot is None:
                await self.vm.boot()
            else:
                await self.vm.restore(snapshot)
            events = stack.enter_context(self.vm.events("SHUTDOWN", "GUEST_PANICKED"))
            sock = stack.enter_context(listen(self._store.control, 0o600))
            stack.callback(self._store.control.unlink, missing_ok=True)
            server = await ControlServer(self._command).listen(sock)
            stack.callback(server.close)
            stopping = asyncio.create_task(self._stop_when_asked())
            stack.callback(stopping.cancel)
            started()
            return await self._end(events, stopping)

    def stop(self) -> None:
        """Ask the guest to power off; the second time, end QEMU at once."""
        self._stops += 1
        self._news.set()

    async def save(self, name: str, *, stop: bool) -> dict[str, Any]:
        """Save the machine under a name; it goes on afterwards, or ends with ``stop``.

        Raises SnapshotError and StoreError; the guest goes on then.
        """
        folder = self._store.snapshot(name)
        async with self._saving:
            manifest = await self.vm.save(folder, resume=not stop)
        if stop:
            self._stops += 2
            self._news.set()
        return {
            "folder": str(folder),
            "bytes": sum(entry.size for entry in manifest.files.values()),
        }

    async def _end(self, events: Any, stopping: asyncio.Task[bool]) -> End:
        panic = ""
        while True:
            try:
                event = await self.vm.watch(events.get())
            except ProcessDied as died:
                # QEMU tells why it ends and ends: the second can be noticed first.
                try:
                    async with asyncio.timeout(_LAST_EVENT):
                        event = await events.get()
                except TimeoutError:
                    raise died from None
            data: Any = event["data"]
            if event["event"] == "GUEST_PANICKED":
                panic = _panic_words(data.get("info"))
                continue
            await self._reaped()
            match data["reason"]:
                case "guest-panic":
                    return End(Cause.PANIC, panic)
                case "guest-reset":
                    return End(Cause.RESET)
                case "host-qmp-quit":
                    forced = stopping.done() and not stopping.cancelled() and stopping.result()
                    return End(Cause.FORCED if forced else Cause.ASKED)
                case _:
                    return End(Cause.ASKED if self._stops else Cause.GUEST)

    async def _reaped(self) -> None:
        if self.vm.qemu_child is not None:
            await asyncio.wait({self.vm.qemu_child.ended}, timeout=self._grace)

    async def _stop_when_asked(self) -> bool:
        """Power off and quit, as asked; returns whether the guest had to be ended."""
        await self._more_than(0)
        with contextlib.suppress(QMPError, ProcessDied):
            if self._stops == 1:
                await self.vm.qmp("system_powerdown")
        forced = self._stops == 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                await self._more_than(1)
        with contextlib.suppress(QMPError, ProcessDied):
            await self.vm.qmp("quit")
        return forced

    async def _more_than(self, stops: int) -> None:
        while self._stops <= stops:
            self._news.clear()
            await self._news.wait()

    async def _command(self, command: str, args: dict[str, Any]) -> Any:
        try:
            match command:
                case "save":
                    return await self.save(str(args["name"]), stop=bool(args.get("stop")))
                case "stop":
                    if args.get("now"):
                        self.stop()
                    self.stop()
                    return None
                case _:
                    raise ControlError(f"unknown command {command!r}; there are: save, stop")
        except (SnapshotError, StoreError, ProcessDied) as error:
            raise ControlError(str(error)) from error
        except KeyError as error:
            raise ControlError(f"{command}: {error.args[0]} is missing") from error


def _panic_words(info: Any) -> str:
    """Say in words what QEMU knows of a guest's crash (qapi/run-state.json)."""
    if not info or info.get("type") != "hyper-v":
        return ""
    numbers = ", ".join(f"{info[f'arg{index}']:#x}" for index in range(1, 6))
    return f"Hyper-V crash parameters {numbers}"


async def ask(store: MachineStore, command: str, **args: Any) -> Any:
    """Give a command to the process that runs a machine.

    Raises :class:`StoreError` if none does, and ControlError with its reason.
    """
    try:
        client = await ControlClient.connect(store.control)
    except OSError as error:
        raise StoreError(f"machine {store.name} is not running (vmbus run)") from error
    try:
        return await client.call(command, **args)
    finally:
        await client.close()
