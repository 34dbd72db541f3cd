# SPDX-License-Identifier: MIT
"""One virtual machine: its QEMU, its VMBus backend, its console, its snapshots.

A machine is booted or restored, used, saved, and killed; every run is new processes. QEMU is
driven by QMP; the backend by its control socket. The death of either child ends whatever is
waited for, with the child's last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib.metadata
import sys
import tempfile
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from emulator.machine.config import Accel, MachineConfig
from emulator.machine.console import Console
from emulator.machine.control import ControlClient, ControlError, ControlGone
from emulator.machine.process import Child, ProcessDied
from emulator.machine.qemu import QemuError, Sockets, check_qemu, choose_accel, command_line
from emulator.machine.snapshot import (
    STATE,
    Draft,
    FileEntry,
    Machine,
    Manifest,
    SnapshotError,
    check_machine,
    damage,
    file_entry,
    read_manifest,
)
from emulator.machine.sockets import listen

T = TypeVar("T")

_BANDWIDTH: Final = 1 << 40
"""Bytes per second for a migration to a file: QEMU's default of 128 MiB/s is for networks."""

_REAP_SECONDS: Final = 5.0


class VirtualMachine:
    """One run of a machine. Use as an async context manager; leaving it kills what runs."""

    def __init__(self, config: MachineConfig, *, qemu: Path, logs: Path) -> None:
        """Prepare a run of ``config``; logs of the run go to the folder ``logs``.

        Raises :class:`~emulator.machine.qemu.QemuError` if QEMU or the accelerator will not do.
        """
        self.config = config
        self.accel: Accel = choose_accel(config.accel)
        self._qemu = qemu
        self._logs = logs
        self._runtime: tempfile.TemporaryDirectory[str] | None = None
        self.console = Console(logs / "console.log")
        self._qmp = QMPClient(config.name)
        self._control: ControlClient | None = None
        self.qemu_child: Child | None = None
        self.backend_child: Child | None = None

    async def __aenter__(self) -> VirtualMachine:
        """Make the runtime folder."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._runtime = tempfile.TemporaryDirectory(prefix="vmbus-")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill what runs and remove the runtime folder."""
        await self.kill()
        if self._runtime is not None:
            self._runtime.cleanup()

    # Life.

    async def boot(self) -> None:
        """Start the machine; returns when QEMU runs the guest."""
        await self._spawn(incoming=False)

    async def restore(self, folder: Path) -> None:
        """Start the machine from a snapshot; returns when the guest runs.

        Raises :class:`SnapshotError` before the guest runs if anything is amiss; the snapshot is
        not changed.
        """
        manifest = read_manifest(folder)
        check_machine(
            manifest,
            Machine.of(self.config, self.accel),
            await _version(self._qemu),
            devices_may_differ=self.config.devices_may_differ,
        )
        # The checksums are compared while QEMU loads, and are known before the guest runs.
        verdict = asyncio.create_task(asyncio.to_thread(damage, folder, manifest))
        try:
            failure = await self.load_state(folder / STATE)
        except ProcessDied as error:
            failure = str(error)
        except BaseException:
            verdict.cancel()
            raise
        if wrong := await verdict:
            raise SnapshotError(wrong)
        if failure:
            raise SnapshotError(f"{folder} cannot be restored: {failure}")
        await self.qmp("cont")

    async def save(self, folder: Path, *, resume: bool = False) -> Manifest:
        """Stop the guest and save it to ``folder``, which must not exist.

        On failure nothing is left on disk and the guest runs on; on success it stays stopped unless
        ``resume``. Raises :class:`SnapshotError`.
        """
        with Draft(folder) as draft:
            await self.qmp("stop")
            try:
                if failure := await self.write_state(draft.path / STATE):
                    raise SnapshotError(
                        f"the machine could not be saved: {failure}{await self._undrained()}"
                    )
                manifest = await asyncio.to_thread(self._manifest, draft.path)
                draft.publish(manifest)
            except (SnapshotError, OSError) as error:
                with contextlib.suppress(QMPError, ProcessDied):
                    await self.qmp("cont")
                if isinstance(error, OSError):
                    raise SnapshotError(f"cannot write {folder}: {error.strerror}") from error
                raise
            if resume:
                await self.qmp("cont")
            return manifest

    async def _undrained(self) -> str:
        """Return what the backend still waits for, as the end of a message; empty if nothing."""
        with contextlib.suppress(ControlError, ProcessDied):
            if waits := (await self.control("status")).get("undrained"):
                return f"; not completed: {', '.join(waits)}"
        return ""

    async def kill(self) -> None:
        """Kill QEMU and the backend with SIGKILL."""
        # A QEMU that has ended by itself is an EOFError here, or a reset connection.
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._qmp.disconnect()
        if self._control is not None:
            await self._control.close()
            self._control = None
        for child in (self.qemu_child, self.backend_child):
            if child is not None:
                await child.kill()
        await self.console.close()

    async def _spawn(self, *, incoming: bool) -> None:
        assert self._runtime is not None, "use the machine as a context manager"
        sockets = Sockets.under(Path(self._runtime.name))
        await self.console.listen(sockets.console)
        await self._qmp.start_server(str(sockets.qmp))
        if self.config.vmbus:
            await self._spawn_backend(sockets)
        args = command_line(self._qemu, self.config, sockets, accel=self.accel, incoming=incoming)
        try:
            self.qemu_child = await Child.start("QEMU", args, self._logs / "qemu.log")
        except OSError as error:
            raise QemuError(f"cannot start {self._qemu}: {error.strerror}") from error
        try:
            await self.watch(self._qmp.accept())
        except ProcessDied as error:
            # Most often an option this QEMU does not know: say which piece is missing.
            check_qemu(self._qemu)
            raise error

    async def replace_backend(self) -> None:
        """Start a new backend when the one before has died; the guest runs on meanwhile.

        QEMU finds it if its chardev has ``reconnect-ms``. A guest that was connected to the bus has
        to be reset, or to load its bus driver anew: a new backend knows nothing of it.
        """
        assert self._runtime is not None, "use the machine as a context manager"
        if self._control is not None:
            await self._control.close()
            self._control = None
        if self.backend_child is not None:
            await self.backend_child.kill()
        await self._spawn_backend(Sockets.under(Path(self._runtime.name)))

    async def _spawn_backend(self, sockets: Sockets) -> None:
        # The sockets are made here: QEMU can connect while the backend is still starting.
        vmbus, control = listen(sockets.vmbus), listen(sockets.control, 0o600)
        config = Path(sockets.vmbus).with_name("backend.json")
        config.write_bytes(msgspec.json.encode(self.config.host))
        args = [sys.executable, "-m", "emulator.machine", f"--fd={vmbus.fileno()}"]
        args += [f"--control-fd={control.fileno()}", f"--config={config}"]
        with vmbus, control:
            self.backend_child = await Child.start(
                "the VMBus backend",
                args,
                self._logs / "backend.log",
                (vmbus.fileno(), control.fileno()),
            )
        self._control = await ControlClient.connect(sockets.control)

    # Work.

    async def watch(self, work: Awaitable[T]) -> T:
        """Await ``work``; raises :class:`ProcessDied` as soon as a child ends."""
        task = asyncio.ensure_future(work)
        children = [child for child in (self.qemu_child, self.backend_child) if child is not None]
        ends = {child.ended: child for child in children}
        try:
            await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # wait() leaves it running, and nobody would hear how it ended.
            task.cancel()
            raise
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, QMPError, ControlError):
                await task
            raise next(child for end, child in ends.items() if end.done()).obituary()
        return task.result()

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command; raises QMPError or :class:`ProcessDied`."""
        names = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await self.watch(self._qmp.execute(command, names or None))

    async def plug_dimm(self, size_mib: int) -> None:
        """Plug a DIMM into the running machine; a snapshot is of a machine that has it.

        Raises qemu.qmp's ExecuteError with QEMU's reason.
        """
        number = len(self.config.dimms)
        config = msgspec.structs.replace(self.config, dimms=(*self.config.dimms, size_mib))
        await self.qmp(
            "object-add",
            qom_type="memory-backend-memfd",
            id=f"dimm{number}",
            size=size_mib << 20,
            share=True,
        )
        await self.qmp("device_add", driver="pc-dimm", id=f"slot{number}", memdev=f"dimm{number}")
        self.config = config

    async def control(self, command: str, **args: Any) -> Any:
        """Run a command of the backend; raises ControlError or :class:`ProcessDied`."""
        if self._control is None:
            raise ControlError("the machine has no VMBus backend")
        try:
            return await self.watch(self._control.call(command, **args))
        except ControlGone:
            # The socket closes a moment before the child can be reaped: tell how it ended.
            if self.backend_child is not None:
                await asyncio.wait({self.backend_child.ended}, timeout=_REAP_SECONDS)
                if self.backend_child.ended.done():
                    raise self.backend_child.obituary() from None
            raise

    def events(self, *names: str) -> AbstractContextManager[EventListener]:
        """Listen to the QMP events of these names while in the context."""
        return self._qmp.listener(names)

    async def give_fd(self, name: str, fd: int) -> None:
        """Give QEMU a duplicate of a file descriptor, for commands that take ``fd:name``."""
        self._qmp.send_fd_scm(fd)
        await self.qmp("getfd", fdname=name)

    async def write_state(self, target: Path | str) -> str:
        """Write QEMU's stream of a stopped machine; returns why it failed, or the empty string.

        The bare step of :meth:`save`, without manifest and checksums. ``target`` is a file or
        an address in QEMU's manner, such as ``fd:name``.
        """
        await self.qmp("migrate-set-parameters", max_bandwidth=_BANDWIDTH)
        uri = f"file:{target}" if isinstance(target, Path) else target
        return await self._migration("migrate", uri)

    async def load_state(self, file: Path) -> str:
        """Start new processes and load QEMU's stream; returns why it failed, or the empty string.

        The bare step of :meth:`restore`; the guest does not run yet.
        """
        await self._spawn(incoming=True)
        return await self._migration("migrate-incoming", f"file:{file}", exit_on_error=False)

    async def _migration(self, command: str, uri: str, **arguments: Any) -> str:
        await self.qmp(
            "migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}]
        )
        with self.events("MIGRATION") as events:
            try:
                await self.qmp(command, uri=uri, **arguments)
            except ExecuteError as error:
                return str(error)
            while True:
                event = await self.watch(events.get())
                data: Any = event["data"]
                match data["status"]:
                    case "completed":
                        return ""
                    case "failed" | "cancelled":
                        return await self._migration_error()
                    case _:
                        continue

    async def _migration_error(self) -> str:
        try:
            info = await self.qmp("query-migrate")
        except ProcessDied as error:
            return str(error)
        words = self.qemu_child.last_words() if self.qemu_child else ""
        return "; ".join(filter(None, (info.get("error-desc", ""), words))) or "no reason given"

    def _manifest(self, folder: Path) -> Manifest:
        return Manifest(
            format=1,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            tool=importlib.metadata.version("vmbus-emulator"),
            qemu=check_qemu(self._qemu),
            machine=Machine.of(self.config, self.accel),
            kernel=_optional(self.config.kernel),
            initramfs=_optional(self.config.initramfs),
            files={STATE: file_entry(folder / STATE)},
        )


def _optional(path: Path | None) -> FileEntry | None:
    return None if path is None else file_entry(path)


async def _version(qemu: Path) -> str:
    return await asyncio.to_thread(check_qemu, qemu)
